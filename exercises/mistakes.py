"""Spoils the exercises: how check.py tells common mistakes apart.

Each exercise has inputs, the project's own function, and one more function whose options make
mistakes: if a solution's results equal those of a mistake on all inputs, check.py prints its hint.
"""
import math

import torch
import torch.nn.functional as F

import losses
import metrics
from optim import LARS


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator)


# --- 1: InfoNCE ---------------------------------------------------------------------------------

def info_nce_cases(generator):
    def alike(n, d, noise):
        z = randn(generator, n, d)
        return z, z + noise * randn(generator, n, d)

    long, short = randn(generator, 2, 6, 9) * torch.tensor([1, 2, 0.5, 3, 1, 0.2])[:, None]
    equal = randn(generator, 1, 5).expand(8, 5)
    return {
        "unrelated views": (*randn(generator, 2, 8, 16), 0.5),
        "two views alike": (*alike(12, 10, 0.5), 0.1),
        "rows of unequal length": (long, short, 0.2),
        "rows all equal": (equal, equal, 0.1),
        "a small temperature": (*alike(7, 16, 0.1), 0.01),
    }


def wrong_info_nce(z1, z2, temperature, axis=1, mask=-math.inf, partner="other", multiply=False,
                   negatives="both", factor=1.0):
    n = len(z1)
    z = torch.cat([z1, z2])
    z = z if axis is None else F.normalize(z, dim=axis)
    temperature = 1 / temperature if multiply else temperature
    logits = z @ z.T / temperature                          # 2n × 2n
    if negatives == "other view":
        return factor * F.cross_entropy(logits[:n, n:], torch.arange(n))

    place = torch.arange(2 * n)
    target = place ^ 1 if partner == "next" else place.roll(n)
    itself = torch.eye(2 * n, dtype=torch.bool)
    in_sum = logits if mask is None else logits.masked_fill(itself, mask)
    return factor * (in_sum.logsumexp(1) - logits[place, target]).mean()


INFO_NCE = [
    ("Count the terms of the denominator for one row. Which k does the formula leave out?",
     dict(mask=None)),
    ("A logit set to 0 is still in the sum: what is exp(0)?", dict(mask=0.0)),
    ("Replace z1 by 10·z1: your loss changes. What does the hat over z stand for?",
     dict(axis=None)),
    ("You scale columns to unit length. What does ẑ_i scale?", dict(axis=0)),
    ("How many terms has one row's denominator? Rows of its own view are negatives too.",
     dict(negatives="other view")),
    ("Where in [ẑ1; ẑ2] is the other view of image 0? Not in the next row.", dict(partner="next")),
    ("A smaller τ should make the logits larger: is it on the right side of the fraction?",
     dict(multiply=True)),
    ("The size is right, the sign is not.", dict(factor=-1.0)),
]


# --- 2: the covariance term ---------------------------------------------------------------------

def covariance_cases(generator):
    return {
        "more rows than columns": (3 * randn(generator, 20, 6),),
        "more columns than rows": (randn(generator, 5, 30),),
        "columns with a mean": (randn(generator, 12, 9) + randn(generator, 9),),
        "correlated columns": (randn(generator, 15, 4) @ randn(generator, 4, 8),),
    }


def covariance(z):
    return losses.vicreg_terms(z, z)[2] / 2                 # which adds two equal views' terms


def wrong_covariance(z, axis=0, divisor=1, power=2, drop="features", over_d=True, squares=True):
    n, d = z.shape
    z = z if axis is None else z - z.mean(axis, keepdim=True)
    c = z.T @ z
    dropped = torch.diag(c.diagonal()) if drop == "features" else 0
    kept = (c - dropped).square().sum() if squares else (c - dropped).sum()
    if drop == "samples":
        kept = kept - (z @ z.T).diagonal().square().sum()       # as ‖z zᵀ‖² is ‖zᵀz‖²
    kept = kept / (n - divisor) ** power
    return kept / d if over_d else kept


ONE_MEAN = "You subtract one mean of all entries: each column has its own."
COVARIANCE = [
    ("Add 5 to one column: c(z) should not change. What has to be subtracted first?",
     dict(axis=None)),
    ("You centre the rows. Whose mean does a covariance of features subtract?", dict(axis=1)),
    (ONE_MEAN, dict(axis=(0, 1))),
    ("C has the divisor n − 1, not n.", dict(divisor=0)),
    ("For columns without any correlation c(z) should be 0, yours is not. Which i, j count?",
     dict(drop="nothing")),
    ("The diagonal of z zᵀ has a sample's length on it. Whose diagonal is to be left out?",
     dict(drop="samples")),
    ("C_ij is squared, and its divisor with it.", dict(power=1)),
    ("Entries of opposite sign cancel in your sum: what does the formula do to each C_ij?",
     dict(squares=False, power=1)),
    ("Append columns of zeros: what should happen to c(z)? A factor is missing.",
     dict(over_d=False)),
]


