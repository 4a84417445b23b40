"""Tests of the label-free measures in metrics.py: closed forms, float64 oracles, invariances.

    python -m pytest -q tests/test_metrics.py

The metrics of AdaDim's paper are tested in test_losses.py.
"""
import math

import pytest
import torch

import metrics
from losses import cosine_kernel, renyi_entropy
from metrics import (alpha_req, effective_rank, lidar, linear_cka, nesum, participation_ratio,
                     rankme, representation_metrics, singular_values, stable_rank, uniformity)
from tests.helpers import randn as noise

F64 = torch.float64


def orthonormal(n, d, seed=0):
    """n × d, columns orthonormal and of mean zero."""
    x = noise(n, d, seed=seed)
    return torch.linalg.qr(x - x.mean(0))[0]


def with_spectrum(values, n=200, d=None):
    """n × d with these singular values, of mean zero."""
    values = torch.as_tensor(values, dtype=F64)
    d = d or len(values)
    v = torch.linalg.qr(noise(d, len(values), seed=1))[0]
    return orthonormal(n, len(values)) @ torch.diag(values) @ v.T


def near(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance)


# --- closed forms -----------------------------------------------------------------------------

def test_ranks_of_known_spectra():
    sigma = torch.tensor([3.0, 2, 1, 1], dtype=F64)
    x = with_spectrum(sigma, d=6)
    assert float(stable_rank(x)) == near((9 + 4 + 1 + 1) / 9)
    assert float(participation_ratio(x)) == near(15 ** 2 / (81 + 16 + 1 + 1))
    assert float(nesum(x)) == near(15 / 9)
    p = (sigma / 7).tolist()
    by_hand = math.exp(-sum(value * math.log(value) for value in p))
    assert float(effective_rank(x)) == near(by_hand)

    # two of the six values are zero: RankMe's eps counts there too
    p = [value + 1e-3 for value in (*p, 0, 0)]
    by_hand = math.exp(-sum(value * math.log(value) for value in p))
    assert float(rankme(x, eps=1e-3)) == near(by_hand, 1e-6)


@pytest.mark.parametrize("measure", [effective_rank, rankme, stable_rank, participation_ratio,
                                     nesum])
def test_ranks_are_from_1_to_d(measure):
    assert float(measure(with_spectrum([1.0] * 8))) == near(8, 1e-4)
    assert float(measure(with_spectrum([5.0, 0, 0, 0]))) == near(1, 1e-4)
    for collapsed in (torch.zeros(9, 4), torch.ones(9, 4), torch.full((9, 4), 1e-20)):
        assert float(measure(collapsed)) == near(1, 1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.5])
def test_alpha_req_finds_a_power_law(alpha):
    index = torch.arange(1, 81, dtype=F64)
    x = with_spectrum(index ** (-alpha / 2))        # eigenvalues are squares
    assert float(alpha_req(x)) == near(alpha, 1e-8)
    assert float(alpha_req(3 * x + 7, first=2, last=80)) == near(alpha, 1e-8)


def test_alpha_req_depends_on_its_indices_alone():
    """From 11 to 50, inclusive."""
    index = torch.arange(1, 81, dtype=F64)
    values = index ** -0.5
    for place, matters in ((10, False), (11, True), (50, True), (51, False)):
        changed = values.clone()
        changed[place - 1] *= 1.01                  # stays between its neighbours
        moved = abs(float(alpha_req(with_spectrum(changed))) - 1)
        assert (moved > 1e-4) == matters, place
    with pytest.raises(ValueError, match="> 50 rows"):      # as uniformity.py expects
        alpha_req(noise(50, 60))


def test_lidar_against_a_generalised_eigenvalue_problem():
    """Eigenvalues of Σ_w⁻¹ Σ_b; loops instead of matrix products."""
    images, views, d = 12, 5, 4
    x = 2 * noise(images, 1, d) + noise(images, views, d, seed=1) * torch.tensor([0.1, 1, 3, 0.5])
    mean_of_all = x.mean((0, 1))
    between, within = torch.zeros(d, d, dtype=F64), torch.zeros(d, d, dtype=F64)
    for image in x:
        mean = image.mean(0)
        between += torch.outer(mean - mean_of_all, mean - mean_of_all) / (images - 1)
        for view in image:
            within += torch.outer(view - mean, view - mean) / (images * (views - 1))
    within += 1e-2 * torch.eye(d, dtype=F64)
    eigenvalues = torch.linalg.eigvals(torch.linalg.solve(within, between)).real
    p = eigenvalues / eigenvalues.sum()
    by_hand = (-(p * p.log()).sum()).exp()
    assert float(lidar(x, delta=1e-2)) == near(float(by_hand), 1e-8)


