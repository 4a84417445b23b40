"""MoCo v3: contrast of predictions with a momentum network's outputs for the batch."""
from baselines.formulas import contrast
from baselines.shared import MomentumMethod, predictor, projector_with_norm, recipe
from methods import Setting, both_views


def moco_v3(q, k, temperature):
    """MoCo v3 (Chen et al. 2021, Algorithm 1): the own key against the batch's, times 2τ.

        2τ · mean_i −log( exp(q̂_i·k̂_i/τ) / Σ_j exp(q̂_i·k̂_j/τ) )

    q: predictions from one view; k: the momentum network's keys of the other view; both n × d.
    temperature: τ > 0.
    """
    return 2 * temperature * contrast(q, k.detach(), temperature)


class MocoV3(MomentumMethod):
    """The loss is the sum of both directions. The projector ends with a batch norm without
    weights, as in the paper. The momentum is solo-learn's; Table 17 has 0.9 to 0.99.
    """
    paper = "An Empirical Study of Training Self-Supervised ViT, Chen et al. 2021, arXiv 2104.02057"
    defaults = recipe(projector="4096-256", augment="byol", lr=0.3, weight_decay=1e-6)
    settings = MomentumMethod.settings | {
        "predictor": Setting("4096", "hidden layer sizes of the predictor"),
        "temperature": Setting(0.2, "divides the cosines", low=1e-6),
    }

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = predictor(self.projector, args.set["predictor"])

    @staticmethod
    def make_projector(p, sizes, settings):
        return projector_with_norm(p, sizes, affine=False)

    def forward(self, views, index, progress):
        r, z, z1, z2 = self.embed(views)
        q1, q2 = both_views(self.predictor(z))              # n × d each
        k1, k2 = both_views(self.teacher(views))            # n × d each
        temperature = self.args.set["temperature"]
        loss = moco_v3(q1, k2, temperature) + moco_v3(q2, k1, temperature)
        return self.result(loss, {}, r, (z1, z2), progress)
