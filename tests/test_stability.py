"""Tests of stability.py: it trains as train.py does, notices divergence, continues its table.

    python -m pytest -q tests/test_stability.py
"""
import csv

import pytest

from plumbing.run import read_log
from tests.helpers import SMALL, TINY, SMALL_IMAGES, exit_status, run
from tools import stability


def run_grid(*arguments):
    """The exit status of stability.py."""
    return exit_status(stability.main, *arguments)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_grid_is_every_combination_once():
    every = stability.points(only=[])
    assert len(every) == len(set(every)) == 2 * 3 * 2 * 3 * 3 * 3 * 3 * 2
    few = stability.points(only=["resnet50", "lars", "600"])
    assert len(few) == 3 * 2 * 3 * 3 * 2
    assert all("--arch resnet50" in point and "--optimizer lars" in point for point in few)


def test_it_trains_as_train_does(tmp_path):
    """With one step per epoch, train.py's log has every step's loss."""
    words = [*TINY, "--batch-size", "256", "--epochs", "6", "--alpha-every", "2"]
    assert run(*words, "--out", tmp_path / "run") == 0
    log = read_log(tmp_path / "run" / "log.csv")
    found = stability.short_training(words, 300, 60)
    assert found["end"] == "trains" and found["steps"] == found["of"] == 6
    assert found["last_loss"] == f"{log['loss'][-1]:.4g}"
    assert found["largest_loss"] == f"{max(log['loss']):.4g}"
    assert found["clipped"] == sum(log["clipped"])


def test_without_the_guard():
    """No clipping, and a short warm-up; tests/test_train.py shows that such a run may explode."""
    args, _ = stability.parse_args([])
    guarded = stability.flags_of("--epochs 16", "with", args)
    unguarded = stability.flags_of("--epochs 16", "without", args)
    assert unguarded == [*guarded, "--clip", "0", "--warmup-epochs", "3.2"]


def test_a_broken_training_is_seen_and_the_table_goes_on(tmp_path, capsys):
    """First a learning rate at which nothing can train; then another point, not trained twice."""
    out = tmp_path / "table.csv"
    data = ["--dataset", "folder", "--data-dir", SMALL_IMAGES, "--device", "cpu", "--out", out]
    flags = [*SMALL, *"--arch resnet18 --width 2 --projector 8-8 --limit-train 64".split(),
             *"--batch-size 32 --epochs 2 --lr 1e20".split()]
    assert run_grid(*data, "--", *flags) == 1
    assert [row["end"] for row in table(out)] == 2 * ["became NaN or infinite"]
    assert "with the guard: 1 trainings, 1 became NaN" in capsys.readouterr().out

    flags[flags.index("1e20")] = "0.1"
    assert run_grid(*data, "--steps", 3, "--", *flags) == 1       # the earlier row still counts
    ends = [(row["guard"], row["end"], row["steps"]) for row in table(out)]
    assert ends[2:] == [("with", "trains", "3"), ("without", "trains", "3")]
    before = out.read_bytes()
    assert run_grid(*data, "--steps", 3, "--", *flags) == 1
    assert out.read_bytes() == before


@pytest.mark.parametrize("words, message", [
    ("--only width-7", "no point of the grid has width-7"),
    ("--steps 0", "--steps"),
    ("-- --alpha 7", "0 to 1"),
    ("--out {}/other.csv", "not a table of stability.py"),
])
def test_bad_input(words, message, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert run_grid("--out", tmp_path / "table.csv", *words.format(tmp_path).split()) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
