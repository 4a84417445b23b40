"""Exercise 5: Wasserstein uniformity.      python exercises/check.py 5

The distance of the unit rows ẑ (n × d, mean μ, covariance Σ with division by n) from the uniform
distribution on the sphere:

    W2 = √( ‖μ‖² + 1 + tr Σ − (2/√d)·tr Σ^½ )

Σ^½ is the matrix whose square is Σ: its eigenvalues are the roots of Σ's. The check also asks for
a finite gradient where Σ has eigenvalues of zero. Hand in this file, and your table.
"""
import torch


def wasserstein_uniformity(z) -> torch.Tensor:
    """W2, 0-dim, 0 (uniform) to √2 (collapse). z: n × d, rows of any length."""
    raise NotImplementedError
