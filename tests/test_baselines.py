"""Tests of baselines/ and its losses: formulas, gradients, state, resuming, two processes.

Each loss against its formula in float64, written as loops; who receives gradients and who must
not; momentum networks, queues and k-means by hand; and every method trained by train.py.

    python -m pytest -q tests/test_baselines/
"""
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

import baselines
import evaluate
import train
from baselines import METHODS, sinkhorn
from baselines.deepcluster_v2 import k_means
from baselines.shared import MomentumCopy, Queue
from data import batches_of_views, plan_batches
from losses import normalize_rows, wasserstein_uniformity
from methods import first_and_last
from metrics import effective_rank
from models import encode
from plumbing.run import load_checkpoint, read_log
from plumbing.shapes import SHAPES, draw_shapes
from tests.helpers import (SMALL, run, assert_same_run, generator, shapes_folder,
                           whole_and_halves, stop_at, close, randn, shuffled)

NAMES = [name for name in METHODS if name != "adadim"]
# small networks: what each method has beside the encoder and the projector
SMALL_SETTINGS = {
    "byol": "predictor=16 momentum=0.9",
    "simsiam": "predictor=16",
    "nnclr": "predictor=16 queue=96",
    "moco_v2": "queue=96 momentum=0.9",
    "moco_v3": "predictor=16 momentum=0.9",
    "dino": "prototypes=24 momentum=0.9 temperature_epochs=2",
    "swav": "prototypes=24 queue=96 queue_from_epoch=2 frozen_epochs=1",
    "deepcluster_v2": "prototypes=8 iterations=3",
    "ressl": "queue=96 momentum=0.9",
    "lejepa": "directions=32",
}


def settings(name, of_methods=SMALL_SETTINGS):
    words = of_methods.get(name, "").split()
    return ["--set", *words] if words else []


# --- oracles: the formulas once more, entry by entry, in numpy ----------------------------------

def unit(x):
    return [row / np.linalg.norm(row) for row in np.asarray(x)]


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def barlow_oracle(z1, z2):
    n, d = z1.shape
    columns = []
    for z in (np.asarray(z1), np.asarray(z2)):
        columns.append([(z[:, j] - z[:, j].mean()) / math.sqrt(z[:, j].var() + 1e-5)
                        for j in range(d)])
    loss = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(columns[0][i] * columns[1][j]) / n
            loss += (1 - c) ** 2 if i == j else 0.005 * c ** 2
    return 0.1 * loss


def byol_oracle(p, z):
    return sum(((a - b) ** 2).sum() for a, b in zip(unit(p), unit(z))) / len(p)


def simsiam_oracle(p, z):
    return -sum(a @ b for a, b in zip(unit(p), unit(z))) / len(p)


def nnclr_oracle(neighbours, p, temperature):
    loss = 0.0
    for i, anchor in enumerate(unit(neighbours)):
        loss -= math.log(softmax([anchor @ other / temperature for other in unit(p)])[i])
    return loss / len(p)


def moco_v2_oracle(q, k, queue, temperature):
    loss = 0.0
    for query, key in zip(unit(q), unit(k)):
        scores = [query @ other / temperature for other in (key, *unit(queue))]
        loss -= math.log(softmax(scores)[0])
    return loss / len(q)


def moco_v3_oracle(q, k, temperature):
    return 2 * temperature * nnclr_oracle(q, k, temperature)


def ressl_oracle(q, k, queue, student_temperature, teacher_temperature):
    loss = 0.0
    for query, key in zip(unit(q), unit(k)):
        student = softmax([query @ other / student_temperature for other in unit(queue)])
        teacher = softmax([key @ other / teacher_temperature for other in unit(queue)])
        loss -= sum(t * math.log(s) for s, t in zip(student, teacher))
    return loss / len(q)


def dino_oracle(student, teacher, center, student_temperature, teacher_temperature):
    loss = 0.0
    for row, target in zip(student.tolist(), (teacher - center).tolist()):
        predicted = softmax([value / student_temperature for value in row])
        wanted = softmax([value / teacher_temperature for value in target])
        loss -= sum(t * math.log(s) for s, t in zip(predicted, wanted))
    return loss / len(student)


def swav_oracle(scores, assignments, temperature):
    loss = 0.0
    for row, shares in zip(scores.tolist(), assignments.tolist()):
        predicted = softmax([value / temperature for value in row])
        loss -= sum(share * math.log(p) for p, share in zip(predicted, shares))
    return loss / len(scores)


def deepcluster_oracle(scores, assignments, temperature):
    losses = []
    for row, label in zip(scores.tolist(), assignments.tolist()):
        if label != -1:
            losses.append(-math.log(softmax([value / temperature for value in row])[label]))
    return sum(losses) / len(losses)


