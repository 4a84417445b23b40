"""Tests of a run's folder, session and signals: checkpoints, the log, the lock, Ctrl-C.

    python -m pytest -q tests/test_run.py
"""
import copy
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

import train
from optim import LARS
from plumbing import run, signals, status
from plumbing.checkpoint import (CHECKPOINT_TYPES, load_checkpoint, load_optimizer, restoring,
                                 save_checkpoint)
from plumbing.cli import BadInput, check_output_file
from plumbing.run import Log, reserved
from plumbing.session import Session
from tests.helpers import ROOT

WHOLE = {"epoch": 3, "step": 5, "step_logs": torch.ones(5, 2), "seconds": 1.5,
         "rows": [{"epoch": epoch, "loss": 40.0} for epoch in (1, 2, 3)],
         "config": {"--epochs": 4}, "facts": {}, "learner": {}, "optimizer": {}, "scaler": {}}


# --- checkpoints ------------------------------------------------------------------------------

def session_in(folder, rows=(), **flags):
    """A session after five steps of the fourth epoch, with these rows of the log."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    session = Session(train.parse_args([f"--out={folder}", *words]), [], signals.Signals())
    session.steps, session.rows = 20, list(rows)
    session.epoch, session.step, session.step_logs = 3, 5, list(torch.full((5, 2), 40.0))
    session.checkpoint = lambda: {**WHOLE, "epoch": session.epoch, "step": session.step,
                                  "step_logs": session.stacked_logs()}
    return session


def test_a_checkpoint_is_what_was_saved(tmp_path):
    session = session_in(tmp_path)
    session.save()
    assert torch.equal(load_checkpoint(tmp_path / "last.pt")["step_logs"], torch.full((5, 2), 40.0))
    assert session.holding == f"{tmp_path / 'last.pt'} holds epoch 3 and 5 steps"
    session.epoch, session.step = 4, 0
    session.save()
    assert session.holding.endswith("holds epoch 4")
    assert load_checkpoint(tmp_path / "previous.pt")["epoch"] == 3


def test_a_loss_that_stays_exploded_ends_the_run(tmp_path):
    """A single peak, or one step in two, does not; nor does a hundredfold loss far below 1."""
    session = session_in(tmp_path, rows=[{"loss": 41.0}])
    session.step_logs = list(torch.tensor([[40.0, 0], [4e5, 0]] * 7))
    session.check_losses()
    session.step_logs[6][0] = 4100.0        # now six of the first ten are high
    with pytest.raises(BadInput, match="exploded, to 4e.05 where 40 .* epoch 4, step 10 of 20"):
        session.check_losses()
    session.rows, session.step_logs = [], [torch.tensor([0.001]), *[torch.tensor([0.2])] * 9]
    session.check_losses()
    session.step_logs = [torch.tensor([40.0]), torch.tensor([torch.inf])]
    with pytest.raises(BadInput, match="became NaN or infinite in epoch 4, step 2"):
        session.check_losses()


@pytest.mark.parametrize("field", CHECKPOINT_TYPES)
def test_a_checkpoint_with_a_field_of_another_type_is_refused(field, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**WHOLE, field: "text"})
    with pytest.raises(BadInput, match=f"not a whole checkpoint.*'{field}'"):
        load_checkpoint(path)


@pytest.mark.parametrize("change, words", [
    ({"epoch": -1}, "its epoch is -1, of 4"),
    ({"epoch": 5}, "its epoch is 5, of 4"),
    ({"config": {}}, "its epoch is 3, of None"),
    ({"step": 6}, "its step is 6, with 5 losses"),
    ({"step": -1}, "its step is -1"),
    ({"rows": WHOLE["rows"][:2]}, "its rows are not those of epochs 1 to 3"),
    ({"rows": [*WHOLE["rows"][:2], {"loss": 4.0}]}, "KeyError"),
    ({"rows": [*WHOLE["rows"][:2], {"epoch": 3}]}, "its rows are not those"),
    ({"rows": [*WHOLE["rows"][:2], {"epoch": 3, "loss": float("nan")}]}, "not a finite number"),
    ({"rows": [*WHOLE["rows"][:2], {"epoch": 3, "loss": "4"}]}, "not a finite number"),
    ({"rows": [*WHOLE["rows"][:2], {"epoch": 3, "loss": 10 ** 400}]}, "OverflowError"),
    ({"rows": [1, 2, 3]}, "TypeError"),
    ({"step_logs": torch.ones(5)}, "its step_logs is not a matrix"),
    ({"epoch": 2 ** 70}, "its epoch is"),
])
def test_a_checkpoint_of_impossible_values_is_refused(change, words, tmp_path):
    save_checkpoint(tmp_path / "last.pt", WHOLE)
    load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(tmp_path / "last.pt", WHOLE | change)
    with pytest.raises(BadInput, match=words):
        load_checkpoint(tmp_path / "last.pt")


def test_a_cut_off_checkpoint_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, WHOLE)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="is not a whole checkpoint"):
            load_checkpoint(path)


def test_a_checkpoint_that_cannot_be_written_leaves_both_before_it(tmp_path, monkeypatch):
    """As if the process were killed while writing: last.pt and previous.pt stay intact."""
    path = tmp_path / "last.pt"
    for seconds in (1.0, 2.0):
        save_checkpoint(path, {**WHOLE, "seconds": seconds})

    def killed(checkpoint, file):
        file.write(b"half")
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 4 vs 0")     # as torch.save does then

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {**WHOLE, "seconds": 3.0})
    assert load_checkpoint(path)["seconds"] == 2
    assert load_checkpoint(tmp_path / "previous.pt")["seconds"] == 1


def test_what_does_not_fit_is_blamed_on_the_checkpoint(tmp_path):
    net = torch.nn.Linear(2, 2)
    for weights in ({}, {"weight": torch.ones(3, 3), "bias": torch.ones(2)}, {"weight": 1}):
        with pytest.raises(BadInput, match="last.pt does not hold what this run needs"):
            with restoring(tmp_path / "last.pt"):
                net.load_state_dict(weights)


@pytest.mark.parametrize("change", [
    lambda saved: saved["param_groups"][0].update(eta=0.5),
    lambda saved: saved["param_groups"].pop(),
    lambda saved: saved["state"][0].update(momentum_buffer=torch.ones(3)),
    lambda saved: saved["state"][0].update(momentum_buffer=torch.full((2, 2), torch.inf)),
])
def test_an_optimiser_of_another_run_is_refused(change):
    net = torch.nn.Linear(2, 2)
    optimizer = LARS(net.parameters(), lr=0.1)
    net(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    load_optimizer(optimizer, saved)
    change(saved)
    with pytest.raises((ValueError, KeyError)):
        load_optimizer(optimizer, saved)


def test_what_is_not_a_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        run.write_whole(tmp_path / "pipe", lambda file: file.write(b"x"))
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    with pytest.raises(BadInput, match="--json: cannot write"):
        check_output_file(tmp_path / "pipe", "--json")


def test_a_checkpoint_is_due_after_some_time(tmp_path, monkeypatch):
    session = session_in(tmp_path, save_minutes=10)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 598)
    assert not session.due()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert session.due()
    session.save()
    assert not session.due()


# --- the folder -------------------------------------------------------------------------------

def test_the_log_refuses_another_process(tmp_path):
    log = Log(tmp_path, ("epoch", "loss"), [{"epoch": 1, "loss": 5.0}], tensorboard=False)
    log.append({"epoch": 2, "loss": 4.0})
    other = Log(tmp_path, ("epoch", "loss"), [{"epoch": 1, "loss": 5.0}], tensorboard=False)
    other.append({"epoch": 2, "loss": 3.0})
    other.append({"epoch": 3, "loss": 3.0})
    with pytest.raises(BadInput, match="another process writes"):
        log.append({"epoch": 3, "loss": 3.5})
    assert log.path.read_text() == "epoch,loss\n1,5\n2,3\n3,3\n"


HOLD = """
import sys, time
from pathlib import Path
from plumbing import run
with run.reserved(Path(sys.argv[1]), resume=True, overwrite=False):
    print("here", flush=True)
    time.sleep(60)
