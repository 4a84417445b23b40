"""Tests of methods.py: AdaDim's α, and that the contract carries methods unlike AdaDim.

BYOL (a momentum network, a predictor) and DeepCluster v2 (a memory of all embeddings, k-means
once per epoch) are written here in short, and trained, stopped and resumed by train.py as it is.

    python -m pytest -q tests/test_methods.py
"""
import copy
import math
import re
import subprocess
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import methods
import train
from losses import normalize_rows, vicreg
from methods import AdaDim, Method, StepResult, alpha_at
from metrics import effective_rank
from models import mlp
from plumbing.distributed import gather
from plumbing.run import load_checkpoint, read_log
from tests.helpers import (TINY, run, wait_for_epoch, assert_same_run, generator, torchrun,
                           kill_rank_one, stop_at)


class Byol(Method):
    columns = ("momentum",)

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = mlp(16, "16-16")
        self.teacher = nn.Sequential(encoder, self.projector)
        self.teacher = copy.deepcopy(self.teacher).requires_grad_(False)

    def schedule(self, progress):
        return {"momentum": 1 - 0.1 * (1 + torch.cos(math.pi * progress)) / 2}

    def forward(self, views, index, progress):
        r = self.encoder(views)                                     # 2n × p
        predicted1, predicted2 = self.predictor(self.projector(r)).chunk(2)
        with torch.no_grad():
            target1, target2 = self.teacher(views).chunk(2)         # n × d each
        cosine1 = F.cosine_similarity(predicted1, target2).mean()
        cosine2 = F.cosine_similarity(predicted2, target1).mean()
        loss = 4 - 2 * cosine1 - 2 * cosine2
        return StepResult(loss, {}, r, {})

    def after_step(self, kept, step, progress):
        momentum = self.schedule(progress)["momentum"].float()
        students = [*self.encoder.parameters(), *self.projector.parameters()]
        for teacher, student in zip(self.teacher.parameters(), students):
            teacher.lerp_(student.detach(), 1 - momentum)


class DeepCluster(Method):
    n_clusters = 8

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.register_buffer("memory", torch.zeros(n_images, 16))
        self.register_buffer("assigned", torch.zeros(n_images, dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(self.n_clusters, 16))

    def before_epoch(self, epoch, steps, draws):
        if epoch == 1:
            self.memory.copy_(torch.randn(self.memory.shape, generator=draws))
        rows = torch.randperm(len(self.memory), generator=draws)[:self.n_clusters]
        centres = self.memory[rows]
        for _ in range(5):
            nearest = torch.cdist(self.memory, centres).argmin(1)
            members = F.one_hot(nearest, self.n_clusters).float()           # n_images × clusters
            counts = members.sum(0).clamp_min(1)
            centres = members.T @ self.memory / counts[:, None]
        self.assigned.copy_(nearest)
        self.prototypes.copy_(normalize_rows(centres))

    def forward(self, views, index, progress):
        r = self.encoder(views)                                     # 2n × p
        z = normalize_rows(self.projector(r).float())               # 2n × d
        labels = self.assigned[index].repeat(2)
        loss = F.cross_entropy(z @ self.prototypes.T / 0.1, labels)
        z1, _ = z.detach().chunk(2)
        kept = {"z": gather(z1), "index": gather(index[:, None]).long().flatten()}
        return StepResult(loss, {}, r, kept)

    def after_step(self, kept, step, progress):
        self.memory[kept["index"]] = kept["z"]


@pytest.mark.parametrize("method", [Byol, DeepCluster, AdaDim])
def test_any_method_resumes_exactly(method, tmp_path, monkeypatch):
    """Stopped in the third of four epochs and resumed, it ends as if it was left alone."""
    monkeypatch.setitem(methods.METHODS, "this", method)
    flags = [*TINY, "--method", "this", "--batch-size", 32]
    assert run(*flags, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step=2 * 8 + 3)
        assert run(*flags, "--out", tmp_path / "cut") == 130
    saved = load_checkpoint(tmp_path / "cut" / "last.pt")
    assert (saved["epoch"], saved["step"]) == (2, 3)
    assert run(*flags, "--out", tmp_path / "cut", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    log = read_log(tmp_path / "cut" / "log.csv")
    assert set(method.columns) <= log.keys()
    for column in ("loss", *method.columns):
        assert all(math.isfinite(value) for value in log[column])


def test_a_momentum_network_follows(tmp_path, monkeypatch):
    """The teacher is neither the student nor what it was at first, and is not optimised."""
    monkeypatch.setitem(methods.METHODS, "byol", Byol)
    out = tmp_path / "run"
    assert run(*TINY, "--method", "byol", "--out", out) == 0
    saved = load_checkpoint(out / "last.pt")
    teacher = saved["learner"]["method.teacher.0.conv1.weight"]
    student = saved["learner"]["method.encoder.conv1.weight"]
    torch.manual_seed(0)
    first = train.resnet("resnet18", 2, "small")[0].conv1.weight
    assert not torch.equal(teacher, student) and not torch.equal(teacher, first)
    momentum = read_log(out / "log.csv")["momentum"]
    assert momentum == sorted(momentum) and momentum[-1] == pytest.approx(1)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks up a process in /proc")
def test_two_processes_share_a_method_and_one_goes_on_without_the_other(tmp_path):
    """DeepCluster on two processes, of which one is killed; the other says so, and one goes on.

    The memory is whole on the first process: every image's place was written.
    """
    script, out = tmp_path / "deepcluster.py", tmp_path / "run"
    script.write_text("import train, methods\nfrom tests import test_methods\n"
                      "methods.METHODS['deepcluster'] = test_methods.DeepCluster\n"
                      "train.main()\n")
    flags = [*TINY, "--epochs", 30, "--eval-every", 30, "--lr", 0.05, "--method", "deepcluster",
             "--out", out]
    process = torchrun(script, *flags, stdout=subprocess.DEVNULL)
    wait_for_epoch(out / "log.csv", 1, process)
    kill_rank_one(str(tmp_path))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search(r"another process of this run ended|stopped; go on with", err)
    assert "Error:" not in err.split("torch/")[0]

    memory = load_checkpoint(out / "last.pt")["learner"]["method.memory"]
    assert torch.allclose(memory.norm(dim=1), torch.ones(256), atol=1e-5)
    assert 1 <= read_log(out / "log.csv")["epoch"][-1] < 30
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "deepcluster", DeepCluster)
        assert run(*flags, "--resume") == 0
    assert read_log(out / "log.csv")["epoch"] == list(range(1, 31))


# --- AdaDim's α -------------------------------------------------------------------------------

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
    assert set(result.logs) == {*method.columns} - {"alpha"}
    assert parts.vicreg == pytest.approx(vicreg(z1, z2, 5, 4, 3).item(), rel=1e-6)
    by_hand = 0.25 * parts.info_nce + 0.75 * parts.vicreg + 2 * 0.25 * parts.mi_loss
    by_hand = by_hand + (0.8 + 0.2) / 2 * w2 + 0.3 * lu         # half of the training is done
    assert float(result.loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)
