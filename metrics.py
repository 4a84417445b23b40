"""The metrics that AdaDim's paper tracks during training, as plain functions of tensors.

The entropy H_2, I(R;Z) and W2 are in losses.py. Copy both files, and

    from metrics import effective_rank, representation_metrics
    effective_rank(z)                       # between 1 and min(n, d)
    representation_metrics(r, z)["mi"]      # I(R;Z) in nats

Conventions shared by all functions here:
- x is a floating-point matrix n × d, one sample per row: a tensor, or a NumPy array. It becomes
  float32, for spectra float64; float64 stays. x̂ is a row scaled to unit length.
- Results are 0-dim tensors; accuracies are in per cent.
- NaN inputs give NaN results (counts: 0). Wrong shapes or settings raise ValueError.
- Only explained_variance detects redundant features, see uniformity.py.
"""
import math

import torch

from losses import (matrices, matrix_mutual_information, normalize_rows, root, spectrum,
                    wasserstein_uniformity)

PIECE = 256         # rows to compare with all others at a time; the fastest size


# --- spectra ----------------------------------------------------------------------------------

def gram_eigenvalues(x):
    """The min(n, d) largest eigenvalues of xᵀx, in descending order, float64.

    They come from the smaller of xᵀx and xxᵀ: in float64, that is more accurate than singular
    values of a float32 x, and many times faster. Values within rounding of zero become zero.
    """
    n, d = x.shape
    x = x.double()
    gram = x @ x.T if n < d else x.T @ x
    eigenvalues = spectrum(gram).flip(0)
    rounding = max(n, d) * torch.finfo(torch.float64).eps * eigenvalues[0]
    return eigenvalues * (eigenvalues > rounding)


def singular_values(x):
    """The min(n, d) singular values of x, not centred, in descending order, float64."""
    x, = matrices(x)
    return root(gram_eigenvalues(x))


def covariance_eigenvalues(x):
    """The d eigenvalues of x's covariance (division by n), in descending order, float64."""
    x, = matrices(x)
    n, d = x.shape
    centred = x.double() - x.double().mean(0)
    # centring a constant x leaves rounding errors, which are not variance
    rounding = torch.finfo(x.dtype).eps * x.double().norm()
    eigenvalues = gram_eigenvalues(centred * (centred.norm() > rounding)) / n
    return torch.cat([eigenvalues, eigenvalues.new_zeros(d - len(eigenvalues))])


def entropy_rank(values, eps=0.0):
    """exp(−Σ p log p), p = values/Σvalues + eps; 1 if all values are zero."""
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    p = p.masked_fill(p == 0, 1)                    # 0·log 0 = 0 = 1·log 1, with finite gradients
    return torch.special.entr(p).sum().exp()        # entr(p) = −p log p


def ratio_or_one(x, y):
    """x / y, or 1 if y is zero: the ranks of a constant x are 1."""
    return torch.where(y == 0, 1, x / torch.where(y == 0, 1, y))        # with finite gradients


# --- how many directions a representation fills -------------------------------------------------

# Ranks are from 1 (one direction, or none) to min(n, d); from the covariance, to min(n − 1, d).

def effective_rank(x):
    """How many directions the rows of x fill (Roy & Vetterli, the paper's [35]).

        exp( −Σ_i p_i log p_i ),  p = σ / Σσ

    σ are the singular values of x as it is, not centred. From 1 (all rows along one line; zeros
    too) to min(n, d) (equal singular values). A non-negative r has a large common mean, and so one
    large direction: do not compare its rank with that of an r whose entries have both signs.
    Where σ = 0, the rank's slope is infinite: directions that x lacks have no gradient here, so as
    a regulariser it evens out the directions that x has, and opens no new ones.
    """
    return entropy_rank(singular_values(x))


def rankme(x, eps=1e-7):
    """The effective rank with eps added to every p (Garrido et al., RankMe, ICML 2023).

    From 1 (collapse) to min(n, d), up to about min(n, d)·eps·log(1/eps).
    """
    return entropy_rank(singular_values(x), eps)


def stable_rank(x):
    """‖x‖_F² / ‖x‖₂² = Σσ²/σ₁², x not centred (Rudelson & Vershynin 2007).

    Small directions hardly count: a large common mean alone brings it near 1.
    """
    squares = singular_values(x).square()
    return ratio_or_one(squares.sum(), squares[0])


