"""Exercise 1: InfoNCE from its formula.        python exercises/check.py 1

Each of the 2n rows of ẑ = [ẑ1; ẑ2] has one partner p(i), the other view of the same image:

    L = mean_i  −log( exp(ẑ_i·ẑ_p(i)/τ) / Σ_{k≠i} exp(ẑ_i·ẑ_k/τ) )

ẑ_i is row i scaled to unit length. Hand in this file, and your answers to the questions.
"""
import torch


def info_nce(z1, z2, temperature=0.1) -> torch.Tensor:
    """L, 0-dim. z1, z2: n × d, two views of n images. No loop over rows."""
    raise NotImplementedError
