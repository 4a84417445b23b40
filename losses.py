"""The losses of AdaDim (arXiv 2505.12576), as plain functions of tensors.

    L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)                          [Eq. 5]

A batch of n images gives two augmented views. r1, r2 (n × p) are their representations, the
encoder's output; z1, z2 (n × d) are their embeddings, the projector's output. This file needs
only torch. Copy it, and

    from losses import adadim
    loss, parts = adadim(r1, r2, z1, z2, alpha=0.3)

Conventions shared by all functions here:
- Inputs are floating-point matrices, one sample per row: tensors, or NumPy arrays. They are
  converted to float32, also inside autocast; float64 stays float64. On GPUs, whether products of
  float32 are rounded to TF32 is your setting; torch's default, and train.py's, is true float32.
- The result is a 0-dim tensor. Entropies and mutual information are in nats.
- x̂ is a row x scaled to unit length; ∘ multiplies entry by entry.
- Values and gradients stay finite on collapsed batches: rows all equal, constant features,
  zeros. NaN inputs give NaN results: nothing is hidden.
- All raise ValueError for a wrong shape, a dtype that is not floating-point, too few rows, or a
  setting outside its range.
- [§A.3] is a section of the paper, [32] an entry in its list of references.
"""
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

BLOCK = 2048        # rows of an n × n kernel that are in memory at a time


# --- building blocks ------------------------------------------------------------------------

def matrices(*xs, rows=1, same_width=False):
    """Checks the inputs and returns them as tensors in float32; float64 stays float64.

    rows: the minimum number. same_width: whether all inputs must have equally many columns.
    Raises ValueError if an input is not a floating-point matrix or their shapes do not match.
    """
    xs = [torch.as_tensor(x) for x in xs]                       # NumPy arrays are not copied
    first = xs[0]
    for x in xs:
        shape = tuple(x.shape)
        if x.ndim != 2 or not x.is_floating_point() or x.shape[1] == 0:
            raise ValueError("expected a floating-point matrix (samples × features), "
                             f"got {x.dtype} {shape}")
        if len(x) != len(first) or (same_width and x.shape != first.shape):
            expected = "equal shapes" if same_width else "equally many rows"
            raise ValueError(f"expected {expected}, got {tuple(first.shape)} and {shape}")
        if len(x) < rows:
            raise ValueError(f"expected at least {rows} rows, got {len(x)}")
    return [x if x.dtype == torch.float64 else x.float() for x in xs]


def normalize_rows(x, eps=1e-12):
    """x̂: each row of x (n × d) scaled to unit L2 norm.

    A zero row has no direction; it gets (1, …, 1)/√d and no gradient, so that kernels keep their
    unit diagonal and a batch of zeros counts as what it is, a collapsed one. Dividing by a tiny
    number instead would send gradients of 1e12 into the network.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)     # n × 1
    no_direction = x.shape[1] ** -0.5
    return torch.where(norm <= eps, no_direction, x / norm.clamp_min(eps))


def spectrum(x):
    """The eigenvalues of a symmetric x, ascending; NaN if x isn't finite: LAPACK would raise."""
    finite = x.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, x, 0))
    return torch.where(finite, values, torch.nan)


def root(x, smallest=0):
    """√x, but 0 without gradient where x ≤ smallest: the root's slope at 0 is infinite."""
    zero = x <= smallest
    return x.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def cosine_kernel(x):
    """K = x̂ x̂ᵀ (n × n, unit diagonal) of x (n × d): K_R and K_Z in §4."""
    x, = matrices(x)
    with torch.autocast(x.device.type, enabled=False):
        x = normalize_rows(x)
        return x @ x.T