def participation_ratio(x):
    """(Σλ)² / Σλ², λ the covariance's eigenvalues (Gao et al. 2017)."""
    eigenvalues = covariance_eigenvalues(x)
    return ratio_or_one(eigenvalues.sum().square(), eigenvalues.square().sum())


def nesum(x):
    """Σ_i λ_i / λ_1, λ the covariance's eigenvalues, the largest first (He & Ozay, NESum, 2022)."""
    eigenvalues = covariance_eigenvalues(x)
    return ratio_or_one(eigenvalues.sum(), eigenvalues[0])


def alpha_req(x, first=11, last=50):
    """How fast the covariance's eigenvalues fall (Agrawal et al., α-ReQ, 2022, the paper's [2]).

        λ_j ∝ j^(−α):  α is minus the slope of log λ_j against log j, by least squares

    over j = first … last, counted from 1, both included. 0 is a flat spectrum; the larger α is,
    the fewer directions count; that paper finds 1 best. Zero eigenvalues count as 1e-16 of the
    largest. Raises ValueError unless x has more than `last` rows and at least `last` columns.
    """
    x, = matrices(x)
    if last > x.shape[1] or last >= len(x):
        raise ValueError(f"expected > {last} rows and ≥ {last} columns: {tuple(x.shape)}")
    return power_law(covariance_eigenvalues(x), first, last)


def power_law(eigenvalues, first, last):
    index = torch.arange(first, last + 1, dtype=torch.float64, device=eigenvalues.device)
    log_index = index.log() - index.log().mean()
    smallest = (1e-16 * eigenvalues[0]).clamp_min(torch.finfo(torch.float64).tiny)
    log_values = eigenvalues[first - 1:last].clamp_min(smallest).log()
    return -(log_index @ log_values) / log_index.square().sum()


def eigenvalue_count(x, threshold=0.01):
    """The number of covariance eigenvalues that exceed threshold · their sum [§A.8].

    At most 1/threshold; it falls again as a spectrum flattens.
    """
    eigenvalues = covariance_eigenvalues(x)
    return (eigenvalues > threshold * eigenvalues.sum()).sum()


