"""Tests of figures.py on made runs and on the published ones: labels, tables, figures.

    python -m pytest -q tests/test_figures.py
"""
import csv
import json
import math
import re

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import figures
from metrics import pearson
from tests.helpers import ROOT, exit_status

PUBLISHED = ROOT / "docs" / "assets" / "runs"
COLUMNS = ("loss", "alpha", "probe_top1", "knn_top1", "erank_r", "erank_z", "mi")


# --- made runs ------------------------------------------------------------------------------------

def made_run(folder, accuracy, rank=10, information=0.3, epochs=3, **flags):
    """A run whose log ends with these values; its last epoch has no evaluation."""
    seed = int(folder.name.rpartition("-")[2])
    config = {"flags": {"--epochs": epochs, "--seed": seed, "--beta": 1e-4, "--lr": None}}
    config["flags"] |= {f"--{name}": value for name, value in flags.items()}
    columns = {name: [0.5] * epochs for name in COLUMNS}
    ends = {"probe_top1": accuracy, "erank_r": rank, "erank_z": 2 * rank, "mi": information}
    for name, end in ends.items():
        columns[name] = [end / 2] * (epochs - 2) + [end, ""]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "log.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", *columns])
        table.writerows(zip(range(1, epochs + 1), *columns.values()))
    return folder


@pytest.fixture
def four_runs(tmp_path):
    """VICReg twice, SimCLR and α 0.5, where accuracy is 10 + 2·rank and I(R;Z) falls with it."""
    return [made_run(tmp_path / "vicreg-seed-0", 30, 10, 0.4, epochs=3),
            made_run(tmp_path / "vicreg-seed-1", 50, 20, 0.3, epochs=4),
            made_run(tmp_path / "simclr-seed-0", 70, 30, 0.2, epochs=5),
            made_run(tmp_path / "alpha-0.5-seed-0", 90, 40, 0.1, epochs=6)]


def logs_of(*paths, only="*"):
    return figures.logs_by_label(figures.read_runs(paths, only))


# --- reading --------------------------------------------------------------------------------------

def test_a_runs_label_is_its_folders_name_without_the_seed(tmp_path):
    for name in ("a-seed-0", "a-1", "w2-30-seed-12"):
        made_run(tmp_path / name, 50)
    labels = [run.label for run in figures.read_runs(sorted(tmp_path.iterdir()))]
    assert sorted(labels) == ["a", "a", "w2-30"]


def test_runs_that_are_written_are_read_again(four_runs, tmp_path):
    """What another run does not log is NaN."""
    log = (four_runs[2] / "log.csv").read_text()
    (four_runs[2] / "log.csv").write_text(log.replace("knn_top1", "other"))
    runs = figures.read_runs(four_runs)
    figures.write_runs(tmp_path / "runs.csv", runs)
    again = figures.read_runs([tmp_path / "runs.csv"])
    assert [run[:2] for run in again] == [run[:2] for run in runs]
    for run, same in zip(runs, again):
        for column, values in same.log.items():
            expected = run.log.get(column, [math.nan] * len(values))
            assert values == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_labels_are_chosen_by_patterns(four_runs):
    assert list(logs_of(*four_runs, only="simclr,alpha-*")) == ["simclr", "alpha-0.5"]
    with pytest.raises(figures.BadInput, match="no run"):
        logs_of(*four_runs, only="sim")