def sigreg_oracle(z, directions):
    """The integral over [−3, 3] with 33 knots, one by one."""
    n, m = len(z), directions.shape[1]
    step = 6 / 32
    total = 0.0
    for projected in (np.asarray(z) @ np.asarray(directions)).T:
        for knot in range(33):
            t = -3 + knot * step
            phi = sum(complex(math.cos(t * x), math.sin(t * x)) for x in projected) / n
            width = step / 2 if knot in (0, 32) else step
            total += width * abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
    return n * total / m


def sinkhorn_oracle(scores, epsilon, iterations):
    q = np.exp(np.asarray(scores) / epsilon)
    n, k = q.shape
    for _ in range(iterations):
        for j in range(k):
            q[:, j] /= q[:, j].sum() * k
        for i in range(n):
            q[i] /= q[i].sum() * n
    return q * n


LABELS = torch.tensor([2, -1, 0, 3, 3, -1])
DIRECTIONS = torch.linalg.qr(randn(4, 4, seed=9)).Q[:, :3]
SHARES = torch.softmax(randn(6, 4, seed=8), 1)
QUEUE = randn(5, 4, seed=7)
# each loss with made inputs; the first of them is what learns, `targets` must get no gradient
LOSSES = {
    "byol": (baselines.byol, byol_oracle, [randn(6, 4, seed=1)], []),
    "simsiam": (baselines.simsiam, simsiam_oracle, [randn(6, 4, seed=1)], []),
    "moco_v2": (baselines.moco_v2, moco_v2_oracle, [randn(6, 4, seed=1), QUEUE], [0.3]),
    "moco_v3": (baselines.moco_v3, moco_v3_oracle, [randn(6, 4, seed=1)], [0.3]),
    "ressl": (baselines.ressl, ressl_oracle, [randn(6, 4, seed=1), QUEUE], [0.3, 0.2]),
    "dino": (baselines.dino, dino_oracle, [randn(6, 4, seed=1), randn(4, seed=2)], [0.3, 0.2]),
    "swav": (baselines.swav, swav_oracle, [SHARES], [0.3]),
    "deepcluster_v2": (baselines.deepcluster_v2, deepcluster_oracle, [LABELS], [0.3]),
    "sigreg": (baselines.sigreg, sigreg_oracle, [DIRECTIONS], []),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_oracles(name):
    loss, oracle, targets, numbers = LOSSES[name]
    x = randn(6, 4)
    close(loss(x, *targets, *numbers), oracle(x, *targets, *numbers), 1e-9)


def test_barlow_twins_and_nnclr_equal_their_oracles():
    z1, z2 = randn(6, 4), randn(6, 4) + 0.5 * randn(6, 4, seed=1)
    close(baselines.barlow_twins(z1, z2), barlow_oracle(z1, z2))
    close(baselines.nnclr(z1, z2, 0.3), nnclr_oracle(z1, z2, 0.3))
    doubled = baselines.barlow_twins(z1, z2, off_diagonal_weight=0.0, scale=2.0)
    diagonal = baselines.barlow_twins(z1, z2, off_diagonal_weight=0.0)
    close(doubled, 20 * diagonal)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_what_learns_alone(name):
    """And equal finite differences there."""
    loss, _, targets, numbers = LOSSES[name]
    x = randn(6, 4).requires_grad_()
    leaves = [y.clone().requires_grad_(y.is_floating_point()) for y in targets]
    if name == "sigreg":
        leaves = targets
    value = loss(x, *leaves, *numbers)
    value.backward()
    assert x.grad.abs().max() > 1e-3
    assert all(leaf.grad is None for leaf in leaves)
    assert torch.autograd.gradcheck(lambda x: loss(x, *targets, *numbers), (x,))


def test_gradients_of_barlow_twins_and_nnclr():
    z1, z2 = randn(6, 4).requires_grad_(), randn(6, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(baselines.barlow_twins, (z1, z2))
    baselines.nnclr(z1, z2, 0.3).backward()
    assert z1.grad is None and z2.grad.abs().max() > 1e-3


def test_closed_forms():
    """Agreement and collapse have known losses."""
    x = randn(6, 4)
    same = torch.ones(6, 4, dtype=torch.float64)
    close(baselines.byol(x, 3 * x), 0)
    close(baselines.byol(x, -x), 4)
    close(baselines.simsiam(x, 3 * x), -1)
    close(baselines.nnclr(same, same, 0.1), math.log(6))
    close(baselines.moco_v2(same, same, same[:5], 0.1), math.log(6))
    close(baselines.moco_v3(same, same, 0.1), 0.2 * math.log(6))
    close(baselines.dino(same, same, 0 * same[0], 0.1, 0.05), math.log(4))
    close(baselines.deepcluster_v2(x, torch.full((6,), -1), 0.1), 0)
    # each feature is its own in the other view, and no other's: C is the identity
    orthogonal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    close(baselines.barlow_twins(orthogonal, orthogonal), 0, 1e-8)
    # samples of a normal distribution pass the test for one, others do not
    directions = torch.linalg.qr(randn(8, 8)).Q
    normal = baselines.sigreg(randn(2000, 8), directions)
    assert 0 < normal < 2
    assert baselines.sigreg(2 * randn(2000, 8), directions) > 50 * normal
    assert baselines.sigreg(randn(2000, 8) + 1, directions) > 50 * normal


def test_invariances():
    """Of scale where rows are made unit, of the samples' order, of a shift where one is taken."""
    x, y, order = randn(6, 4), randn(6, 4, seed=1), shuffled(6)
    for name in ("byol", "simsiam", "moco_v2", "moco_v3", "ressl"):
        loss, _, (_, *queue), numbers = LOSSES[name]
        value = loss(x, y, *queue, *numbers)
        close(loss(5 * x, 0.1 * y, *(3 * rows for rows in queue), *numbers), value)
        close(loss(x[order], y[order], *queue, *numbers), value)
    close(baselines.barlow_twins(9 * x + 4, y), baselines.barlow_twins(x, y), 1e-3)
    center = randn(4, seed=2)
    close(baselines.dino(x, y + center, center, 0.1, 0.05),
          baselines.dino(x, y, 0 * center, 0.1, 0.05))
    rows = baselines.moco_v2(x, y, QUEUE, 0.2)
    close(baselines.moco_v2(x, y, QUEUE[shuffled(5)], 0.2), rows)


COLLAPSED = {"zeros": torch.zeros(6, 4), "equal": torch.full((6, 4), 0.3),
             "tiny": torch.full((6, 4), 1e-30), "huge": torch.full((6, 4), 1e6)}


@pytest.mark.parametrize("batch", COLLAPSED)
def test_collapsed_batches_are_finite(batch):
    x = COLLAPSED[batch]
    calls = {name: (loss, [x.clone() if y.shape == x.shape else y.clone() for y in targets],
                    numbers) for name, (loss, _, targets, numbers) in LOSSES.items()}
    calls["barlow_twins"] = (baselines.barlow_twins, [x.clone()], [])
    calls["nnclr"] = (lambda p, k, t: baselines.nnclr(k, p, t), [x.clone()], [0.2])
    for name, (loss, targets, numbers) in calls.items():
        leaf = x.clone().requires_grad_()
        value = loss(leaf, *targets, *numbers)
        value.backward()
        assert value.isfinite() and leaf.grad.isfinite().all(), name
    assert sinkhorn(x).isfinite().all()


@pytest.mark.parametrize("name", [*LOSSES, "barlow_twins", "sinkhorn"])
def test_losses_are_float32_under_autocast(name):
    x = randn(6, 4, dtype=torch.float32).bfloat16()
    others = {"barlow_twins": (baselines.barlow_twins, [randn(6, 4, seed=1).bfloat16()], []),
              "sinkhorn": (sinkhorn, [], [])}
    if name in LOSSES:
        loss, _, targets, numbers = LOSSES[name]
        targets = [y.bfloat16() if y.is_floating_point() else y for y in targets]
    else:
        loss, targets, numbers = others[name]
    exact = loss(x.float(), *(y.float() if y.is_floating_point() else y for y in targets), *numbers)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(x, *targets, *numbers)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)


@pytest.mark.parametrize("call, words", [
    (lambda: baselines.byol(randn(6, 4), randn(5, 4)), "same number of rows"),
    (lambda: baselines.simsiam(randn(6, 4), randn(6, 3)), "equal shapes"),
    (lambda: baselines.barlow_twins(randn(1, 4), randn(1, 4)), "at least 2 rows"),
    (lambda: baselines.moco_v2(randn(6, 4), randn(6, 4), randn(5, 3), 0.1), "one width"),
    (lambda: baselines.moco_v3(randn(6, 4), randn(6, 4), 0), "must be positive"),
    (lambda: baselines.nnclr(randn(6), randn(6), 0.1), "matrix"),
    (lambda: baselines.ressl(randn(6, 4), randn(6, 4), randn(5, 4), 0.1, -1), "must be positive"),
    (lambda: baselines.dino(randn(6, 4), randn(6, 4), randn(3), 0.1, 0.1), "center of 4"),
    (lambda: baselines.deepcluster_v2(randn(6, 4), torch.zeros(5).long(), 0.1), "6 int64"),
    (lambda: baselines.sigreg(randn(6, 4), randn(3, 2)), "directions of 4 rows"),
    (lambda: sinkhorn(randn(6, 4), iterations=0), "at least 1"),
])
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- what methods are made of -------------------------------------------------------------------

def test_sinkhorns_sums():
    """Rows sum to 1; after many rounds columns to n/K; three rounds are the oracle's."""
    scores = torch.tanh(randn(12, 4))
    found = sinkhorn(scores)
    assert torch.allclose(found, torch.from_numpy(sinkhorn_oracle(scores, 0.05, 3)), atol=1e-9)
    assert torch.allclose(found.sum(1), torch.ones(12).double())
    assert not torch.allclose(found.sum(0), torch.full((4,), 3.0).double(), atol=1e-2)
    many = sinkhorn(scores, 0.3, iterations=300)
    assert torch.allclose(many.sum(0), torch.full((4,), 3.0).double(), atol=1e-6)
    assert sinkhorn(1000 * scores).isfinite().all()             # exp(20,000) is not


def test_a_queue_keeps_the_newest():
    queue = Queue(5, 2)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(5))
    for start in (0, 3, 6):                                     # 0 1 2, 3 4 5, 6 7 8
        queue.push(torch.arange(start, start + 3).float().repeat(2, 1).T)
    assert sorted(queue.rows[:, 0].tolist()) == [4, 5, 6, 7, 8]
    queue.push(torch.tensor([[9.0, 9]]))
    assert sorted(queue.rows[:, 0].tolist()) == [5, 6, 7, 8, 9]
    queue.push(torch.arange(20.0, 27).repeat(2, 1).T)           # more than it holds
    assert sorted(queue.rows[:, 0].tolist()) == [22, 23, 24, 25, 26]


