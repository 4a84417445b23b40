"""MoCo v2: contrast with a queue of a momentum network's outputs for earlier images."""
import torch
import torch.nn.functional as F
from torch import nn

from baselines.formulas import cosines
from baselines.shared import MomentumMethod, Queue, recipe, width_of
from losses import matrices, normalize_rows
from methods import Setting, both_views, mlp


def moco_v2(q, k, queue, temperature):
    """MoCo (He et al. 2020, Eq. 1): the own key against a queue; from 0 to about 2/τ + log K.

        mean_i −log( exp(q̂_i·k̂_i/τ) / ( exp(q̂_i·k̂_i/τ) + Σ_j exp(q̂_i·queue_j/τ) ) )

    q: one view's queries; k: the momentum network's keys of the other view; both n × d.
    queue: K × d, earlier keys. temperature: τ > 0.
    """
    q, k = matrices(q, k, same_width=True)
    own = (normalize_rows(q) * normalize_rows(k.detach())).sum(1, keepdim=True)     # n × 1
    others = cosines(q, queue.detach())                                     # n × K
    scores = torch.cat([own, others], 1) / temperature                      # n × (1 + K)
    first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    return F.cross_entropy(scores, first)


class MocoV2(MomentumMethod):
    """This is solo-learn's symmetric form (mocov2plus): the loss is the mean of both directions,
    each view has a queue of its own, and the projector has no batch norm. The momentum is
    solo-learn's too; Table 17 has 0.9 to 0.99. Keys are not shuffled between GPUs. The second
    paper's MoCo v2 has one queue, and the batch norms.
    """
    paper = "Momentum Contrast v2, Chen et al. 2020, arXiv 2003.04297"
    defaults = recipe(projector="2048-256", augment="symmetric_weak", optimizer="sgd", lr=0.3,
                      weight_decay=1e-4)
    settings = MomentumMethod.settings | {
        "temperature": Setting(0.2, "divides the cosines", low=1e-6),
        "queue": Setting(32_768, "earlier keys to contrast with", low=1),
        "queues": Setting(2, "2: one for each view; 1: one for both", low=1, high=2),
        "batch_norm": Setting("no", "yes: the projector has batch norms"),
        "last_momentum": Setting(0.999, "the momentum copy's m at the last step", high=1),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        size, d = args.set["queue"], width_of(self.projector)
        self.queues = nn.ModuleList(Queue(size, d) for _ in range(args.set["queues"]))

    @staticmethod
    def make_projector(p, sizes, settings):
        if settings["batch_norm"] not in ("yes", "no"):
            raise ValueError("--set batch_norm must be yes or no")
        return mlp(p, sizes, batch_norm=settings["batch_norm"] == "yes")

    def forward(self, views, index, progress):
        r, _, q1, q2 = self.embed(views)
        k1, k2 = both_views(self.teacher(views))            # n × d each
        queue1, queue2 = self.queues[0].rows, self.queues[-1].rows  # may be the same one
        loss = (moco_v2(q1, k2, queue2, self.args.set["temperature"])
                + moco_v2(q2, k1, queue1, self.args.set["temperature"])) / 2
        return self.result(loss, {}, r, (q1, q2), progress, {"k1": k1, "k2": k2})

    def after_step(self, kept, step, progress):
        super().after_step(kept, step, progress)
        self.queues[0].push(kept["k1"])
        self.queues[-1].push(kept["k2"])
