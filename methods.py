"""AdaDim, and the interface between every method and the training loop.

From top to bottom: the measurement of α, the interface, the terms that flags can add to any
method's loss, and AdaDim itself. The compared methods are in baselines/. To add your own, write
one class in a file of your own: see README.md, "A method of your own".
"""
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from losses import adadim, matrix_mutual_information, wasserstein_uniformity
from metrics import effective_rank, uniformity
from models import mlp
from plumbing.distributed import gather_at_once


# --- AdaDim's α -----------------------------------------------------------------------------------

class MeasuredAlpha(nn.Module):
    """α: the embeddings' effective rank as a share of the largest possible in a batch [§4].

        α = mean over 10 batches of  erank(z) / min(n, d),  set after every 20th epoch

    Until it is first set, α is 0: VICReg alone. VICReg decorrelates features, which raises the
    effective rank; as it rises, α shifts the loss to InfoNCE, which spreads samples.
    """

    def __init__(self, every=20, batches=10):
        """Sets α after every `every`-th epoch, from `batches` of its batches."""
        super().__init__()
        self.every = every
        self.batches = batches
        self.register_buffer("value", torch.zeros(()))          # α, as last set
        self.register_buffer("shares", torch.zeros(batches))    # measured in this epoch
        self.steps = []             # steps of this epoch at which to measure

    def before_epoch(self, epoch, steps, generator):
        """Draws the steps at which to measure: on training batches, so without extra passes."""
        self.steps = []
        if epoch % self.every == 0:
            order = torch.randperm(steps, generator=generator, device=generator.device)
            self.steps = sorted(order[:self.batches].tolist())

    def after_step(self, z, step):
        """z: one view's embeddings, n × d. step: within the epoch, from 0."""
        if step in self.steps:
            share = effective_rank(z) / min(z.shape)
            self.shares[self.steps.index(step)] = share

    def after_epoch(self):
        """Sets α: this makes the method adaptive."""
        if self.steps:
            self.value.copy_(self.shares[:len(self.steps)].mean())

    # self.steps is part of state_dict(), so that runs can resume in mid-epoch. It is not a
    # buffer: reading one at each step would synchronise with the GPU.

    def get_extra_state(self):
        return torch.tensor(self.steps)

    def set_extra_state(self, state):
        self.steps = state.tolist()


def alpha_at(schedule, measured, progress):
    """α at a step, a 0-dim float32 tensor.

    schedule: "ada" is the measured α (0-dim); "linear" and "cosine" grow from 0 to 1 with the
    training's progress (0-dim, from 0 to 1); a number is a constant α.
    """
    if schedule == "ada":
        return measured
    if schedule == "linear":
        return progress.float()
    if schedule == "cosine":
        return (0.5 * (1 - torch.cos(math.pi * progress))).float()
    return torch.full((), schedule, dtype=torch.float32, device=progress.device)


# --- the interface between a method and the training loop -----------------------------------------

class StepResult(NamedTuple):
    """The result of a method's forward pass."""
    loss: torch.Tensor      # 0-dim: to be minimised
    logs: dict              # {column of log.csv: 0-dim tensor}: averaged over the epoch
    r: torch.Tensor         # 2n × p: representations, for the online probe
    kept: dict              # {name: detached tensor}: for after_step


class Setting(NamedTuple):
    """A setting of a single method, changed by --set NAME=VALUE."""
    default: Any
    kind: Any               # an argparse type
    meaning: str = ""       # in a few words, for train.py --methods


