"""The metrics that AdaDim's paper reads its training by, as plain functions of tensors.

Needs torch and losses.py. The entropy H_2, I(R;Z) and W2 are losses too and stand there; here are the rest, and
`representation_metrics(r, z)`, which computes all that a row of log.csv holds:

    from metrics import effective_rank, representation_metrics
    effective_rank(z)                       # between 1 and min(n, d)
    representation_metrics(r, z)["mi"]      # I(R;Z) in nats

Conventions: x is a floating-point matrix n × d, one sample a row; it is computed on in float32 (float64 stays
float64). Results are 0-dim tensors; accuracies are in per cent. NaN in gives NaN out (a count: 0). ValueError on wrong
shapes or settings.
"""
import csv
import math

import torch

from losses import (cosine_kernel, matrices, matrix_mutual_information, renyi_entropy, spectrum, unit,
                    wasserstein_uniformity)


def effective_rank(x):
    """exp of the entropy of the singular values' shares p = σ/Σσ, x uncentred (Roy & Vetterli, the paper's [35]).

    From 1 (all rows along one line; zeros too) to min(n, d) (equal singular values).
    """
    x, = matrices(x)
    sigma = spectrum(torch.linalg.svdvals, x)
    p = sigma / sigma.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return torch.special.entr(p).sum().exp()        # entr(p) = −p log p, with 0·log 0 = 0


def uniformity(x, t=2.0):
    """log mean_{i<j} exp(−t‖x̂_i − x̂_j‖²) (Wang & Isola, the paper's [47]); 0 is collapse, lower is more uniform. n ≥ 2."""
    x, = matrices(x, rows=2)
    n = len(x)
    squared_distance = 2 - 2 * cosine_kernel(x)
    others = squared_distance[~torch.eye(n, dtype=torch.bool, device=x.device)]
    return torch.logsumexp(-t * others.clamp_min(0), dim=0) - math.log(n * (n - 1))


def alignment(x, y):
    """mean_i ‖x̂_i − ŷ_i‖² of two views x, y (n × d) of the same images (Wang & Isola); 0 is best, 4 worst."""
    x, y = matrices(x, y, same_width=True)
    return (unit(x) - unit(y)).square().sum(1).mean()


def covariance_spectrum(x):
    """The d eigenvalues of x's covariance divided by their sum, largest first; all zero if x is constant."""
    x, = matrices(x)
    sigma = spectrum(torch.linalg.svdvals, x - x.mean(0))
    sigma = sigma * (sigma.norm() > torch.finfo(x.dtype).eps * x.norm())    # below that it is the mean's rounding
    share = sigma.square() / sigma.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    return torch.cat([share, share.new_zeros(x.shape[1] - len(share))])


def eigenvalue_count(x, threshold=0.01):
    """How many covariance eigenvalues hold more than `threshold` of their sum [§A.8]."""
    return (covariance_spectrum(x) > threshold).sum()


