"""Tests of the compared methods' losses, Sinkhorn's algorithm, queues, momentum and k-means.

    python -m pytest -q tests/test_baseline_losses.py
"""
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import baselines
from baselines import sinkhorn
from baselines.deepcluster_v2 import k_means
from baselines.shared import MomentumCopy, Queue
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


def sinkhorn_oracle(scores, epsilon, iterations):
    q = np.exp(np.asarray(scores) / epsilon)
    for _ in range(iterations):
        q /= q.sum(0, keepdims=True) * q.shape[1]
        q /= q.sum(1, keepdims=True) * q.shape[0]
    return q * len(q)


# --- losses -------------------------------------------------------------------------------------

class Case(NamedTuple):
    """A loss, called with x (6 × 4), which receives a gradient, other tensors and numbers."""
    loss: Any
    oracle: Any
    others: list
    numbers: tuple = ()
    others_learn: bool = False      # a target must receive no gradient


def nnclr(p, neighbours, temperature):
    return baselines.nnclr(neighbours, p, temperature)


Y = randn(6, 4, seed=1)
QUEUE = randn(5, 4, seed=7)
LABELS = torch.tensor([2, -1, 0, 3, 3, -1])
SHARES = torch.softmax(randn(6, 4, seed=8), 1)
DIRECTIONS = torch.linalg.qr(randn(4, 4, seed=9)).Q[:, :3]
LOSSES = {
    "barlow_twins": Case(baselines.barlow_twins, barlow_oracle, [Y], (0.02, 0.3), True),
    "byol": Case(baselines.byol, byol_oracle, [Y]),
    "simsiam": Case(baselines.simsiam, simsiam_oracle, [Y]),
    "nnclr": Case(nnclr, nnclr_oracle, [Y], (0.3,)),
    "moco_v2": Case(baselines.moco_v2, moco_v2_oracle, [Y, QUEUE], (0.3,)),
    "moco_v3": Case(baselines.moco_v3, moco_v3_oracle, [Y], (0.3,)),
    "dino": Case(baselines.dino, dino_oracle, [Y, randn(4, seed=2)], (0.3, 0.2)),
    "swav": Case(baselines.swav, swav_oracle, [SHARES], (0.3,)),
    "deepcluster_v2": Case(baselines.deepcluster_v2, deepcluster_oracle, [LABELS], (0.3,)),
    "ressl": Case(baselines.ressl, ressl_oracle, [Y, QUEUE], (0.3, 0.2)),
    "sigreg": Case(baselines.sigreg, sigreg_oracle, [DIRECTIONS], (), True),
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
    """Agreement and collapse have known losses; the default weights are the papers'."""
    x = randn(6, 4)
    same = torch.ones(6, 4, dtype=torch.float64)
    close(baselines.barlow_twins(x, Y), barlow_oracle(x, Y))
    close(baselines.byol(x, 3 * x), 0)
    close(baselines.byol(x, -x), 4)
    close(baselines.simsiam(x, 3 * x), -1)
    close(baselines.nnclr(same, same, 0.1), math.log(6))
    close(baselines.moco_v2(same, same, same[:5], 0.1), math.log(6))
    close(baselines.moco_v3(same, same, 0.1), 0.2 * math.log(6))
    close(baselines.dino(same, same, 0 * same[0], 0.1, 0.05), math.log(4))
    close(baselines.deepcluster_v2(x, torch.full((6,), -1), 0.1), 0)
    # features agree with themselves in the other view and with no others: C is the identity
    orthogonal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    close(baselines.barlow_twins(orthogonal, orthogonal), 0, 1e-8)
    # sigreg tests for a normal distribution
    directions = torch.linalg.qr(randn(8, 8)).Q
    normal = baselines.sigreg(randn(2000, 8), directions)
    assert 0 < normal < 2
    assert baselines.sigreg(2 * randn(2000, 8), directions) > 50 * normal
    assert baselines.sigreg(randn(2000, 8) + 1, directions) > 50 * normal


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


@pytest.mark.parametrize("name", [*LOSSES, "sinkhorn"])
def test_losses_are_float32_under_autocast(name):
    case = LOSSES.get(name, Case(sinkhorn, None, []))
    inputs = [randn(6, 4).bfloat16(),
              *(y.bfloat16() if y.is_floating_point() else y for y in case.others)]
    exact = case.loss(*(y.float() if y.is_floating_point() else y for y in inputs), *case.numbers)
    with torch.autocast("cpu", torch.bfloat16):
        value = case.loss(*inputs, *case.numbers)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)


