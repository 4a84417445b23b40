"""What the losses of several compared methods share. This file needs only torch and losses.py.

The conventions of losses.py hold for all losses in this folder, and:
- A loss has one direction: one view's output against the other view's target. The docstring of
  the method's class tells how it combines both directions.
- n is the number of samples, d of features, K of prototypes or of entries in a queue.
- No gradient flows into targets: keys, queues, teachers, centres and assignments are detached.
"""
import torch
import torch.nn.functional as F

from losses import matrices, normalize_rows


def cosines(x, y):
    """x̂ ŷᵀ, n × m, of the rows of x (n × d) and y (m × d)."""
    x, = matrices(x)
    y, = matrices(y)
    with torch.autocast(x.device.type, enabled=False):
        return normalize_rows(x) @ normalize_rows(y).to(x.dtype).T


def paired_cosine(x, y):
    """mean_i x̂_i·ŷ_i; x, y: both n × d."""
    x, y = matrices(x, y, rows=1, same_width=True)
    return (normalize_rows(x) * normalize_rows(y)).sum(1).mean()


def soft_cross_entropy(scores, targets):
    """mean_i −Σ_k targets_ik·log softmax(scores_i)_k; scores, targets: n × K."""
    return -(targets * F.log_softmax(scores, dim=1)).sum(1).mean()


def contrast(anchors, others, temperature):
    """mean_i −log( exp(â_i·ô_i/τ) / Σ_k exp(â_i·ô_k/τ) ); anchors, others: both n × d."""
    scores = cosines(anchors, others) / temperature                         # n × n
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
