"""Tests of bench.py; without limits on time.

    python -m pytest -q tests/test_bench.py
"""
import pytest
import torch

import bench
from tests.helpers import exit_status

CPU = torch.device("cpu")
TINY = ("--image-size 16 --seconds 0 -- --width 2 --projector 16-8 --batch-size 8 "
        "--device cpu").split()


@pytest.mark.parametrize("method", ["adadim", "byol", "deepcluster_v2"])
def test_a_small_run(method, capsys):
    assert exit_status(bench.main, *TINY, "--precision=fp32", f"--method={method}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert method in lines[0] and "width 2" in lines[0]
    numbers = {line[:26].strip(): float(line[26:].replace(",", "")) for line in lines[1:]}
    whole = numbers["whole step, ms"]
    assert numbers["images/s"] == pytest.approx(8 / whole * 1e3, rel=0.01)
    assert numbers["whole over bare"] == pytest.approx(whole / numbers["bare step, ms"], rel=0.1)


def test_functions_take_turns():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert bench.timed(functions, CPU, seconds=0).keys() == functions.keys()
    assert "".join(calls) == "abab"             # the first turn is a warm-up


def test_a_wrong_flag_is_one_line(capsys):
    assert exit_status(bench.main, *TINY, "--batch-size=0") == 2
    assert capsys.readouterr().err.count("\n") == 1
