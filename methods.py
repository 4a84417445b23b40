"""AdaDim, and the interface between every method and the training loop.

The compared methods are in baselines/. To add one, see README.md, "A method of your own".
"""
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from alpha import MeasuredAlpha, alpha_at
from distributed import gather, gather_at_once, mean     # noqa: F401  (two are for baselines/)
from losses import adadim, matrix_mutual_information, wasserstein_uniformity
from metrics import uniformity


# --- the interface between a method and the training loop -----------------------------------------

class StepResult(NamedTuple):
    loss: torch.Tensor      # 0-dim: to be minimised
    logs: dict              # {column of log.csv: 0-dim tensor}: averaged over the epoch
    r: torch.Tensor         # 2n × p: representations, for the online probe
    kept: dict              # {name: detached tensor}: for after_step


class Setting(NamedTuple):
    """A setting of a single method, changed by --set NAME=VALUE; its type is its default's."""
    default: Any
    meaning: str = ""       # in a few words, for train.py --methods
    low: float = 0          # the smallest and largest number allowed
    high: float = math.inf


class Method(nn.Module):
    """The interface: an encoder, a projector, and functions to override as needed.

    train.py calls before_epoch; at each step forward, after_backward and, after the optimiser's
    step, after_step; at the epoch's end schedule and after_epoch. Labels never reach a method.

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
        self.args = args
        self.encoder = encoder
        self.projector = self.make_projector(p, args.projector, args.set)
        added = {"w2_loss": args.w2_weight, "lu_loss": args.lu_weight}
        if "mi_loss" not in self.columns:   # a method that logs it, as AdaDim, uses --beta itself
            added["mi_loss"] = (args.beta, args.beta)
        self.added_terms = {column: weights for column, weights in added.items()
                            if weights != (0, 0)}           # at the first step, at the last
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

    def embed(self, views):
        """r (2n × p) and z (2n × d) of this process's views, and all processes' z1, z2 (n × d)."""
        r = self.encoder(views)
        z = self.projector(r)
        return r, z, *both_views(z)

    def result(self, loss, logs, r, z_views, progress, kept=None):
        """The StepResult, after adding the terms of --w2-weight, --lu-weight and --beta.

        r: 2n × p, from this process. z_views: (z1, z2), n × d each, from all processes.
        """
        logs = dict(logs)
        for column, (first_weight, last_weight) in self.added_terms.items():
            z = torch.cat(z_views)          # 2n × d: of both views, as W2's authors do
            if column == "w2_loss":
                term = wasserstein_uniformity(z)
            elif column == "lu_loss":
                term = uniformity(z)
            else:
                term = matrix_mutual_information(torch.cat(both_views(r)), z)
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


def mlp(width, sizes, batch_norm=True, activation=None):
    """The projector: Linear-BN-ReLU for each size but the last, then Linear.

    width: of the input. sizes: of the layers, such as "2048-2048-2048". activation: if not ReLU.
    Raises ValueError if sizes is not positive integers joined by hyphens.
    """
    if not all(size.isdecimal() and int(size) > 0 for size in sizes.split("-")):
        raise ValueError(f"expected layer sizes such as 2048-2048-2048, got {sizes!r}")
    layers = []
    *hidden, last = map(int, sizes.split("-"))
    for size in hidden:
        layers.append(nn.Linear(width, size))
        if batch_norm:
            layers.append(nn.BatchNorm1d(size))
        layers.append(activation or nn.ReLU(inplace=True))
        width = size
    layers.append(nn.Linear(width, last))
    return nn.Sequential(*layers)


# --- AdaDim: alpha.py has its α -------------------------------------------------------------------

class AdaDim(Method):
    """AdaDim and its special cases: SimCLR, VICReg, a fixed or growing α [Table 6].

        L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)                                   [Eq. 5]
    """
    columns = ("alpha", "info_nce", "vicreg", "mi_loss")
    details = ("invariance", "variance", "covariance")      # VICReg's parts, before weighting
    defaults = {}                                           # train.py's are AdaDim's
    uses = ("--alpha", "--alpha-every", "--alpha-batches", "--alpha-from", "--mi-scale",
            "--temperature", "--vicreg-weights")
    paper = "AdaDim, arXiv 2505.12576"

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.measured = MeasuredAlpha(args.alpha_every, args.alpha_batches)
        if args.alpha == "ada" and args.alpha_every >= args.epochs:
            print(f"note: α stays 0, because it is first set after epoch {args.alpha_every}; "
                  "a lower --alpha-every changes that")

    def schedule(self, progress):
        return {"alpha": alpha_at(self.args.alpha, self.measured.value, progress)}

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        r1, r2, z1, z2 = gather_at_once(*r.chunk(2), *z.chunk(2))   # of all processes

        alpha = self.schedule(progress)["alpha"]
        m = 1.0 if self.args.mi_scale == "1" else None      # None: m = α, the published method
        loss, parts = adadim(r1, r2, z1, z2, alpha, self.args.beta, m, self.args.temperature,
                             self.args.vicreg_weights)

        # §4 measures α on "the embedding space", and two sentences later on "the representation
        # space": we take z as the published method, and offer r for comparison
        measured_on = (z1 if self.args.alpha_from == "z" else r1).detach()
        return self.result(loss, parts, r, (z1, z2), progress, {"measured_on": measured_on})

    def before_epoch(self, epoch, steps, generator):
        if self.args.alpha == "ada":
            self.measured.before_epoch(epoch, steps, generator)

    def after_step(self, kept, step, progress):
        self.measured.after_step(kept["measured_on"], step)

    def after_epoch(self, epoch):
        self.measured.after_epoch()


# --- flags of methods, for train.py ---------------------------------------------------------------

METHODS = {"adadim": AdaDim}        # by name; baselines/all_methods.py adds the others

# members of AdaDim's family that --method knows by name: the defaults that make them [Table 6]
FAMILY = {
    "vicreg": {"--alpha": 0.0, "--beta": 0.0, "--mi-scale": "1"},
    "simclr": {"--alpha": 1.0, "--beta": 0.0, "--mi-scale": "1"},
}


def alpha_type(text):
    """An argparse type: --alpha."""
    if text in ("ada", "linear", "cosine"):
        return text
    if not 0 <= float(text) <= 1:
        raise ValueError        # which argparse turns into a line
    return float(text)


def first_and_last(text):
    """An argparse type: weights at the first and last step; "0.2" is constant, "30:0" falls."""
    first, _, last = text.partition(":")
    return float(first), float(last or first)


def three_weights(text):
    """An argparse type: "25,25,1" → (25.0, 25.0, 1.0)."""
    sim_weight, var_weight, cov_weight = map(float, text.split(","))
    return sim_weight, var_weight, cov_weight


def read_settings(name, words, methods):
    """{setting: value} of the named method: its defaults, overridden by --set.

    words: such as ["queue=4096"], or None. Raises ValueError on an unknown setting or a bad value.
    """
    known = methods[name].settings
    values = {setting: about.default for setting, about in known.items()}
    for word in words or ():
        setting, _, text = word.partition("=")
        if setting not in known:
            raise ValueError(f"--set {word}: the settings of {name}, as NAME=VALUE: "
                             f"{', '.join(known) or 'none'}")
        default, _, low, high = known[setting]
        kind = type(default)
        try:
            values[setting] = kind(text)
        except ValueError:
            raise ValueError(f"--set {word}: expected {kind.__name__}") from None
        if kind is not str and not low <= values[setting] <= high:
            raise ValueError(f"--set {word}: expected a number from {low} to {high}")
    return values


def list_methods(methods):
    """The text of train.py --methods: each method's name, paper, defaults and settings."""
    lines = []
    for name, method in methods.items():
        changed = [f"{flag} {value}" for flag, value in method.defaults.items()
                   if flag not in Method.defaults]
        lines += [f"{name}: {method.paper}", f"    {' '.join(changed) or 'the defaults'}"]
        for setting, about in method.settings.items():
            word = f"--set {setting}={about.default}"
            lines.append(f"    {word:40}{about.meaning}".rstrip())
    return "\n".join([*lines, "vicreg, simclr: adadim with --alpha 0 or 1, and --beta 0"])
