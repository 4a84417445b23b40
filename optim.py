"""LARS, the other optimisers, and gradient clipping, which keeps runs from ending in NaN.

    optimizer = LARS(net.parameters(), lr=0.4)
    mean_norm = torch.zeros(())
    loss.backward()
    clip_gradient(net.parameters(), optimizer, mean_norm, factor=2.0)
    optimizer.step()

This file needs only torch: copy it.
"""
import torch

LEARNING_RATES = {          # for a batch of 256
    "lars": {"encoder": 0.4, "probe": 0.1},
    "sgd": {"encoder": 0.05, "probe": 0.1},
    "adam": {"encoder": 1e-3, "probe": 1e-2},
    "adamw": {"encoder": 1e-3, "probe": 1e-2},
}


def make_optimizer(name, groups):
    """name: a key of LEARNING_RATES. groups: parameter groups, each with a base_lr."""
    for group in groups:
        group["lr"] = group["base_lr"]
    if name == "lars":
        return LARS(groups, lr=0.0)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    if name == "adam":
        return torch.optim.Adam(groups, lr=0.0)
    return torch.optim.AdamW(groups, lr=0.0)


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step is, for each weight tensor, in proportion to that tensor's norm.

    For a weight tensor w with gradient g (You et al., 2017; solo-learn's form with clip_lr):

        trust ratio q = eta·‖w‖ / (‖g‖ + weight_decay·‖w‖ + 1e-8), then q ← min(q / lr, 1)
        v ← momentum·v + q·(g + weight_decay·w)
        w ← w − lr·v

    Biases and norms (one dimension) take the plain step, with neither q nor decay. So do groups of
    parameters with plain=True, such as a transformer's cls_token and layer_scale; tensors of zeros,
    which could never leave zero otherwise; and those whose gradient is zero, as in solo-learn.
    """

    def __init__(self, params, lr, momentum=0.9, weight_decay=1e-4, eta=0.02, clip_lr=True,
                 plain=False):
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta,
                        clip_lr=clip_lr, plain=plain)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """closure: computes the gradients and returns the loss, which this then returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group_by_device_and_decay(group["params"]):
                self.update(weights, group)
        return loss

    def update(self, w, group):
        """w: a list from group_by_device_and_decay; torch's functions _foreach_… take it whole."""
        g = [tensor.grad for tensor in w]
        for tensor in w:
            if "momentum_buffer" not in self.state[tensor]:
                self.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)
        v = [self.state[tensor]["momentum_buffer"] for tensor in w]
        torch._foreach_mul_(v, group["momentum"])
        if w[0].ndim > 1 and not group.get("plain"):
            w_norm = torch.stack(torch._foreach_norm(w))            # one number per tensor
            g_norm = torch.stack(torch._foreach_norm(g))
            q = group["eta"] * w_norm / (g_norm + group["weight_decay"] * w_norm + 1e-8)
            if group["clip_lr"]:
                q = (q / group["lr"]).clamp(max=1)
            adapts = (w_norm > 0) & (g_norm > 0)
            q = torch.where(adapts, q, 1)
            q_decay = group["weight_decay"] * q * adapts
            torch._foreach_addcmul_(v, g, q.unbind())
            torch._foreach_addcmul_(v, w, q_decay.unbind())
        else:
            torch._foreach_add_(v, g)
        torch._foreach_add_(w, v, alpha=-group["lr"])


def group_by_device_and_decay(params):
    """Lists of those that have gradients: each on one device, and all with or all without decay."""
    lists = {}
    for w in params:
        if w.grad is not None:
            lists.setdefault((w.device, w.ndim > 1), []).append(w)
    return lists.values()


@torch.no_grad()
def clip_gradient(params, optimizer, mean_norm, factor):
    """Clips the gradient, in place, to `factor` times the running mean of its norm.

    Not in the paper. Without it, runs with narrow networks or small datasets often end in NaN once
    the learning rate exceeds 0.07: norms and biases take plain steps at the full rate, VICReg's
    covariance term grows with the fourth power of z, and one bad step leads to the next. The
    momentum is scaled by the same factor: it carries a bad step on, and LARS would make up for a
    smaller gradient.
    Call it once per step of the optimiser, not for each part of an accumulated gradient.
    mean_norm: 0-dim, the mean over about ten steps, updated in place; 0 before the first step. It
    belongs in checkpoints. factor: 0 never clips.
    Returns 1 if it clipped, else 0 (0-dim: no synchronising with the device).
    """
    params = [p for p in params if p.grad is not None]
    if not params:
        return torch.zeros_like(mean_norm)
    gradients = [p.grad for p in params]
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    limit = factor * mean_norm
    # ignore a non-finite norm (fp16's scaler skips that step): limit / ∞ would erase the momentum
    finite = norm.isfinite()
    clipped = (norm > limit) & (limit > 0) & finite
    scale = torch.where(clipped, limit / norm, 1)
    states = [optimizer.state.get(p, {}) for p in params]
    momenta = [state[name] for state in states
               for name in ("momentum_buffer", "exp_avg")       # of LARS and SGD, of Adam
               if name in state]
    torch._foreach_mul_(gradients + momenta, scale)

    mean = torch.where(mean_norm > 0, 0.9 * mean_norm + 0.1 * scale * norm, norm)
    mean_norm.copy_(torch.where(finite, mean, mean_norm))
    return clipped.float()