def test_an_unfinished_run_is_left_out(four_runs, tmp_path, capsys):
    lines = (four_runs[3] / "log.csv").read_text().splitlines()
    (four_runs[3] / "log.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert list(logs_of(*four_runs)) == ["vicreg", "simclr"]
    assert "alpha-0.5-seed-0 is unfinished, epoch 5 of 6: left out" in capsys.readouterr().out


# --- tables ---------------------------------------------------------------------------------------

def test_summary_of_made_runs(four_runs):
    rows = {row[""]: row for row in figures.summary(logs_of(*four_runs))}
    assert list(rows) == ["vicreg", "simclr", "alpha-0.5"]
    assert rows["vicreg"]["runs"] == "2"
    assert rows["vicreg"]["probe (%)"] == "40 ± 14.1"               # with n − 1
    assert rows["vicreg"]["erank Z"] == "30 ± 14.1"
    assert rows["alpha-0.5"]["probe (%)"] == "90"                   # one run has no deviation


def test_correlations_of_made_runs(four_runs):
    rows = {row["accuracy and …"]: row for row in figures.correlations(logs_of(*four_runs))}
    assert rows["erank_r"]["r"] == "1.00" and rows["mi"]["r"] == "-1.00"
    assert rows["mi"]["runs"] == "4" and "cka" not in rows
    pairs = torch.tensor([[0.4 / 10, 30], [0.3 / 20, 50], [0.2 / 30, 70], [0.1 / 40, 90]])
    by_hand = torch.corrcoef(pairs.T)[0, 1]
    assert rows["mi_over_erank_r"]["r"] == f"{by_hand:.2f}"


def test_interval_of_a_correlation():
    """By Fisher's tables, r = 0.5 of 28 pairs is between 0.156 and 0.736."""
    x = torch.arange(28.0, dtype=torch.float64)
    x = (x - x.mean()) / (x - x.mean()).norm()
    noise = torch.sin(7 * x * 28)
    noise = noise - noise.mean() - (noise @ x) * x
    y = 0.5 * x + 0.75 ** 0.5 * noise / noise.norm()
    assert figures.correlation(torch.stack([x, y], 1)) == pytest.approx((0.5, 0.156, 0.736),
                                                                        abs=1e-3)
    assert all(map(math.isnan, figures.correlation(torch.rand(2, 2))))


def test_published_runs_give_the_published_numbers():
    """A few of docs/RESULTS.md's, from each study; accuracies over seeds, and correlations."""
    for study, only, expected in (
        ("short", "alpha-0.6", "38 ± 0.495"), ("short", "adadim-beta-1", "37 ± 0.594"),
        ("length", "adadim-epochs-150", "35.7 ± 3.28"),
        ("cifar100-proportions", "adadim-every-3", "28.9 ± 0.391"),
        ("uniformity", "moco_v2-second-recipe", "29.9 ± 0.233"),
    ):
        row, = figures.summary(logs_of(PUBLISHED / f"{study}.csv", only=only))
        assert row["probe (%)"].startswith(expected)
    logs = logs_of(PUBLISHED / "length.csv", only="*-epochs-150")
    rows = {row["accuracy and …"]: row for row in figures.correlations(logs)}
    assert rows["erank_r"]["r"] == "0.89" and rows["mi_over_erank_r"]["r"] == "-0.63"
    assert rows["mi"]["95 %"] == "-0.46 … 0.25" and rows["mi"]["runs"] == "30"


def test_table_18_decides_what_table_3s_ratio_is():
    """Pearson's |r| of accuracy with I(R;Z) / rank, in the rows that docs/PAPER.md prints."""
    paper = (ROOT / "docs" / "PAPER.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| .+, 1e-\d \| (.*) \| (.*) \| .* \| (.*) \|$", paper, re.M)
    assert len(lines) == 15
    # published are .462, .751 and .337: cut off, or rounded
    for cells, published in zip(zip(*lines), (0.462, 0.337, 0.751)):    # SimCLR, NNCLR, VICReg
        models = torch.tensor([[float(number) for number in cell.split(",")] for cell in cells])
        rank, information, accuracy = models.T
        assert abs(pearson(information / rank, accuracy)) == pytest.approx(published, abs=1e-3)
        assert abs(pearson(rank / information, accuracy)) != pytest.approx(published, abs=1e-3)


# --- figures --------------------------------------------------------------------------------------

def test_figures_show_something(four_runs, tmp_path):
    out = tmp_path / "out"
    assert exit_status(figures.main, *four_runs, "--out", out, "--format", "png,pdf") == 0
    figures.draw_run(four_runs[0])
    assert (out / "plane.pdf").read_bytes().startswith(b"%PDF")
    assert not (out / "entropy.png").exists()           # no run has H₂
    drawn = [out / f"{name}.png" for name in ("dynamics", "plane", "accuracy")]
    for path in (*drawn, four_runs[0] / "dynamics.png"):
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.convert("L").getcolors(256)) > 20
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "| vicreg | 2 | 40 ± 14.1 |" in text and "standard deviation" in text
    assert (out / "correlations.md").exists() and (out / "runs.csv").exists()


def test_a_labels_mean_has_a_band(four_runs):
    """Over the epochs at which all of its runs have a value."""
    axis = Figure().subplots()
    figures.draw_lines(axis, logs_of(*four_runs)["vicreg"], "erank_r", "-", "red")
    mean, = axis.lines
    assert list(mean.get_xdata()) == [1, 2] and list(mean.get_ydata()) == [7.5, 10]
    band = axis.collections[0].get_datalim(axis.transData)
    assert (band.y0, band.y1) == pytest.approx((7.5 - 12.5 ** 0.5, 7.5 + 12.5 ** 0.5))


def test_accuracy_for_each_value_of_a_flag(tmp_path):
    """Figure 17: two seeds of 60 epochs, one of 150."""
    folders = [made_run(tmp_path / "adadim-epochs-60-seed-0", 30, epochs=60),
               made_run(tmp_path / "adadim-epochs-60-seed-1", 40, epochs=60),
               made_run(tmp_path / "adadim-epochs-150-seed-0", 45, epochs=150),
               made_run(tmp_path / "vicreg-epochs-150-seed-0", 20, epochs=150)]
    settings = figures.accuracies_by_setting(logs_of(*folders))
    assert settings == {"epochs": {"adadim": {"60": [30, 40], "150": [45]},
                                   "vicreg": {"150": [20]}}}
    axis, = figures.draw_settings(settings).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["60", "150"]
    assert list(axis.containers[0].lines[0].get_ydata()) == [35, 45]


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert exit_status(figures.main, tmp_path) == 2
    err = capsys.readouterr().err
    assert "config.json" in err and err.count("\n") == 1
