"""NNCLR: contrast with the nearest neighbour of the other view, from a queue."""
from baselines.formulas import contrast, cosines
from baselines.shared import Queue, predictor, projector_with_norm, recipe, width_of
from methods import Method, Setting, both_views


def nnclr(neighbours, p, temperature):
    """NNCLR (Dwibedi et al. 2021, Eq. 3): contrast of neighbours with predictions; 0 or more.

        mean_i −log( exp(n̂n_i·p̂_i/τ) / Σ_k exp(n̂n_i·p̂_k/τ) )

    neighbours: the queue's entries nearest to one view's embeddings; p: predictions from the
    other view; both n × d. temperature: τ > 0.
    """
    return contrast(neighbours.detach(), p, temperature)


class Nnclr(Method):
    """The loss is the mean of both directions. The queue holds embeddings of first views."""
    paper = "Nearest-Neighbor Contrastive Learning, Dwibedi et al. 2021, arXiv 2104.14548"
    defaults = recipe(projector="2048-2048-256", augment="byol", lr=0.4, weight_decay=1e-5)
    settings = {
        "predictor": Setting("4096", "hidden layer sizes of the predictor"),
        "temperature": Setting(0.2, "divides the cosines", low=1e-6),
        "queue": Setting(65_536, "earlier embeddings in which neighbours are sought", low=1),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = predictor(self.projector, args.set["predictor"])
        self.queue = Queue(args.set["queue"], width_of(self.projector))

    @staticmethod
    def make_projector(p, sizes, settings):
        return projector_with_norm(p, sizes, affine=True)

    def forward(self, views, index, progress):
        r, z, z1, z2 = self.embed(views)
        p1, p2 = both_views(self.predictor(z))              # n × d each
        loss = (nnclr(self.nearest(z1), p2, self.args.set["temperature"])
                + nnclr(self.nearest(z2), p1, self.args.set["temperature"])) / 2
        return self.result(loss, {}, r, (z1, z2), progress, {"z": z1.detach()})

    def nearest(self, z):
        """The entry of the queue nearest to each row of z (n × d)."""
        return self.queue.rows[cosines(z, self.queue.rows).argmax(1)]       # n × d

    def after_step(self, kept, step, progress):
        self.queue.push(kept["z"])
