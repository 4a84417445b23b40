"""Every method's class beside a plain transcription of the published algorithm, for three epochs.

    python -m pytest -q tests/test_trajectories.py

The transcriptions are written from the papers' pseudo-code, in float64 and with torch alone. They
share with the classes only the initial networks and queues, and the seeds. After nine steps, with
batch norms in training mode, all parameters and buffers must agree to 1e-9.
"""
import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

import train
from baselines.all_methods import METHODS
from tests.helpers import generator

IMAGES, N, STEPS, EPOCHS = 26, 8, 3, 3      # an epoch leaves out two images
P, D = 10, 9                                # widths of r and z
LR = 0.05
SETTINGS = dict(queue=24, prototypes=12, momentum=0.9, last_momentum=0.98, frozen_epochs=1,
                queue_from_epoch=2, iterations=3, heads=3, directions=16, predictor=7)
FLAGS = {"adadim": "--alpha-every 1 --alpha-batches 2 --beta 0.5 --epochs 4"}


class Step(NamedTuple):
    epoch: int                  # from 1
    number: int                 # within the epoch, from 0
    progress: float             # 0 at the first step of training, 1 at the last
    views: torch.Tensor         # 2n × 3 × 4 × 4: first views, then second views
    index: torch.Tensor         # n


def all_steps():
    for at in range(EPOCHS * STEPS):
        epoch, number = 1 + at // STEPS, at % STEPS
        order = torch.randperm(IMAGES, generator=generator(epoch))
        views = torch.randn(2 * N, 3, 4, 4, generator=generator(at), dtype=torch.float64)
        yield Step(epoch, number, at / (EPOCHS * STEPS - 1), views,
                   order[number * N:(number + 1) * N])


# --- the classes ----------------------------------------------------------------------------------

def method_of(name):
    torch.manual_seed(0)
    words = [f"{key}={value}" for key, value in SETTINGS.items() if key in METHODS[name].settings]
    args = train.parse_args(["--method", name, "--projector", f"12-{D}", "--batch-size", str(N),
                             *FLAGS.get(name, "").split(), *(["--set", *words] if words else [])])
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, P), nn.BatchNorm1d(P), nn.ReLU())
    return METHODS[name](args, encoder, P, IMAGES).double()


def train_class(method):
    """Trains it as train.py does, but with plain SGD."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=LR)
    for step in all_steps():
        if step.number == 0:
            method.before_epoch(step.epoch, STEPS, generator(step.epoch))
        progress = torch.tensor(step.progress, dtype=torch.float64)
        torch.manual_seed(100 * step.epoch + step.number)
        result = method(step.views, step.index, progress)
        optimizer.zero_grad()
        result.loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(result.kept, step.number, progress)
        if step.number == STEPS - 1:
            method.after_epoch(step.epoch)


# --- parts of the transcriptions ------------------------------------------------------------------

def halves(x):
    return x[:N], x[N:]


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def cross_entropy(targets, scores):
    """Mean over the rows of −Σ_k targets_k log softmax(scores)_k."""
    return -(targets * torch.log_softmax(scores, 1)).sum(1).mean()


def own_among_all(anchors, others, temperature):
    """Cross-entropy of unit rows' similarities: row i of `others` is the class of row i."""
    return cross_entropy(torch.eye(N).double(), unit(anchors) @ unit(others).T / temperature)


def embed(nets, views):
    return nets.projector(nets.encoder(views))


def descend(loss, *modules):
    """A step of plain SGD on the modules' parameters."""
    parameters = [p for module in modules for p in module.parameters()]
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.data -= LR * gradient


def copy_of(*modules):
    return copy.deepcopy(nn.Sequential(*modules)).requires_grad_(False)


def follow(slow, modules, progress):
    """w̄ ← m w̄ + (1 − m) w; m goes from 0.9 to 0.98 along half a cosine (BYOL, §3.2)."""
    m = 0.98 - (0.98 - 0.9) * (math.cos(math.pi * progress) + 1) / 2
    for old, new in zip(slow.parameters(), nn.Sequential(*modules).parameters()):
        old.data = m * old + (1 - m) * new.data


class Ring:
    """A queue as in MoCo's code: new rows replace the oldest ones."""

    def __init__(self, queue):
        self.rows, self.place = unit(queue.rows), 0

    def push(self, x):
        self.rows[self.place:self.place + N] = unit(x.detach())
        self.place = (self.place + N) % len(self.rows)

    def state(self, name):
        return {f"{name}.rows": self.rows, f"{name}.place": torch.tensor(self.place)}


# --- the transcriptions ---------------------------------------------------------------------------
# Each trains the networks `nets` and returns the rest of the method's state: {name: value}.

