"""Tests of simulate.py: its functions against closed forms, and the script itself.

    python -m pytest -q test_simulate.py
"""
import csv
import math
import sys

import pytest
import torch

import simulate
from simulate import blobs, bound_terms, gaussian_mutual_information, log_determinants, pca, shows, standardise

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_covariance(sigma, n=400):
    """n samples whose covariance is sigma exactly."""
    x = torch.randn(n, len(sigma), generator=generator(), dtype=F64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x @ torch.linalg.cholesky(sigma).T


def test_information_of_correlated_pairs():
    """d independent pairs with correlation ρ: I = −d/2 · log(1 − ρ²); ε on the diagonals makes it ρ / (1 + ε)."""
    d = 3
    for rho in (0.0, 0.5, 0.9):
        eye = torch.eye(d, dtype=F64)
        x = with_covariance(torch.cat([torch.cat([eye, rho * eye], 1), torch.cat([rho * eye, eye], 1)]))
        r, z = x[:, :d], x[:, d:]
        assert float(gaussian_mutual_information(r, z, 0)) == pytest.approx(-d / 2 * math.log(1 - rho ** 2), abs=1e-9)
        assert float(gaussian_mutual_information(r, z, 0.1)) == pytest.approx(-d / 2 * math.log(1 - (rho / 1.1) ** 2), abs=1e-9)
        mixed = r @ torch.randn(d, d, generator=generator(), dtype=F64)     # no invertible map changes it
        assert float(gaussian_mutual_information(mixed, z, 0)) == pytest.approx(-d / 2 * math.log(1 - rho ** 2), abs=1e-9)


def test_information_is_schurs_complement_and_batched():
    r = torch.randn(4, 50, 5, generator=generator(), dtype=F64)
    z = r[..., :2] + torch.randn(4, 50, 2, generator=generator(1), dtype=F64)
    for i, found in enumerate(gaussian_mutual_information(r, z, 0.01)):
        sigma = torch.cov(torch.cat([r[i], z[i]], 1).T) + 0.01 * torch.eye(7, dtype=F64)
        a, b, c = sigma[:5, :5], sigma[:5, 5:], sigma[5:, 5:]
        assert float(found) == pytest.approx(0.5 * math.log(a.det() / (a - b @ c.inverse() @ b.T).det()), abs=1e-9)
    log_r, log_z, log_joint = log_determinants(r, z)        # Equation 3's terms: H(R|Z) = H(R, Z) − H(Z)
    assert torch.allclose(sum(bound_terms(r, z).values()), 0.5 * (log_joint - log_z) + 2.5 * math.log(2 * math.pi * math.e))


def test_pca():
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator(), dtype=F64))[0]
    x = with_covariance(basis @ torch.diag(torch.tensor([9.0, 4, 1, 0.25], dtype=F64)) @ basis.T) + 100
    z = pca(x, 2)
    assert torch.allclose(torch.cov(z.T), torch.diag(torch.tensor([9.0, 4], dtype=F64)), atol=1e-9)
    assert torch.allclose(z.abs(), ((x - x.mean(0)) @ basis[:, :2]).abs(), atol=1e-8)
    batched = torch.stack([x, 2 * x])
    assert torch.allclose(pca(batched, 3)[1].abs(), 2 * pca(x, 3).abs(), atol=1e-8)


def test_blobs():
    x = blobs(1003, 6, 0.5, centers=4, draws=3, generator=generator())
    assert x.shape == (3, 1003, 6) and torch.equal(x, blobs(1003, 6, 0.5, 4, 3, generator()))
    assert not torch.equal(x, blobs(1003, 6, 0.5, 4, 3, generator(1)))
    for draw in x:
        clusters = [draw[i::4] for i in range(4)]
        assert all(abs(float((c - c.mean(0)).std()) - 0.5) < 0.03 for c in clusters)
        assert all(c.mean(0).abs().max() < 10.2 for c in clusters)
    centres = blobs(2000, 50, 0, centers=2000, generator=generator())       # uniform in [−10, 10]: variance 100 / 3
    assert abs(float(centres.var()) - 100 / 3) < 1 and centres.abs().max() <= 10
    y = standardise(x)
    assert torch.allclose(y.mean(1), torch.zeros(3, 6, dtype=F64), atol=1e-12)
    assert torch.allclose(y.var(1, correction=0), torch.ones(3, 6, dtype=F64))


