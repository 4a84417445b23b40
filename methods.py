"""What a method of self-supervised learning is to the training loop; and AdaDim, the first one.

A method is a torch module. All of its state that outlives a step is a parameter, a buffer or one
of its `numbers`, so a checkpoint of its state_dict is complete, whatever the method: momentum
networks, queues, prototypes, AdaDim's α. A run goes on from one in the middle of an epoch too,
without another before_epoch. train.py calls a method like this, and knows nothing else of it:

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

The methods that AdaDim is compared with are in baselines.py. A method of your own is a class in
a file of your own: README.md, "In your own code".
"""
import argparse
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from plumbing.cli import BadInput, Parser, checked, matching
from plumbing.distributed import gather_at_once
from losses import adadim, matrix_mutual_information, wasserstein_uniformity
from metrics import effective_rank, uniformity
from models import mlp


class StepResult(NamedTuple):
    """What a method's forward pass returns."""
    loss: torch.Tensor      # 0-dim: what is minimised
    logs: dict              # {column of log.csv: 0-dim tensor}: the log has their epoch's means
    r: torch.Tensor         # 2n × p: representations, for the online probe
    kept: dict              # {name: detached tensor}: what after_step needs


class Setting(NamedTuple):
    """A setting of one method's own, which --set NAME=VALUE changes."""
    default: Any
    kind: Any               # an argparse type


class Method(nn.Module):
    """The contract. A method sets `encoder` and `projector`, and overrides what it needs.

    args: the flags of train.py; args.set: {name: value} of the method's own settings. encoder:
    images → r (n × p). n_images: in the training set. Labels never reach a method.

    columns: the method's own columns of log.csv beside the loss, from `logs` and `schedule`.
    defaults: {flag of train.py: value} where the method's differ from train.py's. settings:
    {name: Setting}. uses: flags that mean nothing to most methods, and something to this one.
    paper: where it was published. numbers: names of attributes, whole numbers or lists of them,
    that outlive a step: as buffers they would have to be fetched from a GPU at every step.
    """
    columns = ()
    numbers = ()
    defaults = {"--beta": 0.0, "--mi-scale": "1"}       # no regulariser unless it is asked for
    settings = {}
    uses = ()
    paper = "your own"

    def __init__(self, args, encoder, p, n_images):
        super().__init__()
        self.encoder = encoder
        self.projector = self.make_projector(p, args.projector)
        self.added_terms = added_terms(args, self.columns)
        self.columns = (*self.columns, *self.added_terms)

    @staticmethod
    def make_projector(p, sizes):
        """r (n × p) → z (n × d). sizes: --projector's, such as "2048-2048-2048"."""
        return mlp(p, sizes)

    def forward(self, views, index, progress):
        """One step's StepResult. Sets no attributes and no buffers but batch norms', so that
        torch.compile and DistributedDataParallel may run it in their own ways.

        views: 2n × 3 × s × s, the images' first views above their second. index: n, the images'
        places in the training set. progress: share of the training that is done, from 0 at the
        first step to 1 at the last, a 0-dim float64 tensor. Runs under autocast. With several
        processes n counts this one's part; a loss over the whole batch gathers first.
        """
        raise NotImplementedError

    def result(self, loss, logs, r, z_views, progress, kept=None):
        """A forward pass's StepResult: adds to its loss what flags ask for, see added_terms.

        r: 2n × p, of this process. z_views: (z1, z2), n × d each, of all processes.
        """
        logs = dict(logs)
        for column, weight in self.added_terms.items():
            z = torch.cat(z_views)                          # 2n × d
            if column == "mi_loss":
                term = matrix_mutual_information(torch.cat(both_views(r)), z)
            else:
                term = UNIFORMITIES[column](z)
            loss = loss + weight_at(weight, progress) * term
            logs[column] = term.detach()
        return StepResult(loss, logs, r, kept or {})

    def get_extra_state(self):
        """What state_dict() holds beside parameters and buffers; torch calls this."""
        return {name: torch.tensor(getattr(self, name)) for name in self.numbers}

    def set_extra_state(self, state):
        for name in self.numbers:
            setattr(self, name, state[name].tolist())

    def schedule(self, progress):
        """{column: 0-dim tensor}: values that change in the course of training, as α does."""
        return {}

    def param_groups(self, lr, weight_decay):
        """The optimiser's groups; one with constant=True keeps its learning rate throughout."""
        params = [p for p in self.parameters() if p.requires_grad]
        return [dict(params=params, base_lr=lr, weight_decay=weight_decay)]

    def before_epoch(self, epoch, steps, generator):
        """epoch: from 1. generator: in the same state on every process; draw from it freely."""

    def after_backward(self):
        """Gradients are there, and may be changed: prototypes, for one, are frozen at first."""

    def after_step(self, kept, step, progress):
        """The weights have changed: the place for momentum networks, queues, measurements."""

    def after_epoch(self, epoch):
        """All steps of the epoch are done."""


