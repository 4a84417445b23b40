"""Tests of losses.py, metrics.py and optim.py: copy the four files together.

Closed forms, oracles written as loops in float64, gradients against finite differences,
invariances, collapsed inputs.

    python -m pytest -q test_losses.py
"""
import math

import pytest
import torch

import losses
import metrics
from losses import (adadim, info_nce, matrix_mutual_information, renyi_entropy, vicreg,
                    wasserstein_uniformity)
from optim import LARS

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def shuffled(n):
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def rotation(n, seed):
    """An orthogonal matrix, n × n."""
    return torch.linalg.qr(randn(n, n, seed=seed)).Q


def close(a, b, tolerance=1e-9):
    assert float(a) == pytest.approx(float(b), rel=tolerance, abs=tolerance)


# --- oracles: the formulas, entry by entry ----------------------------------------------------

def info_nce_oracle(z1, z2, temperature):
    n = len(z1)
    z = [row / row.norm() for row in (*z1, *z2)]
    loss = 0.0
    for i in range(2 * n):
        similar = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n)]
        partner = (i + n) % (2 * n)
        loss -= math.log(similar[partner] / (sum(similar) - similar[i]))
    return loss / (2 * n)


def vicreg_oracle(z1, z2, sim_weight, var_weight, cov_weight):
    n, d = z1.shape
    loss = sim_weight * sum(float(e) ** 2 for e in (z1 - z2).flatten()) / (n * d)
    for z in (z1, z2):
        covariance = torch.cov(z.T)                 # divides by n − 1
        for i in range(d):
            deviation = math.sqrt(covariance[i, i] + 1e-4)
            others = sum(float(covariance[i, j]) ** 2 for j in range(d) if j != i)
            loss += var_weight * max(0.0, 1 - deviation) / d
            loss += cov_weight * others / d
    return loss


def entropy_oracle(k, order):
    p = torch.linalg.eigvalsh(k / len(k)).tolist()
    p = [share for share in p if share > 1e-15]
    if order == 1:
        return -sum(share * math.log(share) for share in p)
    return math.log(sum(share ** order for share in p)) / (1 - order)


def kernel_oracle(x):
    n = len(x)
    k = torch.zeros(n, n, dtype=F64)
    for i in range(n):
        for j in range(n):
            k[i, j] = x[i] @ x[j] / x[i].norm() / x[j].norm()
    return k


def mutual_information_oracle(r, z, order):
    k_r = kernel_oracle(r)
    k_z = kernel_oracle(z)
    joint = entropy_oracle(k_r * k_z, order)
    return entropy_oracle(k_r, order) + entropy_oracle(k_z, order) - joint


def w2_oracle(z):
    z = z / z.norm(dim=1, keepdim=True)
    d = z.shape[1]
    mean = z.mean(0)
    sigma = torch.cov(z.T, correction=0)            # divides by n
    root_trace = sum(math.sqrt(max(0.0, x)) for x in torch.linalg.eigvalsh(sigma).tolist())
    return math.sqrt(float(mean @ mean + 1 + sigma.trace()) - 2 / math.sqrt(d) * root_trace)


both_products = pytest.mark.parametrize("n, d", [(6, 4), (4, 9)])     # VICReg: d × d, or n × n


@both_products
def test_losses_equal_their_oracles(n, d):
    z1 = randn(n, d)
    z2 = randn(n, d, seed=1)
    r = randn(n, 7, seed=2).abs()
    close(info_nce(z1, z2, 0.3), info_nce_oracle(z1, z2, 0.3))
    close(vicreg(z1, z2), vicreg_oracle(z1, z2, 25, 25, 1))
    close(vicreg(0.1 * z1, z2, 3, 5, 7), vicreg_oracle(0.1 * z1, z2, 3, 5, 7))
    close(wasserstein_uniformity(z1), w2_oracle(z1), 1e-7)
    for order in (0.5, 1, 2, 3):
        expected = mutual_information_oracle(r, z1, order)
        close(matrix_mutual_information(r, z1, order), expected, 1e-6)


