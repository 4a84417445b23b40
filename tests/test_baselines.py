"""Tests of the compared methods: state, gradients, resuming, learning; of all on two processes.

    python -m pytest -q tests/test_baselines.py
"""
import functools
import math

import pytest
import torch
from torch import nn

import evaluate
import train
from baselines import METHODS
from data import batches_of_views, plan_batches
from losses import wasserstein_uniformity
from metrics import effective_rank, knn_accuracy
from models import encode
from plumbing.run import read_log
from plumbing.shapes import SHAPES, draw_shapes
from tests.helpers import (SMALL, assert_resumes_exactly, close, generator, randn, run,
                           shapes_folder, whole_and_halves)

NAMES = [name for name in METHODS if name != "adadim"]
# small parts of methods; but prototypes outnumber the classes, as in real training
SETTINGS = dict(predictor=16, momentum=0.9, queue=128, prototypes=64, directions=128, iterations=3,
                temperature_epochs=2, queue_from_epoch=2, frozen_epochs=1)


def settings(name):
    words = [f"{key}={value}" for key, value in SETTINGS.items() if key in METHODS[name].settings]
    if name == "deepcluster_v2":
        words.append("prototypes=8")        # k-means needs as many images
    return ["--set", *words] if words else []


# --- methods on a plain encoder -----------------------------------------------------------------

VIEWS = randn(16, 3, 4, 4, seed=5).float()                      # eight images
START, HALF = torch.tensor(0.0).double(), torch.tensor(0.5).double()


def method_of(name, *words, n_images=8, batch_size=8):
    """A method on an encoder of one layer, with p = 20 and d = 6."""
    torch.manual_seed(0)
    args = train.parse_args(["--method", name, "--projector", "12-6", "--batch-size",
                             str(batch_size), *settings(name), *words])
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU())
    return METHODS[name](args, encoder, 20, n_images)


def one_step(method, epoch=1, progress=HALF):
    """Forward and backward; returns the StepResult."""
    method.before_epoch(epoch, 1, generator(epoch))
    for p in method.parameters():
        p.grad = None
    result = method(VIEWS, torch.arange(8), progress)
    result.loss.backward()
    method.after_backward()
    return result


@pytest.mark.parametrize("name", NAMES)
def test_who_receives_gradients(name):
    """Everything that learns, at the latest in the third epoch, and no teacher.

    A forward pass changes batch norms' buffers alone; the others change in after_step().
    """
    method = method_of(name)
    buffers = {key: value.clone() for key, value in method.named_buffers()}
    for epoch in (1, 2, 3):
        result = one_step(method, epoch)
        changed = {key.split(".")[-1] for key, value in method.named_buffers()
                   if not torch.equal(value, buffers[key])}
        assert epoch > 1 or changed <= {"running_mean", "running_var", "num_batches_tracked"}
        method.after_step(result.kept, 0, HALF)
    assert result.loss.isfinite() and result.r.shape == (16, 20)
    assert not any(value.requires_grad for value in result.kept.values())
    for key, parameter in method.named_parameters():
        assert parameter.requires_grad == ("teacher" not in key), key
        if parameter.requires_grad:
            # a bias before a batch norm learns nothing, but has its gradient
            assert parameter.grad is not None, key
            if parameter.ndim > 1:
                assert parameter.grad.abs().max() > 1e-9, key
        else:
            assert parameter.grad is None, key
    grouped = [id(p) for group in method.param_groups(0.1, 0.0) for p in group["params"]]
    learning = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(learning)                  # each once


def test_simsiams_predictor_keeps_its_learning_rate():
    """Its projector ends with a batch norm without weights."""
    method = method_of("simsiam")
    groups = method.param_groups(0.5, 1e-5)
    assert [group.get("constant", False) for group in groups] == [False, True]
    z = method.projector(torch.rand(64, 20))
    assert z.mean(0).abs().max() < 1e-5
    assert torch.allclose(z.var(0, correction=0), torch.ones(6), atol=1e-2)


