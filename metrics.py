"""The metrics that AdaDim's paper reads its training by, as plain functions of tensors.

The entropy H_2, I(R;Z) and W2 are losses too and stand in losses.py. Here are the rest, and
representation_metrics(r, z), which computes all that a row of log.csv holds without labels.
To use them elsewhere, copy this file and losses.py:

    from metrics import effective_rank, representation_metrics
    effective_rank(z)                       # between 1 and min(n, d)
    representation_metrics(r, z)["mi"]      # I(R;Z) in nats

Conventions shared by all functions here:
- x is a floating-point matrix n × d, one sample per row, and is computed on in float32
  (float64 stays float64). x̂ is a row scaled to unit length.
- Results are 0-dim tensors; accuracies are in per cent.
- NaN in gives NaN out (a count: 0). ValueError on wrong shapes or settings.
"""
import math

import torch

from losses import (cosine_kernel, matrices, matrix_mutual_information, normalize_rows,
                    renyi_entropy, spectrum, wasserstein_uniformity)

PIECE = 1024        # rows of a test set that k-NN compares at a time


# --- of one representation ------------------------------------------------------------------

def effective_rank(x):
    """How many directions the rows of x fill (Roy & Vetterli, the paper's [35]).

        exp( −Σ_i p_i log p_i ),  p = σ / Σσ

    σ are the singular values of x as it is, not centred. From 1 (all rows along one line; zeros
    too) to min(n, d) (equal singular values).
    """
    x, = matrices(x)
    sigma = spectrum(torch.linalg.svdvals, x)                   # min(n, d), largest first
    p = sigma / sigma.sum().clamp_min(torch.finfo(x.dtype).tiny)
    entropy = torch.special.entr(p).sum()           # entr(p) = −p log p, with 0·log 0 = 0
    return entropy.exp()


def uniformity(x, t=2.0):
    """How evenly the unit rows spread on the sphere (Wang & Isola, the paper's [47]).

        log mean_{i<j} exp(−t·‖x̂_i − x̂_j‖²)

    0 is collapse, lower is more uniform. x: n × d, n ≥ 2.
    """
    x, = matrices(x, rows=2)
    n = len(x)
    squared_distance = 2 - 2 * cosine_kernel(x)                 # n × n
    different = ~torch.eye(n, dtype=torch.bool, device=x.device)
    others = squared_distance[different].clamp_min(0)           # n·(n − 1): each pair twice
    return torch.logsumexp(-t * others, dim=0) - math.log(n * (n - 1))


def covariance_spectrum(x):
    """The d eigenvalues of x's covariance divided by their sum, largest first.

    All zero if x is constant.
    """
    x, = matrices(x)
    limits = torch.finfo(x.dtype)
    sigma = spectrum(torch.linalg.svdvals, x - x.mean(0))       # min(n, d), largest first
    # a constant x leaves the mean's rounding, which is no variance
    sigma = sigma * (sigma.norm() > limits.eps * x.norm())
    eigenvalues = sigma.square()
    share = eigenvalues / eigenvalues.sum().clamp_min(limits.tiny)
    missing = x.shape[1] - len(share)
    return torch.cat([share, share.new_zeros(missing)])         # d


def eigenvalue_count(x, threshold=0.01):
    """How many covariance eigenvalues hold more than `threshold` of their sum [§A.8]."""
    return (covariance_spectrum(x) > threshold).sum()