def over_blocks(block_sums, n):
    """Sums block_sums(rows) over the n rows of a kernel. rows: a slice of BLOCK rows.

    The backward pass recomputes each block: n × n kernels of a large n would fill the memory. A
    single block, enough for batches of up to 1,024 images, is stored. With several, gradients by
    torch.func or through torch.vmap raise RuntimeError.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    if len(blocks) == 1:
        return block_sums(blocks[0])
    return sum(checkpoint(block_sums, rows, use_reentrant=False, preserve_rng_state=False)
               for rows in blocks)


# --- InfoNCE and VICReg -----------------------------------------------------------------------

def info_nce(z1, z2, temperature=0.1):
    """InfoNCE in SimCLR's form, NT-Xent [§A.5], over the 2n rows of [ẑ1; ẑ2].

        mean_i  −log( exp(ẑ_i·ẑ_p(i)/τ) / Σ_{k≠i} exp(ẑ_i·ẑ_k/τ) )

    z1, z2: n × d; p(i) is the row of i's other view. temperature: τ > 0.
    A collapsed batch gives log(2n − 1).
    """
    z1, z2 = matrices(z1, z2, same_width=True)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(z1.device.type, enabled=False):
        z = normalize_rows(torch.cat([z1, z2]))                 # 2n × d
        everyone = torch.arange(len(z), device=z.device)
        partner = everyone.roll(len(z1))                        # p(i)

        def block_sum(rows):
            logits = z[rows] @ z.T / temperature                # block × 2n
            itself = everyone[rows, None] == everyone           # block × 2n, true if k = i
            logits = logits.masked_fill(itself, float("-inf"))
            # −log softmax at p(i) is cross-entropy with p(i) as the class
            return F.cross_entropy(logits, partner[rows], reduction="sum")

        return over_blocks(block_sum, len(z)) / len(z)


def vicreg(z1, z2, sim_weight=25.0, var_weight=25.0, cov_weight=1.0):
    """VICReg [§A.5]: a weighted sum of invariance, variance and covariance terms.

        sim_weight·s(z1, z2) + var_weight·(v(z1) + v(z2)) + cov_weight·(c(z1) + c(z2))

        s = mean squared error over all n·d entries
        v = mean_j max(0, 1 − √(C_jj + 1e-4))
        c = (1/d) · Σ_{i≠j} C_ij²

    z1, z2: n × d, n ≥ 2. C is a view's covariance (division by n − 1). Both views' terms are
    added, as in solo-learn, the paper's code base; Meta's VICReg code halves v.
    """
    invariance, variance, covariance = vicreg_terms(z1, z2)
    return sim_weight * invariance + var_weight * variance + cov_weight * covariance


def vicreg_terms(z1, z2):
    """VICReg's three terms before weighting: s(z1, z2), v(z1) + v(z2), c(z1) + c(z2)."""
    z1, z2 = matrices(z1, z2, rows=2, same_width=True)
    n, d = z1.shape
    with torch.autocast(z1.device.type, enabled=False):
        invariance = F.mse_loss(z1, z2)
        variance = covariance = 0
        for z in (z1, z2):
            z = z - z.mean(0)
            diagonal = z.square().sum(0) / (n - 1)              # d, the diagonal of C
            too_narrow = F.relu(1 - (diagonal + 1e-4).sqrt())
            variance = variance + too_narrow.mean()

            # ‖zᵀz‖_F = ‖z zᵀ‖_F, so take the smaller product: n × n, not d × d, for a batch of
            # 256 at d = 2048
            gram = z @ z.T if n < d else z.T @ z
            all_squares = gram.square().sum() / (n - 1) ** 2    # Σ_ij C_ij²
            off_diagonal = all_squares - diagonal.square().sum()
            covariance = covariance + off_diagonal / d
        return invariance, variance, covariance


# --- entropy and mutual information --------------------------------------------------------------

def renyi_entropy(k, order=2):
    """Matrix-based Rényi entropy [§A.3], from 0 (all samples alike) to log n (all different).

        H_a(K) = 1/(1 − a) · log tr((K/n)^a)
        H_1(K) = −tr(K/n · log(K/n)), von Neumann's, the limit
        H_2(K) = −log(‖K‖_F² / n²)

    k: n × n, positive semi-definite, unit diagonal. order: a > 0. Order 2 is cheap; all others
    need the eigenvalues.
    """
    k, = matrices(k)
    n = len(k)
    if k.shape != (n, n):
        raise ValueError(f"expected a square kernel, got {tuple(k.shape)}")
    if not 0 < order < float("inf"):
        raise ValueError(f"order must be positive and finite, got {order}")
    tiny = torch.finfo(k.dtype).tiny
    if order == 2:
        trace = (k / n).square().sum()
        return -trace.clamp_min(tiny).log()

    p = spectrum(k / n)                                         # n, ascending, with sum 1
    # leave out eigenvalues within rounding of zero: a fractional power's slope there is infinite
    zero = p <= n * torch.finfo(p.dtype).eps * p[-1].clamp_min(tiny)
    p = p.masked_fill(zero, 1)
    if order == 1:
        return -(p * p.log()).sum()
    trace = (p ** order).masked_fill(zero, 0).sum()
    return trace.clamp_min(tiny).log() / (1 - order)


def matrix_mutual_information(r, z, order=2):
    """The matrix mutual information of §4 and §A.3, in nats.

        I(R;Z) = H(K_R) + H(K_Z) − H(K_R ∘ K_Z),  K_R = r̂ r̂ᵀ,  K_Z = ẑ ẑᵀ

    r: n × p, z: n × d. The kernels compare samples, so p and d may differ. order: see
    renyi_entropy; order 2 keeps only BLOCK rows of the kernels in memory.
    H needs positive semi-definite kernels. K_R and K_Z are, as products x̂ x̂ᵀ, and so is
    K_R ∘ K_Z, whatever the signs of the entries. If r ends in a ReLU, its cosines are ≥ 0. Other
    networks' r, like z, can have opposite samples; order 2, which squares cosines, counts those
    as equal.
    """
    r, z = matrices(r, z)
    if order != 2:
        k_r = cosine_kernel(r)                                  # n × n
        k_z = cosine_kernel(z)
        h_both = renyi_entropy(k_r * k_z, order)
        return renyi_entropy(k_r, order) + renyi_entropy(k_z, order) - h_both

    with torch.autocast(r.device.type, enabled=False):
        r = normalize_rows(r)
        z = normalize_rows(z)

        def squared_norms(rows):
            k_r = r[rows] @ r.T                                 # block × n
            k_z = z[rows] @ z.T                                 # block × n
            return torch.stack([k.square().sum() for k in (k_r, k_z, k_r * k_z)])

        norms = over_blocks(squared_norms, len(r))              # ‖K_R‖², ‖K_Z‖², ‖K_R ∘ K_Z‖²
        h_r, h_z, h_both = -(norms / len(r) ** 2).log()
        return h_r + h_z - h_both


