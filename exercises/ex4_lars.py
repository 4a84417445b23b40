"""Exercise 4: one step of LARS.        python exercises/check.py 4

For a weight tensor w (two or more dimensions) with gradient g, learning rate lr and decay λ:

    q = η·‖w‖ / (‖g‖ + λ·‖w‖ + 1e-8),   q ← min(q/lr, 1);   if w is zero, q = 1
    v ← momentum·v + q·(g + λ·w),   w ← w − lr·v

‖·‖ is the norm of the whole tensor. A bias (one dimension) has q = 1 and λ = 0.
Hand in this file, and the two steps that you computed by hand.
"""
import torch


def lars_step(w, g, v, lr, weight_decay=1e-4, momentum=0.9,
              eta=0.02) -> tuple[torch.Tensor, torch.Tensor]:
    """The new (w, v), two tensors. w, g, v: of equal shape, and left as they are."""
    raise NotImplementedError