# --- 3 and 7: ranks -----------------------------------------------------------------------------

def rank_cases(generator):
    falling = randn(generator, 25, 10) * torch.arange(1, 11) ** -1.0
    padded = torch.cat([randn(generator, 9, 4), torch.zeros(9, 3)], 1)
    return {
        "noise": (randn(generator, 40, 12),),
        "columns with a mean": (randn(generator, 30, 10) + 1,),
        "more columns than rows": (randn(generator, 8, 20),),
        "a spectrum that falls": (falling,),
        "columns of zeros": (padded,),
    }


def wrong_rank(x, eps=0.0, squared=False, axis=None, norm=1, end="exp", added="p"):
    x = x if axis is None else x - x.mean(axis, keepdim=True)
    s = torch.linalg.svdvals(x) ** (2 if squared else 1)
    p = s / (s.norm() if norm == 2 else s.sum() + eps * (added == "sum"))
    q = p + eps * (added != "sum")                          # as the formula has it, in both places
    weight = p if added == "logarithm" else q
    entropy = -(torch.special.xlogy(weight, q)).sum()
    return entropy.exp() if end == "exp" else entropy


RANK = [
    ("Compute it by hand for singular values (2, 1, 1): is p made of σ or of σ²?",
     dict(squared=True)),
    ("Add 1 to all of x: your result stays. Should it?", dict(axis=0)),
    ("Should the p sum to 1, or their squares?", dict(norm=2)),
    ("That is the entropy. How many equal values have this entropy?", dict(end="entropy")),
]


def rankme_cases(generator):
    x = randn(generator, 20, 12).relu() + 0.5
    return {
        "as it is": (x, 1e-7, False, False),
        "with a large eps": (x, 0.02, False, False),
        "centred": (x, 0.01, True, False),
        "squared": (x, 0.02, False, True),
        "centred and squared": (x, 0.01, True, True),
    }


def rankme(x, eps, centred, squared):
    s = metrics.singular_values(x - x.mean(0) if centred else x)
    return metrics.entropy_rank(s.square() if squared else s, eps)


def wrong_rankme(x, eps, centred, squared, use=("eps", "centred", "squared"), axis=0, **options):
    axis = axis if centred and "centred" in use else None
    return wrong_rank(x, eps if "eps" in use else 0, squared=squared and "squared" in use,
                      axis=axis, **options)


RANKME = [
    ("eps makes no difference in your function.", dict(use=("centred", "squared"))),
    ("You add eps to Σs: in the formula it is added to each p.", dict(added="sum")),
    ("You add eps inside the logarithm only: in the formula it is part of p.",
     dict(added="logarithm")),
    ("centred makes no difference in your function.", dict(use=("eps", "squared"))),
    ("squared makes no difference in your function.", dict(use=("eps", "centred"))),
    ("You subtract each row's mean: columns are the features.", dict(axis=1)),
    (ONE_MEAN, dict(axis=(0, 1))),
]


# --- 4: LARS ------------------------------------------------------------------------------------

def lars_cases(generator):
    w, g, v = randn(generator, 3, 4, 3)
    return {
        "a first step": (w, g, torch.zeros(4, 3), 0.4, 0.1),
        "a later step": (w, 0.1 * g, v, 0.2, 0.1),
        "a tiny learning rate": (w, 0.1 * g, v, 1e-3, 0.1),
        "a tiny gradient": (w, 1e-3 * g, v, 0.4, 1e-3),
        "a bias": (w[0], g[0], v[0], 0.4, 0.1),
        "a weight tensor of zeros": (torch.zeros(4, 3), g, torch.zeros(4, 3), 0.4, 0.1),
    }


def lars(w, g, v, lr, weight_decay):
    w = w.clone()
    w.grad = g.clone()
    optimizer = LARS([w], lr, weight_decay=weight_decay)
    optimizer.state[w]["momentum_buffer"] = v.clone()
    optimizer.step()
    return w, optimizer.state[w]["momentum_buffer"]


def wrong_lars(w, g, v, lr, weight_decay, clip="quotient", decay="both", bias="plain",
               rate="outside", zero=1.0, momentum=0.9):
    step = g
    if w.dim() > 1 or bias == "like a weight":
        below = g.norm() + (0 if decay == "not in q" else weight_decay * w.norm()) + 1e-8
        q = 0.02 * w.norm() / below
        q = {"quotient": (q / lr).clamp(max=1), "q": q.clamp(max=1), "never": q / lr}[clip]
        q = torch.where(w.norm() > 0, q, zero)
        decayed = 0 if decay == "only in q" else weight_decay * w
        step = q * g + decayed if decay == "not scaled" else q * (g + decayed)
    if rate == "inside":
        v = momentum * v + lr * step
        return w - v, v
    v = momentum * v + step
    return w - lr * v, v


