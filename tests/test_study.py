"""Tests of study.py: its grids, which runs count as finished, and a study of three short runs.

    python -m pytest -q tests/test_study.py
"""
import json
import os
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


def run_study(*arguments):
    return exit_status(study.main, *arguments)


# --- which runs -----------------------------------------------------------------------------------

def test_grids():
    assert len(study.runs(["alpha"], seeds=3)) == 27
    both = study.runs(["alpha", "ablation"], seeds=1)
    assert len(both) == 9 + 5       # 0.5 and the four with β are new
    assert both["alpha-ada-beta-0.0001-mi-scale-1-seed-0"] == [
        "--alpha", "ada", "--beta", "0.0001", "--mi-scale", "1", "--seed", "0"]
    assert "alpha-ada-beta-minus-1-seed-0" in study.runs(["beta"], seeds=1)
    for name in ("ablation", "beta", "from"):       # AdaDim itself is shared
        assert "alpha-ada-beta-0.0001-seed-0" in study.runs([name], seeds=1)


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_run_of_every_study_is_one_that_train_takes(name):
    chosen = study.runs([name], seeds=1)
    assert len(chosen) == len(study.STUDIES[name]["runs"])          # no two have one name
    for flags in chosen.values():
        parse_args([*flags, "--epochs", "400"])


def test_list_says_what_a_study_redoes(capsys):
    assert run_study("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(study.STUDIES)
    assert any(line.split()[:4] == ["ablation", "10", "runs", "Table"] for line in lines)
    assert run_study("--list", "alpha-fine") == 0
    out = capsys.readouterr().out
    assert "    --alpha 0.05 --beta 0\n" in out and "ablation" not in out


def test_a_study_of_ones_own():
    args, common = study.parse_args(["--methods", "vicreg,byol", "--setting", "--lr 0.1",
                                     "--setting=--baseline", "--", "--epochs", "3"])
    chosen = study.runs(args.studies, 1, args.methods, args.setting)
    assert list(chosen) == ["method-vicreg-lr-0.1-seed-0", "method-vicreg-baseline-seed-0",
                            "method-byol-lr-0.1-seed-0", "method-byol-baseline-seed-0"]
    assert parse_args([*common, *chosen["method-vicreg-lr-0.1-seed-0"]]).lr == 0.1
    assert list(study.runs([], 2, settings=["--lr 1"])) == ["lr-1-seed-0", "lr-1-seed-1"]
    assert list(study.runs([], 1, methods=["byol"])) == ["method-byol-seed-0"]


def test_progress_is_estimated_from_the_epochs_in_the_logs(tmp_path, monkeypatch):
    """Of 3 × 10 epochs, 10 were there before; in a minute 5 more came, so 15 take 3 minutes."""
    clock = [100.0]
    monkeypatch.setattr(study.time, "monotonic", lambda: clock[0])

    def write(name, epochs):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "log.csv").write_text("epoch\n" + "1\n" * epochs)

    write("a", 10)
    progress = study.Progress({"a": 10, "b": 10, "c": 10}, tmp_path)
    assert progress.text(["a"]) == "1 of 3 runs done"
    write("b", 5)
    clock[0] += 60
    assert progress.text(["a"]) == "1 of 3 runs done, about 0:03:00 to go"


# --- which of them are done -----------------------------------------------------------------------

ARGUMENTS = ["--dataset", "shapes", "--epochs", "2", "--alpha", "0.5", "--seed", "0"]


def finished_run(folder):
    """Writes the files of a finished run that study.py reads."""
    arguments = [*ARGUMENTS, "--device", "cpu", "--out", str(folder), "--resume"]
    flags = {"--epochs": 2, "--method": "adadim", "--alpha": 0.5, "--beta": 1e-4,
             "--mi-scale": "alpha", "--alpha-from": "z"}
    config = {"program": "train.py", "arguments": arguments, "flags": flags}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "log.csv").write_text("epoch,loss\n1,3.5\n2,3.25\n")
    (folder / "backbone.pt").write_bytes(b"weights")


def test_a_finished_run_is_finished_wherever_it_was_trained(tmp_path):
    finished_run(tmp_path)
    assert study.is_finished(tmp_path, ARGUMENTS)
    assert study.is_finished(tmp_path, [*ARGUMENTS, "--device", "cuda:1", "--out", "elsewhere"])
    assert not study.is_finished(tmp_path, ["--dataset", "cifar100", *ARGUMENTS[2:]])


