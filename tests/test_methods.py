"""Tests of methods.py: AdaDim's α and loss, and what a run keeps of a method.

    python -m pytest -q tests/test_methods.py
"""
import math
import signal
import subprocess
import types

import pytest
import torch
from torch import nn

import methods
import train
from losses import vicreg
from methods import AdaDim, alpha_at
from metrics import effective_rank
from run import load_checkpoint, read_log
from tests.helpers import (ROOT, TINY, assert_resumes_exactly, generator, run, torchrun,
                           wait_for_epoch)

# --- α, and the loss ----------------------------------------------------------------------------

def adadim(**flags):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    args = train.parse_args(["--projector", "12", *words])
    return AdaDim(args, nn.Sequential(nn.Flatten(), nn.Linear(48, 20)), 20, 64)


def test_alpha_is_the_mean_share_of_the_rank():
    """Of the measured batches alone, in the epochs that --alpha-every names."""
    method = adadim(alpha="ada", alpha_every=2, alpha_batches=3)
    z = torch.randn(4, 5, 12, generator=generator())            # five steps' embeddings, 4 × 12
    z = z.transpose(0, 1)
    progress = torch.tensor(0.5).double()
    for epoch in (1, 2):
        method.before_epoch(epoch, 5, generator(epoch))
        measured = list(method.measured.steps)
        for step in range(5):
            method.after_step({"measured_on": z[step]}, step, progress)
        method.after_epoch(epoch)
        if epoch == 1:
            assert measured == [] and method.measured.value == 0
    assert len(measured) == len(set(measured)) == 3
    by_hand = sum(effective_rank(z[step]) / 4 for step in measured) / 3
    assert float(method.measured.value) == pytest.approx(float(by_hand))
    assert method.schedule(progress)["alpha"] == method.measured.value


def test_alpha_is_measured_on_z_or_r():
    views, progress = torch.randn(8, 3, 4, 4, generator=generator()), torch.tensor(0.0).double()
    for where, width in (("z", 12), ("r", 20)):
        result = adadim(alpha_from=where)(views, torch.arange(4), progress)
        assert result.kept["measured_on"].shape == (4, width)
        assert not result.kept["measured_on"].requires_grad


@pytest.mark.parametrize("schedule, at_start, at_quarter, at_end", [
    ("linear", 0, 0.25, 1), ("cosine", 0, (1 - math.sqrt(0.5)) / 2, 1), (0.7, 0.7, 0.7, 0.7),
    ("ada", 0.3, 0.3, 0.3),
])
def test_alphas_schedules(schedule, at_start, at_quarter, at_end):
    measured = torch.tensor(0.3)
    for progress, wanted in ((0, at_start), (0.25, at_quarter), (1, at_end)):
        alpha = alpha_at(schedule, measured, torch.tensor(progress).double())
        assert alpha.dtype == torch.float32 and float(alpha) == pytest.approx(wanted, abs=1e-7)


def test_the_loss_is_equation_5():
    method = adadim(alpha=0.25, beta=2.0, w2_weight="0.8:0.2", lu_weight=0.3,
                    vicreg_weights="5,4,3")
    views = torch.randn(16, 3, 4, 4, generator=generator())
    result = method(views, torch.arange(8), torch.tensor(0.5).double())
    parts = types.SimpleNamespace(**result.logs)
    z1, z2 = method.projector(method.encoder(views)).chunk(2)
    w2 = methods.wasserstein_uniformity(torch.cat([z1, z2]))
    lu = methods.uniformity(torch.cat([z1, z2]))
    assert (parts.w2_loss, parts.lu_loss) == (w2, lu)
    assert set(result.logs) == {*method.columns, *method.details} - {"alpha"}
    assert parts.vicreg == pytest.approx(vicreg(z1, z2, 5, 4, 3).item(), rel=1e-6)
    by_hand = 0.25 * parts.info_nce + 0.75 * parts.vicreg + 2 * 0.25 * parts.mi_loss
    by_hand = by_hand + (0.8 + 0.2) / 2 * w2 + 0.3 * lu         # half of the training is done
    assert float(result.loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)


def test_vicreg_and_simclr_are_points_of_adadims_family():
    for name, alpha in (("vicreg", "0"), ("simclr", "1")):
        named = vars(train.parse_args(["--method", name, "--beta", "0"]))
        spelled = vars(train.parse_args(["--alpha", alpha, "--beta", "0", "--mi-scale", "1"]))
        assert named.pop("out").name == f"cifar100-{name}-seed-0" and spelled.pop("out")
        assert named == spelled
        assert train.parse_args(["--method", name]).beta == 0


# --- whole runs ---------------------------------------------------------------------------------

def test_a_run_cut_while_alpha_is_measured_resumes_exactly(tmp_path):
    """Cut in the second of three epochs; α is set after it, from batches before and after the cut.

    tests/test_baselines.py does the same for the compared methods.
    """
    assert_resumes_exactly([*TINY, "--epochs", 3], tmp_path, step=4 + 2, saved_at=(1, 2))
    assert read_log(tmp_path / "cut" / "log.csv")["alpha"][2] > 0


def test_a_run_of_two_processes_stops_and_goes_on_in_one(tmp_path):
    """After a SIGTERM to torchrun; the memory that both filled comes with it."""
    out = tmp_path / "run"
    flags = [*TINY, "--epochs", 8, "--eval-every", 8, "--method", "deepcluster_v2",
             "--set", "prototypes=8", "--out", out]
    process = torchrun(ROOT / "train.py", *flags, stdout=subprocess.DEVNULL)
    wait_for_epoch(out / "log.csv", 1, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "--resume goes on" in err
    memory = load_checkpoint(out / "last.pt")["learner"]["method.memory"]      # 2 × 256 × d
    assert memory.any(-1).all()
    assert 1 <= read_log(out / "log.csv")["epoch"][-1] < 8
    assert run(*flags, "--resume") == 0
    assert read_log(out / "log.csv")["epoch"] == list(range(1, 9))
