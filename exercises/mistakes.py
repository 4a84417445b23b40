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


def wrong_info_nce(z1, z2, temperature, axis=1, mask=-math.inf, hidden="self", partner="other",
                   multiply=False, negatives="both", factor=1.0):
    n = len(z1)
    z = torch.cat([z1, z2])
    z = z if axis is None else F.normalize(z, dim=axis)
    temperature = 1 / temperature if multiply else temperature
    logits = z @ z.T / temperature                          # 2n × 2n
    if negatives == "other view":
        return factor * F.cross_entropy(logits[:n, n:], torch.arange(n))

    place = torch.arange(2 * n)
    target = {"next": place ^ 1, "first views": place % n, "other": place.roll(n)}[partner]
    in_sum = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool), mask)
    in_sum = logits if hidden == "nothing" else in_sum
    if hidden == "partner too":
        in_sum = in_sum.masked_fill(F.one_hot(target).bool(), -math.inf)
    return factor * (in_sum.logsumexp(1) - logits[place, target]).mean()


INFO_NCE = [
    ("Count the terms of the denominator for one row. Which k does the formula leave out?",
     dict(hidden="nothing")),
    ("A logit set to 0 is still in the sum: what is exp(0)?", dict(mask=0.0)),
    ("Your denominator lacks a term: only k = i is left out, and p(i) is not i.",
     dict(hidden="partner too")),
    ("Replace z1 by 10·z1: your loss changes. What does the hat over z stand for?",
     dict(axis=None)),
    ("You scale columns to unit length. What does ẑ_i scale?", dict(axis=0)),
    ("How many terms has one row's denominator? Rows of its own view are negatives too.",
     dict(negatives="other view")),
    ("Where in [ẑ1; ẑ2] is the other view of image 0? Not in the next row.", dict(partner="next")),
    ("Your first n rows have themselves as partner, whose logit you mask: where is the other view?",
     dict(partner="first views", mask=-1e9)),
    ("A smaller τ should make the logits larger: is it on the right side of the fraction?",
     dict(multiply=True)),
    ("The size is right, the sign is not.", dict(factor=-1.0)),
    ("Your result is twice too large: over how many rows is the mean?", dict(factor=2.0)),
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


def wrong_covariance(z, axis=0, divisor=1, power=2, drop="features", over="d", squares=True,
                     transposed=False):
    z = z.T if transposed else z
    n, d = z.shape
    z = z if axis is None else z - z.mean(axis, keepdim=True)
    c = z.T @ z
    dropped = {"features": torch.diag(c.diagonal()), "a row": c.diagonal()}.get(drop, 0)
    kept = (c - dropped).square().sum() if squares else (c - dropped).sum()
    if drop == "samples":
        kept = kept - (z @ z.T).diagonal().square().sum()       # as ‖z zᵀ‖² is ‖zᵀz‖²
    elif drop == "variances":
        kept = kept - (n - divisor) * c.trace()
    return kept / (n - divisor) ** power / {"d": d, "n": n, "1": 1, "pairs": d * (d - 1)}[over]


ONE_MEAN = "You subtract one mean of all entries: each column has its own."
COVARIANCE = [
    ("Add 5 to one column: c(z) should not change. What has to be subtracted first?",
     dict(axis=None)),
    ("You centre the rows. Whose mean does a covariance of features subtract?", dict(axis=1)),
    (ONE_MEAN, dict(axis=(0, 1))),
    ("C compares columns, yours compares rows: torch.cov, for one, expects variables as rows.",
     dict(transposed=True)),
    ("C has the divisor n − 1, not n.", dict(divisor=0)),
    ("For columns without any correlation c(z) should be 0, yours is not. Which i, j count?",
     dict(drop="nothing")),
    ("The diagonal of z zᵀ has a sample's length on it. Whose diagonal is to be left out?",
     dict(drop="samples")),
    ("torch.diag(C) is a vector: subtracted from C, it changes every row.", dict(drop="a row")),
    ("You subtract Σ_i C_ii. What is the diagonal's part of Σ_ij C_ij²?",
     dict(drop="variances")),
    ("C_ij is squared, and its divisor with it.", dict(power=1)),
    ("Entries of opposite sign cancel in your sum: what does the formula do to each C_ij?",
     dict(squares=False, power=1)),
    ("Append columns of zeros: what should happen to c(z)? A factor is missing.", dict(over="1")),
    ("The factor is 1/d: is d the number of rows?", dict(over="n")),
    ("The formula divides by d, not by the number of pairs.", dict(over="pairs")),
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


def wrong_rank(x, eps=0.0, squared=False, axis=None, norm=1, base="e", end="exp", added="p",
               power=1):
    x = x if axis is None else x - x.mean(axis, keepdim=True)
    s = torch.linalg.svdvals(F.normalize(x, dim=1) if norm == "rows" else x)
    s = s ** (2 if squared else power)
    p = s / (s.norm() if norm == 2 else s.sum() + eps * (added == "sum"))
    q = p + eps * (added != "sum")                          # as the formula has it, in both places
    q = q / q.sum() if added == "rescaled" else q
    weight = p if added == "logarithm" else q
    entropy = -(torch.special.xlogy(weight, q)).sum()
    scale = {"e": 1, "2 in the logarithm": 1 / math.log(2), "2 in the power": math.log(2)}[base]
    return (scale * entropy).exp() if end == "exp" else entropy


CENTRED_ROWS = "You subtract each row's mean: columns are the features."
RANK = [
    ("Compute it by hand for singular values (2, 1, 1): is p made of σ or of σ²?", dict(power=2)),
    ("Add 1 to all of x: your result stays. Should it?", dict(axis=0)),
    (CENTRED_ROWS + " Here nothing is centred.", dict(axis=1)),
    ("Should the p sum to 1, or their squares?", dict(norm=2)),
    ("Your result does not depend on the length of the rows. Does the formula scale them?",
     dict(norm="rows")),
    *[("For k equal singular values the result is k: which base has your logarithm, which your "
       "power?", dict(base=base)) for base in ("2 in the logarithm", "2 in the power")],
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


def wrong_rankme(x, eps, centred, squared, use=("eps", "centred", "squared"), late=False,
                 axis=0, **options):
    if late and squared:                                    # p² instead of a p of squares
        p = torch.linalg.svdvals(x - x.mean(0) if centred else x)
        p = (p / p.sum()) ** 2 + eps
        return (-(p * p.log()).sum()).exp()
    axis = axis if centred and "centred" in use else None
    return wrong_rank(x, eps if "eps" in use else 0, squared=squared and "squared" in use,
                      axis=axis, **options)


RANKME = [
    ("eps makes no difference in your function.", dict(use=("centred", "squared"))),
    ("You scale p to sum 1 again after adding eps: the formula does not.",
     dict(added="rescaled")),
    ("You add eps to Σs: in the formula it is added to each p.", dict(added="sum")),
    ("You add eps inside the logarithm only: in the formula it is part of p.",
     dict(added="logarithm")),
    ("centred makes no difference in your function.", dict(use=("eps", "squared"))),
    ("squared makes no difference in your function.", dict(use=("eps", "centred"))),
    ("With squared, s itself is squared: then p sums to 1 before eps is added.", dict(late=True)),
    (CENTRED_ROWS, dict(axis=1)),
    (ONE_MEAN, dict(axis=(0, 1))),
    ("That is the entropy: exp is missing.", dict(end="entropy")),
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
               rate="outside", zero=1.0, rows=False, momentum=0.9):
    def norm(x):
        return x.norm(dim=-1, keepdim=True) if rows else x.norm()

    step = g
    if w.dim() > 1 or bias == "like a weight":
        below = norm(g) + (0 if decay == "not in q" else weight_decay * norm(w)) + 1e-8
        q = 0.02 * norm(w) / below
        q = {"quotient": (q / lr).clamp(max=1), "q": q.clamp(max=1), "early": q.clamp(max=1) / lr,
             "never": q / lr}[clip]
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
    ("You take the minimum before dividing by lr.", dict(clip="early")),
    ("At a tiny learning rate your step is too long: can q exceed 1?", dict(clip="never")),
    ("The decay is in your step, but not in q.", dict(decay="not in q")),
    ("The decay is in your q, but not in the step.", dict(decay="only in q")),
    ("Your q scales the gradient, but not the decay.", dict(decay="not scaled")),
    ("A bias gets q and decay from you: compare w's dimensions.", dict(bias="like a weight")),
    ("Does your v hold the learning rate? Then a new rate does not reach old gradients.",
     dict(rate="inside")),
    ("A weight tensor of zeros never moves in your version.", dict(zero=0.0)),
    ("Your norms are those of single rows: q is one number for the tensor.", dict(rows=True)),
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
                      factor="2/√d"):
    n, d = z.shape
    z = (z if axis is None else F.normalize(z, dim=axis)).double()
    centre = z.mean(0)
    x = (z - centre if centred else z) / (n - divisor) ** 0.5
    sigma = x.T @ x                                         # d × d
    if root == "entries":
        root_trace = sigma.diagonal().sqrt().sum()
    else:
        root_trace = sigma.trace() if root == "none" else torch.linalg.svdvals(x).sum()
    factor = {"2/√d": 2 / d ** 0.5, "2/d": 2 / d, "2": 2, "1/√d": d ** -0.5}[factor]
    squared = centre.norm() ** mean_power + 1 + sigma.trace() - factor * root_trace
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
    *[("Check the factor before tr Σ^½: for uniform rows Σ = I/d, and all must cancel.",
       dict(factor=factor)) for factor in ("2/d", "2", "1/√d")],
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