def explained_variance(x, fraction=0.3):
    """The share of the variance in the largest eigenvalues of the covariance [§A.8].

    fraction: the share of the d eigenvalues that are summed, in (0, 1]. The result is from 0 to 1;
    1 if x is constant or n ≤ fraction·d.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    return largest_share(covariance_eigenvalues(x), fraction)


def largest_share(eigenvalues, fraction):
    count = max(1, int(fraction * len(eigenvalues) + 0.5))
    return ratio_or_one(eigenvalues[:count].sum(), eigenvalues.sum())


def lidar(x, delta=1e-4):
    """How many directions tell images apart (Thilak et al., LiDAR, ICLR 2024).

        exp(−Σ p log p), p = λ/Σλ, λ the eigenvalues of Σ_w^(−1/2) Σ_b Σ_w^(−1/2)

    x: images × views × d, several augmented views of each of n images. Σ_b: covariance of the
    images' means (division by n − 1). Σ_w: covariance of views around their image's mean (division
    by n·(views − 1)), plus delta on the diagonal. From 1 to min(n − 1, d): a direction counts by
    how much images differ in it, relative to views of one image.
    """
    x = torch.as_tensor(x)
    finite = x.isfinite().all()
    x = torch.where(finite, x, 0).double()      # LAPACK would raise on NaN
    images, views, _ = x.shape
    means = x.mean(1)                                           # images × d
    between = (means - means.mean(0)) / (images - 1) ** 0.5     # Σ_b = betweenᵀ between
    within = (x - means[:, None]).flatten(0, 1)                 # images·views × d
    sigma_w = within.T @ within / (images * (views - 1))        # d × d
    sigma_w.diagonal().add_(delta)
    # with Σ_w = L Lᵀ, L⁻¹ Σ_b L⁻ᵀ has the same eigenvalues
    root = torch.linalg.cholesky(sigma_w)
    whitened = torch.linalg.solve_triangular(root, between.T, upper=False)      # d × images
    rank = entropy_rank(gram_eigenvalues(whitened))
    return torch.where(finite, rank, torch.nan)


# --- how evenly a representation spreads --------------------------------------------------------

def uniformity(x, t=2.0):
    """How evenly the unit rows x̂ spread on the sphere (Wang & Isola, the paper's [47]).

        log mean_{i<j} exp(−t·‖x̂_i − x̂_j‖²)

    0 is collapse, lower is more uniform. x: n × d, n ≥ 2.
    """
    x, = matrices(x, rows=2)
    x = normalize_rows(x)
    sums = [log_sum_of_pairs(later_cosines(x, start), t)
            for start in range(0, len(x), PIECE)]               # n × n may not fit in memory
    return log_mean_of_pairs(sums, len(x))


def later_cosines(x, start):
    """The cosines of PIECE unit rows, from row `start` on, with themselves and all later rows."""
    with torch.autocast(x.device.type, enabled=False):
        return x[start:start + PIECE] @ x[start:].T             # piece × (n − start)


def log_sum_of_pairs(cosines, t=2.0):
    """log Σ_{i<j} exp(−t·‖x̂_i − x̂_j‖²). cosines: from later_cosines."""
    squared_distance = (2 - 2 * cosines).clamp_min(0)
    above_diagonal = torch.ones_like(cosines, dtype=torch.bool).triu(1)
    exponent = torch.where(above_diagonal, -t * squared_distance, -torch.inf)
    return torch.logsumexp(exponent.flatten(), dim=0)


def log_mean_of_pairs(sums, n):
    return torch.logsumexp(torch.stack(sums), dim=0) - math.log(n * (n - 1) / 2)


# --- comparisons of two representations -------------------------------------------------------

def alignment(x, y):
    """mean_i ‖x̂_i − ŷ_i‖² of two views (n × d) of the same images; 0 … 4 (Wang & Isola)."""
    x, y = matrices(x, y, same_width=True)
    return (normalize_rows(x) - normalize_rows(y)).square().sum(1).mean()


def mutual_information(r, z, order=2, kernel="samples"):
    """I(R;Z) in nats of r (n × p) and z (n × d).

    kernel: "samples" compares rows (n × n), as the loss does. Two readings of §A.3's "normalized
    covariance matrices" compare columns (d × d) and need p = d: "features" as they are,
    "covariance" centred, which makes I(R;Z) several times as large.
    """
    if kernel not in ("samples", "features", "covariance"):
        raise ValueError(f"kernel must be samples, features or covariance, got {kernel!r}")
    if kernel == "covariance":
        r, z = (x - x.mean(0) for x in matrices(r, z))
    if kernel != "samples":
        r, z = r.T, z.T
    return matrix_mutual_information(r, z, order)


def linear_cka(x, y):
    """Similarity of two representations of the same samples (Kornblith et al., CKA, 2019).

        ‖yᵀx‖_F² / (‖xᵀx‖_F · ‖yᵀy‖_F), columns centred

    x: n × p, y: n × d. From 0 (nothing linear in common, or one is constant) to 1 (equal up to
    rotation and scale).
    """
    x, y = (z.double() - z.double().mean(0) for z in matrices(x, y))
    common = (y.T @ x).square().sum()
    own = (x.T @ x).norm() * (y.T @ y).norm()
    return common / own.clamp_min(torch.finfo(torch.float64).tiny)


def kernel_metrics(r, z):
    """I(R;Z), and H_2 and uniformity of both, by name, in one pass over pieces of the kernels."""
    r, z = (normalize_rows(x) for x in matrices(r, z, rows=2))
    n = len(r)
    squares = torch.zeros(3, dtype=torch.float64, device=r.device)      # of the kernels below
    sums_r, sums_z = [], []
    for start in range(0, n, PIECE):
        k_r, k_z = later_cosines(r, start), later_cosines(z, start)     # piece × (n − start)
        for index, k in enumerate((k_r, k_z, k_r * k_z)):
            on_diagonal = k.diagonal().square().sum()
            squares[index] += on_diagonal + 2 * k.triu(1).square().sum()
        sums_r.append(log_sum_of_pairs(k_r))
        sums_z.append(log_sum_of_pairs(k_z))
    h2_r, h2_z, h2_both = -(squares / n ** 2).log()             # H_2(K) = −log(‖K‖² / n²)
    return {"mi": h2_r + h2_z - h2_both, "h2_r": h2_r, "h2_z": h2_z,
            "uniformity_r": log_mean_of_pairs(sums_r, n),
            "uniformity_z": log_mean_of_pairs(sums_z, n)}


@torch.no_grad()
def representation_metrics(r, z):
    """{column of log.csv: float}: all metrics that need no labels.

    r: n × p, z: n × d, the representations and embeddings of the same n ≥ 2 images. Left out are
    I(R;Z) on kernels of features unless p = d, and α-ReQ if there are too few eigenvalues.
    """
    values = {}
    for name, x in (("r", r), ("z", z)):
        sigma = singular_values(x)                              # min(n, d)
        eigenvalues = covariance_eigenvalues(x)                 # d
        total = eigenvalues.sum()
        values[f"erank_{name}"] = entropy_rank(sigma)
        values[f"rankme_{name}"] = entropy_rank(sigma, 1e-7)
        values[f"stable_rank_{name}"] = ratio_or_one(sigma.square().sum(), sigma[0].square())
        values[f"participation_{name}"] = ratio_or_one(total.square(), eigenvalues.square().sum())
        values[f"nesum_{name}"] = ratio_or_one(total, eigenvalues[0])
        if min(len(x) - 1, x.shape[1]) >= 50:
            values[f"alpha_req_{name}"] = power_law(eigenvalues, 11, 50)
        values[f"eigs_{name}"] = (eigenvalues > 0.01 * total).sum()
        values[f"var30_{name}"] = largest_share(eigenvalues, 0.3)
        values[f"w2_{name}"] = wasserstein_uniformity(x)
    values |= kernel_metrics(r, z)
    values["cka"] = linear_cka(r, z)
    if r.shape == z.shape:
        for kernel in ("features", "covariance"):
            values[f"mi_{kernel}"] = mutual_information(r, z, kernel=kernel)
    values["mi_over_erank_r"] = values["mi"] / values["erank_r"]
    return {name: float(value) for name, value in values.items()}


# --- with labels, and statistics -----------------------------------------------------------------

def knn_accuracy(train_x, train_y, test_x, test_y, k=20, temperature=0.07):
    """Accuracy of k nearest neighbours, which vote for their classes with weight exp(cosine / T).

    train_x: n × d, test_x: m × d; train_y (n) and test_y (m): classes as integers ≥ 0.
    k: at most n. temperature: T > 0.
    """
    (train_x,), (test_x,) = matrices(train_x), matrices(test_x)
    train_y, test_y = labels_of(train_x, train_y), labels_of(test_x, test_y)
    if not 1 <= k <= len(train_x):
        raise ValueError(f"expected 1 ≤ k ≤ {len(train_x)}, got {k}")
    train_x, test_x = normalize_rows(train_x), normalize_rows(test_x)
    n_classes = int(train_y.max()) + 1
    correct = 0
    for x, y in zip(test_x.split(PIECE), test_y.split(PIECE)):      # m × n may not fit in memory
        with torch.autocast(x.device.type, enabled=False):
            cosine, nearest = (x @ train_x.T).topk(k)           # piece × k each
        # subtracting the largest, as in a softmax, changes no share; exp(1/T) could overflow
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(x), n_classes)
        votes.scatter_add_(1, train_y[nearest], weight)         # piece × classes
        correct = correct + (votes.argmax(1) == y).sum()
    return 100 * correct / len(test_y)


def top_k_accuracy(logits, y, k=1):
    """How often the label in y (n) is among the k largest logits (n × classes), in per cent."""
    guesses = logits.topk(min(k, logits.shape[1])).indices      # n × k
    return 100 * (guesses == labels_of(logits, y)[:, None]).any(1).float().mean()


def labels_of(x, y):
    """The labels y of x's n rows as a tensor. Raises ValueError unless they are n numbers."""
    y = torch.as_tensor(y)
    if y.shape != (len(x),):
        raise ValueError(f"expected {len(x)} labels, got {tuple(y.shape)}")
    return y


def standard_error(accuracy, n):
    """The standard error of an accuracy on n test images, both in per cent: 100·√(p(1 − p)/n)."""
    return math.sqrt(accuracy * (100 - accuracy) / n)


def pearson(x, y):
    """Pearson's correlation of two vectors, tensors or lists; NaN if one of them is constant."""
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"expected two vectors of length ≥ 2: {tuple(x.shape)}, {tuple(y.shape)}")
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (x.norm() * y.norm())
