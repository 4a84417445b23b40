"""Tests of study.py: its grids, the runs' names, and a study of three short runs.

    python -m pytest -q tests/test_study.py
"""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import study
from tests.helpers import SMALL, exit_status, wait_for_epoch
from train import parse_args

SHORT = [word for word in SMALL if word not in ("--device", "cpu")]     # the study passes --device
SHORT += ("--arch resnet18 --width 2 --projector 8-8 --limit-train 128 --batch-size 64 "
          "--epochs 2").split()


def test_grids():
    assert len(study.runs(["alpha"], seeds=3)) == 30
    both = study.runs(["alpha", "ablation"], seeds=1)
    assert len(both) == 9 + 5       # 0.5 and the four with β are new
    assert both["adadim-mi-scale-1-seed-0"] == [
        "--alpha", "ada", "--beta", "0.0001", "--mi-scale", "1", "--seed", "0"]
    for name in ("ablation", "beta", "from"):       # AdaDim itself is shared
        assert "adadim-seed-0" in study.runs([name], seeds=1)
    assert list(study.runs([], 2, ["byol"])) == ["byol-seed-0", "byol-seed-1"]


@pytest.mark.parametrize("setting, name", [
    ("--alpha 0 --beta 0 --epochs 20", "vicreg-epochs-20"),
    ("--alpha 0.5 --beta 0", "alpha-0.5"),
    ("--alpha ada --beta -1", "adadim-beta-minus-1"),
    (f"--method byol {study.ONE_RECIPE} --w2-weight 30:0", "byol-one-recipe-w2-weight-30-0"),
])
def test_a_runs_folder_is_named_after_its_flags(setting, name):
    assert study.folder_name(setting) == name


def test_every_run_of_every_study_is_one_that_train_takes():
    """And has a name of its own, which all file systems allow."""
    chosen = study.runs(study.STUDIES, seeds=1)
    for name, flags in chosen.items():
        parse_args([*flags, "--epochs", "400"])
        assert re.fullmatch(r"[\w.,=-]{1,80}", name)
    assert all(len(study.runs([name], 1)) == len(study.STUDIES[name]) for name in study.STUDIES)
    assert len(chosen) == len({" ".join(flags) for name in study.STUDIES
                               for flags in study.runs([name], 1).values()})


def test_list_says_what_a_study_reproduces(capsys):
    for words in (["--list"], []):
        assert exit_status(study.main, *words) == 0
        assert "ablation       10 runs  Table 6, row by row\n" in capsys.readouterr().out


def test_a_study_skips_resumes_and_goes_on_after_a_failure(tmp_path, capsys, monkeypatch):
    settings = [
        "--alpha 0 --beta 0",
        "--alpha 1 --beta 0 --lr 1e30 --warmup-epochs 0",       # breaks the network
        "--alpha 0.5 --beta 0",
    ]
    monkeypatch.setitem(study.STUDIES, "from", settings)
    command = ["from", "--seeds", 1, "--devices", "cpu,cpu", "--out", tmp_path, "--", *SHORT]
    broken, half = "simclr-lr-1e30-warmup-epochs-0-seed-0", "alpha-0.5-seed-0"

    assert exit_status(study.main, *command) == 1
    out = capsys.readouterr().out
    assert out.count("0 runs to go") == 1 and f"folders: {broken}" in out
    assert "NaN or infinite" in (tmp_path / broken / "output.txt").read_text()
    logs = {name: (tmp_path / name / "log.csv").read_bytes() for name in ("vicreg-seed-0", half)}
    assert all(text.count(b"\n") == 3 for text in logs.values())

    (tmp_path / half / "backbone.pt").unlink()      # as if interrupted
    del settings[1]
    assert exit_status(study.main, *command) == 0
    out = capsys.readouterr().out
    assert "2 runs, of which 1 are finished" in out and f"{half}: finished" in out
    assert f"next: python figures.py {tmp_path}/*" in out
    assert logs == {name: (tmp_path / name / "log.csv").read_bytes() for name in logs}
    assert not study.is_finished(tmp_path / half, ["--dataset", "shapes"])


def test_the_trainings_end_with_the_study(tmp_path):
    """The signal reaches only the study: its training ends too, and no other starts."""
    command = [sys.executable, Path(study.__file__), "alpha", "--seeds", "1", "--out", tmp_path,
               "--", *SHORT, "--epochs", "100000"]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "vicreg-seed-0" / "log.csv"
    wait_for_epoch(log, 1, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.count("\n") == 1
    epochs = log.read_bytes()
    time.sleep(0.5)
    assert log.read_bytes() == epochs           # no process writes to it
    assert [path.name for path in tmp_path.iterdir()] == ["vicreg-seed-0"]
    assert (tmp_path / "vicreg-seed-0" / "last.pt").exists()


@pytest.mark.parametrize("flags, words", [
    ("--methods vicreg,gan", "gan"),
    ("alpha -- --epoch 3", "--epoch"),
])
def test_bad_studies(flags, words, capsys):
    assert exit_status(study.main, *flags.split()) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
