"""Tests of train.py: whole runs on small drawn images.

    python -m pytest -q tests/test_train.py
"""
import math
import os
import re
import signal
import sys

import pytest
import torch
from PIL import Image

import train
from optim import clip_gradient
from run import load_checkpoint, read_config, read_log
from tests.helpers import (SMALL, TINY, assert_equal, assert_same_run, close, rows_without_times,
                           run, save_images, shapes_folder, start, wait_for_epoch)

# --- learning ---------------------------------------------------------------------------------

def test_training_learns(tmp_path, capsys):
    """AdaDim in full, with two classes: it beats the same probe on the untrained encoder.

    Seeds 0 to 3 gained 10 to 17 points.
    """
    out, images = tmp_path / "run", tmp_path / "images"
    shapes_folder(images, ("disc", "bar"), 1600, 1000, 16)
    flags = ("--arch resnet18 --width 4 --projector 128-128 --batch-size 64 --epochs 8 --lr 0.4 "
             "--warmup-epochs 1 --alpha-every 2 --eval-every 8 --baseline").split()
    assert run(*SMALL, "--data-dir", images, *flags, "--out", out, figure=True) == 0

    log = read_log(out / "log.csv")
    alpha = log["alpha"]
    assert alpha[:2] == [0, 0]                      # until it is measured
    assert all(0.02 < value < 0.98 for value in alpha[2:])
    assert alpha[2] == alpha[3] != alpha[4]
    untrained = float(re.search(r"untrained encoder: ([\d.]+) %", capsys.readouterr().out)[1])
    assert 40 < untrained < 65
    assert log["probe_top1"][-1] > untrained + 5
    with Image.open(out / "dynamics.png") as figure:
        assert len(figure.convert("L").getcolors(256)) > 20     # something is drawn


def test_labels_do_not_reach_the_encoder(tmp_path, monkeypatch):
    """Other labels, or --baseline, change the probe and nothing else."""
    flags = [*TINY, "--epochs", 1, "--warmup-epochs", 0.2]
    assert run(*flags, "--out", tmp_path / "a") == 0
    honest = train.load

    def load_with_other_labels(*args):
        data = honest(*args)
        return {**data, "train_y": data["train_y"].flip(0)}

    monkeypatch.setattr(train, "load", load_with_other_labels)
    assert run(*flags, "--baseline", "--out", tmp_path / "b") == 0
    a = load_checkpoint(tmp_path / "a" / "last.pt")["learner"]
    b = load_checkpoint(tmp_path / "b" / "last.pt")["learner"]
    without_probe = {name: b[name] for name in a if not name.startswith("probe")}
    assert_equal({name: a[name] for name in without_probe}, without_probe)
    assert not torch.equal(a["probe.linear.weight"], b["probe.linear.weight"])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    """And keeps the last good checkpoint."""
    assert run(*TINY, "--lr", 1e20, "--warmup-epochs", 0, "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert re.search(r"NaN or infinite in epoch 1, step \d:", err) and err.count("\n") == 1
    kept = load_checkpoint(tmp_path / "run" / "last.pt")["learner"]
    assert all(value.isfinite().all() for value in kept.values() if torch.is_tensor(value))


# --- a first run does not end in NaN ----------------------------------------------------------

def test_a_gradient_is_clipped_to_twice_its_running_mean():
    """By hand: norms 5, 5, 50; limits none, 10, 10; momentum shrinks as much as the gradient."""
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 2))
    optimizer = torch.optim.SGD([a, b], lr=1.0, momentum=0.5)
    mean_norm = torch.zeros(())
    by_hand = [(1, 0, 1, 5.0), (1, 0, 1, 5.0), (10, 1, 0.2, 0.9 * 5 + 0.1 * 10)]
    for factor, acted, scale, mean in by_hand:
        a.grad, b.grad = torch.tensor([0.0, 3.0 * factor]), torch.tensor([[4.0 * factor, 0.0]])
        before = optimizer.state[a].get("momentum_buffer", torch.zeros(2)).clone()
        assert clip_gradient([a, b], optimizer, mean_norm, 2.0) == acted
        assert mean_norm.item() == pytest.approx(mean)
        assert torch.allclose(a.grad, torch.tensor([0.0, 3.0 * factor * scale]))
        assert torch.allclose(b.grad, torch.tensor([[4.0 * factor * scale, 0.0]]))
        if "momentum_buffer" in optimizer.state[a]:
            assert torch.allclose(optimizer.state[a]["momentum_buffer"], before * scale)
        optimizer.step()

    # if fp16's scaler skips the step, nothing changes
    a.grad = torch.tensor([0.0, math.inf])
    before = optimizer.state[a]["momentum_buffer"].clone()
    assert clip_gradient([a, b], optimizer, mean_norm, 2.0) == 0
    assert mean_norm.item() == pytest.approx(5.5)
    assert torch.equal(optimizer.state[a]["momentum_buffer"], before) and before.norm() > 0

    a.grad = torch.tensor([1.0, 2.0])
    assert clip_gradient([a], optimizer, torch.tensor(1e-3), 0.0) == 0      # --clip 0: never
    assert torch.equal(a.grad, torch.tensor([1.0, 2.0]))


