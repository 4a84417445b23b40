"""Tests of uniformity.py: samples, properties, and that its checks can fail.

    python -m pytest -q tests/test_uniformity.py
"""
import math

import pytest
import torch

import metrics
import uniformity
from losses import wasserstein_uniformity
from tests.helpers import exit_status, generator

SMALL = {
    "densities": {"points": 20_000, "dimensions": (2, 8, 64)},
    "collapse": {"samples": 1000, "dimensions": (200,)},
    "dimension": {"samples": 600, "dimensions": (4, 16, 128, 512)},
    "cloning": {"samples": 300, "instances": 300},
}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs uniformity.py on small samples; returns its exit status."""
    monkeypatch.setattr(uniformity, "SIZES", SMALL)
    monkeypatch.setattr(uniformity, "TIMES", (1, 2, 4))

    def run(*arguments):
        return exit_status(uniformity.main, "--draws", 1, "--out", tmp_path, *arguments)
    return run


def test_samples():
    x = uniformity.unit_noise(50, 8, 0.25, generator())
    assert torch.allclose(x.norm(dim=1), torch.ones(50))
    assert (x[:, 6:] == 0).all() and (x[:, :6] != 0).all()


def test_distances_of_histograms_and_samples():
    p, q = torch.tensor([2999.0, 999.0]), torch.tensor([999.0, 2999.0])     # 1 is added to each
    assert uniformity.kl_divergence(p, q) == pytest.approx(0.5 * math.log(3))
    x = torch.tensor([3.0, 1.0, 2.0])
    assert uniformity.wasserstein_1d(x, x.flip(0) + 0.5) == pytest.approx(0.5)


def test_a_coordinate_of_a_circle_has_the_arcsines_density(monkeypatch):
    """At m = 2 the density is 1 / (π √(1 − x²))."""
    monkeypatch.setattr(uniformity, "SIZES", SMALL)
    panel = uniformity.densities_part(uniformity.parse([]))["densities"][0]
    assert panel["title"] == "m = 2"
    for x, density in zip(panel["at"], panel["curves"]["uniform on the sphere"], strict=True):
        if abs(x) < 0.7:
            assert float(density) == pytest.approx(1 / (math.pi * math.sqrt(1 - x * x)), rel=0.15)


def test_properties_of_measures_made_for_it():
    def of(measure):
        return list(uniformity.properties(measure, generator()).values())

    assert of(wasserstein_uniformity) == [True, True, True, True]
    assert of(metrics.uniformity) == [True, False, False, False]
    assert of(metrics.effective_rank) == [True, True, False, False]
    assert of(lambda x: x[0].count_nonzero() + 1000 * x[0, 0])[0] is False  # its order matters
    assert of(lambda x: (x == 0).float().mean()) == [True, True, False, True]   # dead features


def test_every_claim_is_shown_and_drawn(script, tmp_path, capsys):
    assert script() == 0
    out = capsys.readouterr().out
    assert "NO " not in out and out.count("\nyes ") > 25
    names = ("densities", "distances", "collapse", "dimension", "cloning", "means", "points")
    assert all((tmp_path / f"uniformity_{name}.png").stat().st_size > 10_000 for name in names)
    table = {line[:21].strip(): line[21:].split() for line in out.splitlines()}
    assert table["W2"] == ["yes"] * 4 and table["L_U"] == ["yes", "no", "no", "no"]


@pytest.mark.parametrize("part", ["collapse", "dimension", "cloning", "properties"])
@pytest.mark.parametrize("name, instead", [
    ("W2", metrics.uniformity),                             # lacks W2's properties
    ("L_U", wasserstein_uniformity),
])
def test_a_metric_without_its_properties_is_caught(script, monkeypatch, part, name, instead):
    monkeypatch.setitem(uniformity.MEASURES, name, instead)
    assert script(part) == 1
