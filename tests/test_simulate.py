"""Tests of simulate.py: its functions against closed forms, and the script.

    python -m pytest -q tests/test_simulate.py
"""
import math

import pytest
import torch

import simulate
from simulate import (blobs, bound_terms, gaussian_mutual_information, log_determinants, pca,
                      shows, standardize)
from tests.helpers import generator, randn

F64 = torch.float64


def with_covariance(sigma, n=400):
    """n samples with exactly the covariance sigma."""
    x = randn(n, len(sigma))
    x = x - x.mean(0)
    own = torch.linalg.cholesky(x.T @ x / (n - 1))
    white = x @ torch.linalg.inv(own).T
    return white @ torch.linalg.cholesky(sigma).T


def near(expected):
    return pytest.approx(expected, abs=1e-9)


# --- information ----------------------------------------------------------------------------

@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_information_of_correlated_pairs(rho):
    """d independent pairs with correlation ρ have I = −d/2 · log(1 − ρ²)."""
    d = 3
    expected = -d / 2 * math.log(1 - rho ** 2)
    eye = torch.eye(d, dtype=F64)
    sigma = torch.cat([torch.cat([eye, rho * eye], 1), torch.cat([rho * eye, eye], 1)])
    r, z = with_covariance(sigma).split(d, 1)
    assert float(gaussian_mutual_information(r, z, 0)) == near(expected)
    assert float(gaussian_mutual_information(r @ randn(d, d), z, 0)) == near(expected)

    # ε on the diagonals makes the correlation ρ / (1 + ε)
    expected = -d / 2 * math.log(1 - (rho / 1.1) ** 2)
    assert float(gaussian_mutual_information(r, z, 0.1)) == near(expected)


def test_terms_of_the_bound_add_up_to_the_conditional_entropy():
    """H(R|Z) = H(R, Z) − H(Z), in each of four draws."""
    r = randn(4, 50, 5)
    z = r[..., :2] + randn(4, 50, 2, seed=1)
    _, log_z, log_joint = log_determinants(r, z)
    entropy = 0.5 * (log_joint - log_z) + 5 / 2 * math.log(2 * math.pi * math.e)
    assert torch.allclose(sum(bound_terms(r, z).values()), entropy)


# --- data -----------------------------------------------------------------------------------

def test_pca():
    variances = torch.tensor([9.0, 4, 1, 0.25], dtype=F64)
    basis = torch.linalg.qr(randn(4, 4)).Q
    x = with_covariance(basis @ torch.diag(variances) @ basis.T) + 100

    z = pca(x, 2)
    expected = (x - x.mean(0)) @ basis[:, :2]
    assert torch.allclose(torch.cov(z.T), torch.diag(variances[:2]), atol=1e-9)
    assert torch.allclose(z.abs(), expected.abs(), atol=1e-8)       # signs are free


def test_blobs_have_their_spread_and_centres():
    x = blobs(1003, 6, 0.5, centers=4, draws=3, generator=generator())
    for draw in x:
        for i in range(4):
            cluster = draw[i::4]
            centre = cluster.mean(0)
            assert abs(float((cluster - centre).std()) - 0.5) < 0.03
            assert centre.abs().max() < 10.2

    centres = blobs(2000, 50, 0, centers=2000, generator=generator())
    assert abs(float(centres.var()) - 100 / 3) < 1          # uniform in [−10, 10]
    assert centres.abs().max() <= 10


def test_standardize():
    y = standardize(blobs(1003, 6, 0.5, centers=4, draws=3, generator=generator()))
    assert torch.allclose(y.mean(1), torch.zeros(3, 6, dtype=F64), atol=1e-12)
    assert torch.allclose(y.var(1, correction=0), torch.ones(3, 6, dtype=F64))


# --- claims ---------------------------------------------------------------------------------

def test_claims_can_fail():
    assert shows("rising", [1, 2, 3]) and shows("falling", [3, 2, 1])
    for means in ([1, 3, 2], [3, 1, 2], [1, 1, 1]):
        assert not shows("rising", means) and not shows("falling", means)
    level = "rising, then level"
    assert shows(level, [0, 5, 9, 10, 10, 10, 10, 10, 10, 10])
    assert not shows(level, [0, 1, 2, 3, 4, 5, 6, 7, 8, 20])        # still rising
    assert not shows(level, [0, 9, 10, 9, 7, 5, 4, 3, 2, 2])        # fallen back
    assert not shows(level, [0, 1, 3, 5, 6, 7, 8, 8, 10, 12])       # slower, but still rising
    assert not shows(level, [5, 5, 5, 5, 5, 5])


# --- the script -----------------------------------------------------------------------------

def test_raw_features_do_not_show_the_trends():
    """(c) does not level off; neither (d) nor Figure 10's difference falls."""
    missing = []
    for name, panels in simulate.variance_part(simulate.parse(["--draws", "4"])).items():
        raw = [panel | {"curves": panel["raw"]} for panel in panels if "raw" in panel]
        claims = simulate.check(name, raw)
        missing += [sentence.split(")")[0] for sentence, holds in claims.items() if not holds]
    assert missing == ["figure2, c", "figure2, d", "figure10, b"]


def test_all_parts_share_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulate, "FEATURES", (12, 20))
    monkeypatch.setattr(simulate, "DEVIATIONS", (32, 0.1))      # backwards: (d) rises
    flags = "--draws 2 --networks 1 --epochs 1 --out".split()
    simulate.main([*flags, str(tmp_path)])
    for name in ("figure2.png", "terms.png", "figure10.png", "figure11.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    out = capsys.readouterr().out
    assert all(panel in out for panel in ("figure2, a)", "figure2, b)", "NO   figure2, d)"))
    # §3.1: the term falls with more features; here ε holds it nearly still
    assert "NO   terms, a) more features (deviation 1), conditional variance" in out


def test_networks_start_equal_and_learn():
    args = simulate.parse("--networks 2 --epochs 2".split())
    panel, = simulate.network_part(args)["figure11"]
    simclr, vicreg = (values.mean(1) for values in panel["curves"].values())
    assert simclr[0] == vicreg[0]                               # of the same networks
    for curve in (simclr, vicreg):
        assert len(curve) == 3 and curve.isfinite().all()
        assert (curve.diff() != 0).all()