def test_a_momentum_copy_by_hand():
    """m at start, middle and end; w̄ ← m·w̄ + (1 − m)·w; batch norms' statistics are its own."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    teacher = MomentumCopy([network], first=0.8, last=1.0)
    at = [torch.tensor(progress).double() for progress in (0.0, 0.5, 1.0)]
    assert [float(teacher.momentum(progress)) for progress in at] == [
        pytest.approx(0.8), pytest.approx(0.9), pytest.approx(1.0)]
    slow = teacher.copy[0][0].weight
    before = slow.clone()
    assert torch.equal(before, network[0].weight)
    with torch.no_grad():
        network[0].weight.add_(1)
    network(randn(8, 2).float() + 5)                            # moves the network's statistics
    teacher.follow([network], at[1])
    assert torch.allclose(slow, 0.9 * before + 0.1 * (before + 1))
    teacher.follow([network], at[2])
    assert torch.allclose(slow, before + 0.1)                   # m is 1: it stands still
    assert torch.equal(teacher.copy[0][1].running_mean, torch.zeros(2))
    assert not teacher(randn(8, 2).float()).requires_grad
    assert not torch.equal(teacher.copy[0][1].running_mean, torch.zeros(2))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_k_means_finds_known_clusters():
    """Five narrow bundles of directions: each becomes one cluster, with its mean as centre."""
    middles = torch.linalg.qr(randn(8, 8)).Q[:5]
    truth = torch.arange(5).repeat_interleave(20)
    x = normalize_rows(middles[truth] + 0.05 * randn(100, 8, seed=1))
    found_all = False
    for seed in range(20):          # a start with two rows of one bundle may end in a bad optimum
        centres, labels = k_means(x, 5, 10, generator(seed))
        assert torch.allclose(centres.norm(dim=1), torch.ones(5).double())
        assert torch.equal(labels, (x @ centres.T).argmax(1))
        pure = all(len(labels[truth == bundle].unique()) == 1 for bundle in range(5))
        if pure and len(labels.unique()) == 5:
            found_all = True
            for bundle in range(5):
                mean = x[truth == bundle].mean(0)
                centre = centres[labels[truth == bundle][0]]
                assert torch.allclose(centre, mean / mean.norm(), atol=1e-9)
    assert found_all
    again, _ = k_means(x, 5, 10, generator(3))
    assert torch.equal(again, k_means(x, 5, 10, generator(3))[0])
    # with more clusters than different rows, the centres that lose all samples stay
    centres, _ = k_means(x[:3].repeat(4, 1), 6, 5, generator(0))
    assert centres.isfinite().all()


# --- methods on a plain encoder -----------------------------------------------------------------

VIEWS = randn(16, 3, 4, 4, seed=5).float()                      # eight images
START, HALF = torch.tensor(0.0).double(), torch.tensor(0.5).double()


def method_of(name, *words, n_images=8, batch_size=8):
    """A method on an encoder of one layer, with p = 20 and d = 6."""
    torch.manual_seed(0)
    args = train.parse_args(["--method", name, "--projector", "12-6", "--batch-size",
                             str(batch_size), *settings(name), *words])
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU())
    return METHODS[name](args, encoder, 20, n_images)


def one_step(method, epoch=1, progress=HALF, step=0):
    """Forward and backward; returns the StepResult."""
    method.before_epoch(epoch, 1, generator(epoch))
    for p in method.parameters():
        p.grad = None
    result = method(VIEWS, torch.arange(8), progress)
    result.loss.backward()
    method.after_backward()
    return result


@pytest.mark.parametrize("name", NAMES)
def test_who_receives_gradients(name):
    """Everything that learns, at least from the third epoch on, and no teacher; the state's
    buffers change in after_step alone."""
    method = method_of(name)
    buffers = {key: value.clone() for key, value in method.named_buffers()}
    for epoch in (1, 2, 3):
        result = one_step(method, epoch)
        if epoch == 1:
            changed = [key for key, value in method.named_buffers()
                       if not torch.equal(value, buffers[key])]
            assert all(key.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")
                       for key in changed)
        method.after_step(result.kept, 0, HALF)
    assert result.loss.isfinite() and result.r.shape == (16, 20)
    assert not any(value.requires_grad for value in result.kept.values())
    for key, parameter in method.named_parameters():
        assert parameter.requires_grad == ("teacher" not in key), key
        if parameter.requires_grad:
            # a bias before a batch norm learns nothing, but has its gradient
            assert parameter.grad is not None, key
            if parameter.ndim > 1:
                assert parameter.grad.abs().max() > 1e-9, key
        else:
            assert parameter.grad is None, key
    grouped = [id(p) for group in method.param_groups(0.1, 0.0) for p in group["params"]]
    learning = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(learning)                  # each once


@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_not_look_at_the_images_places(name):
    """But where embeddings are remembered by them: DeepCluster's memory."""
    method = method_of(name)
    result = one_step(method)
    assert ("index" in result.kept) == (name == "deepcluster_v2")


