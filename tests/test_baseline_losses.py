"""Tests of the compared methods' losses, Sinkhorn's algorithm, queues and k-means.

    python -m pytest -q tests/test_baseline_losses.py
"""
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from baselines.barlow_twins import barlow_twins
from baselines.byol import byol
from baselines.deepcluster_v2 import deepcluster_v2, k_means
from baselines.dino import dino
from baselines.lejepa import sigreg
from baselines.moco_v2 import moco_v2
from baselines.moco_v3 import moco_v3
from baselines.nnclr import nnclr
from baselines.ressl import ressl
from baselines.shared import Queue
from baselines.simsiam import simsiam
from baselines.swav import sinkhorn, swav
from losses import normalize_rows
from tests.helpers import close, generator, randn


# --- oracles: the formulas once more, in float64 and numpy --------------------------------------

def unit(x):
    x = np.asarray(x)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x):
    powers = np.exp(x)
    return powers / powers.sum(1, keepdims=True)


def cross_entropy(scores, targets):
    return -(targets * np.log(softmax(scores))).sum(1).mean()


def barlow_oracle(z1, z2, off_diagonal_weight=0.005, scale=0.1):
    columns = [(z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in map(np.asarray, (z1, z2))]
    loss = 0.0
    for i, one in enumerate(columns[0].T):
        for j, other in enumerate(columns[1].T):
            c = (one * other).mean()
            loss += (1 - c) ** 2 if i == j else off_diagonal_weight * c ** 2
    return scale * loss


def byol_oracle(p, z):
    return ((unit(p) - unit(z)) ** 2).sum(1).mean()


def simsiam_oracle(p, z):
    return -(unit(p) * unit(z)).sum(1).mean()


def nnclr_oracle(p, neighbours, temperature):
    return cross_entropy(unit(neighbours) @ unit(p).T / temperature, np.eye(len(p)))


def moco_v2_oracle(q, k, queue, temperature):
    loss = 0.0
    for query, key in zip(unit(q), unit(k)):
        scores = np.array([[query @ other / temperature for other in (key, *unit(queue))]])
        loss -= math.log(softmax(scores)[0, 0])
    return loss / len(q)


def moco_v3_oracle(q, k, temperature):
    return 2 * temperature * cross_entropy(unit(q) @ unit(k).T / temperature, np.eye(len(q)))


def ressl_oracle(q, k, queue, student_temperature, teacher_temperature):
    q, k, queue = unit(q), unit(k), unit(queue)
    return cross_entropy(q @ queue.T / student_temperature,
                         softmax(k @ queue.T / teacher_temperature))


def dino_oracle(student, teacher, center, student_temperature, teacher_temperature):
    student, teacher, center = map(np.asarray, (student, teacher, center))
    return cross_entropy(student / student_temperature,
                         softmax((teacher - center) / teacher_temperature))


def swav_oracle(scores, assignments, temperature):
    return cross_entropy(np.asarray(scores) / temperature, np.asarray(assignments))


def deepcluster_oracle(scores, assignments, temperature):
    scores, assignments = np.asarray(scores), np.asarray(assignments)
    known = assignments != -1
    return cross_entropy(scores[known] / temperature, np.eye(scores.shape[1])[assignments[known]])


def sigreg_oracle(z, directions):
    """The integral over [−3, 3] with 33 knots, one by one."""
    n, m = len(z), directions.shape[1]
    step = 6 / 32
    total = 0.0
    for projected in (np.asarray(z) @ np.asarray(directions)).T:
        for knot in range(33):
            t = -3 + knot * step
            phi = np.exp(1j * t * projected).mean()
            width = step / 2 if knot in (0, 32) else step
            total += width * abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
    return n * total / m


# --- losses -------------------------------------------------------------------------------------

class Case(NamedTuple):
    """A loss, called with x (6 × 4), which receives a gradient, other tensors and numbers."""
    loss: Any
    oracle: Any
    others: list
    numbers: tuple = ()
    others_learn: bool = False      # a target must receive no gradient


def nnclr_of_predictions(p, neighbours, temperature):
    return nnclr(neighbours, p, temperature)


Y = randn(6, 4, seed=1)
QUEUE = randn(5, 4, seed=7)
LABELS = torch.tensor([2, -1, 0, 3, 3, -1])
SHARES = torch.softmax(randn(6, 4, seed=8), 1)
DIRECTIONS = torch.linalg.qr(randn(4, 4, seed=9)).Q[:, :3]
LOSSES = {
    "barlow_twins": Case(barlow_twins, barlow_oracle, [Y], (0.02, 0.3), True),
    "byol": Case(byol, byol_oracle, [Y]),
    "simsiam": Case(simsiam, simsiam_oracle, [Y]),
    "nnclr": Case(nnclr_of_predictions, nnclr_oracle, [Y], (0.3,)),
    "moco_v2": Case(moco_v2, moco_v2_oracle, [Y, QUEUE], (0.3,)),
    "moco_v3": Case(moco_v3, moco_v3_oracle, [Y], (0.3,)),
    "dino": Case(dino, dino_oracle, [Y, randn(4, seed=2)], (0.3, 0.2)),
    "swav": Case(swav, swav_oracle, [SHARES], (0.3,)),
    "deepcluster_v2": Case(deepcluster_v2, deepcluster_oracle, [LABELS], (0.3,)),
    "ressl": Case(ressl, ressl_oracle, [Y, QUEUE], (0.3, 0.2)),
    "sigreg": Case(sigreg, sigreg_oracle, [DIRECTIONS], (), True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_oracle(name):
    """Its gradient equals finite differences, and targets receive none."""
    case = LOSSES[name]
    x = randn(6, 4).requires_grad_()
    others = [y.clone().requires_grad_(y.is_floating_point()) for y in case.others]
    value = case.loss(x, *others, *case.numbers)
    close(value.detach(), case.oracle(x.detach(), *case.others, *case.numbers))
    value.backward()
    assert x.grad.abs().max() > 1e-3
    assert all((y.grad is not None) == case.others_learn for y in others)
    learning = (x, *others) if case.others_learn else (x,)
    fixed = [] if case.others_learn else case.others
    assert torch.autograd.gradcheck(lambda *xs: case.loss(*xs, *fixed, *case.numbers), learning)


def test_closed_forms():
    """Of views that agree, and of those that do not; the default weights are the papers'."""
    x = randn(6, 4)
    close(barlow_twins(x, Y), barlow_oracle(x, Y))
    close(byol(x, 3 * x), 0)
    close(byol(x, -x), 4)
    close(simsiam(x, 3 * x), -1)
    close(deepcluster_v2(x, torch.full((6,), -1), 0.1), 0)
    orthogonal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    close(barlow_twins(orthogonal, orthogonal), 0, 1e-8)
    # sigreg tests for a normal distribution
    directions = torch.linalg.qr(randn(8, 8)).Q
    normal = sigreg(randn(2000, 8), directions)
    assert 0 < normal < 2
    assert sigreg(2 * randn(2000, 8), directions) > 50 * normal
    assert sigreg(randn(2000, 8) + 1, directions) > 50 * normal


COLLAPSED = {"zeros": torch.zeros(6, 4), "equal": torch.full((6, 4), 0.3),
             "tiny": torch.full((6, 4), 1e-30), "huge": torch.full((6, 4), 1e6)}


@pytest.mark.parametrize("batch", COLLAPSED)
def test_collapsed_batches_are_finite(batch):
    x = COLLAPSED[batch]
    for name, case in LOSSES.items():
        leaf = x.clone().requires_grad_()
        others = [x if y.shape == x.shape else y for y in case.others]
        value = case.loss(leaf, *others, *case.numbers)
        value.backward()
        assert value.isfinite() and leaf.grad.isfinite().all(), name
    assert sinkhorn(x).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_under_autocast(name):
    case = LOSSES[name]
    inputs = [y.bfloat16() if y.is_floating_point() else y for y in (randn(6, 4), *case.others)]
    exact = case.loss(*(y.float() if y.is_floating_point() else y for y in inputs), *case.numbers)
    with torch.autocast("cpu", torch.bfloat16):
        value = case.loss(*inputs, *case.numbers)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)


# --- parts of methods ---------------------------------------------------------------------------

def test_sinkhorns_sums():
    """Rows sum to 1, and columns to n/K after many rounds."""
    scores = torch.tanh(randn(12, 4))
    assert torch.allclose(sinkhorn(scores).sum(1), torch.ones(12).double())
    many = sinkhorn(scores, 0.3, iterations=300)
    assert torch.allclose(many.sum(0), torch.full((4,), 3.0).double(), atol=1e-6)
    assert sinkhorn(1000 * scores).isfinite().all()             # exp(20,000) is not


def test_a_queue_keeps_the_newest():
    """Whether or not its size is a multiple of the batch's, and also if it is smaller."""
    angles = torch.arange(9) / 10
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    for size, kept in ((6, [6, 7, 8, 3, 4, 5]), (4, [8, 5, 6, 7]), (2, [7, 8])):
        queue = Queue(size, 2)
        assert torch.allclose(queue.rows.norm(dim=1), torch.ones(size))
        for batch in rows.split(3):                             # 0 1 2, 3 4 5, 6 7 8
            queue.push(5 * batch)
        assert torch.allclose(queue.rows, rows[kept])


def test_k_means_finds_known_clusters():
    """Five narrow bundles of directions become one cluster each, with their means as centres."""
    middles = torch.linalg.qr(randn(8, 8)).Q[:5]
    truth = torch.arange(5).repeat_interleave(20)
    x = normalize_rows(middles[truth] + 0.05 * randn(100, 8, seed=1))
    means = normalize_rows(torch.stack([x[truth == bundle].mean(0) for bundle in range(5)]))
    right = 0
    for seed in range(20):          # a start with two rows of one bundle may end in a bad optimum
        centres, labels = k_means(x, 5, 10, generator(seed))
        assert torch.equal(labels, (x @ centres.T).argmax(1))
        right += torch.allclose(centres[labels], means[truth], atol=1e-9)
    assert right > 0
    # with more clusters than different rows, some centres lose all samples, and stay
    centres, _ = k_means(x[:3].repeat(4, 1), 6, 5, generator(0))
    assert centres.isfinite().all()