LARS_MISTAKES = [
    ("Your q is that before the minimum: what is the minimum of?", dict(clip="q")),
    ("At a tiny learning rate your step is too long: can q exceed 1?", dict(clip="never")),
    ("The decay is in your step, but not in q.", dict(decay="not in q")),
    ("The decay is in your q, but not in the step.", dict(decay="only in q")),
    ("Your q scales the gradient, but not the decay.", dict(decay="not scaled")),
    ("A bias gets q and decay from you: compare w's dimensions.", dict(bias="like a weight")),
    ("Does your v hold the learning rate? Then a new rate does not reach old gradients.",
     dict(rate="inside")),
    ("A weight tensor of zeros never moves in your version.", dict(zero=0.0)),
    ("What becomes of the old v?", dict(momentum=0.0)),
]


# --- 5: W2 --------------------------------------------------------------------------------------

def wasserstein_cases(generator):
    unequal = randn(generator, 30, 6) * torch.rand(30, 1, generator=generator) * 5
    return {
        "noise": (randn(generator, 50, 8),),
        "rows of unequal length": (unequal,),
        "with a mean": (randn(generator, 20, 5) + 1,),
        "correlated columns": (randn(generator, 40, 6) @ randn(generator, 6, 6),),
        "fewer rows than columns": (randn(generator, 6, 15),),
        "columns of zeros": (torch.cat([randn(generator, 12, 3), torch.zeros(12, 2)], 1),),
        "two equal rows": (randn(generator, 1, 5).expand(2, 5),),
    }


def wrong_wasserstein(z, axis=1, centred=True, divisor=0, root="matrix", mean_power=2, outer=True,
                      d_power=0.5):
    n, d = z.shape
    z = (z if axis is None else F.normalize(z, dim=axis)).double()
    centre = z.mean(0)
    x = (z - centre if centred else z) / (n - divisor) ** 0.5
    sigma = x.T @ x                                         # d × d
    if root == "entries":
        root_trace = sigma.diagonal().sqrt().sum()
    else:
        root_trace = sigma.trace() if root == "none" else torch.linalg.svdvals(x).sum()
    squared = centre.norm() ** mean_power + 1 + sigma.trace() - 2 / d ** d_power * root_trace
    return squared.clamp_min(0).sqrt() if outer else squared


WASSERSTEIN = [
    ("Double one row: your result changes. What does the hat over z stand for?", dict(axis=None)),
    ("You scale columns to unit length. What does ẑ scale?", dict(axis=0)),
    ("Is μ subtracted before Σ is formed?", dict(centred=False)),
    ("This covariance is divided by n, not n − 1.", dict(divisor=1)),
    ("The root of a matrix is not the root of each entry.", dict(root="entries")),
    ("Your Σ has lost its root.", dict(root="none")),
    ("Is ‖μ‖ squared?", dict(mean_power=1)),
    ("That is the square of the distance.", dict(outer=False)),
    ("Check the factor before tr Σ^½: for uniform rows Σ = I/d, and all must cancel.",
     dict(d_power=1)),
]


# --- what check.py reads --------------------------------------------------------------------------

OVERFLOW = "exp() of a large number overflows: is there a way that never forms it?"
PARTNER = "Is a row its own partner, whose logit you mask? The other view is n rows away."
ZERO_P = "0·log 0 is NaN in floating point, and 0 in the formula."
ROUNDING = "Rounding leaves an eigenvalue of 0 slightly negative: what is its root?"
GRADIENT = "The value is right, the gradient is not finite or missing: what is the slope of √ at 0?"

PARTS = {
    1: [dict(name="info_nce", cases=info_nce_cases, right=losses.info_nce, wrong=wrong_info_nce,
             mistakes=INFO_NCE, not_finite=OVERFLOW, never_finite=PARTNER,
             gradient="The value is right, but no finite gradient reaches z1.")],
    2: [dict(name=name, cases=covariance_cases, right=covariance, wrong=wrong_covariance,
             mistakes=COVARIANCE, avoids=avoids)
        for name, avoids in {"by_features": 0, "by_samples": 1}.items()],
    3: [dict(name="effective_rank", cases=rank_cases, right=metrics.effective_rank,
             wrong=wrong_rank, mistakes=RANK, not_finite=ZERO_P)],
    4: [dict(name="lars_step", cases=lars_cases, right=lars, wrong=wrong_lars,
             mistakes=LARS_MISTAKES)],
    5: [dict(name="wasserstein_uniformity", cases=wasserstein_cases, wrong=wrong_wasserstein,
             right=losses.wasserstein_uniformity, mistakes=WASSERSTEIN, not_finite=ROUNDING,
             gradient=GRADIENT)],
    7: [dict(name="rank", cases=rankme_cases, right=rankme, wrong=wrong_rankme, mistakes=RANKME)],
}

# exercise 6: the first digits of the wrong lines' SHA-256, and the function that each is in
BUGS = {
    "fd69475efb8496a1": "contrastive",
    "4a45e733caa411a5": "decorrelating",
    "760b1455bf96c867": "information",
}