class Method(nn.Module):
    """The interface: an encoder, a projector, and functions to override as needed.

        method = METHODS[name](args, encoder, p, n_images)
        for epoch in …:
            method.before_epoch(epoch, steps, generator)
            for step in …:
                result = method(views, index, progress)
                result.loss.backward()
                method.after_backward()
                optimizer.step()
                method.after_step(result.kept, step, progress)
            method.after_epoch(epoch)

    Besides these, train.py calls only schedule and param_groups. Labels never reach a method.
    State that outlives a step (momentum networks, queues, α) must be in state_dict(): then a
    checkpoint is complete, and a run can resume in mid-epoch without a second before_epoch.

    args: train.py's flags; args.set is {name: value}, the method's own settings. encoder: images
    → r (n × p). n_images: size of the training set.
    """
    columns = ()            # its own columns of log.csv, from `logs` and `schedule`
    details = ()            # more columns, not in the line that is printed for each epoch
    defaults = {"--beta": 0.0, "--mi-scale": "1"}   # those that differ from train.py's
    settings = {}           # {name: Setting}
    uses = ()               # flags that only this method and a few others read
    paper = "your own"

    def __init__(self, args, encoder, p, n_images):
        super().__init__()
        self.encoder = encoder
        self.projector = self.make_projector(p, args.projector, args.set)
        self.added_terms = added_terms(args, self.columns)
        self.columns = (*self.columns, *self.added_terms)

    @staticmethod
    def make_projector(p, sizes, settings):
        """The network r (n × p) → z (n × d). sizes: the layers' sizes, from --projector."""
        return mlp(p, sizes)

    def forward(self, views, index, progress):
        """Returns a StepResult; runs under autocast.

        views: 2n × 3 × s × s, all first views, then all second views. If you pass them through a
        network at once, its batch norms see all 2n; solo-learn passes one view at a time. index:
        n, the images' indices in the training set. progress: 0-dim float64, from 0 at the first
        step of training to 1 at the last.

        With several processes, n is this process's share of the batch: a loss over the whole batch
        gathers first. Set no attributes or buffers here, except batch norms' own: torch.compile
        and DistributedDataParallel may lose them. Use after_step instead.
        """
        raise NotImplementedError

    def result(self, loss, logs, r, z_views, progress, kept=None):
        """The StepResult, after adding the terms of --w2-weight, --lu-weight and --beta.

        r: 2n × p, from this process. z_views: (z1, z2), n × d each, from all processes.
        """
        logs = dict(logs)
        for column, (first_weight, last_weight) in self.added_terms.items():
            z = torch.cat(z_views)                          # 2n × d
            if column == "mi_loss":
                term = matrix_mutual_information(torch.cat(both_views(r)), z)
            else:
                term = UNIFORMITIES[column](z)
            weight = first_weight + (last_weight - first_weight) * progress
            loss = loss + weight.to(term.dtype) * term
            logs[column] = term.detach()
        return StepResult(loss, logs, r, kept or {})

    def schedule(self, progress):
        """{column: 0-dim tensor}: values that change over training, such as α."""
        return {}

    def param_groups(self, lr, weight_decay):
        """The optimiser's groups. The learning rate of a group with constant=True never changes."""
        params = [p for p in self.parameters() if p.requires_grad]
        return [dict(params=params, base_lr=lr, weight_decay=weight_decay)]

    def before_epoch(self, epoch, steps, generator):
        """epoch: from 1. generator: in the same state in every process; draw from it freely."""

    def after_backward(self):
        """Called after backward; may edit gradients, for example to freeze prototypes at first."""

    def after_step(self, kept, step, progress):
        """Called after the optimiser's step, to update momentum networks, queues and the like."""

    def after_epoch(self, epoch):
        """Called after the last step of an epoch."""


def both_views(x):
    """x (2n × d) of this process → [first views, second views] of all processes, n × d each."""
    return gather_at_once(*x.chunk(2))


# --- terms that flags add to any method's loss ----------------------------------------------------

# computed on both views' embeddings stacked, as the authors of W2 do
UNIFORMITIES = {"w2_loss": wasserstein_uniformity, "lu_loss": uniformity}


def added_terms(args, columns):
    """{column of log.csv: (first weight, last weight)} for --w2-weight, --lu-weight and --beta.

    columns: the method's own. A method that logs mi_loss, as AdaDim does, uses --beta itself.
    """
    terms = {"w2_loss": first_and_last(args.w2_weight), "lu_loss": first_and_last(args.lu_weight)}
    if "mi_loss" not in columns:
        terms["mi_loss"] = (args.beta, args.beta)
    return {column: weights for column, weights in terms.items() if weights != (0, 0)}


def first_and_last(text):
    """The weights at the first and last step: "0.2" is constant, "30:0" goes from 30 to 0."""
    first, _, last = text.partition(":")
    return float(first), float(last or first)


# --- AdaDim ---------------------------------------------------------------------------------------

class AdaDim(Method):
    """AdaDim and its special cases: SimCLR, VICReg, a fixed or growing α [Table 6].

        L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)                                   [Eq. 5]
    """
    columns = ("alpha", "info_nce", "vicreg", "mi_loss")
    details = ("invariance", "variance", "covariance")      # VICReg's parts, before weighting
    defaults = {}                                           # train.py's are AdaDim's
    uses = ("--alpha", "--alpha-every", "--alpha-batches", "--alpha-from", "--temperature",
            "--vicreg-weights")
    paper = "AdaDim, arXiv 2505.12576"

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.args = args
        self.vicreg_weights = [float(weight) for weight in args.vicreg_weights.split(",")]
        self.measured = MeasuredAlpha(args.alpha_every, args.alpha_batches)
        if args.alpha == "ada" and args.alpha_every >= args.epochs:
            print(f"note: α stays 0, because it is first set after epoch {args.alpha_every}; "
                  "a lower --alpha-every changes that")

    def schedule(self, progress):
        return {"alpha": alpha_at(self.args.alpha, self.measured.value, progress)}

    def forward(self, views, index, progress):
        # both views at once: batch norms see 2n images, not n as in solo-learn
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        r1, r2, z1, z2 = gather_at_once(*r.chunk(2), *z.chunk(2))   # of all processes

        alpha = self.schedule(progress)["alpha"]
        m = 1.0 if self.args.mi_scale == "1" else None      # None: m = α, the published method
        loss, parts = adadim(r1, r2, z1, z2, alpha, self.args.beta, m, self.args.temperature,
                             self.vicreg_weights)

        # §4 measures α on "the embedding space", and two sentences later on "the representation
        # space": we take z as the published method, and offer r for comparison
        measured_on = z1 if self.args.alpha_from == "z" else r1
        return self.result(loss, parts, r, (z1, z2), progress,
                           {"measured_on": measured_on.detach()})

    def before_epoch(self, epoch, steps, generator):
        if self.args.alpha == "ada":
            self.measured.before_epoch(epoch, steps, generator)

    def after_step(self, kept, step, progress):
        self.measured.after_step(kept["measured_on"], step)

    def after_epoch(self, epoch):
        self.measured.after_epoch()


METHODS = {"adadim": AdaDim}        # by name; baselines/ adds its own
