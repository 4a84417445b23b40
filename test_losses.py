"""Tests of losses.py, metrics.py and LARS: closed forms, float64 oracles written as loops, gradients, invariances.

    python -m pytest -q test_losses.py
"""
import math

import pytest
import torch

import metrics
from losses import (adadim, info_nce, matrix_mutual_information, renyi_entropy, vicreg, wasserstein_uniformity)
from train import LARS, alpha_at, rate_at

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, tolerance=1e-9):
    assert float(a) == pytest.approx(float(b), rel=tolerance, abs=tolerance)


# --- oracles: the formulas once more, entry by entry --------------------------------------------------------------------

def info_nce_oracle(z1, z2, tau):
    z = [row / row.norm() for row in (*z1, *z2)]
    n, total = len(z1), 0.0
    for i in range(2 * n):
        similar = [math.exp(float(z[i] @ z[k]) / tau) for k in range(2 * n)]
        total -= math.log(similar[(i + n) % (2 * n)] / (sum(similar) - similar[i]))
    return total / (2 * n)


def vicreg_oracle(z1, z2, s, v, c):
    n, d = z1.shape
    loss = s * sum(float(e) ** 2 for e in (z1 - z2).flatten()) / (n * d)
    for z in (z1, z2):
        covariance = torch.cov(z.T)      # divides by n − 1
        for i in range(d):
            loss += v * max(0.0, 1 - math.sqrt(covariance[i, i] + 1e-4)) / d
            loss += c * sum(float(covariance[i, j]) ** 2 for j in range(d) if j != i) / d
    return loss


def entropy_oracle(k, order):
    p = torch.linalg.eigvalsh(k / len(k)).clamp_min(0)
    if order == 1:
        return -sum(float(x) * math.log(x) for x in p if x > 1e-15)
    return math.log(sum(float(x) ** order for x in p if x > 1e-15)) / (1 - order)


def mutual_information_oracle(r, z, order):
    k_r, k_z = torch.zeros(len(r), len(r), dtype=F64), torch.zeros(len(r), len(r), dtype=F64)
    for i in range(len(r)):
        for j in range(len(r)):
            k_r[i, j] = r[i] @ r[j] / r[i].norm() / r[j].norm()
            k_z[i, j] = z[i] @ z[j] / z[i].norm() / z[j].norm()
    return entropy_oracle(k_r, order) + entropy_oracle(k_z, order) - entropy_oracle(k_r * k_z, order)


def w2_oracle(z):
    z = z / z.norm(dim=1, keepdim=True)
    n, d = z.shape
    mean, sigma = z.mean(0), torch.cov(z.T, correction=0)
    root = sum(math.sqrt(max(0.0, x)) for x in torch.linalg.eigvalsh(sigma).tolist())
    return math.sqrt(float(mean @ mean + 1 + sigma.trace()) - 2 / math.sqrt(d) * root)


@pytest.mark.parametrize("n, d", [(6, 4), (4, 9)])       # both of VICReg's products
def test_losses_equal_their_oracles(n, d):
    z1, z2, r1, r2 = randn(n, d), randn(n, d, seed=1), randn(n, 7, seed=2).abs(), randn(n, 7, seed=3).abs()
    close(info_nce(z1, z2, 0.3), info_nce_oracle(z1, z2, 0.3))
    close(vicreg(z1, z2), vicreg_oracle(z1, z2, 25, 25, 1))
    close(vicreg(0.1 * z1, z2, 3, 5, 7), vicreg_oracle(0.1 * z1, z2, 3, 5, 7))
    for order in (0.5, 1, 2, 3):
        close(matrix_mutual_information(r1, z1, order), mutual_information_oracle(r1, z1, order), 1e-6)
    close(wasserstein_uniformity(z1), w2_oracle(z1), 1e-7)

    loss, parts = adadim(r1, r2, z1, z2, alpha=0.3, beta=0.02)
    close(parts["mi_loss"], mutual_information_oracle(torch.cat([r1, r2]), torch.cat([z1, z2]), 2))
    close(parts["info_nce"], info_nce_oracle(z1, z2, 0.1))
    close(parts["vicreg"], vicreg_oracle(z1, z2, 25, 25, 1))
    close(loss, 0.3 * parts["info_nce"] + 0.7 * parts["vicreg"] + 0.02 * 0.3 * parts["mi_loss"])
    constant, _ = adadim(r1, r2, z1, z2, alpha=0.3, beta=0.02, mi_scale=1.0)
    close(constant - loss, 0.02 * 0.7 * parts["mi_loss"])