def test_clipping_and_warmup_keep_an_unsteady_run_alive(tmp_path):
    """Without both, the loss grows to over 1000."""
    unsteady = [*SMALL, *("--arch resnet18 --width 8 --projector 1024-1024-1024 --limit-train 512 "
                          "--batch-size 64 --lr 1.6 --epochs 2 --eval-every 2").split()]
    assert run(*unsteady, "--out", tmp_path / "guarded") == 0
    log = read_log(tmp_path / "guarded" / "log.csv")
    assert log["loss"][-1] < 100 and 1 <= sum(log["clipped"]) < 12       # of 16 steps


@pytest.mark.parametrize("epochs, steps, explicit, wanted", [
    (400, 195, None, 1950), (20, 195, None, 780), (2, 20, None, 20), (10, 30, None, 150),
    (10, 60, None, 200), (2, 20, 0.5, 10),
])
def test_warmup_has_200_steps_or_half_of_the_run(epochs, steps, explicit, wanted):
    words = ["--epochs", str(epochs)]
    if explicit is not None:
        words += ["--warmup-epochs", str(explicit)]
    assert train.warmup_steps(train.parse_args(words), steps) == wanted


def test_learning_rate():
    close(train.learning_rate(0, 0.4, 10, 110), 3e-5)           # warm-up: linear
    close(train.learning_rate(5, 0.4, 10, 110), (0.4 + 3e-5) / 2)
    close(train.learning_rate(10, 0.4, 10, 110), 0.4)           # then a cosine
    close(train.learning_rate(60, 0.4, 10, 110), 0.2)


# --- flags ------------------------------------------------------------------------------------

def test_defaults_are_the_papers():
    args = vars(train.parse_args([]))
    published = {
        "dataset": "cifar100", "arch": "resnet50", "width": 64, "projector": "2048-2048-2048",
        "augment": "vicreg", "alpha": "ada", "alpha_every": 20, "alpha_batches": 10,
        "alpha_from": "z", "beta": 1e-4, "mi_scale": "alpha", "temperature": 0.1, "epochs": 400,
        "batch_size": 256, "optimizer": "lars", "lr": 0.4, "weight_decay": 1e-4,
    }
    assert {name: args[name] for name in published} == published
    assert train.parse_args(["--beta", "-1e-4"]).beta == -1e-4
    assert train.parse_args(["--optimizer", "sgd"]).lr == 0.05