def adadim(nets):
    """Equations 4 and 5, with α from §4 and the losses of §A.5 and §A.3."""
    alpha, shares = 0.0, []
    measured = torch.zeros(2).double()
    for step in all_steps():
        if step.number == 0:
            order = torch.randperm(STEPS, generator=generator(step.epoch))
            shares = sorted(order[:2].tolist())
        r = nets.encoder(step.views)
        z = nets.projector(r)
        z1, z2 = halves(z)

        similar = (unit(z) @ unit(z).T / 0.1).exp()
        partners = torch.arange(2 * N).roll(N)
        own = similar[torch.arange(2 * N), partners]
        info_nce = -(own / (similar.sum(1) - similar.diagonal())).log().mean()

        vicreg = 25 * (z1 - z2).square().mean()
        for view in (z1, z2):
            covariance = torch.cov(view.T)
            std = (covariance.diagonal() + 1e-4).sqrt()
            off_diagonal = covariance - torch.diag(covariance.diagonal())
            vicreg = vicreg + 25 * (1 - std).clamp_min(0).mean() + off_diagonal.square().sum() / D

        k_r, k_z = unit(r) @ unit(r).T, unit(z) @ unit(z).T
        h_r, h_z, h_both = [-((k / (2 * N)) @ (k / (2 * N))).trace().log()
                            for k in (k_r, k_z, k_r * k_z)]
        loss = (alpha * info_nce + (1 - alpha) * vicreg + 0.5 * alpha * (h_r + h_z - h_both))
        descend(loss, nets.encoder, nets.projector)

        if step.number in shares:
            singular = torch.linalg.svdvals(z1.detach())
            share = singular / singular.sum()
            rank = (-(share * share.log()).sum()).exp()
            measured[shares.index(step.number)] = rank / min(N, D)
        if step.number == STEPS - 1:
            alpha = measured.mean()
    return {"measured.value": alpha, "measured.shares": measured}


