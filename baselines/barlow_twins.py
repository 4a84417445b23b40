"""Barlow Twins: each feature correlates with itself in the other view, and with no other."""
import torch

from baselines.shared import recipe
from losses import matrices
from methods import Method, Setting


def barlow_twins(z1, z2, off_diagonal_weight=5e-3, scale=0.1):
    """Barlow Twins (Zbontar et al. 2021, Eq. 1) for both views at once; 0 or more.

        scale · ( Σ_i (1 − C_ii)² + off_diagonal_weight · Σ_{i≠j} C_ij² )

    z1, z2: n × d, n ≥ 2. C (d × d) is the correlation of view 1's features with view 2's. Features
    are standardised over the batch as by a batch norm without weights: division by n, and 1e-5
    added to the variance.
    """
    z1, z2 = matrices(z1, z2, rows=2, same_width=True)
    with torch.autocast(z1.device.type, enabled=False):
        correlation = standard_columns(z1).T @ standard_columns(z2) / len(z1)         # d × d
        diagonal = correlation.diagonal()                                   # d
        on_diagonal = (1 - diagonal).square().sum()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return scale * (on_diagonal + off_diagonal_weight * off_diagonal)


def standard_columns(z, eps=1e-5):
    """Gives the columns of z (n × d) mean 0 and variance 1; constant columns become 0."""
    variance = z.var(0, correction=0)                                       # d
    return (z - z.mean(0)) / (variance + eps).sqrt()


class BarlowTwins(Method):
    """One loss for both views."""
    paper = "Barlow Twins, Zbontar et al. 2021, arXiv 2103.03230"
    defaults = recipe(projector="2048-2048-2048", augment="byol", lr=0.3, weight_decay=1e-4)
    settings = {
        "off_diagonal_weight": Setting(5e-3, "weight of correlations between features"),
        "scale": Setting(0.1, "factor of the whole loss", low=1e-6),
    }

    def forward(self, views, index, progress):
        r, _, z1, z2 = self.embed(views)
        loss = barlow_twins(z1, z2, **self.args.set)
        return self.result(loss, {}, r, (z1, z2), progress)
