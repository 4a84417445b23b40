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
from baselines.all_methods import METHODS
from data import batches_of_views, plan_batches
from datasets import SHAPES, draw_shapes
from losses import normalize_rows
from metrics import effective_rank, knn_accuracy
from models import encode
from run import read_log
from tests.helpers import (SMALL, assert_resumes_exactly, close, generator, randn, run,
                           whole_and_halves)

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
HALF = torch.tensor(0.5).double()


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
    """Everything that learns, at the latest in the third epoch, and no teacher."""
    method = method_of(name)
    for epoch in (1, 2, 3):
        result = one_step(method, epoch)
        method.after_step(result.kept, 0, HALF)
    assert result.loss.isfinite() and result.r.shape == (16, 20)
    assert not any(value.requires_grad for value in result.kept.values())
    for key, parameter in method.named_parameters():
        learns = "teacher" not in key
        assert parameter.requires_grad == (parameter.grad is not None) == learns, key
        if learns and parameter.ndim > 1:       # a bias before a batch norm learns nothing
            assert parameter.grad.abs().max() > 1e-9, key
    groups = method.param_groups(0.1, 0.0)
    grouped = [id(p) for group in groups for p in group["params"]]
    learning = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(learning)                  # each once
    assert any(group.get("constant") for group in groups) == (name == "simsiam")


@pytest.mark.parametrize("words, reason", [
    ("--method deepcluster_v2 --batch-size 60", "as many images, and an epoch has 60"),
    ("--method byol --set predictor=8-", "expected layer sizes such as"),
    ("--method swav --set prototypes=0.5", "--set prototypes=0.5: expected int"),
    ("--method moco_v2 --set batch_norm=1", "must be yes or no"),
])
def test_bad_settings_are_refused_in_one_line(words, reason, tmp_path, capsys):
    flags = "--arch resnet18 --width 2 --epochs 1 --limit-train 64 --batch-size 64".split()
    assert run(*SMALL, *flags, *words.split(), "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert reason in err and err.count("\n") == 1


def test_the_second_papers_moco():
    """One queue, to which both views' keys go, and batch norms in the projector."""
    method = method_of("moco_v2", "--set", "queues=1", "batch_norm=yes")
    assert isinstance(method.projector[1], nn.BatchNorm1d)
    kept = one_step(method).kept
    method.after_step(kept, 0, HALF)
    keys = normalize_rows(torch.cat([kept["k1"], kept["k2"]]))
    assert torch.equal(method.queues[0].rows[:16], keys)


def test_defaults_are_the_methods():
    """Flags override them; another optimiser brings its own learning rate."""
    moco = train.parse_args(["--method", "moco_v2"])
    assert (moco.optimizer, moco.lr, moco.projector, moco.beta) == ("sgd", 0.3, "2048-256", 0)
    changed = train.parse_args("--method moco_v2 --optimizer adam --projector 8-8 --set queue=7 "
                               "momentum=0.5 --set temperature=0.3".split())
    assert (changed.lr, changed.projector) == (1e-3, "8-8")
    assert changed.set == {**moco.set, "temperature": 0.3, "queue": 7, "momentum": 0.5}


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
    by_hand = loss + 15 * logs["w2_loss"] + 0.2 * logs["lu_loss"] - 0.5 * logs["mi_loss"]
    close(with_terms.loss.detach(), by_hand.detach(), 1e-5)


# --- whole runs -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_exactly(name, tmp_path, monkeypatch):
    """Stopped in the second of two epochs and resumed, it ends as an uninterrupted run.

    evaluate.py reads the run, with the method's own projector.
    """
    monkeypatch.setattr(train.probe, "evaluate", lambda *arguments: {})
    flags = [*SMALL, *"--limit-train 96 --arch resnet18 --width 2 --projector 16-8 --batch-size 32 "
             "--epochs 2 --warmup-epochs 0.5 --beta 0.1 --save-minutes 0".split(),
             "--method", name, *settings(name)]
    assert_resumes_exactly(flags, tmp_path, step=3 + 1, saved_at=(1, 1))
    log = read_log(tmp_path / "cut" / "log.csv")
    for column in ("loss", *METHODS[name].columns, "mi_loss"):
        assert all(math.isfinite(value) for value in log[column])

    encoder, projector, _ = evaluate.load_run(tmp_path / "whole")
    assert projector(encoder(torch.rand(4, 3, 16, 16))).shape == (4, 8)


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
    train_r, = encode(data["train_x"], method.encoder, mean=[0.5] * 3, std=[0.25] * 3)
    r, z = encode(data["test_x"], method.encoder, method.projector, mean=[0.5] * 3, std=[0.25] * 3)
    return (knn_accuracy(train_r, data["train_y"], r, data["test_y"], k=20),
            effective_rank(r), effective_rank(z - z.mean(0)))


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_shapes_and_does_not_collapse(name):
    """In 128 steps k-NN rises from 67 %, on the untrained encoder, to 74–79 %; ranks stay high."""
    epochs, steps, n = 8, 16, 64
    torch.manual_seed(2)
    args = train.parse_args(["--method", name, "--projector", "64-32", "--epochs", str(epochs),
                             "--batch-size", str(n), *settings(name)])
    method = METHODS[name](args, small_network(), 32, n_images=1024)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    data = discs_and_bars()
    untrained_accuracy, _, _ = measured(method, data)
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

    accuracy, rank_r, rank_z = measured(method, data)
    assert accuracy > untrained_accuracy + 4                    # standard error: 1.3
    assert rank_r > 5 and rank_z > 1.5


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
from distributed import RANK, WORLD_SIZE

if WORLD_SIZE > 1:
    dist.init_process_group("gloo")
results = {}
for name in test_baselines.METHODS:
    words = "--w2-weight 0.1 --beta 0.1".split()
    if name == "adadim":
        words += "--alpha-every 1 --epochs 2".split()       # α counts in the second epoch
    method = test_baselines.method_of(name, *words, n_images=16, batch_size=16)
    model = learner = train.Learner(method, probe.OnlineProbe(method.encoder, 20, 3, False))
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
        results |= {f"{name} {column} {epoch}": value for column, value in logs.items()}
    state = [*learner.named_parameters(), *method.named_buffers()]
    results |= {f"{name} {key}": value for key, value in state}
torch.save(results, f"{sys.argv[1]}/{WORLD_SIZE}-{RANK}.pt")
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
