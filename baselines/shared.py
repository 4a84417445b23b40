"""Parts that several of the compared methods share.

First come functions of tensors, which need only torch and losses.py: cosines, a contrast, a
cross-entropy. Then come parts of methods: momentum copies, predictors, prototypes, queues.

Conventions of all losses in this folder, as in losses.py:
- A loss has one direction: one view's output against the other view's target. The docstring of
  the method's class tells how it combines both directions.
- Inputs are floating-point matrices, one sample per row. They are converted to float32, also
  inside autocast; float64 stays float64. The result is a 0-dim tensor; entropies are in nats.
- x̂ is a row x scaled to unit length, which the losses do themselves. n is the number of samples,
  d of features, K of prototypes or of entries in a queue.
- No gradient flows into targets: keys, queues, teachers, centres and assignments are detached.
- Values and gradients stay finite on collapsed batches: rows all equal, zeros.
- All raise ValueError for a wrong shape, a dtype that is not floating-point, too few rows, or a
  setting outside its range.
"""
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from losses import matrices, normalize_rows
from methods import Method
from models import mlp
from plumbing.cli import BadInput, checked, matching, number, whole_number

# types of settings, for --set
SHARE = checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
POSITIVE = number(0, above=True)
COUNT = whole_number(1)
COUNT_OR_0 = whole_number(0)
YES_OR_NO = matching("yes|no", "yes or no")


# --- functions of tensors -------------------------------------------------------------------------

def cosines(x, y):
    """x̂ ŷᵀ, n × m, of the rows of x (n × d) and y (m × d)."""
    x, = matrices(x)
    y, = matrices(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected rows of one width, got {x.shape[1]} and {y.shape[1]}")
    with torch.autocast(x.device.type, enabled=False):
        return normalize_rows(x) @ normalize_rows(y).to(x.dtype).T


def paired_cosine(x, y):
    """mean_i x̂_i·ŷ_i; x, y: both n × d."""
    x, y = matrices(x, y, rows=1, same_width=True)
    return (normalize_rows(x) * normalize_rows(y)).sum(1).mean()


def cross_entropy(scores, targets):
    """mean_i −Σ_k targets_ik·log softmax(scores_i)_k; scores, targets: n × K."""
    return -(targets * F.log_softmax(scores, dim=1)).sum(1).mean()


def check_positive(**settings):
    for name, value in settings.items():
        if not torch.is_tensor(value) and not value > 0:     # comparing tensors synchronises
            raise ValueError(f"{name} must be positive, got {value}")


def contrast(anchors, others, temperature):
    """mean_i −log( exp(â_i·ô_i/τ) / Σ_k exp(â_i·ô_k/τ) ); anchors, others: both n × d."""
    matrices(anchors, others, same_width=True)
    check_positive(temperature=temperature)
    scores = cosines(anchors, others) / temperature                         # n × n
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


# --- parts of methods -----------------------------------------------------------------------------

class MomentumCopy(nn.Module):
    """A slow copy of networks, without gradients: w̄ ← m·w̄ + (1 − m)·w at each step.

    m goes from `first` to `last` over training, along half a cosine. The copy follows weights
    only; its batch norms have running statistics of their own.
    """

    def __init__(self, networks, first, last):
        super().__init__()
        self.copy = copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)
        self.first, self.last = first, last

    @torch.no_grad()
    def forward(self, x):
        return self.copy(x)

    def momentum(self, progress):
        """m at a step (0-dim float64)."""
        return self.last - (self.last - self.first) * (1 + torch.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def follow(self, networks, progress):
        slow = list(self.copy.parameters())                 # in place: w̄ ← w + m·(w̄ − w)
        fast = list(nn.Sequential(*networks).parameters())
        torch._foreach_sub_(slow, fast)
        torch._foreach_mul_(slow, self.momentum(progress).to(slow[0]))
        torch._foreach_add_(slow, fast)


def predictor(projector, hidden):
    """An MLP from embeddings to embeddings. hidden: sizes of its hidden layers, such as "4096"."""
    d = width_of(projector)
    return mlp(d, f"{hidden}-{d}")


def width_of(projector):
    """d, the width of a projector's output."""
    linears = [module for module in projector if isinstance(module, nn.Linear)]
    return linears[-1].out_features


def with_last_norm(projector, affine):
    """The projector with a batch norm after its last layer."""
    return projector.append(nn.BatchNorm1d(width_of(projector), affine=affine))


class Prototypes(nn.Linear):
    """Scores embeddings by their cosines with learnt prototypes, the rows of `weight`.

    A row's length does not change its scores, but LARS steps in proportion to it: rows are drawn
    as nn.Linear draws them, as in the public code, with lengths near 0.58.
    """

    def __init__(self, count, d):
        super().__init__(d, count, bias=False)

    def forward(self, z):
        return cosines(z, self.weight)                                      # n × count


class Queue(nn.Module):
    """The unit rows pushed most recently; at the start, random ones.

    Raises BadInput if `size` is not a multiple of the batch size: batches replace one another.
    """

    def __init__(self, size, d, batch_size):
        super().__init__()
        if size % batch_size:
            whole = max(1, size // batch_size) * batch_size
            raise BadInput(f"--set queue={size} is not a multiple of --batch-size {batch_size}; "
                           f"{whole} is")
        self.register_buffer("rows", normalize_rows(torch.randn(size, d)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))   # of the oldest

    def push(self, x):
        """Replaces the n oldest rows by x (n × d, unit rows)."""
        places = self.place + torch.arange(len(x), device=x.device)
        self.rows[places] = x.to(self.rows.dtype)
        self.place.copy_((self.place + len(x)) % len(self.rows))


def unit_rows(x):
    """x̂, detached, for a queue or a memory."""
    x, = matrices(x.detach())
    return normalize_rows(x)


class MomentumMethod(Method):
    """A method whose teacher is a momentum copy of the encoder and the projector.

    The settings momentum and last_momentum are the copy's m at the start and end of training.
    """
    columns = ("momentum",)

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.teacher = MomentumCopy([encoder, self.projector], args.set["momentum"],
                                    args.set["last_momentum"])

    def schedule(self, progress):
        return {"momentum": self.teacher.momentum(progress)}

    def after_step(self, kept, step, progress):
        self.teacher.follow([self.encoder, self.projector], progress)


class PrototypeMethod(Method):
    """A method with learnt prototypes, which are frozen in the first epochs, see frozen_epochs."""

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.chosen = args.set
        self.epoch = 1
        self.prototypes = Prototypes(args.set["prototypes"], width_of(self.projector))

    def before_epoch(self, epoch, steps, generator):
        self.epoch = epoch

    # self.epoch is part of state_dict(), so that runs can resume in mid-epoch

    def get_extra_state(self):
        return torch.tensor(self.epoch)

    def set_extra_state(self, state):
        self.epoch = state.item()

    def after_backward(self):
        if self.epoch <= self.chosen["frozen_epochs"]:
            self.prototypes.weight.grad = None
