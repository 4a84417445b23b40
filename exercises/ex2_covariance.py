"""Exercise 2: VICReg's covariance term, by two products.       python exercises/check.py 2

With each column's mean subtracted from z (n × d), and C = zᵀz/(n − 1), which is d × d,

    c(z) = (1/d) · Σ_{i≠j} C_ij²

Hand in this file, the proof that Σ_ij C_ij² = ‖z zᵀ‖²_F / (n − 1)², and your table of times.
"""
import torch


def by_features(z) -> torch.Tensor:
    """c(z), 0-dim, through the d × d product. z: n × d, not yet centred."""
    raise NotImplementedError


def by_samples(z) -> torch.Tensor:
    """The same through the n × n product: forms neither C nor anything else of d × d entries."""
    raise NotImplementedError
