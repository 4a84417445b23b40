"""LeJEPA: similar views, normally distributed embeddings."""
import torch

from baselines.shared import recipe
from losses import matrices, normalize_rows
from methods import Method, Setting, mean


def sigreg(z, directions):
    """LeJEPA's SIGReg (Balestriero & LeCun 2025): is each projection of z a standard normal?

        mean over directions a of  n · ∫ |φ(t) − e^(−t²/2)|² · e^(−t²/2) dt,
        φ(t) = mean_i e^(i·t·(z_i·a))

    This is the statistic of Epps and Pulley, integrated over [−3, 3] by the trapezoid rule. The
    integrand is even, so 17 knots on [0, 3] count twice. z: n × d, not normalised: its scale is
    tested too. directions: d × m, unit columns, which the caller draws anew at each step.
    """
    z, = matrices(z)
    directions, = matrices(directions)
    knots = torch.linspace(0, 3, 17, dtype=z.dtype, device=z.device)
    normal = (-knots.square() / 2).exp()                    # φ of N(0, 1), the target
    weights = torch.full_like(knots, 2 * 3 / 16)            # both halves of [−3, 3]
    weights[0] /= 2
    weights[-1] /= 2
    with torch.autocast(z.device.type, enabled=False):
        angles = (z @ directions.to(z.dtype))[..., None] * knots            # n × m × 17
        real = angles.cos().mean(0) - normal                                # m × 17
        imaginary = angles.sin().mean(0)
        distance = (real.square() + imaginary.square()) @ (weights * normal)        # m
        return len(z) * distance.mean()


class LeJepa(Method):
    """(1 − weight) · mean squared distance of views from their mean + weight · SIGReg.

    SIGReg is averaged over both views. Its directions are random at each step: several processes
    share them, but a single process draws others.

    The settings are those of the authors' minimal example, with three differences: it takes four
    views, this class two; its learning rate falls to half of its peak, ours to 0; its embeddings
    have 16 features, ours 64.
    """
    paper = "LeJEPA, Balestriero & LeCun 2025, arXiv 2511.08544"
    columns = ("prediction", "sigreg")
    defaults = recipe(projector="2048-2048-64", augment="lejepa", optimizer="adamw", lr=2e-3,
                      weight_decay=5e-2, warmup_epochs=1.0)
    settings = {
        "weight": Setting(0.02, "weight of SIGReg; the prediction has the rest", high=1),
        "directions": Setting(256, "random directions on which SIGReg tests", low=1),
    }

    def forward(self, views, index, progress):
        weight, count = self.args.set["weight"], self.args.set["directions"]
        r, _, z1, z2 = self.embed(views)
        z1, z2 = matrices(z1, z2)                           # n × d each
        # the mean over processes is normal too, and gives all of them the same directions
        drawn = mean(torch.randn(count, z1.shape[1], dtype=z1.dtype, device=z1.device))
        directions = normalize_rows(drawn).T                # d × m
        to_middle = (z1 - z2) / 2                           # n × d; the other view's is −to_middle
        prediction = to_middle.square().mean()
        normality = (sigreg(z1, directions) + sigreg(z2, directions)) / 2
        loss = (1 - weight) * prediction + weight * normality
        logs = {"prediction": prediction.detach(), "sigreg": normality.detach()}
        return self.result(loss, logs, r, (z1, z2), progress)