def explained_variance(x, fraction=0.3):
    """Share of the variance, 0 to 1, held by the largest `fraction` of the d covariance eigenvalues [§A.8]; 1 if constant."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    share = covariance_spectrum(x)
    if share[0] == 0:
        return torch.ones_like(share[0])
    return share[:max(1, int(fraction * len(share) + 0.5))].sum()


def mutual_information(r, z, order=2, kernel="samples"):
    """I(R;Z) in nats: losses.matrix_mutual_information, or with kernel="features" §A.3's other reading of it.

    r: n × p, z: n × d. "samples" compares the n × n kernels of the rows, the loss's definition. "features" normalises
    the columns and compares the d × d kernels of the features, and so needs p = d.
    """
    if kernel not in ("samples", "features"):
        raise ValueError(f"kernel must be samples or features, got {kernel!r}")
    if kernel == "features":
        r, z = r.T, z.T
    return matrix_mutual_information(r, z, order)


def knn_accuracy(train_x, train_y, test_x, test_y, k=20, temperature=0.07):
    """Weighted k-NN accuracy in per cent: each of the k nearest by cosine votes for its class with exp(cosine/T).

    train_x: n × d, test_x: m × d, train_y (n), test_y (m): classes as integers ≥ 0. k is at most n.
    """
    train_x, = matrices(train_x)
    test_x, = matrices(test_x)
    if len(train_x) != len(train_y) or len(test_x) != len(test_y) or train_x.shape[1] != test_x.shape[1]:
        raise ValueError("expected one label a row and equal widths")
    if not 1 <= k <= len(train_x) or not temperature > 0:
        raise ValueError(f"expected 1 ≤ k ≤ {len(train_x)} and a positive temperature, got {k} and {temperature}")
    train_x, n_classes, correct = unit(train_x), int(train_y.max()) + 1, 0
    for x, y in zip(unit(test_x).split(1024), test_y.split(1024)):      # in pieces: m × n may not fit
        cosine, nearest = (x @ train_x.T).topk(k)
        weight = ((cosine - cosine[:, :1]) / temperature).exp()         # the shift cancels; exp(1/T) could overflow
        votes = weight.new_zeros(len(x), n_classes).scatter_add_(1, train_y[nearest], weight)
        correct = correct + (votes.argmax(1) == y).sum()
    return 100 * correct / len(test_y)


def top_k_accuracy(logits, y, k=1):
    """Per cent of the rows of logits (n × classes) whose label y (n) is among the k largest; k at most the classes."""
    return 100 * (logits.topk(min(k, logits.shape[1])).indices == y[:, None]).any(1).float().mean()


def pearson(x, y):
    """Pearson's correlation of two equally long vectors, tensors or lists; NaN where one of them is constant."""
    x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"expected two vectors of the same length ≥ 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (x.norm() * y.norm())


@torch.no_grad()
def representation_metrics(r, z):
    """Every metric of log.csv that needs no labels, as a dict of floats. r: n × p, z: n × d, of the same n ≥ 2 images."""
    found = {"mi": matrix_mutual_information(r, z)}
    for name, x in (("r", r), ("z", z)):
        found[f"erank_{name}"] = effective_rank(x)
        found[f"h2_{name}"] = renyi_entropy(cosine_kernel(x))
        found[f"uniformity_{name}"] = uniformity(x)
        found[f"w2_{name}"] = wasserstein_uniformity(x)
        found[f"eigs_{name}"] = eigenvalue_count(x)
        found[f"var30_{name}"] = explained_variance(x)
    return {name: float(value) for name, value in found.items()}


# --- the picture of a run ---------------------------------------------------------------------------------------------

def read_log(path):
    """A run's log.csv as a dict of columns, lists of floats with NaN where a field is empty; a last, cut-off line is left out."""
    with open(path, newline="") as file:
        text = file.read()
    names, *rows = csv.reader(text[:text.rfind("\n") + 1].splitlines())
    return {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(names)}


def draw_dynamics(log, png):
    """The dynamics of one run, from its log.csv: accuracy, α, effective rank and I(R;Z) over the epochs, as a PNG.

    Raises ImportError without matplotlib.
    """
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    run = read_log(log)
    panels = [
        ("Accuracy on the test images (%)", {"online linear probe": "probe_top1", "k-NN": "knn_top1"}),
        ("α, the weight of InfoNCE", {"α": "alpha"}),
        ("Effective rank", {"representations R": "erank_r", "embeddings Z": "erank_z"}),
        ("Mutual information I(R;Z) (nats)", {"I(R;Z)": "mi"}),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, (title, lines) in zip(axes.flat, panels):
        for (label, column), colour in zip(lines.items(), ("#0072b2", "#d55e00")):     # colour-blind safe
            points = [(e, v) for e, v in zip(run["epoch"], run[column]) if v == v]
            axis.plot(*zip(*points), label=label, color=colour, marker=".", markersize=4)
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(frameon=False)
    axes[0, 1].set_ylim(-0.03, 1.03)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.savefig(png, dpi=150)
    plt.close(figure)
