"""NNCLR: contrast with the nearest neighbour of the other view, from a queue."""
import torch

from baselines.shared import (COUNT, POSITIVE, Queue, contrast, cosines, predictor, unit_rows,
                              width_of, with_last_norm)
from methods import Method, Setting, both_views
from models import mlp
from plumbing.cli import layer_sizes


def nnclr(neighbours, p, temperature):
    """NNCLR (Dwibedi et al. 2021, Eq. 3): contrast of neighbours with predictions; 0 or more.

        mean_i −log( exp(n̂n_i·p̂_i/τ) / Σ_k exp(n̂n_i·p̂_k/τ) )

    neighbours: the queue's entries nearest to one view's embeddings; p: predictions from the
    other view; both n × d. temperature: τ > 0.
    """
    return contrast(neighbours.detach(), p, temperature)


class Nnclr(Method):
    """Contrast with the other view's nearest neighbour, found in a queue of earlier embeddings.

    The loss is the mean of both directions. The queue holds embeddings of first views. The
    projector ends with a batch norm, as in the paper.
    """
    paper = "Nearest-Neighbor Contrastive Learning, Dwibedi et al. 2021, arXiv 2104.14548"
    defaults = Method.defaults | {
        "--projector": "2048-2048-256",
        "--augment": "byol",
        "--optimizer": "lars",
        "--lr": 0.4,
        "--weight-decay": 1e-5,
    }
    settings = {
        "predictor": Setting("4096", layer_sizes, "hidden layer sizes of the predictor"),
        "temperature": Setting(0.2, POSITIVE, "divides the cosines"),
        "queue": Setting(65_536, COUNT, "earlier embeddings in which neighbours are sought"),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.temperature = args.set["temperature"]
        self.predictor = predictor(self.projector, args.set["predictor"])
        self.queue = Queue(args.set["queue"], width_of(self.projector), args.batch_size)

    @staticmethod
    def make_projector(p, sizes, settings):
        return with_last_norm(mlp(p, sizes), affine=True)

    def forward(self, views, index, progress):
        r = self.encoder(views)                             # 2n × p
        z = self.projector(r)                               # 2n × d
        z1, z2 = both_views(z)                              # n × d each
        p1, p2 = both_views(self.predictor(z))              # n × d each
        loss = (nnclr(self.nearest(z1), p2, self.temperature)
                + nnclr(self.nearest(z2), p1, self.temperature)) / 2
        return self.result(loss, {}, r, (z1, z2), progress, {"z": unit_rows(z1)})

    @torch.no_grad()
    def nearest(self, z):
        """The entry of the queue nearest to each row of z (n × d)."""
        return self.queue.rows[cosines(z, self.queue.rows).argmax(1)]       # n × d

    def after_step(self, kept, step, progress):
        self.queue.push(kept["z"])
