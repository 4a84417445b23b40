"""Tests of bench.py, and of what is fast: no timed tests, for machines differ.

    python -m pytest -q test_bench.py
"""
import json
import shutil

import pytest
import torch
from torch import nn

import bench
import train
from augment import DRAWS, augment_with

SMALL = "--width 2 --projector 16-8 --batch-size 8 --image-size 16 --steps 1 --device cpu --step-only".split()


def dense_nets():
    torch.manual_seed(0)
    return train.Nets({"encoder": nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU()), "projector": nn.Linear(20, 12), "probe": nn.Linear(20, 3)})


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "TEST_IMAGES", 64)
    bench.main([*SMALL, "--json", str(tmp_path / "found.json")])
    found, out = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    for key in ("step_over_bare", "adadim_over_simclr", "adadim_over_vicreg", "mfu", "samples_per_s", "peak_memory_bytes", "alpha_update_over_epoch"):
        assert found[key] > 0, key
    assert found["samples_per_s"] == pytest.approx(8 / found["step_s"]) and sum(found["parts"].values()) == pytest.approx(1)
    assert found["mfu"] == pytest.approx(found["flops_per_step"] / found["step_s"] / found["peak_flops_per_s"])
    assert "whole step" in out and "VICReg, with gradient" in out


def test_the_rest_of_it():
    one_core = bench.augmentation_on_one_core(16, n=4)
    streamed = bench.streaming(n=64, size=60, crop=16)
    assert one_core["ours"] > 0 < one_core["pil"] and streamed["images_per_s"] > 0 < streamed["pil_images_per_s_one_core"]
    assert torch.get_num_threads() > 0


def test_flops_are_counted():
    """Of two dense layers: forward, weight gradient and, but for the first, input gradient, 2·n·in·out each."""
    n = 2 * 5
    assert bench.count_flops(dense_nets(), 4, 5, "cpu") == 2 * n * (2 * 48 * 20 + 3 * 20 * 12) + 2 * n * 20 * 3     # the probe's forward pass


def test_medians_take_turns():
    calls = []
    bench.seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), 2)
    assert "".join(calls) == "abababab"     # two of the four to warm up


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_step_equals_the_plain_one():
    x, draws = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), torch.rand(8, DRAWS)
    assert torch.allclose(torch.compile(augment_with)(draws, x, "byol", 1), augment_with(draws, x, "byol", 1), atol=1e-4)
    args = train.parse_args("--dataset shapes --precision fp32 --beta 2".split())
    views, labels = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    results = []
    for losses_of in (train.losses_of, torch.compile(train.losses_of)):
        nets = dense_nets()
        objective, logged, z = losses_of(nets, views, labels, torch.tensor(0.4), args)
        objective.backward()
        results.append([logged, z, *(p.grad for p in nets.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results)) and results[0][0].abs().min() > 0


@pytest.mark.parametrize("flags, words", [("--batch-size 1", "2 to 4096"), ("--projector 0-1", "layers' sizes"), ("--device cuda:77", "cuda"), ("--arch vit", "invalid choice"),
                                          ("--json /no/where", "cannot write")])
def test_bad_input(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(flags.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and words in err and err.count("\n") == 1