@both_products
def test_adadim_is_the_weighted_sum_of_its_terms(n, d):
    z1 = randn(n, d)
    z2 = randn(n, d, seed=1)
    r1 = randn(n, 7, seed=2).abs()
    r2 = randn(n, 7, seed=3).abs()
    loss, parts = adadim(r1, r2, z1, z2, alpha=0.3, beta=0.02)
    information = mutual_information_oracle(torch.cat([r1, r2]), torch.cat([z1, z2]), 2)
    close(parts["info_nce"], info_nce_oracle(z1, z2, 0.1))
    close(parts["vicreg"], vicreg_oracle(z1, z2, 25, 25, 1))
    close(parts["mi_loss"], information)
    for part, weights in {"invariance": (1, 0, 0), "variance": (0, 1, 0),
                          "covariance": (0, 0, 1)}.items():
        close(parts[part], vicreg_oracle(z1, z2, *weights))
    weighted = 0.3 * parts["info_nce"] + 0.7 * parts["vicreg"]
    close(loss, weighted + 0.02 * 0.3 * parts["mi_loss"])

    constant, _ = adadim(r1, r2, z1, z2, alpha=0.3, beta=0.02, mi_scale=1.0)
    close(constant - loss, 0.02 * 0.7 * parts["mi_loss"])


# --- kernels in blocks --------------------------------------------------------------------------

def value_and_gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(value, inputs)


def adadim_alone(r1, r2, z1, z2):
    loss, _ = adadim(r1, r2, z1, z2, alpha=0.4, beta=0.5)
    return loss