def explained_variance(x, fraction=0.3):
    """The share of the variance that the largest eigenvalues of the covariance hold [§A.8].

    fraction: how many of the d eigenvalues are summed, in (0, 1]. The result is from 0 to 1;
    1 if x is constant.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    share = covariance_spectrum(x)
    if share[0] == 0:
        return torch.ones_like(share[0])
    count = max(1, int(fraction * len(share) + 0.5))
    return share[:count].sum()


# --- of two -----------------------------------------------------------------------------------

def alignment(x, y):
    """mean_i ‖x̂_i − ŷ_i‖² of two views x, y (n × d) of the same images (Wang & Isola).

    0 is best, 4 is worst.
    """
    x, y = matrices(x, y, same_width=True)
    squared_distance = (normalize_rows(x) - normalize_rows(y)).square().sum(1)      # n
    return squared_distance.mean()


def mutual_information(r, z, order=2, kernel="samples"):
    """I(R;Z) in nats. r: n × p, z: n × d.

    kernel: "samples" compares the n × n kernels of the rows, as the loss does: it is
    losses.matrix_mutual_information. "features" is §A.3's other reading: it normalises the
    columns and compares the kernels of the features, d × d, and so needs p = d.
    """
    if kernel not in ("samples", "features"):
        raise ValueError(f"kernel must be samples or features, got {kernel!r}")
    if kernel == "features":
        return matrix_mutual_information(r.T, z.T, order)
    return matrix_mutual_information(r, z, order)


@torch.no_grad()
def representation_metrics(r, z):
    """Every metric of log.csv that needs no labels: {column: float}.

    r: n × p, z: n × d, the representations and embeddings of the same n ≥ 2 images.
    """
    found = {"mi": matrix_mutual_information(r, z)}
    for name, x in (("r", r), ("z", z)):
        found[f"erank_{name}"] = effective_rank(x)
        found[f"h2_{name}"] = renyi_entropy(cosine_kernel(x))
        found[f"uniformity_{name}"] = uniformity(x)
        found[f"w2_{name}"] = wasserstein_uniformity(x)
        found[f"eigs_{name}"] = eigenvalue_count(x)
        found[f"var30_{name}"] = explained_variance(x)
    return {name: float(value) for name, value in found.items()}


# --- with labels --------------------------------------------------------------------------------

def knn_accuracy(train_x, train_y, test_x, test_y, k=20, temperature=0.07):
    """Accuracy, in per cent, of weighted nearest neighbours.

    Each of the k training rows nearest by cosine votes for its class with exp(cosine / T).

    train_x: n × d, test_x: m × d; train_y (n) and test_y (m): classes as integers ≥ 0.
    k: at most n. temperature: T > 0.
    """
    train_x, = matrices(train_x)
    test_x, = matrices(test_x)
    one_label_per_row = len(train_x) == len(train_y) and len(test_x) == len(test_y)
    if not one_label_per_row or train_x.shape[1] != test_x.shape[1]:
        raise ValueError("expected one label per row and equal widths")
    if not 1 <= k <= len(train_x) or not temperature > 0:
        raise ValueError(f"expected 1 ≤ k ≤ {len(train_x)} and a positive temperature, "
                         f"got {k} and {temperature}")
    train_x = normalize_rows(train_x)
    test_x = normalize_rows(test_x)
    n_classes = int(train_y.max()) + 1

    correct = 0
    for x, y in zip(test_x.split(PIECE), test_y.split(PIECE)):      # m × n may not fit in memory
        cosine, nearest = (x @ train_x.T).topk(k)               # piece × k each
        # as in a softmax: the shift changes no vote's share, and exp(1/T) could overflow
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(x), n_classes)
        votes.scatter_add_(1, train_y[nearest], weight)         # piece × classes
        correct = correct + (votes.argmax(1) == y).sum()
    return 100 * correct / len(test_y)


def top_k_accuracy(logits, y, k=1):
    """Per cent of the rows whose label is among the k largest logits.

    logits: n × classes, y: n. k above the number of classes counts as that number.
    """
    k = min(k, logits.shape[1])
    guesses = logits.topk(k).indices                            # n × k
    correct = (guesses == y[:, None]).any(1)                    # n
    return 100 * correct.float().mean()


# --- of numbers ---------------------------------------------------------------------------------

def pearson(x, y):
    """Pearson's correlation of two equally long vectors, tensors or lists.

    NaN where one of them is constant.
    """
    x = torch.as_tensor(x, dtype=torch.float64)
    y = torch.as_tensor(y, dtype=torch.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError("expected two vectors of the same length ≥ 2, "
                         f"got {tuple(x.shape)} and {tuple(y.shape)}")
    x = x - x.mean()
    y = y - y.mean()
    return (x @ y) / (x.norm() * y.norm())