def test_closed_forms():
    n = 8
    same, eye = torch.ones(n, 5, dtype=F64), torch.eye(n, dtype=F64)
    close(info_nce(same, same), math.log(2 * n - 1))                            # nothing tells the pairs apart
    close(info_nce(eye, eye, 0.5), math.log(math.exp(2) + 2 * n - 2) - 2)       # pairs equal, all else orthogonal
    close(vicreg(same, same), 50 * (1 - 1e-2))                                  # no variance in either view
    white = torch.linalg.qr(randn(n, 3) - randn(n, 3).mean(0))[0] * (n - 1) ** 0.5      # unit variance, no covariance
    close(vicreg(white, white), 0)
    for order in (0.5, 1, 2, 3):
        close(renyi_entropy(torch.ones(n, n, dtype=F64), order), 0, 1e-7)       # all samples alike
        close(renyi_entropy(eye, order), math.log(n), 1e-7)                     # all samples different
    close(matrix_mutual_information(eye, eye), math.log(n))                     # Z tells everything about R
    close(matrix_mutual_information(same, randn(n, 3)), 0)                      # R tells nothing
    # two pairs in R, two other pairs in Z: independent, so the joint entropy is the sum of both
    r, z = torch.eye(2, dtype=F64)[[0, 0, 1, 1]], torch.eye(2, dtype=F64)[[0, 1, 0, 1]]
    close(matrix_mutual_information(r, z), 0)
    zeros = torch.zeros(n, 5, dtype=F64)                                        # no direction: collapse too
    close(info_nce(zeros, zeros), math.log(2 * n - 1))
    close(matrix_mutual_information(zeros, eye), 0)
    close(wasserstein_uniformity(zeros), math.sqrt(2))
    close(wasserstein_uniformity(same), math.sqrt(2))                           # total collapse
    cross = torch.cat([torch.eye(4, dtype=F64), -torch.eye(4, dtype=F64)])      # mean 0, Σ = I/d: as uniform as can be
    close(wasserstein_uniformity(cross), 0)
    for d in range(1, 9):       # W2 = 0 but for rounding, where its root has a kink
        cross = torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)]).requires_grad_()
        wasserstein_uniformity(cross).backward()
        assert cross.grad.isfinite().all()


def test_gradients_match_finite_differences():
    z1, z2, r1, r2 = (x.requires_grad_() for x in (randn(5, 4), randn(5, 4, seed=1), randn(5, 3, seed=2), randn(5, 3, seed=3)))
    check = torch.autograd.gradcheck
    assert check(info_nce, (z1, z2))
    assert check(vicreg, (z1, z2))
    assert check(wasserstein_uniformity, (z1,))
    for order in (0.5, 1, 2):
        assert check(lambda r, z: matrix_mutual_information(r, z, order), (r1, z1))
    assert check(lambda *x: adadim(*x, alpha=0.4, beta=0.5)[0], (r1, r2, z1, z2))


def test_nothing_flows_back_through_alpha():
    alpha = torch.tensor(0.3, requires_grad=True)
    z = randn(4, 3).requires_grad_()
    loss, _ = adadim(z, z, z, z + 1, alpha)
    loss.backward()
    assert alpha.grad is None and z.grad is not None