def barlow_twins(nets):
    """Algorithm 1 of the paper; 1e-5 is its batch norm's ε, 0.1 solo-learn's scale."""
    for step in all_steps():
        z1, z2 = [(z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
                  for z in halves(embed(nets, step.views))]
        c = z1.T @ z2 / N                                       # d × d
        difference = (c - torch.eye(D)).square()
        weights = torch.full((D, D), 5e-3).double().fill_diagonal_(1)
        descend(0.1 * (weights * difference).sum(), nets.encoder, nets.projector)
    return {}


def byol(nets):
    """Equations 2 to 4 and Algorithm 1 (appendix) of the paper."""
    slow = copy_of(nets.encoder, nets.projector)
    for step in all_steps():
        z = embed(nets, step.views)
        p1, p2 = halves(nets.predictor(z))
        target1, target2 = halves(slow(step.views))
        loss = ((unit(p1) - unit(target2)).square().sum(1).mean()
                + (unit(p2) - unit(target1)).square().sum(1).mean())
        descend(loss, nets.encoder, nets.projector, nets.predictor)
        follow(slow, (nets.encoder, nets.projector), step.progress)
    return {"teacher.copy": slow}


def simsiam(nets):
    """Algorithm 1 of the paper."""
    for step in all_steps():
        z = embed(nets, step.views)
        z1, z2 = halves(z.detach())
        p1, p2 = halves(nets.predictor(z))
        distance1 = -(unit(p1) * unit(z2)).sum(1).mean()
        distance2 = -(unit(p2) * unit(z1)).sum(1).mean()
        descend(distance1 / 2 + distance2 / 2, nets.encoder, nets.projector, nets.predictor)
    return {}


def nnclr(nets):
    """Algorithm 1 of the paper; as in solo-learn, the queue holds first views."""
    queue = Ring(nets.queue)
    for step in all_steps():
        z = embed(nets, step.views)
        z1, z2 = halves(z)
        p1, p2 = halves(nets.predictor(z))
        neighbour1, neighbour2 = [
            torch.stack([max(queue.rows, key=row.dot) for row in unit(view.detach())])
            for view in (z1, z2)]
        loss = (own_among_all(neighbour1, p2, 0.2) / 2 + own_among_all(neighbour2, p1, 0.2) / 2)
        descend(loss, nets.encoder, nets.projector, nets.predictor)
        queue.push(z1)
    return queue.state("queue")


def moco_v2(nets):
    """Algorithm 1 of MoCo, in both directions, with a queue for each view's keys."""
    slow = copy_of(nets.encoder, nets.projector)
    queues = [Ring(queue) for queue in nets.queues]
    own_key = torch.zeros(N, 1 + len(queues[0].rows)).double()
    own_key[:, 0] = 1
    for step in all_steps():
        q1, q2 = [unit(q) for q in halves(embed(nets, step.views))]
        k1, k2 = [unit(k) for k in halves(slow(step.views))]
        loss = 0
        for q, k, queue in ((q1, k2, queues[1]), (q2, k1, queues[0])):
            positive = (q * k).sum(1, keepdim=True)             # n × 1
            negative = q @ queue.rows.clone().T                 # n × queue
            loss = loss + cross_entropy(own_key, torch.cat([positive, negative], 1) / 0.2) / 2
        descend(loss, nets.encoder, nets.projector)
        follow(slow, (nets.encoder, nets.projector), step.progress)
        queues[0].push(k1)
        queues[1].push(k2)
    return {"teacher.copy": slow, **queues[0].state("queues.0"), **queues[1].state("queues.1")}


def moco_v3(nets):
    """Algorithm 1 of the paper."""
    slow = copy_of(nets.encoder, nets.projector)
    for step in all_steps():
        q1, q2 = halves(nets.predictor(embed(nets, step.views)))
        k1, k2 = halves(slow(step.views))
        loss = 2 * 0.2 * (own_among_all(q1, k2, 0.2) + own_among_all(q2, k1, 0.2))
        descend(loss, nets.encoder, nets.projector, nets.predictor)
        follow(slow, (nets.encoder, nets.projector), step.progress)
    return {"teacher.copy": slow}


def dino(nets):
    """Algorithm 1 of the paper; the last layer has unit weights and is frozen for an epoch."""
    slow = copy_of(nets.encoder, nets.projector, nets.prototypes)
    center = torch.zeros(12).double()
    for step in all_steps():
        s1, s2 = halves(unit(embed(nets, step.views)) @ unit(nets.prototypes.weight).T)
        teacher_z = slow[1](slow[0](step.views))
        teacher = unit(teacher_z) @ unit(slow[2].weight).T      # 2n × prototypes
        t1, t2 = halves(torch.softmax((teacher - center) / 0.07, 1))
        loss = cross_entropy(t1, s2 / 0.1) / 2 + cross_entropy(t2, s1 / 0.1) / 2
        learning = [nets.encoder, nets.projector]
        if step.epoch > 1:
            learning.append(nets.prototypes)
        descend(loss, *learning)
        follow(slow, (nets.encoder, nets.projector, nets.prototypes), step.progress)
        center = 0.9 * center + (1 - 0.9) * teacher.mean(0)
    return {"teacher.copy": slow, "center": center}


def swav(nets):
    """Algorithm 1 of the paper, with its Sinkhorn iterations; a queue from the second epoch on."""
    queues = Ring(nets.queue1), Ring(nets.queue2)
    for step in all_steps():
        prototypes = unit(nets.prototypes.weight)
        z1, z2 = halves(embed(nets, step.views))
        scores, assigned = [], []
        for z, queue in zip((z1, z2), queues):
            scores.append(unit(z) @ prototypes.T)               # n × prototypes
            to_assign = scores[-1]
            if step.epoch >= 2:
                to_assign = torch.cat([to_assign, queue.rows @ prototypes.T])
            q = (to_assign.detach() / 0.05).exp().T             # prototypes × samples
            q = q / q.sum()
            k, b = q.shape
            for _ in range(3):
                q = q * ((1 / k) / q.sum(1))[:, None]
                q = q * ((1 / b) / q.sum(0))[None]
            assigned.append((q / q.sum(0)).T[:N])
        loss = (cross_entropy(assigned[0], scores[1] / 0.1)
                + cross_entropy(assigned[1], scores[0] / 0.1)) / 2
        learning = [nets.encoder, nets.projector]
        if step.epoch > 1:
            learning.append(nets.prototypes)
        descend(loss, *learning)
        queues[0].push(z1)
        queues[1].push(z2)
    return {**queues[0].state("queue1"), **queues[1].state("queue2")}


def deepcluster_v2(nets):
    """§4.1 of SwAV's paper and its code: k-means before each epoch, on the epoch before."""
    k, heads = 12, 3
    memory = torch.zeros(2, STEPS * N, D).double()
    index = torch.zeros(STEPS * N, dtype=torch.int64)
    centres = torch.zeros(heads, k, D).double()
    assigned = torch.full((heads, IMAGES), -1)
    for step in all_steps():
        if step.number == 0 and step.epoch > 1:
            assigned[:] = -1
            random = generator(step.epoch)
            for head, x in enumerate((memory[0], memory[1], memory[0])):
                centres[head] = x[torch.randperm(len(x), generator=random)[:k]]
                for _ in range(3):
                    labels = (x @ centres[head].T).argmax(1)
                    for label in labels.unique():
                        total = x[labels == label].sum(0)
                        centres[head, label] = total / total.norm()
                assigned[head, index] = (x @ centres[head].T).argmax(1)

        z1, z2 = halves(embed(nets, step.views))
        loss = 0 * z1.sum()
        for head in range(heads):
            labels = assigned[head, step.index]
            for z in (z1, z2):
                log_p = torch.log_softmax(unit(z) @ centres[head].clone().T / 0.1, 1)
                losses = [-log_p[i, label] for i, label in enumerate(labels) if label >= 0]
                if losses:
                    loss = loss + sum(losses) / len(losses) / (2 * heads)
        descend(loss, nets.encoder, nets.projector)
        rows = slice(step.number * N, (step.number + 1) * N)
        memory[0, rows], memory[1, rows] = unit(z1.detach()), unit(z2.detach())
        index[rows] = step.index
    return {"memory": memory, "index": index, "centres": centres, "assigned": assigned}


def ressl(nets):
    """Algorithm 1 of the paper: the teacher sees the weak view, here the second."""
    slow = copy_of(nets.encoder, nets.projector)
    queue = Ring(nets.queue)
    for step in all_steps():
        student, _ = halves(embed(nets, step.views))
        teacher = slow(step.views[N:])
        similar_s = unit(student) @ queue.rows.clone().T        # n × queue
        similar_t = unit(teacher) @ queue.rows.T
        loss = cross_entropy(torch.softmax(similar_t / 0.04, 1), similar_s / 0.1)
        descend(loss, nets.encoder, nets.projector)
        follow(slow, (nets.encoder, nets.projector), step.progress)
        queue.push(teacher)
    return {"teacher.copy": slow, **queue.state("queue")}


def lejepa(nets):
    """Algorithm 1 and Equation 8 of the paper: the characteristic function, as complex numbers."""
    t = torch.linspace(-3, 3, 33).double()
    gaussian = (-t.square() / 2).exp()
    for step in all_steps():
        z1, z2 = halves(embed(nets, step.views))
        torch.manual_seed(100 * step.epoch + step.number)
        directions = unit(torch.randn(16, D, dtype=torch.float64))
        normality = 0
        for z in (z1, z2):
            for direction in directions:
                phi = (1j * (z @ direction)[:, None] * t).exp().mean(0)         # 33
                error = (phi - gaussian).abs().square() * gaussian
                normality = normality + N * torch.trapezoid(error, t) / (2 * len(directions))
        centre = (z1 + z2) / 2
        prediction = ((z1 - centre).square().mean() + (z2 - centre).square().mean()) / 2
        descend(0.98 * prediction + 0.02 * normality, nets.encoder, nets.projector)
    return {}


TRANSCRIPTIONS = {function.__name__: function for function in (
    adadim, barlow_twins, byol, simsiam, nnclr, moco_v2, moco_v3, dino, swav, deepcluster_v2, ressl,
    lejepa)}


# --- the test -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", METHODS)
def test_a_class_follows_the_published_algorithm(name):
    method = method_of(name)
    nets = copy.deepcopy(method)
    train_class(method)
    state = TRANSCRIPTIONS[name](nets)
    for part in ("encoder", "projector", "predictor", "prototypes"):
        if hasattr(nets, part):
            state[part] = getattr(nets, part)

    expected = {}
    for key, value in state.items():
        if isinstance(value, nn.Module):
            expected |= {f"{key}.{of}": tensor for of, tensor in value.state_dict().items()}
        else:
            expected[key] = value
    found = {key: value for key, value in method.state_dict().items() if "extra_state" not in key}
    assert found.keys() == expected.keys()
    before = dict(method_of(name).state_dict())
    for key, value in found.items():
        assert torch.allclose(value, torch.as_tensor(expected[key]).to(value), 1e-9, 1e-9), key
    assert not torch.equal(found["encoder.1.weight"], before["encoder.1.weight"])


# with one hidden layer; all others are Linear BatchNorm1d ReLU Linear
PROJECTORS = {
    "simsiam": "Linear BatchNorm1d ReLU Linear BatchNorm1d",
    "nnclr": "Linear BatchNorm1d ReLU Linear BatchNorm1d",
    "moco_v2": "Linear ReLU Linear",
    "moco_v3": "Linear BatchNorm1d ReLU Linear BatchNorm1d",
    "dino": "Linear GELU Linear",
    "ressl": "Linear ReLU Linear",
}


@pytest.mark.parametrize("name", METHODS)
def test_projectors_are_the_published_ones(name):
    layers = [type(layer).__name__ for layer in method_of(name).projector]
    assert " ".join(layers) == PROJECTORS.get(name, "Linear BatchNorm1d ReLU Linear")
