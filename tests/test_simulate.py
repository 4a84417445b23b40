"""Tests of simulate.py: its functions against closed forms, and the script.

    python -m pytest -q tests/test_simulate.py
"""
import csv
import math

import pytest
import torch

import simulate
from plumbing.panels import shows
from simulate import (blobs, bound_terms, gaussian_mutual_information, log_determinants, pca,
                      standardise)
from tests.helpers import exit_status, generator, randn

F64 = torch.float64


def with_covariance(sigma, n=400):
    """n samples with exactly the covariance sigma."""
    x = randn(n, len(sigma))
    x = x - x.mean(0)
    own = torch.linalg.cholesky(x.T @ x / (n - 1))
    white = x @ torch.linalg.inv(own).T
    return white @ torch.linalg.cholesky(sigma).T


def near(expected, tolerance=1e-9):
    return pytest.approx(expected, abs=tolerance)


# --- information ----------------------------------------------------------------------------

@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_information_of_correlated_pairs(rho):
    """d independent pairs with correlation ρ have I = −d/2 · log(1 − ρ²)."""
    def closed_form(correlation):
        return -d / 2 * math.log(1 - correlation ** 2)

    d = 3
    eye = torch.eye(d, dtype=F64)
    sigma = torch.cat([torch.cat([eye, rho * eye], 1),
                       torch.cat([rho * eye, eye], 1)])
    x = with_covariance(sigma)
    r = x[:, :d]
    z = x[:, d:]
    assert float(gaussian_mutual_information(r, z, 0)) == near(closed_form(rho))

    # ε on the diagonals makes the correlation ρ / (1 + ε)
    assert float(gaussian_mutual_information(r, z, 0.1)) == near(closed_form(rho / 1.1))

    # invertible maps do not change it
    mixed = r @ randn(d, d)
    assert float(gaussian_mutual_information(mixed, z, 0)) == near(closed_form(rho))


def correlated_draws():
    """Four draws of R (4 × 50 × 5) and of Z (4 × 50 × 2), which is correlated with R."""
    r = randn(4, 50, 5)
    z = r[..., :2] + randn(4, 50, 2, seed=1)
    return r, z


def test_information_is_schurs_complement_and_batched():
    r, z = correlated_draws()
    found = gaussian_mutual_information(r, z, 0.01)
    assert found.shape == (4,)
    for i in range(4):
        sigma = torch.cov(torch.cat([r[i], z[i]], 1).T) + 0.01 * torch.eye(7, dtype=F64)
        sigma_r = sigma[:5, :5]
        sigma_rz = sigma[:5, 5:]
        sigma_z = sigma[5:, 5:]
        r_given_z = sigma_r - sigma_rz @ sigma_z.inverse() @ sigma_rz.T
        assert float(found[i]) == near(0.5 * math.log(sigma_r.det() / r_given_z.det()))


def test_terms_of_the_bound_add_up_to_the_conditional_entropy():
    """H(R|Z) = H(R, Z) − H(Z)."""
    r, z = correlated_draws()
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

    batched = pca(torch.stack([x, 2 * x]), 3)
    assert torch.allclose(batched[1].abs(), 2 * pca(x, 3).abs(), atol=1e-8)


def test_blobs_are_repeatable():
    x = blobs(1003, 6, 0.5, centers=4, draws=3, generator=generator())
    assert x.shape == (3, 1003, 6)
    assert torch.equal(x, blobs(1003, 6, 0.5, 4, 3, generator()))
    assert not torch.equal(x, blobs(1003, 6, 0.5, 4, 3, generator(1)))


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


def test_standardise():
    y = standardise(blobs(1003, 6, 0.5, centers=4, draws=3, generator=generator()))
    assert torch.allclose(y.mean(1), torch.zeros(3, 6, dtype=F64), atol=1e-12)
    assert torch.allclose(y.var(1, correction=0), torch.ones(3, 6, dtype=F64))


