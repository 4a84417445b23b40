"""MoCo v2: contrast with a queue of a momentum network's outputs for earlier images."""
import torch
import torch.nn.functional as F

from baselines.shared import (COUNT, POSITIVE, SHARE, MomentumMethod, Queue, at_most,
                              check_positive, cosines, images_per_epoch, unit_rows, width_of)
from losses import matrices, normalize_rows
from methods import Method, Setting, both_views


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

    This is solo-learn's symmetric form: the loss is the mean of both directions, and each view has
    a queue of its own. Keys are not shuffled between GPUs: the copy has batch norms of its own.
    """
    paper = "Momentum Contrast v2, Chen et al. 2020, arXiv 2003.04297"
    defaults = Method.defaults | {
        "--projector": "2048-256",
        "--augment": "moco",
        "--optimizer": "sgd",
        "--lr": 0.3,
        "--weight-decay": 1e-4,
    }
    settings = {
        "temperature": Setting(0.2, POSITIVE),
        "queue": Setting(32_768, COUNT),
        "momentum": Setting(0.99, SHARE),
        "last_momentum": Setting(0.999, SHARE),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperature = args.set["temperature"]
        size = at_most(args.set["queue"], images_per_epoch(args, n_images), "queue entries")
        self.queue1 = Queue(size, width_of(self.projector))
        self.queue2 = Queue(size, width_of(self.projector))

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        q1, q2 = both_views(z)                              # n × d each
        k1, k2 = both_views(self.teacher(views))            # n × d each
        loss = (moco_v2(q1, k2, self.queue2.rows, self.temperature)
                + moco_v2(q2, k1, self.queue1.rows, self.temperature)) / 2
        kept = {"k1": unit_rows(k1), "k2": unit_rows(k2)}
        return self.result(loss, {}, r, (q1, q2), progress, kept)

    def after_step(self, kept, step, progress):
        super().after_step(kept, step, progress)
        self.queue1.push(kept["k1"])
        self.queue2.push(kept["k2"])
