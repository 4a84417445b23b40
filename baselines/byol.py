"""BYOL: a predictor guesses a momentum network's output for the other view; no negatives."""
from baselines.formulas import paired_cosine
from baselines.shared import MomentumMethod, predictor, recipe
from methods import Setting, both_views


def byol(p, z):
    """BYOL (Grill et al. 2020, Eq. 2): mean_i ‖p̂_i − ẑ_i‖² = 2 − 2·mean_i p̂_i·ẑ_i; 0 … 4.

    p: predictions from one view; z: the momentum network's output for the other; both n × d.
    """
    return 2 - 2 * paired_cosine(p, z.detach())


class Byol(MomentumMethod):
    """The loss is the sum of both directions."""
    paper = "Bootstrap Your Own Latent, Grill et al. 2020, arXiv 2006.07733"
    defaults = recipe(projector="4096-256", augment="byol", lr=1.0, weight_decay=1e-5)
    settings = MomentumMethod.settings | {
        "predictor": Setting("4096", "hidden layer sizes of the predictor"),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = predictor(self.projector, args.set["predictor"])

    def forward(self, views, index, progress):
        r, z, z1, z2 = self.embed(views)
        p1, p2 = both_views(self.predictor(z))              # n × d each
        target1, target2 = both_views(self.teacher(views))  # n × d each
        loss = byol(p1, target2) + byol(p2, target1)
        return self.result(loss, {}, r, (z1, z2), progress)
