"""α, AdaDim's weight of InfoNCE: measured during training [§4], or on a schedule [Table 6].

    alpha = MeasuredAlpha()
    for epoch in range(1, epochs + 1):
        alpha.before_epoch(epoch, steps=len(batches))
        for step, batch in enumerate(batches):
            …                                           # adadim(r1, r2, z1, z2, alpha.value)
            alpha.after_step(z1, step)
        alpha.after_epoch()

This file needs torch and metrics.py, which needs losses.py: copy the three.
"""
import math

import torch
from torch import nn

from metrics import effective_rank

NOT_MEASURED = -1.0


class MeasuredAlpha(nn.Module):
    """α: the embeddings' effective rank as a share of the largest possible in a batch [§4].

        α = mean over `batches` batches of  erank(z) / min(n, d),  after every `every`-th epoch

    Until it is first set, α is 0: VICReg alone. VICReg decorrelates features, which raises the
    effective rank; as it rises, α shifts the loss to InfoNCE, which spreads samples.

    value: α, 0-dim. It and what has been measured are in state_dict(), for runs that resume.
    """

    def __init__(self, every=20, batches=10):
        super().__init__()
        self.every = every
        self.batches = batches
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("shares", torch.zeros(batches))    # of the largest possible rank
        self.steps = []     # of this epoch, at which to measure; in state_dict(), see below

    def before_epoch(self, epoch, steps, generator=None):
        """Draws the steps at which to measure: on training batches, so without extra passes.

        epoch: from 1. steps: how many it has. generator: None draws the same in all processes.
        """
        self.steps = []
        self.shares.fill_(NOT_MEASURED)
        if epoch % self.every == 0:
            generator = generator or torch.Generator().manual_seed(epoch)
            order = torch.randperm(steps, generator=generator, device=generator.device)
            self.steps = sorted(order[:self.batches].tolist())

    def after_step(self, z, step):
        """z: one view's embeddings, n × d, of all processes. step: within the epoch, from 0."""
        if step in self.steps:
            rank = effective_rank(z.detach())
            self.shares[self.steps.index(step)] = rank / min(z.shape)

    def after_epoch(self):
        """Sets α, if this epoch measured it: this makes the method adaptive."""
        if self.steps:
            measured = self.shares[self.shares != NOT_MEASURED]     # an epoch may end early
            if len(measured):
                self.value.copy_(measured.mean())

    def get_extra_state(self):      # not a buffer: reading one would wait for the GPU at each step
        return torch.tensor(self.steps)

    def set_extra_state(self, state):
        self.steps = state.tolist()


def alpha_at(schedule, measured, progress):
    """α at a step, 0-dim float32.

    schedule: "ada" (measured), "linear" or "cosine" (from 0 to 1), or a number. measured: 0-dim.
    progress: 0-dim float64, from 0 at the first step of training to 1 at the last.
    """
    if schedule == "ada":
        return measured
    if schedule == "linear":
        return progress.float()
    if schedule == "cosine":
        return (0.5 * (1 - torch.cos(math.pi * progress))).float()
    return torch.full((), schedule, dtype=torch.float32, device=progress.device)