"""


def test_who_comes_second_is_told_whose_the_folder_is(tmp_path):
    """A killed process leaves nothing locked, even if a process that it started lives on."""
    out = tmp_path / "run"
    fork = HOLD.replace("    print", "    import os\n    if os.fork() == 0:\n"
                        "        time.sleep(3)\n        os._exit(0)\n    print")
    holder = subprocess.Popen([sys.executable, "-c", fork, str(out)], stdout=subprocess.PIPE,
                              cwd=ROOT)
    assert holder.stdout.readline() == b"here\n"
    (out / "last.pt.99.part").write_bytes(b"of a process that was killed")
    with pytest.raises(BadInput, match=f"in .*run .process {holder.pid} on .*, since 20"):
        with reserved(out, resume=True, overwrite=False):
            pass
    holder.kill()
    holder.wait()
    with reserved(out, resume=True, overwrite=False):
        assert [path.name for path in out.iterdir()] == ["running.txt"]
        assert f"process {os.getpid()} on" in (out / "running.txt").read_text()
    assert not out.exists() or not list(out.iterdir())


# --- signals ----------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_held_signal_waits_and_a_second_does_not(number, monkeypatch):
    monkeypatch.setattr(signals, "ALWAYS_HEARD", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    with signals.Signals() as received:
        received.hold()
        os.kill(os.getpid(), number)
        assert received.stop_wanted()
        with pytest.raises(KeyboardInterrupt) as second:
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert second.value.args == (number,)
        with pytest.raises(KeyboardInterrupt):
            received.release()


def test_what_nohup_wants_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.Signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not received.stop_wanted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_slow_precision_is_said(capsys, monkeypatch):
    cpu = torch.device("cpu")
    status.note_of_precision("fp32", cpu)
    assert capsys.readouterr().out == ""
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False)
        status.note_of_precision(name, cpu)
        assert f"computes in {name} ten times slower" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    status.note_of_precision("bf16", torch.device("cuda"))
    assert "this GPU only emulates bf16" in capsys.readouterr().out


def test_another_number_of_threads_or_processes_is_said(capsys):
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    status.note_of_machine({"threads": threads, "processes": 1}, cpu)
    assert capsys.readouterr().out == ""
    status.note_of_machine({"threads": threads + 3}, cpu)
    assert f"OMP_NUM_THREADS={threads + 3} gives the same bits" in capsys.readouterr().out
    status.note_of_machine({"threads": threads, "processes": 4}, cpu)
    assert "began with 4 processes and goes on with 1" in capsys.readouterr().out