def test_sign_of_beta():
    """A step down the gradient of β·I(R;Z) lowers I for β > 0 and raises it for β < 0."""
    r, z = randn(16, 6).relu(), randn(16, 6, seed=1).requires_grad_()
    before = matrix_mutual_information(r, z).item()
    for beta, sign in ((1.0, -1), (-1.0, 1)):
        loss, _ = adadim(r[:8], r[8:], z[:8], z[8:], alpha=1.0, beta=beta)
        without, _ = adadim(r[:8], r[8:], z[:8], z[8:], alpha=1.0, beta=0.0)
        gradient, = torch.autograd.grad(loss - without, z)
        assert sign * (matrix_mutual_information(r, z - 0.1 * gradient).item() - before) > 0


def test_invariances():
    z1, z2, r1, r2 = randn(10, 6), randn(10, 6, seed=1), randn(10, 5, seed=2), randn(10, 5, seed=3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(randn(6, 6, seed=4))[0]
    close(adadim(r1, r2, z1, z2, 0.5)[0], adadim(r1[order], r2[order], z1[order], z2[order], 0.5)[0])       # samples
    close(adadim(r1, r2, z1, z2, 0.5)[0], adadim(r2, r1, z2, z1, 0.5)[0])                                   # views
    close(info_nce(z1, z2), info_nce(7 * z1 @ turn, 3 * z2 @ turn))                                         # cosines only
    close(matrix_mutual_information(r1, z1), matrix_mutual_information(r1 * 9, z1 @ turn))
    close(matrix_mutual_information(r1, z1), matrix_mutual_information(z1, r1))
    close(metrics.mutual_information(z1, z2, kernel="features"), matrix_mutual_information(z1.T, z2.T))
    close(metrics.mutual_information(r1, z1, order=1), matrix_mutual_information(r1, z1, order=1))
    close(vicreg(z1, z2), vicreg(z1 + 5, z2 + 5))
    for metric in (metrics.effective_rank, metrics.uniformity, wasserstein_uniformity):
        close(metric(z1), metric(z1[order] @ turn * 3))


def test_wasserstein_uniformity_has_its_four_properties_and_wang_isolas_lacks_three():
    z = randn(12, 5)
    w2, wi = wasserstein_uniformity, metrics.uniformity
    close(w2(z), w2(z.flip(0)))
    close(wi(z), wi(z.flip(0)))
    close(w2(z.repeat(3, 1)), w2(z))                    # every instance thrice
    assert wi(z.repeat(3, 1)) > wi(z) + 0.01
    assert w2(z.repeat(1, 2)) > w2(z) + 0.01            # every feature twice: redundancy
    close(wi(z.repeat(1, 2)), wi(z))
    padded = torch.cat([z, torch.zeros(12, 5, dtype=F64)], 1)
    assert w2(padded) > w2(z) + 0.01                    # empty features: dimensional collapse
    close(wi(padded), wi(z))


X = randn(8, 4).float()
RAGGED = {
    "equal rows": X[:1].expand(8, 4), "zeros": 0 * X, "tiny": 1e-30 * X, "large": 1e4 * X, "half": X.half(), "bfloat16": X.bfloat16(),
    "constant features": torch.cat([X[:, :2], torch.ones(8, 2)], 1), "one row of zeros": X * (torch.arange(8) > 0)[:, None],
    "line": torch.arange(8.0)[:, None] * torch.ones(4),
}


@pytest.mark.parametrize("name", RAGGED)
def test_collapsed_batches_stay_finite(name):
    x = RAGGED[name]
    for r1, r2 in ((x, x), (x, randn(8, 4, seed=5).to(x.dtype))):
        leaves = [v.clone().requires_grad_() for v in (r1.relu(), r2.relu(), r1, r2)]
        loss, _ = adadim(*leaves, alpha=0.5, beta=0.1)
        loss = loss + wasserstein_uniformity(leaves[2]) + sum(matrix_mutual_information(leaves[0], leaves[2], a) for a in (0.5, 1, 3))
        loss.backward()
        assert loss.isfinite() and all(v.grad.isfinite().all() for v in leaves)
        assert name == "large" or all(v.grad.abs().max() < 1e6 for v in leaves)      # finite, and of use
    assert all(math.isfinite(v) for v in metrics.representation_metrics(x.relu(), x).values())


def test_nan_is_not_hidden():
    z = randn(6, 4)
    z[2, 1] = math.nan
    for function in (info_nce, vicreg, matrix_mutual_information):
        assert function(z, z).isnan()
    for function in (wasserstein_uniformity, metrics.effective_rank, metrics.uniformity):
        assert function(z).isnan()


def test_float32_inside_autocast():
    z1, z2, r = randn(32, 16).float(), randn(32, 16, seed=1).float(), randn(32, 8, seed=2).float()
    outside = adadim(r, r, z1, z2, 0.5)[0] + wasserstein_uniformity(z1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = adadim(r, r, z1, z2, 0.5)[0] + wasserstein_uniformity(z1)
    assert inside.dtype == torch.float32
    close(inside, outside, 1e-6)


@pytest.mark.parametrize("call", [
    lambda: info_nce(randn(4, 3), randn(5, 3)), lambda: info_nce(randn(4, 3), randn(4, 2)), lambda: info_nce(randn(4), randn(4)),
    lambda: info_nce(randn(4, 3), randn(4, 3), temperature=0), lambda: vicreg(randn(1, 3), randn(1, 3)),
    lambda: vicreg(torch.ones(3, 3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.int64)),
    lambda: info_nce(randn(0, 3), randn(0, 3)),
    lambda: matrix_mutual_information(randn(4, 3), randn(5, 3)), lambda: renyi_entropy(randn(4, 3)),
    lambda: renyi_entropy(torch.eye(3), 0),
    lambda: adadim(randn(4, 2), randn(4, 2), randn(4, 3), randn(4, 3), alpha=1.5),
    lambda: adadim(randn(4, 2), randn(4, 3), randn(4, 3), randn(4, 3), alpha=0.5), lambda: metrics.uniformity(randn(1, 3)),
    lambda: metrics.explained_variance(randn(4, 3), 0), lambda: metrics.pearson([1], [1]),
    lambda: metrics.pearson([1, 2], [1, 2, 3]),
    lambda: metrics.knn_accuracy(randn(4, 3), torch.zeros(4).long(), randn(2, 3), torch.zeros(2).long(), k=5),
    lambda: metrics.mutual_information(randn(4, 3), randn(4, 3), kernel="rows"),
])
def test_bad_arguments_raise_value_error(call):
    with pytest.raises(ValueError):
        call()


# --- metrics ------------------------------------------------------------------------------------------------------------

def with_singular_values(values, n=9, d=7):
    u, v = torch.linalg.qr(randn(n, n))[0], torch.linalg.qr(randn(d, d, seed=1))[0]
    return u[:, :len(values)] @ torch.diag(torch.tensor(values, dtype=F64)) @ v[:len(values)]


def test_effective_rank_of_known_spectra():
    close(metrics.effective_rank(with_singular_values([2.0] * 7)), 7)
    close(metrics.effective_rank(with_singular_values([3.0])), 1)
    close(metrics.effective_rank(with_singular_values([2.0, 1.0, 1.0])), 2 ** 1.5)      # exp(½ log 2 + 2·¼ log 4)
    close(metrics.effective_rank(torch.ones(5, 3, dtype=F64)), 1)       # uncentred: a constant batch is a line


def test_spectrum_metrics():
    x = torch.diag(torch.tensor([4.0, 3, 2, 1, 0.1, 0, 0, 0, 0, 0], dtype=F64))
    x = torch.cat([x, -x]) + 5      # covariance proportional to the squares 16, 9, 4, 1, 0.01
    assert int(metrics.eigenvalue_count(x)) == 4 and int(metrics.eigenvalue_count(x, 0.2)) == 2
    close(metrics.explained_variance(x), 29 / 30.01)
    close(metrics.explained_variance(x, 1.0), 1)


def test_uniformity_and_alignment_closed_forms():
    eye = torch.eye(4, dtype=F64)
    close(metrics.uniformity(eye, t=3.0), -6)       # all pairs √2 apart
    close(metrics.uniformity(torch.ones(4, 2)), 0, 1e-6)
    close(metrics.alignment(eye, eye.roll(1, 0)), 2)
    close(metrics.alignment(randn(4, 3), -5 * randn(4, 3)), 4)


def test_knn_is_weighted():
    """One neighbour at cosine 1 outvotes two at 0.5 while T is small, and loses where all votes weigh alike."""
    train = torch.tensor([[1.0, 0], [0.5, 0.75 ** 0.5], [0.5, -(0.75 ** 0.5)], [-1, 0]])
    train_y, test, test_y = torch.tensor([0, 1, 1, 0]), torch.tensor([[2.0, 0]]), torch.tensor([0])
    assert float(metrics.knn_accuracy(train, train_y, test, test_y, k=3)) == 100
    assert float(metrics.knn_accuracy(train, train_y, test, test_y, k=3, temperature=100)) == 0


def test_pearson_and_top_k():
    x = torch.tensor([1.0, 2, 3, 5])
    close(metrics.pearson(x, 3 - 2 * x), -1)
    close(metrics.pearson([1, 2, 3], [1, 3, 2]), 0.5)
    logits, y = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]]), torch.tensor([0, 1, 2])
    assert [round(float(metrics.top_k_accuracy(logits, y, k)), 3) for k in (1, 2, 9)] == [33.333, 66.667, 100]


