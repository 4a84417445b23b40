"""The losses of AdaDim (arXiv 2505.12576), as plain functions of tensors.

    L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)                          [Eq. 5]

A batch of n images gives two augmented views. r1, r2 (n × p) are their
representations, the encoder's output; z1, z2 (n × d) are their embeddings, the
projector's output. This file needs torch alone: copy it and

    from losses import adadim
    loss, parts = adadim(r1, r2, z1, z2, alpha=0.3)

Conventions shared by all functions here:
- Inputs are floating-point matrices, one sample a row; they are computed on in
  float32 (float64 stays float64), also inside autocast.
- The result is a 0-dim tensor. Entropies and informations are in nats.
- Values and gradients stay finite on collapsed batches: rows all equal, constant
  features, zeros. NaN in gives NaN out: nothing is hidden.
- ValueError on a wrong shape, a dtype that is not floating point, fewer than the
  rows that the formula needs, or a setting outside its range.
"""
import torch
import torch.nn.functional as F


def matrices(*xs, rows=1, same_width=False):
    """The inputs, each n × something, in float32 or float64; ValueError if they do not fit together."""
    for x in xs:
        if x.ndim != 2 or not x.is_floating_point() or x.shape[1] == 0:
            raise ValueError(f"expected a floating-point matrix (samples × features), got {x.dtype} {tuple(x.shape)}")
        if len(x) != len(xs[0]):
            raise ValueError(f"expected the same number of rows, got {len(xs[0])} and {len(x)}")
        if same_width and x.shape != xs[0].shape:
            raise ValueError(f"expected equal shapes, got {tuple(xs[0].shape)} and {tuple(x.shape)}")
        if len(x) < rows:
            raise ValueError(f"expected at least {rows} rows, got {len(x)}")
    return [x if x.dtype == torch.float64 else x.float() for x in xs]