@pytest.mark.parametrize("file, content", [
    ("log.csv", "epoch,loss\n1,3.5\n"),               # an epoch less
    ("log.csv", "epoch,loss\n1,3.5\n2,3."),           # its last line is cut off
    ("log.csv", "epoch,loss\n"),
    ("log.csv", None), ("config.json", None), ("config.json", "{"), ("backbone.pt", None),
])
def test_a_run_that_lacks_something_is_not_finished(file, content, tmp_path):
    finished_run(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    assert not study.is_finished(tmp_path, ARGUMENTS)


# --- a study --------------------------------------------------------------------------------------

def test_a_study_skips_resumes_and_goes_on_after_a_failure(tmp_path, capsys, monkeypatch):
    settings = [
        "--alpha 0 --beta 0",
        "--alpha 1 --beta 0 --lr 1e30 --warmup-epochs 0",       # breaks the network
        "--alpha 0.5 --beta 0",
    ]
    monkeypatch.setitem(study.STUDIES, "from", {"redoes": "", "runs": settings})
    command = ["from", "--seeds", 1, "--devices", "cpu,cpu", "--out", tmp_path, "--", *SHORT]
    vicreg = "alpha-0-beta-0-seed-0"
    half = "alpha-0.5-beta-0-seed-0"
    broken = "alpha-1-beta-0-lr-1e30-warmup-epochs-0-seed-0"

    assert run_study(*command) == 1
    out = capsys.readouterr().out
    assert "of 3 runs done" in out and "2 of 3 runs are finished" in out
    assert f"failed: {broken}" in out
    assert "NaN or infinite" in (tmp_path / broken / "output.txt").read_text()
    logs = {name: (tmp_path / name / "log.csv").read_bytes() for name in (vicreg, half)}
    assert all(text.count(b"\n") == 3 for text in logs.values())

    (tmp_path / half / "backbone.pt").unlink()      # as if interrupted
    del settings[1]
    assert run_study(*command) == 0
    out = capsys.readouterr().out
    assert f"{vicreg}: was finished" in out
    assert f"{half}: finished" in out
    assert "2 of 2 runs are finished" in out
    assert logs == {name: (tmp_path / name / "log.csv").read_bytes() for name in logs}
    assert (tmp_path / half / "backbone.pt").exists()


def test_the_trainings_end_with_the_study(tmp_path):
    """The signal reaches only the study: its training ends too, and no other starts."""
    study_py = Path(study.__file__)
    command = [sys.executable, study_py, "alpha", "--seeds", "1", "--out", tmp_path, "--", *SHORT,
               "--epochs", "100000"]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "alpha-0-beta-0-seed-0" / "log.csv"
    wait_for_epoch(log, 1, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.count("\n") == 1
    output = log.parent / "output.txt"
    deadline = time.time() + 30
    while "go on with" not in output.read_text() and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.3)
    epochs = log.read_bytes()
    time.sleep(0.5)
    assert log.read_bytes() == epochs           # no process writes to it
    assert [path.name for path in tmp_path.iterdir()] == ["alpha-0-beta-0-seed-0"]
    assert "go on with" in output.read_text()


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(study.STUDIES, "from", {"redoes": "", "runs": ["--alpha 0 --beta 0"]})
    (tmp_path / "alpha-0-beta-0-seed-0").write_text("in the way")
    assert run_study("from", "--seeds", 1, "--out", tmp_path, "--", *SHORT) == 1
    out = capsys.readouterr().out
    assert "0 of 1 runs are finished" in out
    assert "failed: alpha-0-beta-0-seed-0" in out


@pytest.mark.parametrize("flags, words", [
    ("everything", "everything"),
    ("", "STUDY"),
    ("alpha --seeds 0", "--seeds"),
    ("alpha --seeds 1000000000", "a whole number from 1 to 1000"),
    ("alpha --devices cpu,gpu", "--devices"),
    ("alpha -- --seed 3", "--seed is given to each run"),
    ("alpha -- --out=elsewhere", "--out is given to each run"),
    ("alpha -- --methods", "--methods would train nothing"),
    ("--methods vicreg,gan", "invalid choice: 'gan'"),
    ("--setting --lr=0.1 --setting=--seed", "--setting: expected one argument"),
    ("--setting=--seed=3", "--seed is given to each run"),
    ("alpha --out {}/file/x", "file"),
    ("alpha -- --epoch 3", "--epoch"),
])
def test_bad_studies(flags, words, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run_study(*flags.format(tmp_path).split()) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
