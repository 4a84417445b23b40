"""Tests of README.md and docs/USAGE.md: examples run, commands are accepted, names exist.

    python -m pytest -q tests/test_readme.py
"""
import json
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

import alpha
import augment
import data
import datasets
import evaluate
import figures
import losses
import metrics
import models
import study
import train
from data import DATASETS
from methods import mlp
from run import read_log
from tests.helpers import ROOT, close, random_images, save_images

README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "USAGE.md").read_text(encoding="utf-8")
OTHER_CODE = (ROOT / "docs" / "IN_OTHER_CODE.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"```python\n(.*?)```", re.S)
PROSE = EXAMPLE.sub("", f"{README}\n{USAGE}".replace(" \\\n", " "))
LINES = re.findall(r"^    (\S.*)$", PROSE, re.M)                # indented: typed, or printed
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]


def example(word, document=README):
    """A document's one Python example with this word in it."""
    code, = [code for code in EXAMPLE.findall(document) if word in code]
    return code


# --- examples -----------------------------------------------------------------------------------

def demo_command():
    """The flags of `make demo`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r"train\.py ((.*\\\n)*.*)", makefile)[1].replace("\\", "").split()


def test_the_loss_example_runs():
    """With 8 images instead of 64."""
    scope = {}
    code = example("from losses import adadim")
    exec(code.replace("(2, 64, 3, 32, 32)", "(2, 8, 3, 32, 32)"), scope)
    assert scope["loss"].isfinite() and 0 < scope["alpha"] < 1


def test_the_encoder_example_runs(monkeypatch):
    """On the encoder that comes with the repository."""
    monkeypatch.chdir(ROOT)
    scope = {}
    exec(example("load_encoder", USAGE), scope)
    mean, std = (torch.tensor(scope["facts"][name]).view(3, 1, 1) for name in ("mean", "std"))
    r = scope["net"].eval()((scope["images"] - mean) / std)
    assert torch.allclose(scope["r"], r, rtol=1e-3, atol=1e-3)


def test_the_encoder_that_comes_with_it_classifies(monkeypatch):
    """Its card's code, on noise: a name of CIFAR-100's classes for each image."""
    monkeypatch.chdir(ROOT)
    card = (ROOT / "docs" / "assets" / "encoder" / "README.md").read_text(encoding="utf-8")
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    scope = {"images": images}
    exec(example("probe.pt", card), scope)
    assert len(scope["names"]) == 3 and len(set(scope["classes"])) == 100
    assert 0 < scope["r"].std() < 10


def test_a_method_of_ones_own_trains(tmp_path):
    """In a file of its own, started as the README shows, at the demo's size and with the default
    optimiser; its columns are logged. A loss that explodes does so within four steps there."""
    (tmp_path / "spectral.py").write_text(example("class Spectral", USAGE))
    assert any(span.startswith("python spectral.py --method spectral --dataset") for span in SPANS)
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = demo_command()
    flags = ("--dataset", "--arch", "--width", "--projector", "--batch-size")
    same = [word for flag in flags for word in (flag, words[words.index(flag) + 1])]
    short = "--limit-train 2560 --epochs 2 --eval-every 2 --device cpu --out".split()
    subprocess.run([sys.executable, tmp_path / "spectral.py", "--method", "spectral", *same, *short,
                    out], check=True, env=environment)
    log = read_log(out / "log.csv")
    assert log["loss"][1] < log["loss"][0] - 0.1
    assert all(math.isfinite(value) for value in log["repulsion"])
    assert json.loads((out / "config.json").read_text())["flags"]["--method"] == "spectral"


# --- docs/IN_OTHER_CODE.md ------------------------------------------------------------------------

class MinimalLightning(torch.nn.Module):
    """Stands in for LightningModule, which the tests do not install: the names that we use."""
    current_epoch = 0
    trainer = types.SimpleNamespace(num_training_batches=3)

    def all_gather(self, x, sync_grads):
        return x                        # of one process

    def log_dict(self, values):
        self.logged = {name: value.item() for name, value in values.items()}


def fit(module, batches, epochs):
    """Stands in for Lightning's Trainer."""
    optimizer = module.configure_optimizers()
    for module.current_epoch in range(epochs):
        module.on_train_epoch_start()
        for index, batch in enumerate(batches):
            def closure():
                optimizer.zero_grad()
                loss = module.training_step(batch, index)
                loss.backward()
                return loss
            optimizer.step(closure)
        module.on_train_epoch_end()


def minimal_head(input_dim, hidden_dim, output_dim):
    """Stands in for lightly's VICRegProjectionHead."""
    return mlp(input_dim, f"{hidden_dim}-{output_dim}")


def minimal_transform(input_size):
    """Stands in for lightly's VICRegTransform: a PIL image → a list of two views."""
    def two_views(image):
        x = pil_to_tensor(image.resize((input_size, input_size))) / 255
        return [x, x + 0.1 * torch.rand_like(x)]

    return two_views