def test_directions_are_summed_or_averaged():
    """BYOL's and MoCo v3's losses are sums of both directions, the others' are means."""
    method = method_of("byol")
    p1, p2 = method.predictor(method.projector(method.encoder(VIEWS))).chunk(2)
    z1, z2 = method.teacher(VIEWS).chunk(2)
    by_hand = baselines.byol(p1, z2) + baselines.byol(p2, z1)
    close(one_step(method).loss.detach(), by_hand.detach(), 1e-5)

    method = method_of("moco_v2")
    q1, q2 = method.projector(method.encoder(VIEWS)).chunk(2)
    k1, k2 = method.teacher(VIEWS).chunk(2)
    by_hand = (baselines.moco_v2(q1, k2, method.queue2.rows, 0.2)
               + baselines.moco_v2(q2, k1, method.queue1.rows, 0.2)) / 2
    close(one_step(method).loss.detach(), by_hand.detach(), 1e-5)


@pytest.mark.parametrize("name", ["byol", "moco_v2", "moco_v3", "dino", "ressl"])
def test_every_weight_of_a_teacher_follows(name):
    """At the first step m is 0.9: each goes a tenth of the way to the student's."""
    method = method_of(name)
    result = one_step(method, progress=START)
    before = [p.clone() for p in method.teacher.parameters()]
    students = [method.encoder, method.projector]
    if name == "dino":
        students.append(method.prototypes)
    wanted = [p for student in students for p in student.parameters()]
    with torch.no_grad():
        for p in wanted:
            p.add_(1)
    method.after_step(result.kept, 0, START)
    assert len(before) == len(wanted)
    for slow, old, new in zip(method.teacher.parameters(), before, wanted):
        assert torch.allclose(slow, 0.9 * old + 0.1 * new, atol=1e-6)