def test_dinos_teacher_temperature():
    method = method_of("dino", "--epochs", "4", "--set", "first_teacher_temperature=0.04")
    # from 0.04 to 0.07 over the first two of four epochs; constant by default
    for dino, expected in ((method, [0.04, 0.055, 0.07, 0.07]), (method_of("dino"), [0.07] * 4)):
        at = [torch.tensor(progress).double() for progress in (0, 0.25, 0.5, 1)]
        temperatures = [float(dino.schedule(progress)["teacher_temperature"]) for progress in at]
        assert temperatures == pytest.approx(expected)


def test_sizes_do_not_depend_on_the_training_set(tmp_path, capsys):
    """What cannot be filled is refused: a queue by whole batches, clusters by an epoch's images."""
    assert len(method_of("nnclr", "--set", "queue=65536").queue.rows) == 65_536
    assert len(method_of("dino", "--set", "prototypes=4096").prototypes.weight) == 4096
    flags = [*SMALL, *"--arch resnet18 --width 2 --projector 4-4 --limit-train 64".split()]
    for words, reason in {
        "--method ressl --batch-size 60": "not a multiple of --batch-size 60; 65520 is",
        "--method swav --batch-size 64 --set queue=32": "--batch-size 64; 64 is",
        "--method deepcluster_v2 --batch-size 60": "as many images, and an epoch has 60",
    }.items():
        assert run(*flags, *words.split(), "--out", tmp_path / "run") == 2
        err = capsys.readouterr().err
        assert reason in err and err.count("\n") == 1


def test_the_second_papers_moco():
    """One queue, to which both views' keys go, and batch norms in the projector."""
    method = method_of("moco_v2", "--set", "queues=1", "batch_norm=yes")
    assert any(isinstance(module, nn.BatchNorm1d) for module in method.projector)
    kept = one_step(method).kept
    method.after_step(kept, 0, HALF)
    queue, = method.queues
    assert torch.equal(queue.rows[:16], torch.cat([kept["k1"], kept["k2"]]))
    plain = method_of("moco_v2").projector
    assert not any(isinstance(module, nn.BatchNorm1d) for module in plain)


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_prototypes_are_drawn_as_a_linear_layer(name):
    """Rows of uniform numbers in ±1/√d, with a length near 1/√3."""
    weight = method_of(name, "--set", "prototypes=512").prototypes.weight
    assert weight.abs().max() <= 6 ** -0.5
    close(weight.detach().norm(dim=1).mean(), 3 ** -0.5, 0.05)


# --- flags --------------------------------------------------------------------------------------

def test_defaults_are_the_methods():
    """Flags override them; another optimiser brings its own learning rate."""
    moco = train.parse_args(["--method", "moco_v2"])
    assert (moco.optimizer, moco.lr, moco.projector) == ("sgd", 0.3, "2048-256")
    assert (moco.beta, moco.mi_scale) == (0, "1")
    assert moco.set == {"temperature": 0.2, "queue": 32768, "queues": 2, "batch_norm": "no",
                        "momentum": 0.99, "last_momentum": 0.999}
    changed = train.parse_args("--method moco_v2 --optimizer adam --projector 8-8 --set queue=7 "
                               "momentum=0.5 --set temperature=0.3".split())
    assert (changed.lr, changed.projector) == (1e-3, "8-8")
    assert changed.set == {**moco.set, "temperature": 0.3, "queue": 7, "momentum": 0.5}
    assert train.parse_args("--method moco_v2 --optimizer adam --lr 0.3".split()).lr == 0.3
    assert train.parse_args([]).set is None
    assert train.parse_args(["--method", "lejepa"]).weight_decay == 5e-2


