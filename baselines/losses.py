"""The losses of the methods that AdaDim is compared with, as plain functions of tensors.

    from baseline_losses import barlow_twins, byol, sinkhorn
    loss = barlow_twins(z1, z2)

Copy this file and losses.py, from which it has its building blocks; they need torch alone.
baselines.py has the methods around them: momentum networks, queues, prototypes.

Conventions shared by all functions here, as in losses.py:
- One direction each: one view's output against the other view's target. baselines.py says how
  a method sums or averages its two directions.
- Inputs are floating-point matrices, one sample per row, computed on in float32 (float64 stays
  float64), also inside autocast. The result is a 0-dim tensor, in nats where it is an entropy.
- x̂ is a row x scaled to unit length, which is done here; n counts samples, d features, K the
  entries of a queue, or prototypes.
- Nothing flows back into a target: keys, queues, teachers, centres and assignments are detached.
- Values and gradients stay finite on collapsed batches: rows all equal, zeros.
- ValueError on a wrong shape, a dtype that is not floating point, fewer rows than the formula
  needs, or a setting outside its range.
"""
import torch
import torch.nn.functional as F

from losses import matrices, normalize_rows


# --- building blocks ------------------------------------------------------------------------

def cosines(x, y):
    """x̂ ŷᵀ, n × m, of the rows of x (n × d) and y (m × d)."""
    x, = matrices(x)
    y, = matrices(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected rows of one width, got {x.shape[1]} and {y.shape[1]}")
    with torch.autocast(x.device.type, enabled=False):
        return normalize_rows(x) @ normalize_rows(y).to(x.dtype).T


def paired_cosine(x, y):
    """The mean of x̂_i·ŷ_i over the rows of x and y, n × d both."""
    x, y = matrices(x, y, rows=1, same_width=True)
    return (normalize_rows(x) * normalize_rows(y)).sum(1).mean()


def cross_entropy(scores, targets):
    """mean_i −Σ_k targets_ik·log softmax(scores_i)_k; scores, targets: n × K."""
    return -(targets * F.log_softmax(scores, dim=1)).sum(1).mean()


def check_positive(**settings):
    for name, value in settings.items():
        if not torch.is_tensor(value) and not value > 0:     # a tensor's would wait for a GPU
            raise ValueError(f"{name} must be positive, got {value}")


# --- decorrelation --------------------------------------------------------------------------

def barlow_twins(z1, z2, off_diagonal_weight=5e-3, scale=0.1):
    """Barlow Twins (Zbontar et al. 2021, Eq. 1), both views at once; 0 or more.

        scale · ( Σ_i (1 − C_ii)² + off_diagonal_weight · Σ_{i≠j} C_ij² )

    z1, z2: n × d, n ≥ 2. C is the correlation of the features of view 1 with those of view 2,
    d × d. A feature is standardised over the batch, with division by n and 1e-5 added to its
    variance, as a batch norm without weights does it.
    """
    z1, z2 = matrices(z1, z2, rows=2, same_width=True)
    with torch.autocast(z1.device.type, enabled=False):
        correlation = standardise(z1).T @ standardise(z2) / len(z1)         # d × d
        diagonal = correlation.diagonal()                                   # d
        on_diagonal = (1 - diagonal).square().sum()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return scale * (on_diagonal + off_diagonal_weight * off_diagonal)


def standardise(z, eps=1e-5):
    """The columns of z (n × d) with mean 0 and variance 1; constant ones become 0."""
    variance = z.var(0, correction=0)                                       # d
    return (z - z.mean(0)) / (variance + eps).sqrt()


def sigreg(z, directions):
    """LeJEPA's SIGReg (Balestriero & LeCun 2025): is each projection of z a standard normal?

        mean over directions a of  n · ∫ |φ(t) − e^(−t²/2)|² · e^(−t²/2) dt,
        φ(t) = mean_i e^(i·t·(z_i·a))

    The statistic of Epps and Pulley, its integral over [−3, 3] by the trapezoid rule: 17 knots
    on [0, 3], counted twice, for the integrand is even. z: n × d, not made unit: its scale is
    what is tested. directions: d × m, unit columns, drawn by the caller anew at each step.
    """
    z, = matrices(z)
    directions, = matrices(directions)
    if len(directions) != z.shape[1]:
        raise ValueError(f"expected directions of {z.shape[1]} rows, got {len(directions)}")
    knots = torch.linspace(0, 3, 17, dtype=z.dtype, device=z.device)
    normal = (-knots.square() / 2).exp()                    # of N(0, 1), the φ that is wanted
    weights = torch.full_like(knots, 2 * 3 / 16)            # both halves of [−3, 3]
    weights[0] /= 2
    weights[-1] /= 2
    with torch.autocast(z.device.type, enabled=False):
        angles = (z @ directions.to(z.dtype))[..., None] * knots            # n × m × 17
        real = angles.cos().mean(0) - normal                                # m × 17
        imaginary = angles.sin().mean(0)
        distance = (real.square() + imaginary.square()) @ (weights * normal)        # m
        return len(z) * distance.mean()


# --- agreement of two views -----------------------------------------------------------------

def byol(p, z):
    """BYOL (Grill et al. 2020, Eq. 2): mean_i ‖p̂_i − ẑ_i‖² = 2 − 2·mean_i p̂_i·ẑ_i; 0 … 4.

    p: predictions from one view; z: the momentum network's outputs of the other; n × d both.
    """
    return 2 - 2 * paired_cosine(p, z.detach())


def simsiam(p, z):
    """SimSiam (Chen & He 2021, Eq. 1): −mean_i p̂_i·ẑ_i; −1 … 1.

    p: predictions from one view; z: the other's embeddings, through which nothing flows back.
    n × d both.
    """
    return -paired_cosine(p, z.detach())


# --- contrast -------------------------------------------------------------------------------

def contrast(anchors, others, temperature):
    """mean_i −log( exp(â_i·ô_i/τ) / Σ_k exp(â_i·ô_k/τ) ); anchors, others: n × d both."""
    matrices(anchors, others, same_width=True)
    check_positive(temperature=temperature)
    scores = cosines(anchors, others) / temperature                         # n × n
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def nnclr(neighbours, p, temperature):
    """NNCLR (Dwibedi et al. 2021, Eq. 3): contrast of neighbours with predictions; 0 or more.

        mean_i −log( exp(n̂n_i·p̂_i/τ) / Σ_k exp(n̂n_i·p̂_k/τ) )

    neighbours: the queue's entries nearest to one view's embeddings; p: predictions from the
    other view; n × d both. temperature: τ > 0.
    """
    return contrast(neighbours.detach(), p, temperature)


def moco_v2(q, k, queue, temperature):
    """MoCo (He et al. 2020, Eq. 1): the own key among all of a queue; 0 … about 2/τ + log K.

        mean_i −log( exp(q̂_i·k̂_i/τ) / ( exp(q̂_i·k̂_i/τ) + Σ_j exp(q̂_i·queue_j/τ) ) )

    q: one view's queries; k: the momentum network's keys of the other view; n × d both.
    queue: K × d, earlier keys. temperature: τ > 0.
    """
    matrices(q, k, same_width=True)
    check_positive(temperature=temperature)
    q, k = matrices(q, k)
    own = (normalize_rows(q) * normalize_rows(k.detach())).sum(1, keepdim=True)     # n × 1
    others = cosines(q, queue.detach())                                     # n × K
    scores = torch.cat([own, others], 1) / temperature                      # n × (1 + K)
    first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    return F.cross_entropy(scores, first)


def moco_v3(q, k, temperature):
    """MoCo v3 (Chen et al. 2021, Algorithm 1): the own key among the batch's, times 2τ.

        2τ · mean_i −log( exp(q̂_i·k̂_i/τ) / Σ_j exp(q̂_i·k̂_j/τ) )

    q: predictions from one view; k: the momentum network's keys of the other view; n × d both.
    temperature: τ > 0.
    """
    return 2 * temperature * contrast(q, k.detach(), temperature)


# --- targets that are distributions ---------------------------------------------------------

def ressl(q, k, queue, student_temperature, teacher_temperature):
    """ReSSL (Zheng et al. 2021, Eq. 5): the student's similarities to a queue, and the teacher's.

        mean_i −Σ_j softmax(k̂_i·queueᵀ/τ_t)_j · log softmax(q̂_i·queueᵀ/τ_s)_j

    q: the student's embeddings of the strong view, k: the teacher's of the weak one; n × d both.
    queue: K × d, the teacher's earlier outputs.
    """
    matrices(q, k, same_width=True)
    check_positive(student_temperature=student_temperature,
                   teacher_temperature=teacher_temperature)
    queue = queue.detach()
    student = cosines(q, queue) / student_temperature                       # n × K
    teacher = cosines(k.detach(), queue) / teacher_temperature              # n × K
    return cross_entropy(student, F.softmax(teacher, dim=1))


def dino(student, teacher, center, student_temperature, teacher_temperature):
    """DINO (Caron et al. 2021, Eq. 2 and Algorithm 1); 0 or more.

        mean_i −Σ_k softmax((teacher_i − center)/τ_t)_k · log softmax(student_i/τ_s)_k

    student: one view's scores, teacher: the momentum network's of the other view; n × K both.
    center: K, a running mean of the teacher's scores. The temperatures may be 0-dim tensors.
    """
    student, teacher = matrices(student, teacher, same_width=True)
    if center.shape != student.shape[1:]:
        raise ValueError(f"expected a center of {student.shape[1]} values, "
                         f"got {tuple(center.shape)}")
    check_positive(student_temperature=student_temperature,
                   teacher_temperature=teacher_temperature)
    centred = (teacher - center).detach()
    target = F.softmax(centred / teacher_temperature, dim=1)                # n × K
    return cross_entropy(student / student_temperature, target)


@torch.no_grad()
def sinkhorn(scores, epsilon=0.05, iterations=3):
    """SwAV's assignments (Caron et al. 2020, Eq. 5) by Sinkhorn and Knopp's rounds; no gradient.

    Starts from exp(scores/ε). Each round scales prototypes to equal shares of the batch, then
    samples to a sum of 1. scores: n × K. Returns n × K whose rows, samples, sum to 1; the more
    rounds, the closer the columns are to n/K each. Logarithms throughout: exp(1/ε) is large.
    """
    scores, = matrices(scores)
    check_positive(epsilon=epsilon)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def swav(scores, assignments, temperature):
    """SwAV (Caron et al. 2020, Eq. 2): predicts the other view's assignments; 0 or more.

        mean_i −Σ_k assignments_ik · log softmax(scores_i/τ)_k

    scores: one view's, to K prototypes; assignments: the other's, from sinkhorn(); n × K both.
    temperature: τ > 0.
    """
    scores, assignments = matrices(scores, assignments, same_width=True)
    check_positive(temperature=temperature)
    return cross_entropy(scores / temperature, assignments.detach())


def deepcluster_v2(scores, assignments, temperature):
    """DeepCluster v2 (Caron et al. 2020, §4.1): classifies samples by their cluster; 0 or more.

        mean −log softmax(scores_i/τ) at assignments_i, over the samples that have a cluster

    scores: n × K, to the clusters' centres; assignments: n, int64, −1 for none. temperature:
    τ > 0. Where no sample has a cluster, the loss is 0, and so is its gradient.
    """
    scores, = matrices(scores)
    check_positive(temperature=temperature)
    if assignments.shape != scores.shape[:1] or assignments.dtype != torch.int64:
        raise ValueError(f"expected {len(scores)} int64 assignments, got {assignments.dtype} "
                         f"{tuple(assignments.shape)}")
    total = F.cross_entropy(scores / temperature, assignments, ignore_index=-1, reduction="sum")
    return total / (assignments >= 0).sum().clamp_min(1)