# --- uniformity ---------------------------------------------------------------------------------

def wasserstein_uniformity(z):
    """The Wasserstein distance of the unit rows ẑ from the uniform distribution on the sphere.

        W2 = √( ‖μ‖² + 1 + tr Σ − (2/√d)·tr Σ^{1/2} )

    Both are taken as Gaussians: N(μ, Σ) with the mean and covariance (division by n) of ẑ, and
    N(0, I/d). z: n × d. 0 is best, √2 is collapse. If n < d, W2 cannot fall below about
    √(2 − 2·√((n − 1)/d)). Second derivatives are NaN where two eigenvalues of Σ are equal.
    From Fang et al., "Rethinking the Uniformity Metric in Self-Supervised Learning" (ICLR 2024);
    it has all four properties that the paper asks for, as uniformity.py shows.
    """
    z, = matrices(z)
    dtype = z.dtype
    with torch.autocast(z.device.type, enabled=False):
        z = normalize_rows(z).double()
        n, d = z.shape
        mean = z.mean(0)                                        # d
        centred = (z - mean) / n ** 0.5                         # n × d, Σ = centredᵀ centred
        # both products have the same eigenvalues, except for zeros
        gram = centred @ centred.T if n < d else centred.T @ centred
        values = spectrum(gram)
        rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
        root_trace = root(values, rounding).sum()               # tr Σ^{1/2}
        squared = mean.square().sum() + 1 + gram.diagonal().sum() - 2 / d ** 0.5 * root_trace
        return root(squared, 1e-12).to(dtype)   # below is within rounding of 0


# --- AdaDim ---------------------------------------------------------------------------------------

def adadim(r1, r2, z1, z2, alpha, beta=1e-4, mi_scale=None, temperature=0.1,
           vicreg_weights=(25.0, 25.0, 1.0)):
    """AdaDim's loss [Eq. 4, 5] and a dict of its parts.

        L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)

    r1, r2: n × p, z1, z2: n × d, n ≥ 2. I(R;Z) is computed on both views stacked. With beta = 0,
        r1 and r2 may be None; I(R;Z) is then left out.
    alpha: α in [0, 1]: a number, or an array or tensor with one element.
    beta: β. By Eq. 5 and §4 ("encourages lower"), β > 0 lowers I(R;Z); §C.7 and §4's last
        paragraph have it raise I(R;Z). It lowers it: docs/RESULTS.md measured 0.068 nats at
        β = 1, 0.146 at 0 and 0.93 at −1.
    mi_scale: m, a number. None sets m = α, as published; 1 is the constant regulariser of [32].
    vicreg_weights: weights of invariance, variance and covariance, the last being Table 18's ν.

    No gradient flows through α. The dict holds the terms before weighting, detached:
    info_nce, vicreg, VICReg's own three (invariance, variance, covariance) and mi_loss.
    """
    z1, z2 = matrices(z1, z2, rows=2, same_width=True)
    # a tensor's range is not checked: that would synchronise with the device
    if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    alpha = torch.as_tensor(alpha, dtype=z1.dtype).detach().reshape(())
    m = alpha if mi_scale is None else mi_scale

    contrast = info_nce(z1, z2, temperature)
    invariance, variance, covariance = vicreg_terms(z1, z2)
    sim_weight, var_weight, cov_weight = vicreg_weights
    decorrelation = sim_weight * invariance + var_weight * variance + cov_weight * covariance
    loss = alpha * contrast + (1 - alpha) * decorrelation
    parts = {"info_nce": contrast, "vicreg": decorrelation, "invariance": invariance,
             "variance": variance, "covariance": covariance}
    if r1 is None and beta != 0:
        raise ValueError(f"without r1 and r2, beta must be 0, got {beta}")
    if r1 is not None:
        r1, r2 = matrices(r1, r2, same_width=True)
        information = matrix_mutual_information(torch.cat([r1, r2]), torch.cat([z1, z2]))
        loss = loss + beta * m * information
        parts["mi_loss"] = information
    return loss, {name: term.detach() for name, term in parts.items()}
