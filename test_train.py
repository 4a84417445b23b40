"""Tests of augment.py, models.py and train.py: images and augmentations against oracles, and whole runs, end to end.

    python -m pytest -q test_train.py
"""
import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as tvf

import augment as augmentation
import shapes
import train
from metrics import knn_accuracy, read_log
from models import encode, mlp, resnet

HERE = Path(__file__).parent
TINY = ("--dataset shapes --arch resnet18 --width 2 --projector 16-16 --limit-train 256 --batch-size 64 --alpha-every 2 "
        "--epochs 4 --eval-every 2 --device cpu").split()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def save_images(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:05}.png")


def shapes_folder(root, names, n_train, n_test, size):
    """Drawn shapes of some classes as an image folder."""
    x, y = shapes.draw_shapes((n_train + n_test) * len(shapes.SHAPES) * 2 // len(names), generator(), size)
    for name in names:
        images = x[y == shapes.SHAPES.index(name)]
        save_images(root / "train" / name, images[:n_train // len(names)])
        save_images(root / "test" / name, images[n_train // len(names):(n_train + n_test) // len(names)])


def run(*flags):
    """train.py's main, in this process: its exit status, 0 where it returns."""
    try:
        train.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code
    return 0


# --- images -------------------------------------------------------------------------------------------------------------

def test_shapes_are_fixed_by_the_seed_and_hard_for_raw_pixels():
    a, b, c = shapes.load_shapes(3000, 500), shapes.load_shapes(3000, 500), shapes.load_shapes(3000, 500, seed=1)
    assert torch.equal(a["train_x"], b["train_x"]) and torch.equal(a["test_y"], b["test_y"])
    assert not torch.equal(a["train_x"], c["train_x"])
    assert a["train_y"].bincount().min() > 200      # 300 expected of each
    pixels, test = (a[key].flatten(1).double() / 255 - 0.5 for key in ("train_x", "test_x"))
    ridge = torch.linalg.solve(pixels.T @ pixels + 100 * torch.eye(3072), pixels.T @ torch.eye(10).double()[a["train_y"]])
    assert ((test @ ridge).argmax(1) == a["test_y"]).double().mean() < 0.2
    assert knn_accuracy(pixels, a["train_y"], test, a["test_y"]) < 35


def test_colours_and_blur_equal_torchvisions():
    x, ones = torch.rand(4, 3, 32, 32, generator=generator()), torch.ones       # a draw of 1 is the strongest change
    assert torch.allclose(augmentation.colour_jitter(x, (0.4, 0, 0, 0), ones), tvf.adjust_brightness(x, 1.4), atol=2e-3)
    assert torch.allclose(augmentation.colour_jitter(x, (0, 0.4, 0, 0), ones), tvf.adjust_contrast(x, 1.4), atol=2e-3)
    assert torch.allclose(augmentation.colour_jitter(x, (0, 0, 0.4, 0), ones), tvf.adjust_saturation(x, 1.4), atol=2e-3)
    assert torch.allclose(augmentation.colour_jitter(x, (0, 0, 0, 0.2), ones), tvf.adjust_hue(x, 0.2), atol=1e-4)
    assert torch.allclose(augmentation.shift_hue(x, torch.full((4, 1, 1), -0.3)), tvf.adjust_hue(x, -0.3), atol=1e-4)
    assert torch.allclose(augmentation.gaussian_blur(x, torch.full((4, 1, 1, 1), 1.3)), tvf.gaussian_blur(x, [13, 13], [1.3, 1.3]), atol=1e-5)


def test_crop_equals_torchvisions():
    x = torch.rand(2, 3, 32, 32, generator=generator())
    draw = lambda *shape: torch.zeros(*shape)       # with this: the top left quarter, flipped (0 < flip_p)
    ours = augmentation.random_resized_crop(x, (0.25, 0.25), draw, ratio=(1, 1))
    theirs = tvf.resized_crop(x, 0, 0, 16, 16, [32, 32], antialias=False).flip(3)
    assert torch.allclose(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=1e-5)       # the border sees its neighbours


def test_crops_have_the_right_sizes_and_differ():
    """Crops of an image whose red is x and whose green is y, from which each crop's box can be read."""
    axis = torch.linspace(0, 1, 64)
    image = torch.stack([axis.expand(64, 64), axis[:, None].expand(64, 64), torch.zeros(64, 64)])
    g = generator()
    crops = augmentation.random_resized_crop(image.expand(2000, 3, 64, 64), (0.2, 1), lambda *shape: torch.rand(*shape, generator=g))
    width, height = crops[:, 0, 0, -1] - crops[:, 0, 0, 0], crops[:, 1, -1, 0] - crops[:, 1, 0, 0]
    assert 0.45 < (width < 0).double().mean() < 0.55        # flips
    area, ratio = (width.abs() * height), width.abs() / height
    assert 0.17 < area.min() < 0.22 and area.max() > 0.95
    assert 0.72 < ratio.min() < 0.80 and 1.25 < ratio.max() < 1.38
    assert crops.flatten(1).unique(dim=0).shape[0] == 2000


def test_views_are_independent_and_repeatable():
    image = shapes.load_shapes(1, 1)["train_x"].expand(64, 3, 32, 32)
    for recipe in augmentation.AUGMENTATIONS:
        first, second = (augmentation.augment(image, recipe, view, g) for g in [generator()] for view in (0, 1))
        both = torch.cat([first, second])
        assert both.flatten(1).unique(dim=0).shape[0] == 128 and both.min() >= 0 and both.max() <= 1
        assert torch.equal(first, augmentation.augment(image, recipe, 0, generator()))


def test_solarise_follows_the_view():
    white = torch.full((500, 3, 8, 8), 255, dtype=torch.uint8)       # jitter keeps it above 0.6; solarised, it is below 0.4
    dark = [(augmentation.augment(white, "byol", view, generator()).amax((1, 2, 3)) < 0.5).double().mean() for view in (0, 1)]
    assert dark[0] == 0 and 0.14 < dark[1] < 0.26


# --- networks -----------------------------------------------------------------------------------------------------------

def test_encoder_is_torchvisions():
    torch.manual_seed(0)
    ours, p = resnet("resnet18", 64, "imagenet")
    theirs = torchvision.models.resnet18()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 96, 96)
    assert p == 512 and torch.equal(ours.eval()(x), theirs.eval()(x))


def test_encode_uses_frozen_batch_norms():
    torch.manual_seed(0)
    net, _ = resnet("resnet18", 2)
    images = shapes.load_shapes(40, 1)["train_x"]
    net(augmentation.normalise(images, [0.5] * 3, [0.2] * 3))       # moves the running statistics
    before = {key: value.clone() for key, value in net.state_dict().items()}
    settings = dict(mean=[0.5] * 3, std=[0.2] * 3)
    whole, = encode(images, net, **settings)
    parts = torch.cat([encode(part, net, **settings)[0] for part in images.split(7)])
    assert torch.allclose(whole, parts, atol=1e-5) and net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("arch, width, size, p", [("resnet18", 64, 32, 512), ("resnet18", 5, 32, 40), ("resnet50", 3, 28, 96),
                                                  ("resnet50", 4, 96, 128)])
def test_widths_and_stems(arch, width, size, p):
    net, out = resnet(arch, width, "small" if size <= 64 else "imagenet")
    strides = []
    net.layer1.register_forward_pre_hook(lambda module, inputs: strides.append(size // inputs[0].shape[-1]))
    r = net(torch.randn(2, 3, size, size))
    assert out == p and r.shape == (2, p) and r.min() >= 0 and strides == [1 if size <= 64 else 4]
    assert mlp(p, "7-9-11")(r).shape == (2, 11) and len(mlp(p, "7-9-11")) == 7


# --- whole runs -----------------------------------------------------------------------------------------------------------

def test_training_learns(tmp_path, capsys):
    """AdaDim in full on small drawn shapes: accuracy rises, and beats that of the same probe on the untrained encoder."""
    shapes_folder(tmp_path, ("disc", "cross", "bar", "dots"), 4800, 800, 16)
    assert run("--dataset", "folder", "--data-dir", tmp_path, "--arch", "resnet18", "--width", 8, "--projector",
               "128-128", "--device", "cpu", "--batch-size", 64, "--epochs", 12, "--alpha-every", 2, "--baseline", "--out", tmp_path / "run") == 0
    log = read_log(tmp_path / "run" / "log.csv")
    assert log["alpha"][:2] == [0, 0] and all(0.02 < a < 0.98 for a in log["alpha"][2:])     # starts to count when measured
    assert log["alpha"][2] == log["alpha"][3] != log["alpha"][4]
    assert log["probe_top1"][-1] > log["probe_top1"][0] + 5
    before = float(re.search(r"untrained encoder: ([\d.]+) %", capsys.readouterr().out)[1])
    assert 20 < before < 40 and log["probe_top1"][-1] > before + 5
    with Image.open(tmp_path / "run" / "dynamics.png") as figure:
        assert len(figure.convert("L").getcolors(256)) > 20     # something is drawn


def equal(a, b):
    """Whether two checkpoints' values are the same, bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def rows_without_times(path):
    with open(path) as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in csv.DictReader(file)]


def test_a_killed_run_resumes_exactly(tmp_path):
    """Stopped by SIGTERM, then killed twice, at different moments: in the end the same as a run that was left alone."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = [*TINY, "--epochs", "6", "--precision", "fp32"]
    start = lambda command: subprocess.Popen([sys.executable, str(HERE / "train.py"), *command], env=environment,
                                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    whole = start([*flags, "--out", str(tmp_path / "whole")])

    cut, command = tmp_path / "cut", [*flags, "--out", str(tmp_path / "cut")]
    for epochs, number, delay in ((1, signal.SIGTERM, 0), (2, signal.SIGKILL, 0), (4, signal.SIGKILL, 0.15)):
        process = start(command)
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            log = cut / "log.csv"
            if log.exists() and log.read_text().count("\n") > epochs:
                break
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate()
        assert "\r" not in out
        if number == signal.SIGTERM:
            assert process.returncode == 143
            assert err.count("\n") == 1
            python, script, *command = shlex.split(err.split("go on with: ")[1])        # what the message says to type
            assert (python, script, command[-1]) == (sys.executable, str(HERE / "train.py"), "--resume")
    process = start(command)
    out, err = process.communicate()
    assert process.returncode == 0, err
    out, err = whole.communicate()
    assert whole.returncode == 0 and "\r" not in out and out.count("\nepoch ") == 6, err

    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(equal(a[key], b[key]) for key in ("epoch", "alpha", "config", "nets", "optimizer", "scaler"))
    assert 1 / 16 < a["alpha"] < 1      # of 16, the largest rank that z (64 × 16) can have
    assert rows_without_times(tmp_path / "whole" / "log.csv") == rows_without_times(cut / "log.csv")
    assert len(rows_without_times(cut / "log.csv")) == 6


def test_other_settings_run(tmp_path, monkeypatch, capsys):
    """Each optimiser, precision, schedule and term once; without matplotlib all but the figure is there."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = "--optimizer adamw --precision fp32 --alpha linear --w2-weight 1".split()
    assert run(*TINY, *flags, "--out", tmp_path / "a") == 0
    assert "matplotlib" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"log.csv", "last.pt", "backbone.pt"}
    log = read_log(tmp_path / "a" / "log.csv")
    assert list(log) == train.COLUMNS and log["alpha"][-1] == 1 and 0 < log["alpha"][0] < 0.3
    assert [v == v for v in log["mi"]] == [False, True, False, True]        # --eval-every 2
    flags = "--optimizer sgd --precision fp16 --alpha cosine --augment simclr --epochs 1".split()
    assert run(*TINY, *flags, "--out", tmp_path / "b") == 0
    assert run(*TINY, "--alpha", 0.25, "--beta", -1e-3, "--mi-scale", 1, "--epochs", 1, "--seed", 5, "--out", tmp_path / "c") == 0
    log = read_log(tmp_path / "c" / "log.csv")
    assert log["loss"][0] == pytest.approx(0.25 * log["info_nce"][0] + 0.75 * log["vicreg"][0] - 1e-3 * log["mi_loss"][0], rel=1e-5)


def test_labels_do_not_reach_the_encoder(tmp_path, monkeypatch):
    """With other labels the probe differs, and nothing else does; nor does it with --baseline, or another probe rate."""
    flags = [*TINY, "--epochs", 1, "--precision", "fp32"]
    assert run(*flags, "--out", tmp_path / "a") == 0
    honest = train.load
    monkeypatch.setattr(train, "load", lambda *args: {**(d := honest(*args)), "train_y": d["train_y"].flip(0)})
    assert run(*flags, "--baseline", "--out", tmp_path / "b") == 0
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["nets"] for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a if not key.startswith("probe"))
    assert not torch.equal(a["probe.weight"], b["probe.weight"])


# What each of two processes does with its half of a batch, and one with the whole; the encoder has no batch norm.
HALVES = """
import sys, torch, torch.distributed as dist
from torch import nn
import train
torch.manual_seed(0)
nets = train.Nets({"encoder": nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU()), "projector": nn.Linear(20, 12), "probe": nn.Linear(20, 3)})
views, labels = torch.randn(2, 16, 3, 4, 4), torch.randint(3, (16,))
labels[:5] = -1         # the halves have different numbers of labels
args = train.parse_args("--dataset shapes --precision fp32 --beta 2 --w2-weight 0.7".split())
model = nets
if train.WORLD > 1:
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nets)
    views, labels = views.view(2, train.WORLD, -1, 3, 4, 4)[:, train.RANK], labels.view(train.WORLD, -1)[train.RANK]
objective, logged, z = train.losses_of(model, views.flatten(0, 1), labels, torch.tensor(0.4), args)
objective.backward()
torch.save([logged[:4], z, *(p.grad for p in nets.parameters())], f"{sys.argv[1]}/{train.WORLD}-{train.RANK}.pt")
"""


def torchrun(*command, **settings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, command)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}, stderr=subprocess.PIPE, text=True, **settings)


def test_two_processes_equal_one(tmp_path):
    """Loss, the embeddings that α is measured on, and every gradient, to 1e-5."""
    (tmp_path / "halves.py").write_text(HALVES)
    process = torchrun(tmp_path / "halves.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "halves.py", tmp_path], check=True, env={**os.environ, "PYTHONPATH": str(HERE)})
    assert process.wait() == 0, process.stderr.read()
    one, first, second = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert len(one) == 8 and all(value.abs().max() > 1e-3 for value in one)
    for other in (first, second):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(one, other))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks up a process in /proc")
def test_a_process_that_dies_ends_the_run_and_another_number_resumes_it(tmp_path):
    flags = [*TINY, "--epochs", "40", "--eval-every", "40", "--lr", "0.05", "--out", tmp_path / "run"]
    process, log = torchrun(HERE / "train.py", *flags, stdout=subprocess.DEVNULL), tmp_path / "run" / "log.csv"
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not (log.exists() and log.read_text().count("\n") > 1):
        time.sleep(0.01)
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"RANK=1\0" in environment.read_bytes().replace(b"LOCAL_RANK", b"") and str(tmp_path).encode() in (environment.parent / "cmdline").read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)
        except OSError:
            pass
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and re.search(r"train.py: (another process of this run ended|stopped; go on with)", err) and "Error:" not in err.split("torch/")[0]
    done = read_log(log)["epoch"][-1]
    assert 1 <= done < 40
    assert run(*flags, "--resume") == 0
    assert read_log(log)["epoch"] == list(range(1, 41))


def test_defaults_are_the_papers():
    args = train.parse_args(["--beta", "-1e-4"])
    assert (args.dataset, args.arch, args.width, args.projector, args.augment) == ("cifar100", "resnet50", 64, "2048-2048-2048", "vicreg")
    assert (args.alpha, args.alpha_every, args.alpha_batches, args.beta, args.mi_scale, args.temperature) == ("ada", 20, 10, -1e-4, "alpha", 0.1)
    assert (args.epochs, args.batch_size, args.optimizer, args.lr, args.weight_decay, args.warmup_epochs) == (400, 256, "lars", 0.4, 1e-4, 10)
    assert train.parse_args([]).beta == 1e-4 and train.parse_args(["--epochs", "20"]).warmup_epochs == 4


def test_w2_and_warmup_count(tmp_path):
    """One step: with --w2-weight the loss grows by that much of W2, between 0 and √2; the rate is the warm-up's."""
    flags = [*TINY, "--batch-size", 256, "--epochs", 2, "--alpha", 0, "--warmup-epochs", 1, "--precision", "fp32"]
    for weight in (0, 3):
        assert run(*flags, "--w2-weight", weight, "--out", tmp_path / str(weight)) == 0
    without, log = (read_log(tmp_path / name / "log.csv") for name in ("0", "3"))
    assert 0.3 < log["loss"][0] - without["loss"][0] < 3 * 2 ** 0.5 and log["vicreg"][0] == without["vicreg"][0]
    assert log["lr"] == pytest.approx([3e-5, 0.4])


def test_a_run_is_not_lost(tmp_path, capsys):
    out, flags = tmp_path / "run", [*TINY, "--epochs", "2"]
    assert run(*flags, "--out", out) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    stopped = {
        "already holds a run": flags,
        "--beta 0.0001 there, 0.5 here": [*flags, "--resume", "--beta", 0.5],
        "--epochs 2 there, 9 here": [*flags, "--resume", "--epochs", 9],
    }
    for message, command in stopped.items():
        capsys.readouterr()
        assert run(*command, "--out", out) == 2
        assert message in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert run(*flags, "--out", out, "--resume") == 0       # finished: nothing to do, and no harm
    assert all((out / name).read_bytes() == before[out / name] for name in ("log.csv", "last.pt"))
    (out / "last.pt").write_bytes(before[out / "last.pt"][:-1000])
    capsys.readouterr()
    assert run(*flags, "--out", out, "--resume") == 2 and "is not a whole checkpoint" in capsys.readouterr().err
    (out / "last.pt").unlink()
    assert run(*flags, "--out", out, "--resume") == 2 and "no last.pt" in capsys.readouterr().err
    assert (out / "log.csv").read_bytes() == before[out / "log.csv"]
    assert run(*flags, "--out", out, "--overwrite", "--seed", 3) == 0
    assert (out / "backbone.pt").read_bytes() != before[out / "backbone.pt"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert run(*TINY, "--lr", 1e20, "--warmup-epochs", 0, "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert re.search(r"NaN or infinite in epoch 1, step \d of 4", err) and err.count("\n") == 1
    nets = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["nets"]
    assert all(value.isfinite().all() for value in nets.values())


def folders(root):
    """Directories that --dataset folder must refuse, each with a word of its message."""
    image, small, large = (torch.full((3, size, size), 9, dtype=torch.uint8) for size in (32, 4, 400))
    for case in ("one", "broken", "small", "sizes", "strange", "no_test", "no_images"):
        for name in ("a", "b")[:1 if case == "one" else 2]:
            for split in ("train", "test")[:1 if case == "no_test" else 2]:
                save_images(root / case / split / name, {"no_images": [], "small": [image, small], "sizes": [image, large]}.get(case, [image]))
    (root / "broken" / "train" / "b" / "torn.png").write_bytes((root / "broken" / "train" / "b" / "00000.png").read_bytes()[:50])
    save_images(root / "strange" / "test" / "c", [image])
    (root / "empty").mkdir()


@pytest.mark.parametrize("flags, words", [
    ("--dataset imagenet22k", "invalid choice: 'imagenet22k'"), ("--arch vit", "invalid choice"), ("--augment none", "invalid choice"),
    ("--typo 1", "--typo"),
    ("--alpha 1.5", "0 to 1"), ("--alpha nan", "0 to 1"), ("--alpha fast", "0 to 1"), ("--beta inf", "--beta"),
    ("--temperature 0", "--temperature"),
    ("--epochs 0", "--epochs"), ("--batch-size -4", "--batch-size"), ("--lr 0", "--lr"),
    ("--beta -x", "--beta"), ("--projector 3000000-3000000", "not enough memory"), ("--lr nan", "--lr"), ("--width 0", "--width"), ("--projector 64-0", "layer sizes"),
    ("--alpha-every 0", "--alpha-every"), ("--limit-train 0", "--limit-train"),
    ("--seed -1", "--seed"), ("--warmup-epochs 4", "--warmup-epochs"),
    ("--batch-size 300", "larger than the training set of 256"), ("--device cuda:99", "--device cuda:99"),
    ("--device tpu", "auto, cpu, cuda"),
    ("--dataset folder --data-dir {}/nowhere", "there is no directory"),
    ("--dataset folder --data-dir {}/empty", "lacks a test or val"),
    ("--dataset folder --data-dir {}/no_test", "lacks a test or val"), ("--dataset folder --data-dir {}/no_images", "no images"),
    ("--dataset folder --data-dir {}/one", "one class"), ("--dataset folder --data-dir {}/broken", "torn.png is not a readable image"),
    ("--dataset folder --data-dir {}/small", "only 4 pixels"), ("--dataset folder --data-dir {}/sizes", "sizes differ too much"),
    ("--dataset folder --data-dir {}/strange", "no counterpart"), ("--out {}/empty/file/run", "not a directory"),
])
def test_bad_input(flags, words, tmp_path, capsys):
    folders(tmp_path)
    (tmp_path / "empty" / "file").write_text("in the way") if "/file/" in flags else None
    before = sorted(tmp_path.rglob("*"))
    assert run(*TINY, "--out", tmp_path / "run", *flags.format(tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before        # nothing written


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert run(*TINY, "--out", tmp_path / "run") == 2
    assert "not writable" in capsys.readouterr().err


def test_tensorboard_is_optional(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(*TINY, "--tensorboard", "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "pip install tensorboard" in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """The README's examples as they stand: a classifier from ten labels, the loss, and a backbone.pt with the small-image stem."""
    classifier, own_code, encoder = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    shapes_folder(tmp_path / "my_images", ("disc", "bar"), 60, 20, 16)
    assert run(*TINY, "--dataset", "folder", "--data-dir", "my_images", "--limit-train", 60, "--batch-size", 30, "--epochs", 1, "--out", "runs/mine") == 0
    exec(classifier, scope := {})
    assert len(scope["few"]) == 20 and re.search(r"'top1': \d", capsys.readouterr().out)

    exec(own_code, scope := {})
    assert scope["loss"].isfinite() and scope["parts"].keys() == {"info_nce", "vicreg", "mi_loss"}

    backbone = Path(re.search(r'"([^"]*backbone.pt)"', encoder)[1])
    default = train.parse_args(["--dataset", "cifar100", "--beta", "1e-4"])
    assert backbone.parent == default.out       # where the main experiment's run goes
    net, _ = resnet(default.arch, default.width)
    backbone.parent.mkdir(parents=True)
    torch.save(net.state_dict(), backbone)
    exec(encoder, scope := {"images": torch.rand(2, 3, 32, 32)})
    assert torch.equal(scope["r"], net.eval()(scope["images"]))
