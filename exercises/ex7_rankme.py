"""Exercise 7: what "rank" means.       python exercises/check.py 7

Libraries that report "RankMe" compute, from values s, exp(−Σ p log p) with p = s/Σs + eps, and
differ in eps and in s: singular values or their squares, of x as it is or after subtracting each
column's mean. Hand in this file, and your table for features(), with an explanation.
"""
import torch


def rank(x, eps, centred, squared):
    """exp(−Σ p log p) as a 0-dim tensor. x: n × d. centred, squared: bool, see above."""
    raise NotImplementedError


def features(seed=0, n=2000, d=1024):
    """n × d like a network's: correlated features, few strong and many weak, after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.arange(1, d + 1) ** -0.5
    hidden = torch.randn(n, d, generator=generator) * strength
    mixing = torch.randn(d, d, generator=generator) / d ** 0.5
    return (hidden @ mixing).relu()