@pytest.mark.parametrize("name, queues", [("nnclr", ["z"]), ("moco_v2", ["k1", "k2"]),
                                          ("swav", ["z1", "z2"]), ("ressl", ["weak"])])
def test_every_queue_is_filled(name, queues):
    """With the batch's own rows, in the queue of their view."""
    method = method_of(name, n_images=96)
    result = one_step(method)
    method.after_step(result.kept, 0, HALF)
    found = [module for module in method.modules() if isinstance(module, Queue)]
    assert len(found) == len(queues)
    for queue, kept in zip(found, queues):
        assert len(queue.rows) == 96 and queue.place == 8
        assert torch.equal(queue.rows[:8], result.kept[kept])
        assert torch.allclose(queue.rows.norm(dim=1), torch.ones(96), atol=1e-5)


def test_nnclrs_neighbours_come_from_its_queue():
    method = method_of("nnclr")
    z = randn(3, 6).float()
    for row, found in zip(z, method.nearest(z)):
        nearest = max(method.queue.rows, key=lambda entry: float(entry @ row))
        assert torch.equal(found, nearest)


def test_simsiams_predictor_keeps_its_learning_rate():
    groups = method_of("simsiam").param_groups(0.5, 1e-5)
    assert [group.get("constant", False) for group in groups] == [False, True]
    method = method_of("simsiam")
    z = method.projector(torch.rand(64, 20))
    assert z.mean(0).abs().max() < 1e-5 and torch.allclose(z.var(0, correction=0),
                                                           torch.ones(6), atol=1e-2)


def test_dinos_centre_temperature_and_frozen_prototypes():
    method = method_of("dino", "--epochs", "4")
    assert method.teacher.copy[1][1].approximate == "none"      # a GELU
    assert not any(isinstance(module, nn.BatchNorm1d) for module in method.modules())
    result = one_step(method)
    assert method.prototypes.weight.grad is None                # in the first epoch
    scores = method.teacher(VIEWS)
    method.after_step(result.kept, 0, HALF)
    assert torch.allclose(method.center, 0.1 * scores.mean(0), atol=1e-6)
    one_step(method, epoch=2)
    assert method.prototypes.weight.grad is not None
    # from 0.04 to 0.07 over the first two of four epochs
    temperatures = [float(method.schedule(torch.tensor(progress).double())["teacher_temperature"])
                    for progress in (0, 0.25, 0.5, 1)]
    assert temperatures == [pytest.approx(value) for value in (0.04, 0.055, 0.07, 0.07)]


