"""α, AdaDim's weight of InfoNCE: measured during training [§4], or on a schedule [Table 6].

This file needs torch, metrics.py and losses.py; docs/IN_OTHER_CODE.md has a loop that uses it.
"""
import math

import torch
from torch import nn

from metrics import effective_rank


class MeasuredAlpha(nn.Module):
    """α: the embeddings' effective rank as a share of the largest possible in a batch [§4].

        α = mean over `batches` batches of  erank(z) / min(n, d),  after every `every`-th epoch

    Until it is first set, α is 0: VICReg alone. VICReg decorrelates features, which raises the
    effective rank; as it rises, α shifts the loss to InfoNCE, which spreads samples.
    value: α, 0-dim. state_dict() has it, and what has been measured in an epoch.
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
        self.shares.fill_(-1)                                   # not measured
        if epoch % self.every == 0:
            generator = generator or torch.Generator().manual_seed(epoch)
            order = torch.randperm(steps, generator=generator, device=generator.device)
            self.steps = sorted(order[:self.batches].tolist())

    def after_step(self, z, step):
        """z: one view's embeddings, n × d, of all processes. step: within the epoch, from 0."""
        if step in self.steps:
            self.shares[self.steps.index(step)] = effective_rank(z.detach()) / min(z.shape)

    def after_epoch(self):
        """Sets α, if this epoch measured it: this makes the method adaptive."""
        measured = self.shares[self.shares != -1]               # an epoch may end early
        if self.steps and len(measured):
            self.value.copy_(measured.mean())

    def get_extra_state(self):      # not a buffer: reading one would wait for the GPU at each step
        return torch.tensor(self.steps)

    def set_extra_state(self, state):
        self.steps = state.tolist()


def alpha_at(schedule, measured, progress):
    """α at a step, 0-dim float32. schedule: --alpha. progress: see Method.forward."""
    if schedule == "ada":
        return measured
    if schedule == "linear":
        return progress.float()
    if schedule == "cosine":
        return (0.5 * (1 - torch.cos(math.pi * progress))).float()
    return torch.full((), schedule, dtype=torch.float32, device=progress.device)
