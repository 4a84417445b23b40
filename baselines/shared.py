"""Parts that several of the compared methods share; formulas.py has those of their losses."""
import copy
import math

import torch
from torch import nn

from baselines.formulas import cosines
from losses import matrices, normalize_rows
from methods import Method, Setting, mlp


def recipe(**flags):
    """A method's `defaults`: all methods', changed by these flags. LARS is train.py's default."""
    changed = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    return Method.defaults | changed


class MomentumCopy(nn.Module):
    """A slow copy of networks, without gradients: w̄ ← m·w̄ + (1 − m)·w at each step.

    m goes from `first` to `last` over training, along half a cosine. The copy follows weights
    only; its batch norms have running statistics of their own.
    """

    def __init__(self, networks, first, last):
        super().__init__()
        self.copy = copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)
        self.first, self.last = first, last

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


def projector_with_norm(p, sizes, affine):
    """A projector with a batch norm after its last layer. affine: whether that has weights."""
    projector = mlp(p, sizes)
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
    """The `size` unit rows pushed most recently; at the start, random ones."""

    def __init__(self, size, d):
        super().__init__()
        self.register_buffer("rows", normalize_rows(torch.randn(size, d)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))   # of the oldest

    def push(self, x):
        """Replaces the n oldest rows by x̂ (n × d)."""
        x, = matrices(x[-len(self.rows):])
        places = (self.place + torch.arange(len(x), device=x.device)) % len(self.rows)
        self.rows[places] = normalize_rows(x).to(self.rows.dtype)
        self.place.copy_((self.place + len(x)) % len(self.rows))


class MomentumMethod(Method):
    """A method whose teacher is a momentum copy of the encoder and the projector."""
    columns = ("momentum",)
    settings = {
        "momentum": Setting(0.99, "the momentum copy's m at the first step", high=1),
        "last_momentum": Setting(1.0, "and at the last", high=1),
    }

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
        self.epoch = 1
        self.prototypes = Prototypes(args.set["prototypes"], width_of(self.projector))

    def before_epoch(self, epoch, steps, generator):
        self.epoch = epoch

    def get_extra_state(self):      # in state_dict(), so that runs can resume in mid-epoch
        return torch.tensor(self.epoch)

    def set_extra_state(self, state):
        self.epoch = state.item()

    def after_backward(self):
        if self.epoch <= self.args.set["frozen_epochs"]:
            self.prototypes.weight.grad = None