def test_claims_can_fail():
    assert shows("rising", [1, 2, 3]) and not shows("rising", [1, 3, 2]) and not shows("rising", [1, 1, 1])
    assert shows("falling", [3, 2, 1]) and not shows("falling", [3, 1, 2]) and not shows("falling", [1, 1])
    level = "rising, then level"
    assert shows(level, [0, 5, 9, 10, 10, 10, 10, 10, 10, 10])
    assert not shows(level, [0, 1, 2, 3, 4, 5, 6, 7, 8, 20])        # still rising
    assert not shows(level, [0, 9, 10, 9, 7, 5, 4, 3, 2, 2])        # fallen back
    assert not shows(level, [5, 5, 5, 5, 5, 5])


@pytest.mark.parametrize("call", [
    lambda: blobs(0, 2, 1), lambda: blobs(5, 2, -1), lambda: blobs(5, 2, 1, draws=0),
    lambda: pca(torch.randn(5, 3), 4), lambda: pca(torch.randn(5, 3), 0),
    lambda: gaussian_mutual_information(torch.randn(5, 3), torch.randn(4, 3)),
    lambda: gaussian_mutual_information(torch.randn(1, 3), torch.randn(1, 3)),
    lambda: gaussian_mutual_information(torch.randn(5, 3), torch.randn(5, 3), -1),
])
def test_bad_arguments_raise_value_error(call):
    with pytest.raises(ValueError):
        call()


def run(*flags):
    try:
        simulate.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code
    return 0


def test_script_shows_figure_2s_trends(tmp_path, capsys, monkeypatch):
    for part in ("features", "variance"):
        assert run(part, "--draws", 4, "--out", tmp_path) == 0
    assert "NO" not in capsys.readouterr().out
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("figure2_features", "figure2_variance", "figure10"))
    with open(tmp_path / "figure2_variance.csv") as file:
        rows = list(csv.DictReader(file))
    ten, two = ([float(row["mean"]) for row in rows if row["panel"].startswith(letter)] for letter in "cd")
    # SPEC's trial, at deviations 0.1, 1, 8, 32
    assert [ten[i] for i in (0, 3, 7, 11)] == pytest.approx([11.4, 16.3, 21.0, 20.4], rel=0.05)
    assert [two[i] for i in (0, 3, 7, 11)] == pytest.approx([5.98, 5.95, 5.00, 4.19], rel=0.05)

    monkeypatch.setitem(sys.modules, "matplotlib", None)        # without matplotlib: the same CSV, and a line about the figures
    assert run("variance", "--draws", 4, "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "figure2_variance.csv").read_text() == (tmp_path / "figure2_variance.csv").read_text()
    assert "pip install matplotlib" in capsys.readouterr().out and not list((tmp_path / "again").glob("*.png"))


def test_script_says_when_a_trend_is_missing(tmp_path, capsys):
    # one cluster has no structure for its spread to wash out: standardised, nothing changes with the deviation
    assert run("variance", "--draws", 2, "--centers", 1, "--out", tmp_path) == 1
    assert "NO " in capsys.readouterr().out


def test_terms_and_network_run(tmp_path):
    assert run("terms", "--draws", 2, "--out", tmp_path) == 0
    assert run("network", "--networks", 2, "--epochs", 6, "--samples", 251, "--out", tmp_path) in (0, 1)      # too short to show much
    with open(tmp_path / "figure11.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 and all(math.isfinite(float(row["mean"])) for row in rows)
    assert rows[0]["mean"] == rows[7]["mean"]       # both losses start from the same networks, which learn
    assert all(rows[i]["mean"] != rows[i + 1]["mean"] for i in (0, 7))


@pytest.mark.parametrize("flags", ["figure9", "--draws 0", "--draws many", "--components 30 2", "--epsilon 0", "--std -1",
                                   "--samples 1", "--seed 99999999999999999999", "--out {}/file/x", "--typo"])
def test_bad_input(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run("features", "--out", tmp_path / "out", *flags.format(tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not (tmp_path / "out").exists()