def both_views(x):
    """[first views, second views] (n × d each) of all processes, from x (2n × d) of this one."""
    return gather_at_once(*x.chunk(2))


# --- terms that flags add to any method's loss --------------------------------------------------

# of both views' embeddings stacked, as the second paper's authors do
UNIFORMITIES = {"w2_loss": wasserstein_uniformity, "lu_loss": uniformity}

NUMBER = r"\d+(\.\d*)?(e[+-]?\d+)?"
weight_type = matching(rf"{NUMBER}(:{NUMBER})?", "a weight such as 0.2, or two such as 30:0")


def added_terms(args, columns):
    """{column of log.csv: weight, as weight_at takes it} for --w2-weight, --lu-weight, --beta.

    columns: the method's own. One that logs mi_loss weighs I(R;Z) itself, as AdaDim does.
    """
    weights = {"w2_loss": args.w2_weight, "lu_loss": args.lu_weight}
    terms = {column: weight for column, weight in weights.items() if weight != "0"}
    if args.beta != 0 and "mi_loss" not in columns:
        terms["mi_loss"] = str(args.beta)
    return terms


def weight_at(text, progress):
    """A weight at a step (0-dim): "0.2" throughout, or "30:0", from 30 to 0 over training."""
    first, _, last = text.partition(":")
    first = float(first)
    last = float(last) if last else first
    return (first + (last - first) * progress).float()


# --- AdaDim --------------------------------------------------------------------------------------

def read_alpha(text):
    return text if text in ("ada", "linear", "cosine") else float(text)


def is_alpha(value):
    return isinstance(value, str) or 0 <= value <= 1


alpha_type = checked(read_alpha, is_alpha, "ada, linear, cosine or a number from 0 to 1")


def alpha_at(schedule, measured, progress):
    """α at a step, a 0-dim float32 tensor.

    schedule: "ada" takes the measured α (0-dim), "linear" and "cosine" go from 0 to 1 with the
    training's progress (0-dim, from 0 to 1), and a number is itself.
    """
    if schedule == "ada":
        return measured
    if schedule == "linear":
        return progress.float()
    if schedule == "cosine":
        return (0.5 * (1 - torch.cos(math.pi * progress))).float()
    return torch.full((), schedule, dtype=torch.float32, device=progress.device)


three_weights = matching(rf"{NUMBER},{NUMBER},{NUMBER}", "three weights such as 25,25,1")