@pytest.mark.parametrize("call, words", [
    (lambda: baselines.simsiam(randn(6, 4), randn(6, 3)), "equal shapes"),
    (lambda: baselines.barlow_twins(randn(1, 4), randn(1, 4)), "at least 2 rows"),
    (lambda: baselines.moco_v2(randn(6, 4), randn(6, 4), randn(5, 3), 0.1), "one width"),
    (lambda: baselines.moco_v3(randn(6, 4), randn(6, 4), 0), "must be positive"),
    (lambda: baselines.ressl(randn(6, 4), randn(6, 4), randn(5, 4), 0.1, -1), "must be positive"),
    (lambda: baselines.dino(randn(6, 4), randn(6, 4), randn(3), 0.1, 0.1), "center of 4"),
    (lambda: baselines.deepcluster_v2(randn(6, 4), torch.zeros(5).long(), 0.1), "6 int64"),
    (lambda: baselines.sigreg(randn(6, 4), randn(3, 2)), "directions of 4 rows"),
    (lambda: sinkhorn(randn(6, 4), iterations=0), "at least 1"),
])
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- parts of methods ---------------------------------------------------------------------------

def test_sinkhorns_sums():
    """Rows sum to 1, and columns to n/K after many rounds; three rounds are the oracle's."""
    scores = torch.tanh(randn(12, 4))
    found = sinkhorn(scores)
    assert torch.allclose(found, torch.from_numpy(sinkhorn_oracle(scores, 0.05, 3)), atol=1e-9)
    assert torch.allclose(found.sum(1), torch.ones(12).double())
    many = sinkhorn(scores, 0.3, iterations=300)
    assert torch.allclose(many.sum(0), torch.full((4,), 3.0).double(), atol=1e-6)
    assert sinkhorn(1000 * scores).isfinite().all()             # exp(20,000) is not


def test_a_queue_keeps_the_newest():
    queue = Queue(6, 2, batch_size=3)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(6))
    for start in (0, 3, 6):                                     # 0 1 2, 3 4 5, 6 7 8
        queue.push(torch.arange(start, start + 3).float().repeat(2, 1).T)
    assert queue.rows[:, 0].tolist() == [6, 7, 8, 3, 4, 5]


def test_a_momentum_copy_by_hand():
    """m at start, middle and end; w̄ ← m·w̄ + (1 − m)·w; it has its own batch norm statistics."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    teacher = MomentumCopy([network], first=0.8, last=1.0)
    at = [torch.tensor(progress).double() for progress in (0.0, 0.5, 1.0)]
    assert [float(teacher.momentum(progress)) for progress in at] == pytest.approx([0.8, 0.9, 1.0])
    slow = teacher.copy[0][0].weight
    before = slow.clone()
    assert torch.equal(before, network[0].weight)
    with torch.no_grad():
        network[0].weight.add_(1)
    network(randn(8, 2).float() + 5)                            # moves the network's statistics
    teacher.follow([network], at[1])
    assert torch.allclose(slow, 0.9 * before + 0.1 * (before + 1))
    teacher.follow([network], at[2])
    assert torch.allclose(slow, before + 0.1)                   # m is 1: it does not move
    assert torch.equal(teacher.copy[0][1].running_mean, torch.zeros(2))
    assert not teacher(randn(8, 2).float()).requires_grad
    assert not torch.equal(teacher.copy[0][1].running_mean, torch.zeros(2))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_k_means_finds_known_clusters():
    """Five narrow bundles of directions become one cluster each, with their means as centres."""
    middles = torch.linalg.qr(randn(8, 8)).Q[:5]
    truth = torch.arange(5).repeat_interleave(20)
    x = normalize_rows(middles[truth] + 0.05 * randn(100, 8, seed=1))
    means = normalize_rows(torch.stack([x[truth == bundle].mean(0) for bundle in range(5)]))
    right = 0
    for seed in range(20):          # a start with two rows of one bundle may end in a bad optimum
        centres, labels = k_means(x, 5, 10, generator(seed))
        assert torch.allclose(centres.norm(dim=1), torch.ones(5).double())
        assert torch.equal(labels, (x @ centres.T).argmax(1))
        right += torch.allclose(centres[labels], means[truth], atol=1e-9)
    assert right > 0
    again, _ = k_means(x, 5, 10, generator(19))
    assert torch.equal(again, centres)
    # with more clusters than different rows, some centres lose all samples, and stay
    centres, _ = k_means(x[:3].repeat(4, 1), 6, 5, generator(0))
    assert centres.isfinite().all()