@pytest.mark.parametrize("flags, words", [
    ("--method byol --set queue=4", "the settings of byol, as NAME=VALUE: predictor, momentum"),
    ("--set queue=4", "the settings of adadim, as NAME=VALUE: none"),
    ("--method byol --set momentum", "--set momentum must be a number from 0 to 1, not ''"),
    ("--method swav --set prototypes=0.5", "must be a whole number from 1"),
    ("--method byol --mi-scale alpha", "byol has no α"),
])
def test_bad_flags_are_refused_in_one_line(flags, words, tmp_path, capsys):
    assert run(*flags.split(), "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_flag_without_effect_is_named(capsys):
    train.parse_args("--method byol --alpha 0.5 --vicreg-weights=1,1,1".split())
    assert capsys.readouterr().out == "note: byol has no use for --alpha, --vicreg-weights\n"


def test_methods_are_listed(capsys):
    assert run("--methods") == 0
    out = capsys.readouterr().out
    assert all(f"{name}: {method.paper}\n" in out for name, method in METHODS.items())
    assert ("\n    --projector 4096-256 --augment byol --optimizer lars --lr 1.0 "
            "--weight-decay 1e-05\n    --set predictor=4096  ") in out
    settings = [line for line in out.splitlines() if line.startswith("    --set ")]
    assert all(len(line.split()) > 3 for line in settings)      # each is explained


@pytest.mark.parametrize("name", NAMES)
def test_any_method_takes_added_terms(name):
    """W2, L_U and I(R;Z), each in the logs, with the weights that the flags give."""
    method = method_of(name, *"--w2-weight 30:0 --lu-weight 0.2 --beta -0.5 --mi-scale 1".split())
    plain = method_of(name)
    plain.load_state_dict(method.state_dict())
    torch.manual_seed(1)
    with_terms = one_step(method)
    torch.manual_seed(1)
    loss = one_step(plain).loss
    assert set(method.columns) - set(plain.columns) == {"w2_loss", "lu_loss", "mi_loss"}
    logs = with_terms.logs
    z = method.projector(with_terms.r)
    close(logs["w2_loss"], wasserstein_uniformity(z).detach(), 1e-4)
    by_hand = loss + 15 * logs["w2_loss"] + 0.2 * logs["lu_loss"] - 0.5 * logs["mi_loss"]
    close(with_terms.loss.detach(), by_hand.detach(), 1e-5)


# --- whole runs -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A folder of 96 drawn images of 16 pixels to train on, and 24 to test."""
    folder = tmp_path_factory.mktemp("few")
    shapes_folder(folder, ("disc", "cross", "bar"), 96, 24, 16)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_exactly(name, few_images, tmp_path, monkeypatch):
    """Stopped in the second of two epochs and resumed, it ends as an uninterrupted run.

    evaluate.py reads the run, with the method's own projector.
    """
    monkeypatch.setattr(train.probe, "evaluate", lambda *arguments: {})
    flags = [*SMALL, "--data-dir", few_images,
             *"--arch resnet18 --width 2 --projector 16-8 --batch-size 32 --epochs 2 "
             "--warmup-epochs 0.5 --beta 0.1 --save-minutes 0".split(),
             "--method", name, *settings(name)]
    assert_resumes_exactly(flags, tmp_path, step=3 + 1, saved_at=(1, 1))
    log = read_log(tmp_path / "cut" / "log.csv")
    for column in ("loss", *METHODS[name].columns, "mi_loss"):
        assert all(math.isfinite(value) for value in log[column])

    encoder, projector, facts = evaluate.load_run(tmp_path / "whole")
    z = projector(encoder(torch.rand(4, 3, 16, 16)))
    assert z.shape == (4, 8) and facts["flags"]["--method"] == name


# --- learning -------------------------------------------------------------------------------------

@functools.cache
def discs_and_bars():
    """Drawn images of 12 pixels, as data.load() gives them: 1,024 to train on, 1,300 to test."""
    x, y = draw_shapes(12_000, generator(), size=12)
    disc, bar = SHAPES.index("disc"), SHAPES.index("bar")
    chosen = (y == disc) | (y == bar)
    x, y = x[chosen], (y[chosen] == bar).long()
    return {"train_x": x[:1024], "train_y": y[:1024], "test_x": x[1024:], "test_y": y[1024:],
            "image_size": 12, "streamed": False, "mean": [0.5] * 3, "std": [0.25] * 3}


def small_network():
    """An encoder of three convolutions, p = 32."""
    layers = []
    for channels, others, stride in ((3, 8, 1), (8, 16, 2), (16, 32, 2)):
        layers += [nn.Conv2d(channels, others, 3, stride, padding=1, bias=False),
                   nn.BatchNorm2d(others), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def measured(method, data):
    """k-NN accuracy in per cent, and the effective ranks of R and of centred Z."""
    (train_r, _), (r, z) = [
        encode(data[key], method.encoder, method.projector, mean=data["mean"], std=data["std"])
        for key in ("train_x", "test_x")]
    return {"accuracy": knn_accuracy(train_r, data["train_y"], r, data["test_y"], k=20),
            "rank_r": effective_rank(r), "rank_z": effective_rank(z - z.mean(0))}


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_shapes_and_does_not_collapse(name):
    """In 128 steps k-NN rises from 65 %, on the untrained encoder, to 73–79 %; ranks stay high."""
    epochs, steps, n = 8, 16, 64
    torch.manual_seed(1)
    args = train.parse_args(["--method", name, "--projector", "64-32", "--epochs", str(epochs),
                             "--batch-size", str(n), *settings(name)])
    method = METHODS[name](args, small_network(), 32, n_images=1024)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    data = discs_and_bars()
    untrained = measured(method, data)
    plan = plan_batches(1024, n, seed=0, epochs=epochs)
    for at, (views, index, _) in enumerate(batches_of_views(data, plan, "vicreg")):
        epoch, step = 1 + at // steps, at % steps
        if step == 0:
            method.before_epoch(epoch, steps, generator(epoch))
        progress = torch.tensor(at / (epochs * steps - 1)).double()
        result = method(views, index, progress)
        optimizer.zero_grad()
        result.loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(result.kept, step, progress)

    trained = measured(method, data)
    assert trained["accuracy"] > untrained["accuracy"] + 4      # standard error: 1.3
    assert trained["rank_r"] > 5 and trained["rank_z"] > 1.5


# --- several processes ----------------------------------------------------------------------------

# Every method takes two epochs of one step each: two processes with half of the images each, or one
# with all. Batch norms are in evaluation mode, because on a CPU each process has its own.
HALVES = """
import sys
import torch
import torch.distributed as dist
from torch import nn
import probe, train
from tests import test_baselines
from plumbing.distributed import RANK, WORLD_SIZE

if WORLD_SIZE > 1:
    dist.init_process_group("gloo")
found = {}
for name in test_baselines.METHODS:
    words = "--w2-weight 0.1 --beta 0.1".split()
    if name == "adadim":
        words += "--alpha-every 1 --epochs 2".split()       # α counts in the second epoch
    method = test_baselines.method_of(name, *words, n_images=16, batch_size=16)
    model = learner = probe.Learner(method, probe.OnlineProbe(method.encoder, 20, 3))
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    views = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    index, labels = torch.randperm(16), torch.arange(16) % 3
    labels[:5] = -1         # the halves have different numbers of labels
    if WORLD_SIZE > 1:
        model = nn.parallel.DistributedDataParallel(learner)
        views = views.view(2, WORLD_SIZE, -1, 3, 4, 4)[:, RANK]
        index, labels = (x.view(WORLD_SIZE, -1)[RANK] for x in (index, labels))
    for epoch in (1, 2):
        method.before_epoch(epoch, 1, torch.Generator().manual_seed(epoch))
        progress = torch.tensor((epoch - 1) / 2).double()
        torch.manual_seed(epoch)
        objective, logs, kept = model(views.flatten(0, 1), index, labels, progress)
        optimizer.zero_grad()
        objective.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(kept, 0, progress)
        method.after_epoch(epoch)
        del logs["probe_loss"]          # each process logs that of its own images
        found |= {f"{name} {column} {epoch}": value for column, value in logs.items()}
    state = [*learner.named_parameters(), *method.named_buffers()]
    found |= {f"{name} {key}": value for key, value in state}
torch.save(found, f"{sys.argv[1]}/{WORLD_SIZE}-{RANK}.pt")
"""


def test_two_processes_equal_one(tmp_path):
    """Losses, and after two steps all weights, queues, centres and memories; AdaDim's α; probes."""
    whole, halves = whole_and_halves(HALVES, tmp_path)
    assert {key.split()[0] for key in whole} == set(METHODS)
    assert 0 < whole["adadim measured.value"] < 1
    for half in halves:
        assert half.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(value.float(), half[key].float(), rtol=1e-3, atol=1e-4), key