class AdaDim(Method):
    """AdaDim, and every point of its family: SimCLR, VICReg, a fixed or growing α [Table 6].

        L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)                                   [Eq. 5]

    α is 0, VICReg, until it is first measured; then it follows the effective rank of the
    embeddings, as a share of the largest that a batch can have. Effective rank is high when
    features are decorrelated: then the loss moves on to spreading samples, InfoNCE. It is
    measured on the first of the two views.
    """
    columns = ("alpha", "info_nce", "vicreg", "mi_loss")
    numbers = ("measured_steps",)
    defaults = {}                                           # train.py's are AdaDim's
    uses = ("--alpha", "--alpha-every", "--alpha-batches", "--alpha-from", "--temperature",
            "--vicreg-weights")
    paper = "AdaDim, arXiv 2505.12576"

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.args = args
        self.vicreg_weights = [float(weight) for weight in args.vicreg_weights.split(",")]
        if args.alpha == "ada" and args.alpha_every >= args.epochs:
            print(f"note: α stays 0, for it is first measured after epoch {args.alpha_every}: a "
                  "lower --alpha-every changes that")
        self.register_buffer("alpha", torch.zeros(()))                      # as last measured
        self.register_buffer("shares", torch.zeros(args.alpha_batches))     # α is their mean
        self.measured_steps = []                                            # of this epoch

    def schedule(self, progress):
        return {"alpha": alpha_at(self.args.alpha, self.alpha, progress)}

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        r1, r2, z1, z2 = gather_at_once(*r.chunk(2), *z.chunk(2))   # of all processes

        alpha = self.schedule(progress)["alpha"]
        m = 1.0 if self.args.mi_scale == "1" else None      # None: m = α, the published method
        loss, parts = adadim(r1, r2, z1, z2, alpha, self.args.beta, m, self.args.temperature,
                             self.vicreg_weights)

        # §4 measures on "the embedding space", and two sentences later on "the representation
        # space": z is what the published α is, r is there to compare
        measured_on = z1 if self.args.alpha_from == "z" else r1
        return self.result(loss, parts, r, (z1, z2), progress,
                           {"measured_on": measured_on.detach()})

    def before_epoch(self, epoch, steps, generator):
        """Draws the batches on which α is measured: ones that are trained on anyway.

        The draw is made even where it is not used, so that the random numbers that follow, and
        with them the augmentation, are the same whatever α is.
        """
        order = torch.randperm(steps, generator=generator, device=generator.device)
        self.measured_steps = []
        if self.args.alpha == "ada" and epoch % self.args.alpha_every == 0:
            self.measured_steps = sorted(order[:self.args.alpha_batches].tolist())

    def after_step(self, kept, step, progress):
        if step in self.measured_steps:
            x = kept["measured_on"]                         # n × d
            largest = min(x.shape)                          # the rank that n samples can have
            self.shares[self.measured_steps.index(step)] = effective_rank(x) / largest

    def after_epoch(self, epoch):
        """Sets α: this is the moment that makes it adaptive."""
        if self.measured_steps:
            self.alpha.copy_(self.shares[:len(self.measured_steps)].mean())


# --- methods by their names ---------------------------------------------------------------------

METHODS = {"adadim": AdaDim}        # baselines.py enters its own


def chosen_method(argv):
    """--method's value, on which the other flags' defaults depend."""
    parser = Parser("train.py", None, add_help=False)
    parser.add_argument("--method", default="adadim", choices=tuple(METHODS))
    args, _ = parser.parse_known_args(argv)
    return args.method


def check_method_flags(parser, args, method, given):
    """Says which of the flags that were given the method has no use for."""
    without_effect = set()
    for other in METHODS.values():
        without_effect |= given.intersection(other.uses).difference(method.uses)
    if without_effect:
        print(f"note: {args.method} has no use for {', '.join(sorted(without_effect))}")
    if args.mi_scale == "alpha" and "--alpha" not in method.uses:
        parser.error(f"--mi-scale alpha: {args.method} has no α, and 1 is its only m")


def read_settings(name, words):
    """{setting: value} of the method of that name: its defaults, and what --set says.

    words: such as ["queue=4096"], or None. Raises BadInput on an unknown setting or a bad value.
    """
    known = METHODS[name].settings
    values = {setting: known[setting].default for setting in known}
    for word in words or ():
        setting, _, text = word.partition("=")
        if setting not in known:
            listed = ", ".join(known) or "none"
            raise BadInput(f"--set {word}: the settings of {name}, as NAME=VALUE: {listed}")
        try:
            values[setting] = known[setting].kind(text)
        except argparse.ArgumentTypeError as error:
            raise BadInput(f"--set {setting} {error}") from error
    return values


def all_methods():
    """What train.py --methods prints: each method's name, paper, defaults and settings."""
    lines = []
    for name, method in METHODS.items():
        lines.append(f"{name}: {method.paper}")
        defaults = [f"{flag} {value}" for flag, value in method.defaults.items()
                    if flag not in Method.defaults]
        if defaults:
            lines.append(f"    {' '.join(defaults)}")
        for setting, (default, _) in method.settings.items():
            lines.append(f"    --set {setting}={default}")
    return "\n".join(lines)