def test_lidar_counts_the_directions_that_tell_images_apart():
    informative = noise(300, 1, 3).expand(-1, 8, -1)
    x = torch.cat([informative, noise(300, 8, 5, seed=1)], 2)       # and five of noise alone
    assert 2.5 < float(lidar(x)) < 3.5
    assert float(lidar(torch.ones(5, 3, 4))) == near(1)             # collapsed
    assert float(lidar(noise(4, 3, 60).float())) < 3.1              # n − 1
    assert lidar(noise(4, 3, 6) * math.nan).isnan()


@pytest.mark.parametrize("n", [40, 8])      # products of features, and of samples
def test_linear_cka(n):
    x, y = noise(n, 10), noise(n, 12, seed=1)
    assert float(linear_cka(x, x @ torch.linalg.qr(noise(10, 10))[0] * 3 + 5)) == near(1)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    k, m = centred_x @ centred_x.T, centred_y @ centred_y.T
    assert float(linear_cka(x, y)) == near(float((k * m).sum() / (k.norm() * m.norm())))
    assert float(linear_cka(x, torch.ones(n, 3))) == 0
    q = orthonormal(50, 6)
    assert float(linear_cka(q[:, :3], q[:, 3:])) == near(0)         # nothing in common


# --- precision, size, invariances -------------------------------------------------------------

def test_spectra_of_float32_are_exact():
    """Over six decades, against float64's singular values."""
    x = with_spectrum(torch.logspace(0, -6, 40, dtype=F64), n=100).float()
    oracle = torch.linalg.svdvals(x.double())
    assert torch.allclose(singular_values(x), oracle, rtol=1e-4, atol=1e-9)
    p = oracle / oracle.sum()
    assert float(effective_rank(x)) == near(float((-(p * p.log()).sum()).exp()), 1e-7)


@pytest.mark.parametrize("measure", [effective_rank, rankme, stable_rank, participation_ratio,
                                     nesum, alpha_req, uniformity])
def test_order_rotation_and_scale_do_not_matter(measure):
    x = noise(120, 60) * torch.linspace(0.2, 2, 60) + 0.1
    value = float(measure(x))
    rotation = torch.linalg.qr(noise(60, 60, seed=2))[0]
    for changed in (x.flip(0), x @ rotation, 1e-3 * x):
        assert float(measure(changed)) == near(value, 1e-6)
    x[3, 5] = math.nan
    assert measure(x).isnan()


def test_uniformity_in_pieces_is_uniformity(monkeypatch):
    x = noise(50, 6)
    unit = x / x.norm(dim=1, keepdim=True)
    pairs = [(-2 * (unit[i] - unit[j]).square().sum()).exp() for i in range(50) for j in range(i)]
    by_hand = float(torch.stack(pairs).mean().log())
    for piece in (7, 50, 1024):
        monkeypatch.setattr(metrics, "PIECE", piece)
        assert float(uniformity(x)) == near(by_hand)


@pytest.mark.parametrize("piece", [7, 1024])
def test_representation_metrics_are_those_functions(piece, monkeypatch):
    """They share spectra and kernels, but must equal the public functions."""
    monkeypatch.setattr(metrics, "PIECE", piece)
    r, z = noise(80, 60).relu(), noise(80, 70, seed=1) * 3
    columns = representation_metrics(r, z)
    for name, x in (("r", r), ("z", z)):
        by_function = {
            "erank": effective_rank, "rankme": rankme, "stable_rank": stable_rank,
            "participation": participation_ratio, "nesum": nesum, "alpha_req": alpha_req,
            "eigs": metrics.eigenvalue_count, "var30": metrics.explained_variance,
            "uniformity": uniformity,
        }
        for column, function in by_function.items():
            assert columns[f"{column}_{name}"] == near(float(function(x))), column
        assert columns[f"h2_{name}"] == near(float(renyi_entropy(cosine_kernel(x))))
    assert columns["cka"] == near(float(linear_cka(r, z)))
    assert columns["mi"] == near(float(metrics.mutual_information(r, z)))
    assert "alpha_req_r" not in representation_metrics(r[:, :40], z)        # too few eigenvalues


# --- NumPy arrays -----------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_numpy_arrays_give_the_tensors_results(dtype):
    r, z = noise(80, 60, dtype=dtype), noise(80, 60, seed=1, dtype=dtype)
    y = torch.arange(80, dtype=torch.int32) % 4
    assert representation_metrics(r.numpy(), z.numpy()) == representation_metrics(r, z)
    for measure in (effective_rank, uniformity, singular_values):
        assert torch.equal(measure(r.numpy()), measure(r))
    assert lidar(r.view(20, 4, 60).numpy()) == lidar(r.view(20, 4, 60))
    mixed = metrics.knn_accuracy(r.numpy(), y.numpy(), z, y)
    assert mixed == metrics.knn_accuracy(r, y, z, y)
