"""Tests of bench.py, and of what is fast: no timed tests, for machines differ.

    python -m pytest -q tests/test_bench.py
"""
import copy
import functools
import json
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tools import bench
from tools import bench_pieces
from tools import capture
from plumbing import cli
from plumbing import compiling
from tools import peer
import probe
import train
from augment import DRAWS, augment_with
from losses import info_nce, vicreg
from methods import AdaDim
from tests.helpers import equal
from tests.test_gpu import done_again

CPU = torch.device("cpu")
SMALL = ("--width 2 --projector 16-8 --batch-size 8 --image-size 16 --steps 1 --device cpu "
         "--step-only").split()


def dense_learner(kind=AdaDim, p=20, d=12):
    """A Learner of dense layers, for images of 4 pixels and three classes."""
    torch.manual_seed(0)
    args = train.parse_args("--dataset shapes --alpha 0.4 --beta 2".split())
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, p), nn.ReLU())
    method = kind(args, encoder, p, n_images=16)
    method.projector = nn.Linear(p, d)
    return train.Learner(method, probe.OnlineProbe(encoder, p, 3))


def dense_batch():
    """16 images of 4 pixels: both views, index, labels, progress."""
    views = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(16)
    return views, index, index % 3, torch.tensor(0.5, dtype=torch.float64)


# --- the figures ------------------------------------------------------------------------------