BAD_CALLS = {
    "no samples": lambda: blobs(0, 2, 1),
    "negative standard deviation": lambda: blobs(5, 2, -1),
    "no draws": lambda: blobs(5, 2, 1, draws=0),
    "too many components": lambda: pca(randn(5, 3), 4),
    "no components": lambda: pca(randn(5, 3), 0),
    "unequal samples": lambda: gaussian_mutual_information(randn(5, 3), randn(4, 3)),
    "one sample": lambda: gaussian_mutual_information(randn(1, 3), randn(1, 3)),
    "negative ε": lambda: gaussian_mutual_information(randn(5, 3), randn(5, 3), -1),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_bad_arguments_raise_value_error(bad):
    with pytest.raises(ValueError, match="expected"):
        BAD_CALLS[bad]()


# --- claims ---------------------------------------------------------------------------------

def test_rising_and_falling_can_fail():
    assert shows("rising", [1, 2, 3])
    assert not shows("rising", [1, 3, 2])
    assert not shows("rising", [1, 1, 1])
    assert shows("falling", [3, 2, 1])
    assert not shows("falling", [3, 1, 2])
    assert not shows("falling", [1, 1])


def test_rising_then_level_can_fail():
    level = "rising, then level"
    assert shows(level, [0, 5, 9, 10, 10, 10, 10, 10, 10, 10])
    assert not shows(level, [0, 1, 2, 3, 4, 5, 6, 7, 8, 20])        # still rising
    assert not shows(level, [0, 9, 10, 9, 7, 5, 4, 3, 2, 2])        # fallen back
    assert not shows(level, [0, 1, 3, 5, 6, 7, 8, 8, 10, 12])       # slower, but still rising
    assert not shows(level, [5, 5, 5, 5, 5, 5])


# --- the script -----------------------------------------------------------------------------

def run(*flags):
    return exit_status(simulate.main, *flags)


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_script_shows_the_trends_in_the_number_of_features(tmp_path, capsys):
    assert run("features", "--draws", 4, "--out", tmp_path) == 0
    assert "NO" not in capsys.readouterr().out
    assert (tmp_path / "figure2_features.png").stat().st_size > 10_000


def test_script_shows_the_trends_in_the_spread(tmp_path, capsys):
    """With raw features (c) does not level off; (d) and Figure 10's difference do not fall."""
    assert run("variance", "--draws", 4, "--out", tmp_path) == 0
    standardised, raw = capsys.readouterr().out.split("raw features, dashed")
    assert "NO" not in standardised
    for name in ("figure2_variance", "figure10"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    verdicts = [line.split(maxsplit=1) for line in raw.splitlines()[1:]]
    missing = [sentence.split(")")[0] for verdict, sentence in verdicts if verdict == "no"]
    assert missing == ["figure2_variance, c", "figure2_variance, d", "figure10, b"]
    assert len(verdicts) == 5

    # values from a trial with more draws, at standard deviations 0.1, 1, 8 and 32
    means = {}
    for row in rows_of(tmp_path / "figure2_variance.csv"):
        if float(row["clusters' standard deviation"]) in (0.1, 1, 8, 32):
            curve = (row["panel"][0], row["curve"])
            means.setdefault(curve, []).append(float(row["mean"]))
    ten_components = means["c", "25 features"]
    two_components = means["d", "25 features"]
    assert ten_components == pytest.approx([11.4, 16.3, 21.0, 20.4], rel=0.05)
    assert two_components == pytest.approx([5.98, 5.95, 5.00, 4.19], rel=0.05)
    ten_components = means["c", "25 features, raw"]
    two_components = means["d", "25 features, raw"]
    assert ten_components == pytest.approx([18.9, 30.1, 43.3, 55.2], rel=0.05)
    assert two_components == pytest.approx([9.3, 9.3, 9.6, 11.2], rel=0.05)


def test_figure_2_has_the_panels_of_both_parts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulate, "FEATURES", (12, 20))
    monkeypatch.setattr(simulate, "DEVIATIONS", (0.1, 32))
    flags = "--draws 2 --samples 100 --features 15 --networks 1 --epochs 1".split()
    assert run(*flags, "--out", tmp_path) in (0, 1)             # too few points to show much
    names = {path.stem for path in tmp_path.glob("*.csv")}
    assert names == {"figure2", "figure10", "terms", "figure11"}
    panels = [row["panel"][:2] for row in rows_of(tmp_path / "figure2.csv")]
    assert list(dict.fromkeys(panels)) == ["a)", "b)", "c)", "d)"]
    assert "figure2, a)" in capsys.readouterr().out


def test_script_says_when_a_trend_is_missing(tmp_path, capsys):
    # standardised samples of a single cluster are the same for every spread
    assert run("variance", "--draws", 2, "--centers", 1, "--out", tmp_path) == 1
    assert "NO " in capsys.readouterr().out


def test_terms_run(tmp_path):
    assert run("terms", "--draws", 2, "--out", tmp_path) == 0


def test_networks_start_equal_and_learn(tmp_path):
    flags = "network --networks 2 --epochs 6 --samples 251".split()
    assert run(*flags, "--out", tmp_path) in (0, 1)             # too short to show much
    means = {"SimCLR": [], "VICReg": []}
    for row in rows_of(tmp_path / "figure11.csv"):
        means[row["curve"]].append(float(row["mean"]))
    assert means["SimCLR"][0] == means["VICReg"][0]             # of the same networks
    for curve in means.values():
        assert len(curve) == 7
        assert all(math.isfinite(mean) for mean in curve)
        assert all(before != after for before, after in zip(curve, curve[1:]))


@pytest.mark.parametrize("flags", [
    "figure9", "--draws 0", "--components 30 2", "--epsilon 0", "--std -1", "--samples 1",
    "--batch-size 1025", "--seed 99999999999999999999", "--out {}/file/x",
])
def test_bad_input(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    flags = flags.format(tmp_path).split()
    assert run("features", "--out", tmp_path / "out", *flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
