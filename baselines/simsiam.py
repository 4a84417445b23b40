"""SimSiam: BYOL without the momentum network."""
from baselines.formulas import paired_cosine
from baselines.shared import predictor, projector_with_norm, recipe
from methods import Method, Setting, both_views


def simsiam(p, z):
    """SimSiam (Chen & He 2021, Eq. 1): −mean_i p̂_i·ẑ_i; −1 … 1.

    p: predictions from one view; z: the other view's embeddings, detached here; both n × d.
    """
    return -paired_cosine(p, z.detach())


class SimSiam(Method):
    """The loss is the mean of both directions. The predictor's learning rate stays constant."""
    paper = "Exploring Simple Siamese Representation Learning, Chen & He 2021, arXiv 2011.10566"
    defaults = recipe(projector="2048-2048-2048", augment="symmetric_weak", lr=0.5,
                      weight_decay=1e-5)
    settings = {"predictor": Setting("512", "hidden layer sizes of the predictor")}

    def __init__(self, args, encoder, p, n_images):
        super().__init__(args, encoder, p, n_images)
        self.predictor = predictor(self.projector, args.set["predictor"])

    @staticmethod
    def make_projector(p, sizes, settings):
        return projector_with_norm(p, sizes, affine=False)

    def forward(self, views, index, progress):
        r, z, z1, z2 = self.embed(views)
        p1, p2 = both_views(self.predictor(z))              # n × d each
        loss = (simsiam(p1, z2) + simsiam(p2, z1)) / 2
        return self.result(loss, {}, r, (z1, z2), progress)

    def param_groups(self, lr, weight_decay):
        learning = [*self.encoder.parameters(), *self.projector.parameters()]
        predicting = list(self.predictor.parameters())
        return [dict(params=learning, base_lr=lr, weight_decay=weight_decay),
                dict(params=predicting, base_lr=lr, weight_decay=weight_decay, constant=True)]