def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probe, "METRIC_IMAGES", 64)
    monkeypatch.setattr(cli, "fast_precision", lambda device: "fp32")       # as auto chooses it
    bench.main([*SMALL, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    positive = ("first_step_s", "bare_s", "step_over_bare", "adadim_over_simclr",
                "adadim_over_vicreg", "mfu", "samples_per_s", "peak_memory_bytes",
                "alpha_update_over_epoch", "evaluation_over_epoch")
    for key in positive:
        assert found[key] > 0, key
    assert found["samples_per_s"] == pytest.approx(8 / found["step_s"])
    assert found["step_over_bare"] == pytest.approx(found["step_s"] / found["bare_s"])
    assert sum(found["parts"].values()) == pytest.approx(1)
    speed = found["flops_per_step"] / found["step_s"]
    assert found["mfu"] == pytest.approx(speed / found["peak_flops_per_s"])
    epoch = 50_000 / found["samples_per_s"]
    assert found["evaluation_over_epoch"] == pytest.approx(found["evaluation_s"] / epoch)
    assert sum(found["evaluation_parts"].values()) == pytest.approx(
        found["evaluation_over_epoch"])
    assert found["precision"] == "fp32"
    out = capsys.readouterr().out
    assert "whole step" in out and "VICReg, with gradient" in out


def test_what_does_not_concern_the_step(capsys):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one_core = bench_pieces.augmentation_on_one_core(16, n=4)
        assert torch.get_num_threads() == 2         # it gives back what it found
    finally:
        torch.set_num_threads(threads)
    assert one_core["augment_views_per_s"] > 0 and one_core["pil_views_per_s"] > 0
    streamed = bench_pieces.streaming(stored=60, crop=16, batch_size=8, batches=2)
    assert streamed["images_per_s"] > 0 and streamed["pil_images_per_s_one_core"] > 0

    narrow, wide = bench_pieces.growth(CPU, batches=(8, 8), widths=(16, 64))
    for name in bench_pieces.LOSSES:
        assert narrow[f"{name}_ms"] > 0
    for name in ("info_nce", "vicreg", "adadim"):
        assert 8 * 16 * 4 <= narrow[f"{name}_bytes"] < wide[f"{name}_bytes"]
    found = {**one_core, "streamed": {60: streamed}, "losses": [narrow, wide]}
    bench_pieces.show_pieces(SimpleNamespace(**found))
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 1 + 2 + 2


def test_flops_are_counted():
    """Of two dense layers, 2·n·in·out each: forward, weight gradient, and input gradient.

    The first layer has no input gradient; of the probe, the forward pass alone is counted.
    """
    n = 2 * 5
    both_layers = 2 * n * (2 * 48 * 20 + 3 * 20 * 12)
    assert bench.count_flops(dense_learner(), 4, 5) == both_layers + 2 * n * 20 * 3


def test_bytes_kept_are_counted():
    """x² keeps x, and the sum of the result keeps nothing: 4 bytes for each entry, once."""
    assert bench_pieces.bytes_kept(lambda x: (x * x).sum(), torch.ones(3, 5)) == 3 * 5 * 4


def test_functions_take_turns():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = bench_pieces.seconds(functions, CPU, 2)
    assert "".join(calls) == "abababab"         # two of the four turns are to warm up
    assert times.keys() == functions.keys()


# --- the steps --------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, loss", [(bench.SimCLR, info_nce), (bench.VICReg, vicreg)])
def test_rivals_have_that_one_loss(kind, loss):
    learner = dense_learner(kind)
    views, index, labels, progress = dense_batch()
    objective, logs, _ = learner(views, index, labels, progress)
    z = learner.method.projector(learner.method.encoder(views))
    assert torch.equal(logs["loss"], loss(*z.chunk(2)))
    assert torch.allclose(objective, logs["loss"] + logs["probe_loss"])


def test_batches_do_not_end():
    args = bench.parse_args([*SMALL, "--batch-size", "2048"])
    batches = bench.endless_batches(args, CPU, torch.channels_last)
    for _ in range(3):                          # an epoch has two
        views, index, labels = next(batches)
        assert views.shape == (4096, 3, 16, 16)
        assert len(index) == len(labels) == 2048


@pytest.mark.parametrize("kind", [AdaDim, bench.SimCLR, bench.VICReg])
def test_a_step_trains_all_that_learns(kind):
    setup = bench.set_up(bench.parse_args([*SMALL, "--precision", "fp32"]), CPU)
    learner = bench.make_learner(kind, setup)
    bench.training_step(learner, setup)()
    for name, p in learner.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert all(p.grad.abs().sum() > 0 for p in learner.probe.parameters())


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None,
                    reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_step_equals_the_plain_one():
    x, draws = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), torch.rand(8, DRAWS)
    plain = augment_with(draws, x, "byol", 1)
    assert torch.allclose(torch.compile(augment_with)(draws, x, "byol", 1), plain, atol=1e-4)

    results = []
    for compiled in (False, True):
        learner = dense_learner()
        if compiled:
            learner.compile()
        objective, logs, kept = learner(*dense_batch())
        objective.backward()
        gradients = {name: p.grad for name, p in learner.named_parameters()}
        results.append({**logs, **kept, **gradients})
    plain, compiled = results
    assert plain.keys() == compiled.keys() and len(plain) == 5 + 1 + 6
    for name, value in plain.items():
        assert torch.allclose(value, compiled[name], rtol=1e-4, atol=1e-5), name
        assert value.abs().max() > 0, name


def losses_of_steps(captured):
    """Of eight steps with other batches and other learning rates each, and the weights after."""
    learner = dense_learner()
    settings = train.parse_args(["--dataset", "shapes"])
    optimizer = train.make_optimizer("lars", learner.param_groups(settings))
    autocast, scaler = train.mixed_precision("fp32", CPU)
    step = functools.partial(train.training_step, learner, learner, optimizer, scaler, autocast,
                             settings.clip)
    if captured:
        step = capture.CapturedStep(step, optimizer, CPU)
    views, index, labels, progress = dense_batch()
    losses = []
    for number in range(8):
        train.set_learning_rates(optimizer, number, warmup=4, total=8)
        logs, _ = step((views + number, index, labels), progress * number / 8)
        losses.append(logs["loss"].item())
    return losses, dict(learner.named_parameters())


def test_all_that_changes_in_a_captured_step_is_in_tensors(monkeypatch):
    """Without a GPU: a step is not replayed but done again, with what it was recorded with."""
    monkeypatch.setattr(capture, "record", done_again)
    losses, weights = losses_of_steps(captured=False)
    captured_losses, captured_weights = losses_of_steps(captured=True)
    assert len(set(losses)) == 8 and captured_losses == losses
    assert equal(captured_weights, weights)


def slower(learner):
    """Stands for a torch.compile that makes a step 50 ms slower."""
    honest = learner.forward

    def forward(*batch):
        time.sleep(0.05)
        return honest(*batch)

    learner.forward = forward


def faster(learner):
    """Stands for one that leaves nothing to compute but a sum."""
    weight = learner.method.projector.weight
    learner.forward = lambda *batch: (weight.sum(), {}, {})


def broken(function):
    raise RuntimeError("no C++ compiler\nmore words")


@pytest.mark.parametrize("compile_networks, steps_left, worth_it, said", [
    (faster, 1, "no", "too short"),
    (faster, 10 ** 9, "yes", "compiled: a step takes 0."),
    (slower, 10 ** 9, "no", "not compiled: a step takes "),
    (None, 10 ** 9, "no", "does not work here (no C++ compiler)"),
])
def test_compiling_must_earn_back_its_time(monkeypatch, capsys, compile_networks, steps_left,
                                           worth_it, said):
    """A run of a billion steps can, and one of a single step cannot; the learner stays as it is."""
    monkeypatch.setattr(compiling, "compile_networks", compile_networks)
    torch_compile = broken if compile_networks is None else lambda function: function
    monkeypatch.setattr(torch, "compile", torch_compile)
    learner = dense_learner()
    before = copy.deepcopy(learner.state_dict())
    found = compiling.decide(learner, 16, 4, torch.contiguous_format, CPU,
                             torch.autocast("cpu", enabled=False), steps_left)
    assert found == worth_it
    assert said in capsys.readouterr().out
    assert equal(learner.state_dict(), before)
    assert all(p.grad is None for p in learner.parameters())


# --- beside lightly ---------------------------------------------------------------------------

TINY_PEER = "--width 4 --projector 16-16-8 --batch-size 8 --steps 1 --rounds 2 --device cpu"


@pytest.mark.parametrize("workers, precision, rows", [
    (0, "fp32", ["ours", "lightly"]),
    (1, "bf16", ["ours", "lightly", "lightly, fp32"]),
])
def test_beside_lightly(workers, precision, rows, capsys):
    pytest.importorskip("lightly", reason="lightly is not installed")
    peer.main([*TINY_PEER.split(), f"--workers={workers}", f"--precision={precision}"])
    printed = capsys.readouterr().out.splitlines()
    speeds = {line[:16].strip(): line.split() for line in printed[3:]}
    assert list(speeds) == rows
    assert len(printed[3].split(",")) == 2          # rounds


def test_without_lightly(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightly", None)       # import lightly fails
    with pytest.raises(SystemExit) as stop:
        peer.main(TINY_PEER.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == "peer.py: peer.py needs lightly: pip install lightly\n"


# --- bad input --------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    ("--batch-size 1", "2 to 4096"),
    ("--batch-size 5000", "2 to 4096"),
    ("--projector 0-1", "layer sizes"),
    ("--device cuda:77", "cuda"),
    ("--arch vit", "invalid choice"),
    ("--precision int8", "invalid choice"),
    ("--json /no/where", "cannot write"),
])
def test_bad_input(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(flags.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in err
    assert err.count("\n") == 1