def test_swavs_queue_joins_the_assignment():
    method = method_of("swav", n_images=96)
    z = method.projector(method.encoder(VIEWS)).detach()[:8]
    scores = method.prototypes(z)
    method.before_epoch(1, 1, generator())
    assert torch.equal(method.assign(scores, method.queue1), sinkhorn(scores))
    method.before_epoch(2, 1, generator())
    both = torch.cat([scores, method.prototypes(method.queue1.rows)])
    assert len(both) == 8 + 96
    assert torch.equal(method.assign(scores, method.queue1), sinkhorn(both)[:8])
    one_step(method, epoch=1)
    assert method.prototypes.weight.grad is None


def test_deepclusters_first_epoch_fills_the_memory():
    method = method_of("deepcluster_v2", n_images=10)           # two of them are never seen
    first = one_step(method)
    assert first.loss == 0 and (method.assigned == -1).all()
    method.after_step(first.kept, 0, HALF)
    z1, z2 = method.projector(method.encoder(VIEWS)).detach().chunk(2)
    assert torch.allclose(method.memory[0, :8], normalize_rows(z1), atol=1e-6)
    assert torch.allclose(method.memory[1, :8], normalize_rows(z2), atol=1e-6)
    second = one_step(method, epoch=2)
    assert second.loss > 0
    assert (method.assigned[:, 8:] == -1).all() and (method.assigned[:, :8] >= 0).all()
    # with eight clusters for eight images, each is alone in its own, in every head
    assert all(len(labels[:8].unique()) == 8 for labels in method.assigned)
    assert torch.allclose(method.centres[1][method.assigned[1, :8]], method.memory[1, :8],
                          atol=1e-5)


def test_ressls_teacher_sees_the_weak_view():
    method = method_of("ressl")
    strong, weak = VIEWS.chunk(2)
    result = one_step(method)
    z = method.projector(method.encoder(strong))
    target = method.teacher(weak)
    by_hand = baselines.ressl(z, target, method.queue.rows, 0.1, 0.04)
    close(result.loss.detach(), by_hand.detach(), 1e-5)
    assert torch.allclose(result.kept["weak"], normalize_rows(target), atol=1e-6)


def test_lejepas_terms():
    method = method_of("lejepa")
    logs = one_step(method).logs
    z1, z2 = method.projector(method.encoder(VIEWS)).chunk(2)
    middle = (z1 + z2) / 2
    distance = ((z1 - middle).square().mean() + (z2 - middle).square().mean()) / 2
    close(logs["invariance"], distance.detach(), 1e-5)
    result = one_step(method)
    by_hand = 0.98 * result.logs["invariance"] + 0.02 * result.logs["sigreg"]
    close(result.loss.detach(), by_hand, 1e-5)
    assert result.logs["sigreg"] != logs["sigreg"]              # directions are others each time


def test_queues_and_prototypes_shrink(capsys):
    assert len(method_of("nnclr", "--set", "queue=65536").queue.rows) == 8
    assert "note: 8 queue entries in place of 65,536" in capsys.readouterr().out
    assert len(method_of("swav", "--set", "prototypes=3000").prototypes.weight) == 8
    assert "note: 8 prototypes in place of 3,000" in capsys.readouterr().out
    method_of("nnclr", "--set", "queue=8")
    assert capsys.readouterr().out == ""


# --- flags --------------------------------------------------------------------------------------

def test_defaults_are_the_methods():
    """Of SPEC's table; flags override them, and another optimiser has its own learning rate."""
    moco = train.parse_args(["--method", "moco_v2"])
    assert (moco.optimizer, moco.lr, moco.projector) == ("sgd", 0.3, "2048-256")
    assert (moco.beta, moco.mi_scale) == (0, "1")
    assert moco.set == {"temperature": 0.2, "queue": 32768, "momentum": 0.99,
                        "last_momentum": 0.999}
    changed = train.parse_args("--method moco_v2 --optimizer adam --projector 8-8 --set queue=7 "
                               "momentum=0.5 --set temperature=0.3".split())
    assert (changed.lr, changed.projector) == (1e-3, "8-8")
    assert changed.set == {"temperature": 0.3, "queue": 7, "momentum": 0.5, "last_momentum": 0.999}
    assert train.parse_args("--method moco_v2 --optimizer adam --lr 0.3".split()).lr == 0.3
    adadim = train.parse_args([])
    assert (adadim.beta, adadim.mi_scale, adadim.lr, adadim.set) == (1e-4, "alpha", 0.4, None)
    assert train.parse_args(["--method", "lejepa"]).weight_decay == 5e-2