@both_products
@pytest.mark.parametrize("block", [1, 3, 5])
@pytest.mark.parametrize("loss", [info_nce, matrix_mutual_information, adadim_alone])
def test_blocks_of_a_kernel_change_nothing(monkeypatch, loss, n, d, block):
    """Values and gradients are the same, whether or not the block size divides the rows."""
    r1, r2 = randn(2, n, 7, seed=2).abs()
    z1, z2 = randn(2, n, d)
    inputs = {info_nce: (z1, z2), matrix_mutual_information: (r1, z1)}.get(loss, (r1, r2, z1, z2))
    expected, expected_gradients = value_and_gradients(loss, *inputs)
    monkeypatch.setattr(losses, "BLOCK", block)
    value, gradients = value_and_gradients(loss, *inputs)
    close(value, expected, 1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        assert torch.allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n, d", [(300, 40), (300, 700)])
def test_float32_is_as_float64_but_for_rounding(monkeypatch, n, d):
    r1, r2 = randn(2, n, 50, seed=2).abs()
    z1, z2 = randn(2, n, d)
    exact, exact_gradients = value_and_gradients(adadim_alone, r1, r2, z1, z2)
    single = (x.float() for x in (r1, r2, z1, z2))
    monkeypatch.setattr(losses, "BLOCK", 128)
    value, gradients = value_and_gradients(adadim_alone, *single)
    close(value, exact, 1e-6)
    for gradient, exact_gradient in zip(gradients, exact_gradients):
        assert (gradient - exact_gradient).norm() < 1e-5 * exact_gradient.norm()


def test_no_whole_kernel_is_kept(monkeypatch):
    """For 60 rows in blocks of 10, autograd keeps no tensor as large as the 60 × 60 kernel."""
    monkeypatch.setattr(losses, "BLOCK", 10)
    sizes = []

    def note(x):
        sizes.append(x.untyped_storage().nbytes() // x.element_size())
        return x

    r1, r2 = randn(2, 30, 7, seed=2).abs().requires_grad_()
    z1, z2 = randn(2, 30, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, note):
        adadim_alone(r1, r2, z1, z2).backward()
    assert 30 * 7 <= max(sizes) <= 60 * 10


def test_blocks_inside_autocast(monkeypatch):
    """The backward pass, which recomputes blocks, stays in float32 too."""
    z1, z2 = randn(2, 32, 16).float()
    expected, expected_gradients = value_and_gradients(info_nce, z1, z2)
    monkeypatch.setattr(losses, "BLOCK", 10)
    z1.requires_grad_()
    z2.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = info_nce(z1, z2)
    close(value.detach(), expected, 1e-6)
    for gradient, expected_gradient in zip(torch.autograd.grad(value, (z1, z2)),
                                           expected_gradients):
        assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


# --- closed forms -------------------------------------------------------------------------------

N = 8
SAME = torch.ones(N, 5, dtype=F64)
ZEROS = torch.zeros(N, 5, dtype=F64)
EYE = torch.eye(N, dtype=F64)


def cross(d):
    """2d points, ± each unit vector: mean 0 and Σ = I/d, perfectly uniform."""
    eye = torch.eye(d, dtype=F64)
    return torch.cat([eye, -eye])


def test_closed_forms_of_info_nce():
    close(info_nce(SAME, SAME), math.log(2 * N - 1))        # all pairs look alike
    close(info_nce(ZEROS, ZEROS), math.log(2 * N - 1))      # zeros are collapsed too
    # equal views, all others orthogonal: −log( e² / (e² + 2n − 2) ) at τ = 0.5
    close(info_nce(EYE, EYE, 0.5), math.log(math.exp(2) + 2 * N - 2) - 2)


def test_closed_forms_of_vicreg():
    close(vicreg(SAME, SAME), 50 * (1 - 1e-2))              # no variance in either view
    z = randn(N, 3)
    white = torch.linalg.qr(z - z.mean(0)).Q * (N - 1) ** 0.5
    close(vicreg(white, white), 0)                          # unit variance, no covariance


def test_closed_forms_of_entropy_and_mutual_information():
    for order in (0.5, 1, 2, 3):
        close(renyi_entropy(torch.ones(N, N, dtype=F64), order), 0, 1e-7)   # all samples alike
        close(renyi_entropy(EYE, order), math.log(N), 1e-7)                 # all different
    close(matrix_mutual_information(EYE, EYE), math.log(N))     # Z determines R
    close(matrix_mutual_information(SAME, randn(N, 3)), 0)      # R is constant
    close(matrix_mutual_information(ZEROS, EYE), 0)
    # R and Z pair the samples differently: independent, so H(R, Z) = H(R) + H(Z)
    pair = torch.eye(2, dtype=F64)
    close(matrix_mutual_information(pair[[0, 0, 1, 1]], pair[[0, 1, 0, 1]]), 0)


def test_closed_forms_of_wasserstein_uniformity():
    close(wasserstein_uniformity(SAME), math.sqrt(2))           # total collapse
    close(wasserstein_uniformity(ZEROS), math.sqrt(2))
    close(wasserstein_uniformity(cross(4)), 0)
    for d in range(1, 9):       # W2 is 0 up to rounding, where the root has no slope
        z = cross(d).requires_grad_()
        wasserstein_uniformity(z).backward()
        assert z.grad.isfinite().all()


# --- gradients ------------------------------------------------------------------------------------

def test_gradients_match_finite_differences():
    z1 = randn(5, 4).requires_grad_()
    z2 = randn(5, 4, seed=1).requires_grad_()
    r1 = randn(5, 3, seed=2).requires_grad_()
    r2 = randn(5, 3, seed=3).requires_grad_()

    def total(*inputs):
        loss, _ = adadim(*inputs, alpha=0.4, beta=0.5)
        return loss

    gradcheck = torch.autograd.gradcheck
    assert gradcheck(info_nce, (z1, z2))
    assert gradcheck(vicreg, (z1, z2))
    assert gradcheck(wasserstein_uniformity, (z1,))
    assert gradcheck(total, (r1, r2, z1, z2))
    for order in (0.5, 1, 2):
        assert gradcheck(matrix_mutual_information, (r1, z1, order))


def test_nothing_flows_back_through_alpha():
    alpha = torch.tensor(0.3, requires_grad=True)
    z = randn(4, 3).requires_grad_()
    loss, _ = adadim(z, z, z, z + 1, alpha)
    loss.backward()
    assert alpha.grad is None
    assert z.grad is not None


@pytest.mark.parametrize("beta, direction", [(1.0, -1), (-1.0, 1)])
def test_sign_of_beta(beta, direction):
    """Gradient descent on β·I(R;Z) lowers I for β > 0 and raises it for β < 0."""
    r = randn(16, 6).relu()
    z = randn(16, 6, seed=1).requires_grad_()
    r1, r2 = r.chunk(2)
    z1, z2 = z.chunk(2)
    loss, _ = adadim(r1, r2, z1, z2, alpha=1.0, beta=beta)
    without, _ = adadim(r1, r2, z1, z2, alpha=1.0, beta=0.0)
    gradient, = torch.autograd.grad(loss - without, z)
    before = matrix_mutual_information(r, z).item()
    after = matrix_mutual_information(r, z - 0.1 * gradient).item()
    assert direction * (after - before) > 0


# --- invariances ----------------------------------------------------------------------------------

def test_invariances_of_losses():
    z1 = randn(10, 6)
    z2 = randn(10, 6, seed=1)
    r1 = randn(10, 5, seed=2)
    r2 = randn(10, 5, seed=3)
    order = shuffled(10)
    turn = rotation(6, seed=4)
    loss, _ = adadim(r1, r2, z1, z2, 0.5)
    other_order, _ = adadim(r1[order], r2[order], z1[order], z2[order], 0.5)
    other_view_first, _ = adadim(r2, r1, z2, z1, 0.5)
    close(loss, other_order)
    close(loss, other_view_first)
    close(info_nce(z1, z2), info_nce(7 * z1 @ turn, 3 * z2 @ turn))     # cosines only
    close(vicreg(z1, z2), vicreg(z1 + 5, z2 + 5))

    information = matrix_mutual_information(r1, z1)
    close(information, matrix_mutual_information(r1 * 9, z1 @ turn))
    close(information, matrix_mutual_information(z1, r1))


def test_invariances_of_metrics():
    z = randn(10, 6)
    order = shuffled(10)
    turn = rotation(6, seed=4)
    for metric in (metrics.effective_rank, metrics.uniformity, wasserstein_uniformity):
        close(metric(z), metric(z[order] @ turn * 3))


def test_kernels_of_mutual_information():
    r = randn(10, 5, seed=2)
    z1 = randn(10, 6)
    z2 = randn(10, 6, seed=1)
    expected = matrix_mutual_information(r, z1, order=1)
    close(metrics.mutual_information(r, z1, order=1), expected)
    expected = matrix_mutual_information(z1.T, z2.T)
    close(metrics.mutual_information(z1, z2, kernel="features"), expected)


# --- difficult inputs -----------------------------------------------------------------------------

X = randn(8, 4).float()
COLLAPSED = {
    "equal rows": X[:1].expand(8, 4),
    "zeros": 0 * X,
    "tiny": 1e-30 * X,
    "large": 1e4 * X,
    "half": X.half(),
    "bfloat16": X.bfloat16(),
    "constant features": torch.cat([X[:, :2], torch.ones(8, 2)], dim=1),
    "one row of zeros": X * (torch.arange(8) > 0)[:, None],
    "line": torch.arange(8.0)[:, None] * torch.ones(4),
}


@pytest.mark.parametrize("name", COLLAPSED)
@pytest.mark.parametrize("second_view", ["the same", "another"])
def test_collapsed_batches_stay_finite(name, second_view):
    x1 = COLLAPSED[name]
    x2 = x1 if second_view == "the same" else randn(8, 4, seed=5).to(x1.dtype)
    r1, r2, z1, z2 = (x.clone().requires_grad_() for x in (x1.relu(), x2.relu(), x1, x2))
    loss, _ = adadim(r1, r2, z1, z2, alpha=0.5, beta=0.1)
    loss = loss + wasserstein_uniformity(z1)
    for order in (0.5, 1, 3):
        loss = loss + matrix_mutual_information(r1, z1, order)
    loss.backward()
    assert loss.isfinite()
    for x in (r1, r2, z1, z2):
        assert x.grad.isfinite().all()
        assert name == "large" or x.grad.abs().max() < 1e6      # usable, too


@pytest.mark.parametrize("name", COLLAPSED)
def test_metrics_of_collapsed_batches_are_finite(name):
    x = COLLAPSED[name]
    found = metrics.representation_metrics(x.relu(), x)
    assert all(math.isfinite(value) for value in found.values())


def test_nan_is_not_hidden():
    z = randn(6, 4)
    z[2, 1] = math.nan
    for function in (info_nce, vicreg, matrix_mutual_information):
        assert function(z, z).isnan()
    for function in (wasserstein_uniformity, metrics.effective_rank, metrics.uniformity):
        assert function(z).isnan()


def test_float32_inside_autocast():
    z1 = randn(32, 16).float()
    z2 = randn(32, 16, seed=1).float()
    r = randn(32, 8, seed=2).float()

    def total():
        loss, _ = adadim(r, r, z1, z2, 0.5)
        return loss + wasserstein_uniformity(z1)

    outside = total()
    with torch.autocast("cpu", torch.bfloat16):
        inside = total()
    assert inside.dtype == torch.float32
    close(inside, outside, 1e-6)


WHOLE_NUMBERS = torch.ones(3, 3, dtype=torch.int64)
A = randn(4, 3)
TWO_LABELS = torch.zeros(2, dtype=torch.int64)
FOUR_LABELS = torch.zeros(4, dtype=torch.int64)

BAD_CALLS = {
    "other numbers of rows": lambda: info_nce(A, randn(5, 3)),
    "other widths": lambda: info_nce(A, randn(4, 2)),
    "vectors": lambda: info_nce(randn(4), randn(4)),
    "no rows": lambda: info_nce(randn(0, 3), randn(0, 3)),
    "temperature 0": lambda: info_nce(A, A, temperature=0),
    "variance of one row": lambda: vicreg(randn(1, 3), randn(1, 3)),
    "whole numbers": lambda: vicreg(WHOLE_NUMBERS, WHOLE_NUMBERS),
    "R and Z of other images": lambda: matrix_mutual_information(A, randn(5, 3)),
    "kernel not square": lambda: renyi_entropy(A),
    "order 0": lambda: renyi_entropy(torch.eye(3), 0),
    "alpha above 1": lambda: adadim(randn(4, 2), randn(4, 2), A, A, alpha=1.5),
    "views of R do not fit": lambda: adadim(randn(4, 2), A, A, A, alpha=0.5),
    "distances of one row": lambda: metrics.uniformity(randn(1, 3)),
    "no eigenvalues": lambda: metrics.explained_variance(A, 0),
    "correlation of one pair": lambda: metrics.pearson([1], [1]),
    "vectors of other lengths": lambda: metrics.pearson([1, 2], [1, 2, 3]),
    "k above n": lambda: metrics.knn_accuracy(A, FOUR_LABELS, randn(2, 3), TWO_LABELS, k=5),
    "no such kernel": lambda: metrics.mutual_information(A, A, kernel="rows"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_raise_value_error(name):
    with pytest.raises(ValueError):
        BAD_CALLS[name]()


# --- metrics --------------------------------------------------------------------------------------

def with_singular_values(values, n=9, d=7):
    k = len(values)
    u = rotation(n, seed=0)[:, :k]
    v = rotation(d, seed=1)[:k]
    return u @ torch.diag(torch.tensor(values, dtype=F64)) @ v


def test_effective_rank_of_known_spectra():
    close(metrics.effective_rank(with_singular_values([2.0] * 7)), 7)
    close(metrics.effective_rank(with_singular_values([3.0])), 1)
    # exp(½ log 2 + 2·¼ log 4)
    close(metrics.effective_rank(with_singular_values([2.0, 1.0, 1.0])), 2 ** 1.5)
    # not centred: a constant batch is a line
    close(metrics.effective_rank(torch.ones(5, 3, dtype=F64)), 1)


def test_spectrum_metrics():
    half = torch.diag(torch.tensor([4.0, 3, 2, 1, 0.1, 0, 0, 0, 0, 0], dtype=F64))
    x = torch.cat([half, -half]) + 5        # eigenvalues as 16, 9, 4, 1, 0.01
    assert int(metrics.eigenvalue_count(x)) == 4
    assert int(metrics.eigenvalue_count(x, 0.2)) == 2
    close(metrics.explained_variance(x), 29 / 30.01)
    close(metrics.explained_variance(x, 1.0), 1)


def test_closed_forms_of_uniformity_and_alignment():
    eye = torch.eye(4, dtype=F64)
    close(metrics.uniformity(eye, t=3.0), -6)       # all pairs √2 apart
    close(metrics.uniformity(torch.ones(4, 2)), 0, 1e-6)
    close(metrics.alignment(eye, eye.roll(1, 0)), 2)
    close(metrics.alignment(randn(4, 3), -5 * randn(4, 3)), 4)


@pytest.mark.parametrize("settings, accuracy", [({}, 100), ({"temperature": 100}, 0)])
def test_knn_is_weighted(settings, accuracy):
    """A neighbour at cosine 1 outvotes two at 0.5 only at a low temperature, as by default."""
    train_x = torch.tensor([[1.0, 0], [0.5, 0.75 ** 0.5], [0.5, -(0.75 ** 0.5)], [-1, 0]])
    train_y = torch.tensor([0, 1, 1, 0])
    test_x = torch.tensor([[2.0, 0]])
    test_y = torch.tensor([0])
    found = metrics.knn_accuracy(train_x, train_y, test_x, test_y, k=3, **settings)
    assert float(found) == accuracy


def test_pearson():
    x = torch.tensor([1.0, 2, 3, 5])
    close(metrics.pearson(x, 3 - 2 * x), -1)
    close(metrics.pearson([1, 2, 3], [1, 3, 2]), 0.5)


@pytest.mark.parametrize("k, accuracy", [(1, 100 / 3), (2, 200 / 3), (9, 100)])
def test_top_k_accuracy(k, accuracy):
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    y = torch.tensor([0, 1, 2])
    close(metrics.top_k_accuracy(logits, y, k), accuracy, 1e-5)


# --- optimiser -----------------------------------------------------------------------------------

@pytest.mark.parametrize("clip", [True, False])
def test_lars_takes_the_published_step(clip):
    """Three steps equal the formula; clipping changes one of the two weights."""
    torch.manual_seed(0)
    large = torch.nn.Parameter(100 * torch.randn(4, 3))
    small = torch.nn.Parameter(torch.randn(5, 2))
    bias = torch.nn.Parameter(torch.randn(4))
    parameters = [large, bias, small]
    optimizer = LARS(parameters, lr=0.3, momentum=0.8, weight_decay=0.01, eta=0.02, clip_lr=clip)
    values = [p.detach().double().clone() for p in parameters]      # in float64
    momenta = [torch.zeros_like(value) for value in values]

    for step in range(3):
        lr = 0.3 / (step + 1)
        optimizer.param_groups[0]["lr"] = lr
        for p, w, v in zip(parameters, values, momenta):
            p.grad = torch.randn_like(p)
            update = p.grad.double()
            if p is not bias:
                decayed = update + 0.01 * w
                trust_ratio = 0.02 * w.norm() / (update.norm() + 0.01 * w.norm() + 1e-8)
                assert (trust_ratio > lr) == (p is large)       # one is clipped, one not
                if clip:
                    trust_ratio = min(trust_ratio / lr, 1)
                update = trust_ratio * decayed
            v.mul_(0.8).add_(update)
            w.sub_(lr * v)
        optimizer.step()
        for p, w in zip(parameters, values):
            assert torch.allclose(p.double(), w, rtol=1e-5, atol=1e-6)


def test_lars_lets_a_zero_weight_move():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], lr=0.1).step()
    assert torch.allclose(p, torch.full((2, 2), -0.1))


def test_lars_takes_a_closure():
    """As torch's optimisers: it computes the gradients, and its loss is returned."""
    p = torch.nn.Parameter(torch.ones(2))
    without = torch.nn.Parameter(torch.ones(2, 2))          # no gradient: it stays

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert LARS([p, without], lr=0.1).step(closure) == 2
    assert torch.allclose(p, torch.full((2,), 0.8)) and torch.equal(without, torch.ones(2, 2))