def unit(x, eps=1e-12):
    """Each row of x (n × d) scaled to unit L2 norm.

    A row of zeros points nowhere. It gets the direction (1, …, 1)/√d and no gradient, so that kernels keep their unit
    diagonal and a batch of zeros counts as what it is, a collapsed one; dividing by a tiny number instead would send
    gradients of 1e12 into the network.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm <= eps, x.shape[1] ** -0.5, x / norm.clamp_min(eps))


def spectrum(decompose, x):
    """decompose(x), an eigen- or singular-value routine; where x holds NaN or infinity all NaN, for LAPACK would raise."""
    finite = x.isfinite().all()
    return torch.where(finite, decompose(torch.where(finite, x, 0)), torch.nan)


def cosine_kernel(x):
    """K = x̂ x̂ᵀ (n × n, unit diagonal) of the rows of x (n × d): the K_R and K_Z of §4."""
    x, = matrices(x)
    with torch.autocast(x.device.type, enabled=False):
        x = unit(x)
        return x @ x.T


def info_nce(z1, z2, temperature=0.1):
    """InfoNCE in SimCLR's form, NT-Xent [§A.5].

    Over the 2n rows of [ẑ1; ẑ2], each against its partner p(i) and all others:
    mean_i −log( exp(ẑ_i·ẑ_p(i)/τ) / Σ_{k≠i} exp(ẑ_i·ẑ_k/τ) ).

    z1, z2: n × d. temperature: τ > 0. A collapsed batch gives log(2n − 1).
    """
    z1, z2 = matrices(z1, z2, same_width=True)
    return nt_xent(cosine_kernel(torch.cat([z1, z2])), temperature)


def nt_xent(kernel, temperature):
    """InfoNCE from the kernel of [ẑ1; ẑ2] (2n × 2n)."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    self_pairs = torch.eye(len(kernel), dtype=torch.bool, device=kernel.device)
    partner = torch.arange(len(kernel), device=kernel.device).roll(len(kernel) // 2)
    return F.cross_entropy((kernel / temperature).masked_fill(self_pairs, float("-inf")), partner)


def vicreg(z1, z2, sim_weight=25.0, var_weight=25.0, cov_weight=1.0):
    """VICReg: sim_weight·s + var_weight·(v(z1) + v(z2)) + cov_weight·(c(z1) + c(z2)) [§A.5].

    s: mean squared error over all n·d entries; v: mean over the features of max(0, 1 − sqrt(Var + 1e-4)); c: the sum of
    the squared off-diagonal covariances, divided by d; variance and covariance with n − 1. Both views' terms are
    summed, as in solo-learn, the paper's code base (Meta's VICReg code halves v).

    z1, z2: n × d, n ≥ 2.
    """
    z1, z2 = matrices(z1, z2, rows=2, same_width=True)
    with torch.autocast(z1.device.type, enabled=False):
        loss = sim_weight * F.mse_loss(z1, z2)
        for z in (z1, z2):
            n, d = z.shape
            z = z - z.mean(0)
            variance = z.square().sum(0) / (n - 1)
            loss = loss + var_weight * F.relu(1 - (variance + 1e-4).sqrt()).mean()
            # ‖zᵀz‖_F = ‖z zᵀ‖_F: take the smaller of the two products (n × n for a batch of 256 at d = 2048)
            gram = z @ z.T if n < d else z.T @ z
            off_diagonal = gram.square().sum() / (n - 1) ** 2 - variance.square().sum()
            loss = loss + cov_weight * off_diagonal / d
        return loss


def renyi_entropy(k, order=2):
    """Matrix-based Rényi entropy H_a(K) = log tr((K/n)^a) / (1 − a) [§A.3], from 0 (all samples alike) to log n.

    k: n × n, positive semi-definite, unit diagonal. order: a > 0; 1 is the limit, von Neumann's −tr(K/n log K/n). Order
    2 is −log(‖K‖_F²/n²) and cheap; the others take an eigendecomposition.
    """
    k, = matrices(k)
    n = len(k)
    if k.shape != (n, n):
        raise ValueError(f"expected a square kernel, got {tuple(k.shape)}")
    if not 0 < order < float("inf"):
        raise ValueError(f"order must be positive and finite, got {order}")
    tiny = torch.finfo(k.dtype).tiny
    if order == 2:
        return -(k / n).square().sum().clamp_min(tiny).log()
    p = spectrum(torch.linalg.eigvalsh, k / n)
    # numerically zero eigenvalues are zero: a fractional power's slope there is infinite
    zero = p <= n * torch.finfo(p.dtype).eps * p[-1].clamp_min(tiny)
    safe = p.masked_fill(zero, 1)
    if order == 1:
        return -(safe * safe.log()).sum()
    return (safe ** order).masked_fill(zero, 0).sum().clamp_min(tiny).log() / (1 - order)


def matrix_mutual_information(r, z, order=2):
    """I(R;Z) = H(K_R) + H(K_Z) − H(K_R ∘ K_Z), with K_R = r̂ r̂ᵀ and K_Z = ẑ ẑᵀ, ∘ entry by entry [§4, §A.3].

    r: n × p, z: n × d; p and d may differ, for the kernels are those of the samples. order: see renyi_entropy.
    """
    r, z = matrices(r, z)
    return kernel_information(cosine_kernel(r), cosine_kernel(z), order)


def kernel_information(k_r, k_z, order=2):
    """I(R;Z) from the two kernels (n × n)."""
    return renyi_entropy(k_r, order) + renyi_entropy(k_z, order) - renyi_entropy(k_r * k_z, order)


def wasserstein_uniformity(z):
    """W2 distance of the unit rows ẑ, taken as a Gaussian, from the uniform sphere's N(0, I/d); 0 is best, √2 collapse.

    sqrt(‖μ‖² + 1 + tr Σ − (2/√d)·tr Σ^{1/2}), μ and Σ the mean and covariance (division by n) of ẑ. From Fang et al.,
    "Rethinking the Uniformity Metric in Self-Supervised Learning", W_2. z: n × d.
    """
    z, = matrices(z)
    z = unit(z)
    n, d = z.shape
    mean = z.mean(0)
    centred = (z - mean) / n ** 0.5
    # tr Σ^{1/2} is the sum of the centred rows' singular values: no root of a zero eigenvalue, whose slope is infinite
    root_trace = spectrum(torch.linalg.svdvals, centred).sum()
    squared = mean.square().sum() + 1 + centred.square().sum() - 2 / d ** 0.5 * root_trace
    zero = squared <= torch.finfo(z.dtype).eps      # rounding: the distance itself has no slope at 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def adadim(r1, r2, z1, z2, alpha, beta=1e-4, mi_scale=None, temperature=0.1):
    """AdaDim's loss α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z) [Eq. 4, 5], and a dict of its parts.

    r1, r2: n × p, z1, z2: n × d, n ≥ 2. alpha: α in [0, 1], a number or a 0-dim tensor. beta: β ≥ 0 pushes I(R;Z) down
    ("encourages lower", §4; that section's last paragraph says it opposes the decrease, which contradicts the sign),
    β < 0 pushes it up (§C.7). mi_scale: m; None takes m = α, the published method; 1 is [32]'s constant regulariser.

    I(R;Z) is taken on both views stacked. Nothing flows back through α or m. The dict holds info_nce, vicreg and
    mi_loss, the three terms before weighting, detached.
    """
    r1, r2, z1, z2 = *matrices(r1, r2, same_width=True), *matrices(z1, z2, rows=2, same_width=True)
    matrices(r1, z1)
    m = alpha if mi_scale is None else mi_scale
    alpha, m = (x.detach() if torch.is_tensor(x) else x for x in (alpha, m))
    if not torch.is_tensor(alpha) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    k_r, k_z = cosine_kernel(torch.cat([r1, r2])), cosine_kernel(torch.cat([z1, z2]))     # two terms share k_z
    parts = {"info_nce": nt_xent(k_z, temperature), "vicreg": vicreg(z1, z2), "mi_loss": kernel_information(k_r, k_z)}
    loss = alpha * parts["info_nce"] + (1 - alpha) * parts["vicreg"] + beta * m * parts["mi_loss"]
    return loss, {name: part.detach() for name, part in parts.items()}
