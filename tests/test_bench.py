"""Tests of the tools bench and peer, and of the compiled step; without limits on time.

    python -m pytest -q tests/test_bench.py
"""
import shutil
import sys

import pytest
import torch
from torch import nn

import probe
import train
from augment import DRAWS, augment_with
from baselines import METHODS
from methods import AdaDim
from plumbing import compiling
from plumbing.cli import BadInput
from tools import bench, peer

CPU = torch.device("cpu")


def bench_args(*flags):
    """The arguments of bench.py, for tiny networks and the shortest time."""
    return bench.parse_args(["--width=2", "--projector=16-8", "--precision=fp32", "--minutes=0",
                             *flags])


def dense_learner(p=20, d=12):
    """A Learner of dense layers, for images of 4 × 4 pixels and three classes."""
    torch.manual_seed(0)
    args = train.parse_args("--dataset shapes --alpha 0.4 --beta 2".split())
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, p), nn.ReLU())
    method = AdaDim(args, encoder, p, n_images=16)
    method.projector = nn.Linear(p, d)
    return probe.Learner(method, probe.OnlineProbe(encoder, p, 3))


def dense_batch():
    """16 images of 4 × 4 pixels: both views, index, labels, progress."""
    views = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(16)
    return views, index, index % 3, torch.tensor(0.5, dtype=torch.float64)


# --- the figures ------------------------------------------------------------------------------

def test_a_small_run(capsys, monkeypatch):
    monkeypatch.setattr(probe, "METRIC_IMAGES", 256)
    monkeypatch.setattr(bench, "PASSED_IMAGES", 16)
    args = bench_args("--image-size=16", "--batch-size=8")
    found = bench.measure(args, CPU)
    step, evaluation = found["step"], found["evaluation"]
    whole = step["whole step"]
    assert whole["images/s"] == pytest.approx(8 / whole["ms"] * 1e3)
    bare = step["bare networks' step"]["ms"]
    assert step["whole over bare"]["%"] == pytest.approx(100 * whole["ms"] / bare)
    shares = [row["% of the whole step"] for row in step.values() if "% of the whole step" in row]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100)
    parts = [evaluation[part]["s"] for part in ("networks", "metrics", "k-NN")]
    assert evaluation["evaluation, all three"]["s"] == pytest.approx(sum(parts))
    assert list(found["methods"]) == list(METHODS)
    assert len(found["images"]) == 3
    printed = capsys.readouterr().out
    assert "about 0 minutes" in printed.splitlines()[1]
    assert all(name in printed for part in found.values() for name in part)


@pytest.mark.parametrize("seconds_per_step, batch", [(0.001, 256), (0.2, 64), (9.0, 8)])
def test_batches_follow_the_machine(monkeypatch, seconds_per_step, batch):
    """In a trial 8 images take this long: if 0.2 s, then 64 images take 1.6 s, of 3 minutes."""
    def trial(functions, device):
        return dict.fromkeys(functions, seconds_per_step)

    monkeypatch.setattr(bench, "timed", trial)
    args = bench_args("--minutes=3")
    assert bench.choose_batch(args, CPU, bench.random_data(args, CPU)) == batch
    assert bench.choose_batch(args, torch.device("cuda"), {}) == 256


def test_flops_are_counted():
    """2·n·in·out for each dense layer: forward, weight gradient, and input gradient.

    The first layer has no input gradient; the probe has no gradient towards the encoder.
    """
    n = 2 * 5
    both_layers = 2 * n * (2 * 48 * 20 + 3 * 20 * 12)
    probe_flops = 2 * n * 2 * 20 * 3
    flops = bench.count_flops(dense_learner(), torch.randn(n, 3, 4, 4))
    assert flops == both_layers + probe_flops


def test_functions_take_turns():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = bench.timed(functions, CPU)
    assert "".join(calls) == "abab"             # the first turn is a warm-up
    assert times.keys() == functions.keys()


@pytest.mark.parametrize("method", ["adadim", "byol", "deepcluster_v2"])
def test_a_step_trains_everything_that_learns(method):
    args = bench_args("--image-size=16", "--batch-size=8")
    training = bench.Training(args, CPU, bench.random_data(args, CPU), method)
    training.step()
    for name, p in training.learner.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.grad.isfinite().all(), name


# --- torch.compile ----------------------------------------------------------------------------

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
    assert plain.keys() == compiled.keys() and len(plain) == 8 + 1 + 6
    for name, value in plain.items():
        assert torch.allclose(value, compiled[name], rtol=1e-4, atol=1e-5), name
        assert value.abs().max() > 0, name


def test_a_compiler_that_does_not_work_is_one_line(monkeypatch):
    def broken(function):
        raise RuntimeError("no C++ compiler\nmore words")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(BadInput, match="does not work here .no C.. compiler.$"):
        compiling.compile_networks(dense_learner(), CPU)


# --- compared with lightly --------------------------------------------------------------------

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


def test_a_batch_that_is_too_large(capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["--batch-size", "5000"])
    assert stop.value.code == 2
    assert "2 to 4096" in capsys.readouterr().err


def test_without_lightly(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightly", None)       # import lightly fails
    with pytest.raises(SystemExit) as stop:
        peer.main(TINY_PEER.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == "peer.py: peer.py needs lightly: pip install lightly\n"