def test_other_settings_run(tmp_path, monkeypatch, capsys):
    """Other optimisers, precisions, schedules and terms; without matplotlib, no figure."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = "--optimizer adamw --alpha linear --w2-weight 1 --eval-every 2".split()
    out = tmp_path / "a"
    assert run(*TINY, *flags, "--out", out, figure=True) == 0
    assert "matplotlib" in capsys.readouterr().out
    files = {path.name for path in out.iterdir()}
    assert files == {"config.json", "log.csv", "last.pt", "backbone.pt", "encoder.json"}
    log = read_log(out / "log.csv")
    assert log["alpha"][-1] == 1 and 0 < log["alpha"][0] < 0.3
    evaluated = [not math.isnan(value) for value in log["mi"]]
    assert evaluated == [False, True, False, True]              # --eval-every 2

    flags = "--optimizer sgd --precision bf16 --alpha cosine --augment simclr --epochs 1".split()
    assert run(*TINY, *flags, "--out", tmp_path / "b") == 0
    flags = "--alpha 0.25 --beta -1e-3 --mi-scale 1 --epochs 1 --seed 5".split()
    assert run(*TINY, *flags, "--out", tmp_path / "c") == 0
    log = {column: values[0] for column, values in read_log(tmp_path / "c" / "log.csv").items()}
    by_hand = 0.25 * log["info_nce"] + 0.75 * log["vicreg"] - 1e-3 * log["mi_loss"]
    assert log["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_log_and_config_keep_their_names(tmp_path):
    """Programs read log.csv by these columns: it may gain some, and loses none."""
    names = ("epoch step seconds samples_per_s lr alpha loss info_nce vicreg mi_loss probe_loss "
             "probe_top1 probe_top5 knn_top1 erank_r erank_z h2_r h2_z mi uniformity_r "
             "uniformity_z w2_r w2_z eigs_r eigs_z var30_r var30_z").split()
    out = tmp_path / "run"
    command = [*TINY, "--epochs", "2", "--warmup-epochs", "1", "--batch-size", 256, "--out", out]
    assert run(*command, "--eval-every", 1) == 0
    log = read_log(out / "log.csv")
    assert set(names) <= log.keys()
    assert all(math.isfinite(value) for name in names for value in log[name])
    assert log["lr"] == pytest.approx([3e-5, 0.4])      # one step of warm-up, one at the peak

    config = read_config(out)
    assert config["arguments"] == [*map(str, command), "--eval-every", "1"]
    flags = config["flags"]
    assert flags["--alpha"] == "ada" and flags["--seed"] == 0 and flags["--precision"] == "fp32"
    assert flags["--out"] == str(out) and flags["--lr"] == 0.4
    assert config["versions"]["torch"] == torch.__version__


# --- a run is resumed, and not lost -----------------------------------------------------------

@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130),
                                          (signal.SIGKILL, -9)])
def test_a_stopped_run_resumes_exactly(tmp_path, sent, status):
    """After SIGTERM and Ctrl-C though no checkpoint was due; after SIGKILL from the last one."""
    minutes = 0 if sent == signal.SIGKILL else 10
    flags = [*TINY, "--epochs", "6", "--save-minutes", minutes]
    assert run(*flags, "--out", tmp_path / "whole") == 0

    cut = tmp_path / "cut"
    process = start(*flags, "--out", str(cut))
    wait_for_epoch(cut / "log.csv", 1, process)
    process.send_signal(sent)
    out, err = process.communicate()
    assert process.returncode == status and "\r" not in out
    if sent != signal.SIGKILL:
        assert err == "train.py: stopped; the same command with --resume goes on\n"
        assert load_checkpoint(cut / "last.pt")["epoch"] >= 1

    assert run(*flags, "--out", cut, "--resume") == 0
    assert_same_run(tmp_path / "whole", cut)
    assert len(rows_without_times(cut / "log.csv")) == 6
    alpha = load_checkpoint(cut / "last.pt")["learner"]["method.measured.value"]
    assert 1 / 16 < alpha < 1       # effective rank over 16, the largest of z (64 × 16)


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path):
    process = start(*TINY, "--epochs", "500", "--out", tmp_path / "run")
    wait_for_epoch(tmp_path / "run" / "log.csv", 1, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    out = tmp_path / "run"
    process = start(*TINY, "--epochs", "500", "--out", out)
    wait_for_epoch(out / "log.csv", 1, process)
    second = start(*TINY, "--epochs", "500", "--out", out, "--resume")
    _, err = second.communicate(timeout=60)
    process.kill()
    process.communicate()
    assert second.returncode == 2 and "another process is training in" in err
    assert err.count("\n") == 1


def test_a_stop_at_an_epochs_end_loses_nothing(tmp_path, monkeypatch):
    """Even if it comes just after the epoch's end, when no checkpoint was due."""
    honest = train.run.write_log

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args)

    monkeypatch.setattr(train.run, "write_log", signalled)
    out = tmp_path / "run"
    assert run(*TINY, "--save-minutes", 10, "--out", out) == 143
    saved = load_checkpoint(out / "last.pt")
    assert (saved["epoch"], saved["step"]) == (1, 0)