# --- optimiser and schedules ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("clip", [True, False])
def test_lars_takes_the_published_step(clip):
    """Three steps of a weight and a bias against the formula by hand, at a rate where the clip matters for one of them."""
    torch.manual_seed(0)
    large, small, bias = (torch.nn.Parameter(x) for x in (100 * torch.randn(4, 3), torch.randn(5, 2), torch.randn(4)))
    optimizer = LARS([large, bias, small], lr=0.3, momentum=0.8, weight_decay=0.01, eta=0.02, clip_lr=clip)
    by_hand = {p: [p.detach().double().clone(), torch.zeros_like(p, dtype=F64)] for p in (large, small, bias)}
    for step in range(3):
        lr = optimizer.param_groups[0]["lr"] = 0.3 / (step + 1)
        for p, (w, v) in by_hand.items():
            p.grad = torch.randn_like(p)
            g = p.grad.double()
            if p is not bias:
                q = 0.02 * w.norm() / (g.norm() + 0.01 * w.norm() + 1e-8)
                assert (q > lr) == (p is large)     # so both branches of the clip are seen
                g = (min(q / lr, 1) if clip else q) * (g + 0.01 * w)
            v.mul_(0.8).add_(g)
            w.sub_(lr * v)
        optimizer.step()
        for p, (w, _) in by_hand.items():
            assert torch.allclose(p.double(), w, rtol=1e-5, atol=1e-6)


def test_lars_lets_a_zero_weight_move():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], lr=0.1).step()
    assert torch.allclose(p, torch.full((2, 2), -0.1))


def test_schedules():
    close(rate_at(0, 0.4, 10, 110), 3e-5)
    close(rate_at(5, 0.4, 10, 110), (0.4 + 3e-5) / 2)
    close(rate_at(10, 0.4, 10, 110), 0.4)
    close(rate_at(60, 0.4, 10, 110), 0.2)
    assert 0 < rate_at(109, 0.4, 10, 110) < 1e-3
    assert alpha_at("ada", 0.3, 0.9) == 0.3 and alpha_at(0.7, 0.3, 0.9) == 0.7 and alpha_at("linear", 0, 0.25) == 0.25
    close(alpha_at("cosine", 0, 0.25), (1 - math.sqrt(0.5)) / 2)
    assert (alpha_at("cosine", 0, 0), alpha_at("cosine", 0, 1)) == (0, 1)
