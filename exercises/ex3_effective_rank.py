"""Exercise 3: the effective rank.      python exercises/check.py 3

    erank(x) = exp( −Σ_i p_i log p_i ),   p = σ / Σσ,   σ the singular values of x, not centred

with 0·log 0 = 0. Hand in this file, and your answers to the questions.
"""
import torch


def effective_rank(x) -> torch.Tensor:
    """erank(x), 0-dim, from 1 to min(n, d). x: n × d."""
    raise NotImplementedError
