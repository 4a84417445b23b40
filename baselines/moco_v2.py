"""MoCo v2: contrast with a queue of a momentum network's outputs for earlier images."""
import torch
import torch.nn.functional as F

from torch import nn

from baselines.shared import (COUNT, POSITIVE, SHARE, YES_OR_NO, MomentumMethod, Queue,
                              check_positive, cosines, unit_rows, width_of)
from losses import matrices, normalize_rows
from methods import Method, Setting, both_views
from models import mlp
from plumbing.cli import whole_number


def moco_v2(q, k, queue, temperature):
    """MoCo (He et al. 2020, Eq. 1): the own key against a queue; from 0 to about 2/τ + log K.

        mean_i −log( exp(q̂_i·k̂_i/τ) / ( exp(q̂_i·k̂_i/τ) + Σ_j exp(q̂_i·queue_j/τ) ) )

    q: one view's queries; k: the momentum network's keys of the other view; both n × d.
    queue: K × d, earlier keys. temperature: τ > 0.
    """
    q, k = matrices(q, k, same_width=True)
    check_positive(temperature=temperature)
    own = (normalize_rows(q) * normalize_rows(k.detach())).sum(1, keepdim=True)     # n × 1
    others = cosines(q, queue.detach())                                     # n × K
    scores = torch.cat([own, others], 1) / temperature                      # n × (1 + K)
    first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    return F.cross_entropy(scores, first)


class MocoV2(MomentumMethod):
    """Contrast with a queue of a momentum network's outputs for earlier images.

    This is solo-learn's symmetric form (mocov2plus): the loss is the mean of both directions, each
    view has a queue of its own, and the projector has no batch norm. The momentum is solo-learn's
    too; Table 17 has 0.9 to 0.99. Keys are not shuffled between GPUs: the copy has batch norms of
    its own.

    The second paper's MoCo v2 has one queue for both views, and batch norms in the projector.
    """
    paper = "Momentum Contrast v2, Chen et al. 2020, arXiv 2003.04297"
    defaults = Method.defaults | {
        "--projector": "2048-256",
        "--augment": "symmetric_weak",
        "--optimizer": "sgd",
        "--lr": 0.3,
        "--weight-decay": 1e-4,
    }
    settings = {
        "temperature": Setting(0.2, POSITIVE, "divides the cosines"),
        "queue": Setting(32_768, COUNT, "earlier keys to contrast with"),
        "queues": Setting(2, whole_number(1, 2), "2: one for each view; 1: one for both"),
        "batch_norm": Setting("no", YES_OR_NO, "yes: the projector has batch norms"),
        "momentum": Setting(0.99, SHARE, "the momentum copy's m at the first step"),
        "last_momentum": Setting(0.999, SHARE, "and at the last"),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperature = args.set["temperature"]
        d = width_of(self.projector)
        self.queues = nn.ModuleList(Queue(args.set["queue"], d, args.batch_size)
                                    for _ in range(args.set["queues"]))

    @staticmethod
    def make_projector(p, sizes, settings):
        return mlp(p, sizes, batch_norm=settings["batch_norm"] == "yes")

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        q1, q2 = both_views(z)                              # n × d each
        k1, k2 = both_views(self.teacher(views))            # n × d each
        queue1, queue2 = self.queues[0].rows, self.queues[-1].rows  # may be the same one
        loss = (moco_v2(q1, k2, queue2, self.temperature)
                + moco_v2(q2, k1, queue1, self.temperature)) / 2
        kept = {"k1": unit_rows(k1), "k2": unit_rows(k2)}
        return self.result(loss, {}, r, (q1, q2), progress, kept)

    def after_step(self, kept, step, progress):
        super().after_step(kept, step, progress)
        self.queues[0].push(kept["k1"])
        self.queues[-1].push(kept["k2"])