def small_problem():
    """Networks and three batches of two views and labels, the same at each call."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 24), torch.nn.ReLU())
    projector = torch.nn.Linear(24, 12)
    x = torch.rand(3, 16, 3, 8, 8)
    batches = [((images, images + 0.1 * torch.rand_like(images)), None) for images in x]
    return {"encoder": encoder, "projector": projector, "batches": batches, "epochs": 5}


def soon(code):
    """α after every second epoch instead of every twentieth."""
    return code.replace("alpha = MeasuredAlpha()", "alpha = MeasuredAlpha(every=2)")


def test_the_plain_loop_and_the_lightning_module_train_alike(monkeypatch):
    """And α is the mean over the last epoch that measured it."""
    scope = small_problem()
    exec(soon(example("for epoch in", OTHER_CODE)), scope)
    assert 0 < scope["alpha"].value <= 1

    lightning = types.ModuleType("lightning")
    lightning.LightningModule = MinimalLightning
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    problem = small_problem()
    own = {}
    exec(soon(example("LightningModule", OTHER_CODE)), own)
    module = own["AdaDim"](problem["encoder"], problem["projector"])
    fit(module, problem["batches"], problem["epochs"])
    close(module.alpha.value, scope["alpha"].value, 1e-5)
    close(module.logged["loss"], scope["loss"].item(), 1e-5)
    assert "alpha.value" in module.state_dict()


def test_lightlys_heads_give_what_the_loop_takes(tmp_path, monkeypatch):
    save_images(tmp_path / "my_images" / "one_class", random_images(4, 16))
    for name, attributes in {"lightly.models.modules.heads": {"VICRegProjectionHead": minimal_head},
                             "lightly.transforms": {"VICRegTransform": minimal_transform}}.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**attributes))
    for name in ("lightly", "lightly.models", "lightly.models.modules"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.chdir(tmp_path)
    scope = {"epochs": 1}
    exec(example("VICRegTransform", OTHER_CODE).replace("batch_size=256", "batch_size=4"), scope)
    exec(example("for epoch in", OTHER_CODE), scope)
    assert scope["r1"].shape == (4, 512) and scope["z1"].shape == (4, 2048)
    assert scope["loss"].isfinite()


# --- commands -----------------------------------------------------------------------------------

def parse_study(words):
    """As study.py does before it trains: its own flags, then those of each run."""
    args, common = study.parse_args(words)
    for flags in study.runs(args.studies, args.seeds, args.methods).values():
        train.parse_args([*common, *flags])


PARSE = {"train.py": train.parse_args, "evaluate.py": evaluate.parse_args,
         "study.py": parse_study, "figures.py": figures.parse_args, "data.py": data.parse_args}


def commands():
    """{what the README shows: (script, arguments)}, without comments and ellipses."""
    shown = {}
    for text in [*LINES, *SPANS]:
        words = text.partition(" # ")[0].removesuffix("…").split()
        if len(words) > 1 and words[0] in ("python", "torchrun"):
            script = next(word for word in words if word.endswith(".py"))
            shown[text] = (script, words[words.index(script) + 1:])
    return shown


COMMANDS = commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command):
    assert {script for script, _ in COMMANDS.values()} == {*PARSE, "spectral.py"}
    script, words = COMMANDS[command]
    if "--methods" in words:                    # printed by parse_args() itself
        with pytest.raises(SystemExit) as stop:
            train.parse_args(words)
        assert not stop.value.code
    elif script != "spectral.py":               # which is trained above
        PARSE[script](words)


@pytest.mark.parametrize("flags", sorted({span for span in SPANS if span.startswith("--")}))
def test_flags_are_flags_of_a_script(flags):
    """With a value they are accepted by train.py; those alone lack theirs, and are looked up."""
    words = flags.split()
    if len(words) == 1:
        assert any(f'"{flags}"' in (ROOT / name).read_text() for name in ("train.py", "study.py"))
    elif words[0] == "--set":
        train.parse_args(["--method", "nnclr", *words])
    else:
        train.parse_args(words)


def test_the_demo_ends_with_a_command_that_works():
    """As copied: with the Python that make used, whether or not .venv is active."""
    dry = subprocess.check_output(["make", "-n", "-C", ROOT, f"PYTHON={sys.executable}", "demo"],
                                  text=True)
    last = [line for line in dry.splitlines() if "next:" in line][-1]
    python, script, *words = last.partition("next: ")[2].strip('"').split()
    assert python == sys.executable and PARSE[script](words).run == Path("runs/demo")


# --- names --------------------------------------------------------------------------------------

def test_files_and_links_exist():
    for folder, document in ((ROOT, README), (ROOT / "docs", USAGE)):
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", document)
        assert all((folder / link).exists() for link in links if not link.startswith("http"))
    named = {span for span in SPANS if re.fullmatch(r"[\w/]+(\.py|/)", span)} - {"spectral.py"}
    assert len(named) > 20
    assert all((ROOT / name).exists() for name in named)


def test_readme_is_short_and_counts_the_files_lines():
    """To a twentieth: the counts need not change with every commit."""
    lines = README.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    counts = re.findall(r"^\| `([\w.]+/?)` \| (\d+) \|", README, re.M)
    files = {path.name for path in ROOT.glob("*.py")}
    assert {name for name, _ in counts} == files | {"baselines/"}
    for name, count in counts:
        files = [ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py")
        real = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
        assert int(count) == pytest.approx(real, rel=0.05)


def test_functions_and_datasets_exist():
    modules = {module.__name__: module for module in (losses, metrics, alpha, models, datasets,
                                                      augment)}
    functions = [span.split(".") for span in SPANS
                 if re.fullmatch(r"\w+\.(?!py|pt|json)\w+", span)]
    assert len(functions) > 8
    assert all(hasattr(modules[module], name) for module, name in functions)
    assert all(name in PROSE for name in DATASETS)