def test_a_run_is_not_lost(tmp_path, capsys):
    out, flags = tmp_path / "run", [*TINY, "--epochs", "2"]
    assert run(*flags, "--out", out) == 0

    def contents():
        return {path: path.read_bytes() for path in out.iterdir()}

    before, rows_before = contents(), rows_without_times(out / "log.csv")
    refused = {
        "already holds a run": flags,
        "--beta 0.0001 there, 0.5 here": [*flags, "--resume", "--beta", 0.5],
    }
    for message, command in refused.items():
        capsys.readouterr()
        assert run(*command, "--out", out) == 2
        assert message in capsys.readouterr().err
        assert contents() == before

    assert run(*flags, "--out", out, "--resume") == 0       # finished: nothing to do
    for name in ("config.json", "log.csv", "last.pt"):
        assert (out / name).read_bytes() == before[out / name]

    whole = before[out / "last.pt"]
    (out / "last.pt").write_bytes(whole[:-1000])
    capsys.readouterr()
    assert run(*flags, "--out", out, "--resume") == 2
    assert "is not a whole checkpoint" in capsys.readouterr().err
    (out / "last.pt").unlink()
    assert run(*flags, "--out", out, "--resume") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert rows_without_times(out / "log.csv") == rows_before

    assert run(*flags, "--out", out, "--overwrite", "--seed", 3) == 0
    assert (out / "backbone.pt").read_bytes() != before[out / "backbone.pt"]


# --- bad input --------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    ("--dataset imagenet22k", "invalid choice: 'imagenet22k'"),
    ("--method byol --set moment=1", "the settings of byol"),
    ("--method byol --set momentum=2", "a number from 0 to 1"),
    ("--typo 1", "--typo"),
    ("--alpha 1.5", "--alpha"),
    ("--temperature 0", "--temperature: must be above 0"),
    ("--epochs 0", "--epochs: must be 1 or more"),
    ("--batch-size 300", "more than the 256 images"),
    ("--vicreg-weights 25,25", "--vicreg-weights"),
    ("--w2-weight 1:2:3", "--w2-weight"),
    ("--projector 64-0", "layer sizes"),
    ("--projector 3000000-3000000", "not enough memory"),
    ("--warmup-epochs 4", "--warmup-epochs"),
    ("--resume --overwrite", "not allowed with"),
    ("--device cuda:99", "--device cuda:99"),
    ("--dataset folder --data-dir {}/nowhere", "nowhere"),
    ("--data-dir {}/broken", "torn.png is not a readable image"),
    ("--out {}/broken/train/a/torn.png/run", "Not a directory"),
])
def test_bad_input(flags, words, tmp_path, capsys):
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        save_images(tmp_path / "broken" / folder, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    whole = tmp_path / "broken" / "train" / "a" / "00000.png"
    whole.with_name("torn.png").write_bytes(whole.read_bytes()[:50])
    before = sorted(tmp_path.rglob("*"))
    assert run(*TINY, "--out", tmp_path / "run", *flags.format(tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before        # nothing is written