@pytest.mark.parametrize("flags, words", [
    ("--method byol --set queue=4", "the settings of byol, as NAME=VALUE: predictor, momentum"),
    ("--set queue=4", "the settings of adadim, as NAME=VALUE: none"),
    ("--method byol --set momentum=2", "--set momentum must be a number from 0 to 1, not '2'"),
    ("--method byol --set momentum", "--set momentum must be a number from 0 to 1, not ''"),
    ("--method swav --set prototypes=0.5", "must be a whole number from 1"),
    ("--method byol --mi-scale alpha", "byol has no α"),
    ("--method ByOL", "invalid choice"),
])
def test_bad_flags_are_refused_in_one_line(flags, words, tmp_path, capsys):
    assert run(*flags.split(), "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_flag_without_effect_is_named(capsys):
    train.parse_args("--method byol --alpha 0.5 --vicreg-weights=1,1,1".split())
    assert capsys.readouterr().out == "note: byol has no use for --alpha, --vicreg-weights\n"


def test_methods_are_listed(capsys):
    assert run("--methods") == 0
    out = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"{name}: {method.paper}\n" in out
        assert all(f"    --set {setting}={default}\n" in f"{out}\n"
                   for setting, (default, _) in method.settings.items())


@pytest.mark.parametrize("name", NAMES)
def test_any_method_takes_added_terms(name):
    """W2, L_U and I(R;Z), each named in the logs and weighed as the flags say."""
    words = "--w2-weight 30:0 --lu-weight 0.2 --beta -0.5 --mi-scale 1".split()
    method = method_of(name, *words)
    plain = method_of(name)
    plain.load_state_dict(method.state_dict())
    torch.manual_seed(1)
    with_terms = one_step(method)
    torch.manual_seed(1)
    without = one_step(plain)
    assert set(method.columns) - set(plain.columns) == {"w2_loss", "lu_loss", "mi_loss"}
    logs = with_terms.logs
    z = method.projector(with_terms.r)
    close(logs["w2_loss"], wasserstein_uniformity(z).detach(), 1e-4)
    by_hand = without.loss + 15 * logs["w2_loss"] + 0.2 * logs["lu_loss"] - 0.5 * logs["mi_loss"]
    close(with_terms.loss.detach(), by_hand.detach(), 1e-5)
    assert first_and_last("30:0") == (30, 0) and first_and_last("0.2") == (0.2, 0.2)


# --- whole runs -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A folder of 96 drawn images of 16 pixels to train on, and 24 to test."""
    folder = tmp_path_factory.mktemp("few")
    shapes_folder(folder, ("disc", "cross", "bar"), 96, 24, 16)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_exactly(name, few_images, tmp_path, monkeypatch):
    """Stopped in the second of two epochs and resumed, it ends as if it was left alone; and
    evaluate.py reads the run, with the method's own projector."""
    monkeypatch.setattr(train.probe, "evaluate", lambda *arguments: {})
    flags = [*SMALL, "--data-dir", few_images,
             *"--arch resnet18 --width 2 --projector 16-8 --batch-size 32 --epochs 2 "
             "--warmup-epochs 0.5 --beta 0.1 --save-minutes 0".split(),
             "--method", name, *settings(name)]
    assert run(*flags, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step=3 + 1)
        assert run(*flags, "--out", tmp_path / "cut") == 130
    saved = load_checkpoint(tmp_path / "cut" / "last.pt")
    assert (saved["epoch"], saved["step"]) == (1, 1)
    assert run(*flags, "--out", tmp_path / "cut", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    log = read_log(tmp_path / "cut" / "log.csv")
    for column in ("loss", *METHODS[name].columns, "mi_loss"):
        assert all(math.isfinite(value) for value in log[column])

    encoder, projector, facts = evaluate.load_run(tmp_path / "whole")
    z = projector(encoder(torch.rand(4, 3, 16, 16)))
    assert z.shape == (4, 8) and facts["flags"]["--method"] == name


# --- learning -------------------------------------------------------------------------------------

LEARNING_SETTINGS = SMALL_SETTINGS | {      # as for real images, prototypes outnumber the classes
    "dino": "prototypes=64 momentum=0.9 temperature_epochs=2",
    "swav": "prototypes=64 queue=96 queue_from_epoch=2 frozen_epochs=1",
    "deepcluster_v2": "prototypes=64 iterations=3",
    "lejepa": "directions=128",
}
NORMALISATION = {"mean": [0.5] * 3, "std": [0.25] * 3}
TRAINED_ON = 1024       # drawn discs and bars; the rest, some 1,300, are to test on


@functools.cache
def discs_and_bars():
    """Drawn images of 12 pixels (n × 3 × 12 × 12) and their labels, 0 or 1."""
    x, y = draw_shapes(12_000, generator(), size=12)
    disc, bar = SHAPES.index("disc"), SHAPES.index("bar")
    chosen = (y == disc) | (y == bar)
    return x[chosen], (y[chosen] == bar).long()


def small_network():
    """An encoder of three convolutions, p = 32."""
    def convolution(channels, others, stride):
        return [nn.Conv2d(channels, others, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(others), nn.ReLU()]
    return nn.Sequential(*convolution(3, 8, 1), *convolution(8, 16, 2), *convolution(16, 32, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())


def probe_and_ranks(method):
    """Accuracy (%) of a linear layer on R, by least squares; effective ranks of R and of the
    centred Z. All of images that were not trained on."""
    x, y = discs_and_bars()
    r, z = encode(x, method.encoder, method.projector, **NORMALISATION)
    r = torch.cat([(r - r.mean(0)) / r.std(0).clamp_min(1e-6), torch.ones(len(r), 1)], 1)
    known, asked = r[:TRAINED_ON], r[TRAINED_ON:]
    square = known.T @ known + 10 * torch.eye(r.shape[1])
    weight = torch.linalg.solve(square, known.T @ (2.0 * y[:TRAINED_ON] - 1))
    right = (asked @ weight > 0) == (y[TRAINED_ON:] == 1)
    asked_z = z[TRAINED_ON:]
    return (100 * right.float().mean().item(), float(effective_rank(asked[:, :-1])),
            float(effective_rank(asked_z - asked_z.mean(0))))


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_shapes_and_does_not_collapse(name):
    """From 66 % on the untrained encoder to 72 … 78 %, in 192 steps, with ranks above a floor."""
    epochs, steps, n = 12, 16, 64
    torch.manual_seed(0)
    args = train.parse_args(["--method", name, "--projector", "64-32", "--epochs", str(epochs),
                             "--batch-size", str(n), *settings(name, LEARNING_SETTINGS)])
    method = METHODS[name](args, small_network(), 32, TRAINED_ON)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    untrained, *_ = probe_and_ranks(method)
    data = {"train_x": discs_and_bars()[0], "train_y": discs_and_bars()[1], "image_size": 12,
            "streamed": False, **NORMALISATION}
    plan = plan_batches(TRAINED_ON, n, seed=0, epochs=epochs)
    batches = batches_of_views(data, plan, "vicreg")
    for epoch in range(1, epochs + 1):
        method.before_epoch(epoch, steps, generator(epoch))
        for step in range(steps):
            at = (epoch - 1) * steps + step
            progress = torch.tensor(at / (epochs * steps - 1)).double()
            views, index, _ = next(batches)
            result = method(views, index, progress)
            optimizer.zero_grad()
            result.loss.backward()
            method.after_backward()
            optimizer.step()
            method.after_step(result.kept, step, progress)
        method.after_epoch(epoch)

    trained, rank_r, rank_z = probe_and_ranks(method)
    assert trained > untrained + 3          # standard error: 1.3
    assert rank_r > 5 and rank_z > 1.5


# --- several processes ----------------------------------------------------------------------------

# Three epochs of one step each, of every method, on each of two processes with half of the images;
# and on one with all. Batch norms are in evaluation mode: on a CPU each process has its own.
HALVES = """
import sys
import torch
import torch.distributed as dist
from torch import nn
import probe, train
from tests import test_baselines
from plumbing.distributed import RANK, WORLD_SIZE

if WORLD_SIZE > 1:
    dist.init_process_group("gloo")
found = {}
for name in test_baselines.NAMES:
    words = "--w2-weight 0.1 --beta 0.1".split()
    method = test_baselines.method_of(name, *words, n_images=16, batch_size=16)
    model = learner = probe.Learner(method, probe.OnlineProbe(method.encoder, 20, 3))
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    views = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    index, labels = torch.randperm(16), torch.arange(16) % 3
    if WORLD_SIZE > 1:
        model = nn.parallel.DistributedDataParallel(learner)
        views = views.view(2, WORLD_SIZE, -1, 3, 4, 4)[:, RANK]
        index, labels = (x.view(WORLD_SIZE, -1)[RANK] for x in (index, labels))
    for epoch in (1, 2, 3):
        method.before_epoch(epoch, 1, torch.Generator().manual_seed(epoch))
        progress = torch.tensor((epoch - 1) / 2).double()
        torch.manual_seed(epoch)
        objective, logs, kept = model(views.flatten(0, 1), index, labels, progress)
        optimizer.zero_grad()
        objective.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(kept, 0, progress)
        logs.pop("probe_loss")
        found |= {f"{name} {column} {epoch}": value for column, value in logs.items()}
    state = [*method.named_parameters(), *method.named_buffers()]
    found |= {f"{name} {key}": value for key, value in state}
torch.save(found, f"{sys.argv[1]}/{WORLD_SIZE}-{RANK}.pt")
"""


def test_two_processes_equal_one(tmp_path):
    """Every method's losses, weights, queues, centres, prototypes, memory, after three steps."""
    whole, halves = whole_and_halves(HALVES, tmp_path)
    assert {key.split()[0] for key in whole} == set(NAMES)
    for half in halves:
        assert half.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(value.float(), half[key].float(), rtol=1e-3, atol=1e-4), key
