"""Tests of figures.py and plumbing/results.py on made runs: tables, figures, names, bad input.

    python -m pytest -q tests/test_figures.py
"""
import csv
import json
import math
import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import figures
from plumbing import results
from tests.helpers import exit_status

COLUMNS = ("epoch", "loss", *results.SUMMARY)
FLAGS = {       # AdaDim as published
    "--method": "adadim", "--alpha": "ada", "--beta": 1e-4, "--mi-scale": "alpha",
    "--alpha-from": "z", "--alpha-every": 20, "--alpha-batches": 10, "--seed": 0, "--out": "runs/a",
    "--dataset": "shapes", "--width": 64, "--limit-train": None, "--baseline": False,
}
VICREG = FLAGS | {"--alpha": 0.0, "--beta": 0.0}
SIMCLR = FLAGS | {"--alpha": 1.0, "--beta": 0.0}
HALF = FLAGS | {"--alpha": 0.5, "--beta": 0.0}


# --- made runs ------------------------------------------------------------------------------------

def write_config(folder, flags=FLAGS):
    config = {"program": "train.py", "arguments": [], "flags": flags}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def write_log(folder, columns, cut_off=""):
    """A log.csv with these columns, {name: values}; None is an empty field."""
    lines = [",".join(columns)]
    for row in zip(*columns.values()):
        lines.append(",".join("" if value is None else str(value) for value in row))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + "\n" + cut_off)


def made_run(folder, flags, accuracy=50, rank=10, information=0.3, epochs=3, cut_off=""):
    """A run whose log ends with these values; its last epoch has no evaluation."""
    epoch = list(range(1, epochs + 1))
    columns = {name: [0.1 * e for e in epoch] for name in COLUMNS}
    columns["epoch"] = epoch
    columns["alpha"] = [0.5] * epochs
    ends = {"probe_top1": accuracy, "erank_r": rank, "erank_z": 2 * rank, "mi": information}
    for name, end in ends.items():
        columns[name] = [end / 2] * (epochs - 2) + [end, None]
    write_config(folder, flags)
    write_log(folder, columns, cut_off)


def run_figures(*arguments):
    return exit_status(figures.main, *arguments)


def read_table(path, key):
    """A table's rows as dicts, by their values in the column `key`."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


@pytest.fixture
def tables_alone(monkeypatch):
    """Skips drawing, which takes seconds."""
    for name in ("draw_dynamics", "draw_plane", "draw_relations", "draw_settings"):
        monkeypatch.setattr(figures, name, lambda *runs, **kind: None)
    monkeypatch.setattr(figures, "save", lambda figure, path: None)


@pytest.fixture
def four_runs(tmp_path):
    """VICReg twice, SimCLR and α 0.5, where accuracy is 10 + 2·rank and I(R;Z) falls with it.

    One log was cut off in the middle of a line.
    """
    made_run(tmp_path / "a", VICREG, 30, rank=10, information=0.4, epochs=3)
    made_run(tmp_path / "b", VICREG | {"--seed": 1, "--out": "runs/b"}, 50, rank=20,
             information=0.3, epochs=4, cut_off="4,1.5,0.2")
    made_run(tmp_path / "c", SIMCLR, 70, rank=30, information=0.2, epochs=5)
    made_run(tmp_path / "d", HALF, 90, rank=40, information=0.1, epochs=6)
    return [tmp_path / name for name in "abcd"]


# --- tables and figures ---------------------------------------------------------------------------

def test_correlations_of_made_runs(four_runs, tmp_path, tables_alone):
    assert run_figures(*four_runs, "--out", tmp_path / "out") == 0
    found = read_table(tmp_path / "out" / "correlations.csv", "quantity")
    assert found["effective rank of R"]["runs"] == "4"
    assert float(found["effective rank of R"]["r"]) == pytest.approx(1)
    assert float(found["I(R;Z)"]["r"]) == pytest.approx(-1)
    assert float(found["I(R;Z)"]["abs_r"]) == pytest.approx(1)

    accuracies = [30, 50, 70, 90]
    ratios = [10 / 0.4, 20 / 0.3, 30 / 0.2, 40 / 0.1]
    x = [ratio - sum(ratios) / 4 for ratio in ratios]
    y = [accuracy - sum(accuracies) / 4 for accuracy in accuracies]
    covariance = sum(a * b for a, b in zip(x, y))
    by_hand = covariance / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert float(found["effective rank of R / I(R;Z)"]["r"]) == pytest.approx(by_hand)


def test_an_evaluation_joins_its_runs_log(four_runs, tmp_path, capsys, tables_alone):
    """Its additional values are correlated; values that the log has too are the log's."""
    for folder, value in zip(four_runs, (4, 3, 2, 1)):
        evaluation = {"lidar_z": value, "knn_top1": -1, "lidar_r": None, "dataset": "shapes"}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    logs = [log for logs in results.read_runs(four_runs).values() for log in logs]
    assert sorted(log["lidar_z"][0] for log in logs) == [1, 2, 3, 4]
    assert all(log["knn_top1"][0] != -1 and "lidar_r" not in log for log in logs)
    assert run_figures(*four_runs, "--out", tmp_path / "out") == 0
    found = read_table(tmp_path / "out" / "correlations.csv", "quantity")
    assert abs(float(found["LiDAR of Z"]["r"])) > 0.9 and found["LiDAR of R"]["runs"] == "0"

    (four_runs[0] / "evaluation.json").write_text("[1, 2")
    capsys.readouterr()
    assert run_figures(*four_runs, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "evaluation.json holds no figures" in err and err.count("\n") == 1


def test_interval_of_a_correlation():
    """By Fisher's tables, r = 0.5 of 28 pairs is between 0.156 and 0.736."""
    low, high = results.interval(0.5, 28)
    assert (low, high) == (pytest.approx(0.156, abs=1e-3), pytest.approx(0.736, abs=1e-3))
    assert results.interval(-0.5, 28) == (pytest.approx(-high), pytest.approx(-low))
    assert results.interval(1.0, 10)[1] <= 1
    assert all(math.isnan(end) for end in results.interval(0.5, 3))


def test_summary_of_made_runs(four_runs, tmp_path, tables_alone):
    assert run_figures(*four_runs, "--out", tmp_path / "out") == 0
    rows = read_table(tmp_path / "out" / "summary.csv", "method")
    assert rows.keys() == {"VICReg", "SimCLR", "α 0.5"}
    vicreg = rows["VICReg"]
    assert vicreg["runs"] == "2"
    assert float(vicreg["probe_top1"]) == 40
    assert float(vicreg["probe_top1_std"]) == pytest.approx(10 * 2 ** 0.5)     # with n − 1
    assert float(vicreg["erank_z"]) == 30
    assert float(vicreg["alpha"]) == 0.5
    assert rows["α 0.5"]["probe_top1_std"] == ""                    # one run has none


def test_tables_for_print(four_runs, tmp_path, tables_alone, capsys):
    """Means with three digits, ± named, nothing for what is not there; in both formats."""
    assert run_figures(*four_runs, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    latex = (tmp_path / "out" / "summary.tex").read_text(encoding="utf-8")
    vicreg = next(line for line in text.splitlines() if line.startswith("| VICReg"))
    assert vicreg.split(" | ")[1:3] == ["2   ", "40.0 ± 14.1"]
    assert "±: the standard deviation over seeds" in text
    assert r"VICReg & 2 & 40.0 $\pm$ 14.1 & " in latex and r"$\alpha$ 0.5 & 1 & 90.0 & " in latex
    assert r"probe (\%)" in latex and "standard deviation" in latex
    out = capsys.readouterr().out
    assert text in out
    assert "nan" not in out.lower() + text + latex and "LiDAR" not in out

    assert run_figures(*four_runs, "--out", tmp_path / "out", "--spread", "ci") == 0
    half = 12.706 * 10 * 2 ** 0.5 / 2 ** 0.5            # t for one degree of freedom
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert f"40 ± {half:.0f}" in text and "95 % interval" in text


@pytest.mark.parametrize("mean, spread, text", [
    (34.25, 2.345, "34.2 ± 2.3"), (174.4, 132.2, "174 ± 132"), (0.0648, 0.0105, "0.0648 ± 0.0105"),
    (0.5, 0.0, "0.5"), (0.0, 0.0, "0"), (0.0, 0.5, "0.000 ± 0.500"), (-3.456, math.nan, "−3.46"),
    (math.nan, math.nan, "–"),
])
def test_means_with_spread(mean, spread, text):
    assert results.with_spread(mean, spread) == text


def test_quantiles_of_students_t():
    """From tables."""
    for freedom, quantile in ((1, 12.706), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)):
        assert results.t_quantile(freedom) == pytest.approx(quantile, abs=0.004)


def test_an_unfinished_run_is_marked_and_left_out(four_runs, tmp_path, tables_alone, capsys):
    made_run(tmp_path / "e", VICREG | {"--seed": 2, "--epochs": 20}, 99, rank=1, epochs=6)
    for folder, epochs in zip(four_runs, (3, 4, 5, 6)):
        flags = json.loads((folder / "config.json").read_text())["flags"]
        write_config(folder, flags | {"--epochs": epochs})
    runs = results.read_runs([*four_runs[:2], tmp_path / "e"])
    assert len(runs["VICReg, epochs 20 (seed 2: epoch 6 of 20)"]) == 1

    folders = [*four_runs, tmp_path / "e"]
    capsys.readouterr()
    assert run_figures(*folders, "--out", tmp_path / "out") == 0
    assert "e is unfinished, epoch 6 of 20: left out of means" in capsys.readouterr().out
    found = read_table(tmp_path / "out" / "correlations.csv", "quantity")
    assert found["effective rank of R"]["runs"] == "4"
    assert run_figures(*folders, "--out", tmp_path / "out", "--unfinished") == 0
    assert "counted like a finished run" in capsys.readouterr().out
    found = read_table(tmp_path / "out" / "correlations.csv", "quantity")
    assert found["effective rank of R"]["runs"] == "5"


def test_a_correlation_takes_three_runs(four_runs):
    runs = results.read_runs(four_runs[:2])
    assert all(math.isnan(row["r"]) for row in results.correlations(runs))


def test_figures_show_something(four_runs, tmp_path):
    assert run_figures(*four_runs, "--out", tmp_path, "--format", "png,pdf") == 0
    figures.draw_run(four_runs[0])
    assert (tmp_path / "plane.pdf").read_bytes().startswith(b"%PDF")
    drawn = [tmp_path / f"{name}.png" for name in ("dynamics", "plane", "accuracy")]
    assert not (tmp_path / "entropy.png").exists()      # no run has H₂
    for path in (*drawn, four_runs[0] / "dynamics.png"):
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.convert("L").getcolors(256)) > 20


def test_a_relation_says_its_correlation(four_runs):
    """Accuracy is 10 + 2·rank in the made runs; one without the column is left out."""
    runs = results.read_runs(four_runs)
    del runs["SimCLR"][0]["erank_r"]
    axis, hidden = figures.draw_relations(runs, [("erank_r", "probe_top1"), ("nothing", "mi")]).axes
    assert not hidden.get_visible()
    assert axis.get_title() == "Pearson's r 1.00, 3 runs"       # no interval of so few
    assert axis.names == {"VICReg": [15, 40], "α 0.5": [40, 90]}


def test_a_methods_mean_has_a_band_and_its_runs_are_faint(four_runs):
    """Over the epochs at which all of its runs have a value; the second run was cut off."""
    runs = results.read_runs(four_runs[:2])
    axis = Figure().subplots()
    figures.draw_lines(axis, runs["VICReg"], "erank_r", "-", "red", "std")
    mean, *single = axis.lines
    assert list(mean.get_xdata()) == [1, 2] and list(mean.get_ydata()) == [7.5, 10]
    assert [line.get_alpha() for line in single] == [0.25, 0.25]
    band = axis.collections[0].get_datalim(axis.transData)
    assert (band.y0, band.y1) == pytest.approx((7.5 - 12.5 ** 0.5, 7.5 + 12.5 ** 0.5))
    assert list(single[1].get_xdata()) == [1, 2, 3]


def test_what_no_run_has_is_not_drawn(four_runs):
    panels = {"a": {"one": "erank_r", "other": "nothing"}, "b": {"": "nothing"}}
    figure = figures.draw_dynamics(results.read_runs(four_runs[:1]), panels)
    axis, *others = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one"]
    assert not any(other.get_visible() for other in others)
    figure.draw_without_rendering()
    assert all(tick == round(tick) for tick in axis.get_xticks())


def test_names_at_points_do_not_cover_each_other():
    axis = figures.new_figure(6, 4).subplots()
    axis.names = {f"method {i}": (i % 3 / 20, i // 3 / 20) for i in range(9)}
    axis.set(xlim=(-1, 3), ylim=(-1, 3))
    figure = figures.add_names(axis.figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axis.texts]     # without lines
    assert [text.get_text() for text in axis.texts] == list(axis.names)
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)         # itself


def test_accuracy_for_each_value_of_a_flag(tmp_path):
    """Figure 17: two seeds of 60 epochs, one of 150; a flag that never differs is left out."""
    made_run(tmp_path / "a", FLAGS | {"--epochs": 60}, 30, epochs=60)
    made_run(tmp_path / "b", FLAGS | {"--epochs": 60, "--seed": 1}, 40, epochs=60)
    made_run(tmp_path / "c", FLAGS | {"--epochs": 150}, 45, epochs=150)
    made_run(tmp_path / "d", VICREG | {"--epochs": 150}, 20, epochs=150)
    folders = [tmp_path / name for name in "abcd"]
    settings = results.differing_flags(*results.read_folders(folders))
    assert settings == {"--epochs": {"AdaDim": {60: [30, 40], 150: [45]}, "VICReg": {150: [20]}}}

    axis = Figure().subplots()
    figures.draw_setting(axis, settings["--epochs"], {"AdaDim": "red", "VICReg": "blue"})
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["60", "150"]
    adadim, vicreg = axis.containers
    assert list(adadim.lines[0].get_ydata()) == [35, 45]
    assert list(vicreg.lines[0].get_ydata()) == [20]
    assert run_figures(*folders, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "settings.png").stat().st_size > 5000


def test_a_flag_that_one_run_was_not_given_has_a_place_among_its_values(tmp_path):
    made_run(tmp_path / "some", FLAGS | {"--limit-train": 256})
    made_run(tmp_path / "all", FLAGS)
    settings = results.differing_flags(*results.read_folders([tmp_path / "some", tmp_path / "all"]))
    axis = Figure().subplots()
    figures.draw_setting(axis, settings["--limit-train"], {"AdaDim": "red"})
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["256", "default"]


def test_values_of_a_flag_are_in_their_order():
    values = ["sgd", 150, 0.05, "20", None]
    assert sorted(values, key=figures.numbers_first) == [0.05, "20", 150, None, "sgd"]


def test_logs_of_other_lengths_and_columns(tmp_path):
    made_run(tmp_path / "whole", FLAGS)
    write_config(tmp_path / "other", FLAGS | {"--method": "other"})     # logs no metrics
    write_log(tmp_path / "other", {"epoch": [1, 2], "probe_top1": [20, 30]})
    folders = [tmp_path / "whole", tmp_path / "other"]
    assert run_figures(*folders, "--out", tmp_path / "out") == 0
    rows = read_table(tmp_path / "out" / "summary.csv", "method")
    assert rows.keys() == {"AdaDim", "other"}
    assert float(rows["other"]["probe_top1"]) == 30
    assert rows["other"]["mi"] == ""
    assert (tmp_path / "out" / "plane.png").stat().st_size > 5000


def test_without_matplotlib_the_tables_are_written(four_runs, tmp_path, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_figures(*four_runs, "--out", tmp_path / "out") == 0
    assert "pip install matplotlib" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"summary.csv", "summary.md", "summary.tex", "correlations.csv"}


def test_unfinished_folders_are_left_out(tmp_path, capsys):
    made_run(tmp_path / "whole", FLAGS)
    write_config(tmp_path / "begun")
    write_log(tmp_path / "begun", {name: [] for name in COLUMNS})
    write_log(tmp_path / "unknown", {"epoch": [1], "mi": [0.2]})
    write_config(tmp_path / "failed")
    names = ("whole", "begun", "unknown", "failed")
    runs = results.read_runs([tmp_path / name for name in names])
    assert {name: len(logs) for name, logs in runs.items()} == {"AdaDim": 1}
    out = capsys.readouterr().out
    assert "begun has no epoch yet: left out" in out
    assert "unknown holds no config.json: left out" in out
    assert "failed holds no log.csv: left out" in out


# --- choosing without labels ----------------------------------------------------------------------

def test_points_lost_by_choosing_without_labels(tmp_path, capsys):
    """Two seeds of two methods, of which seed 1 has a single run that can be compared."""
    ranks = {"a": [1, 3, 2], "b": [2, 4, 6]}
    accuracies = {"a": [10, 20, 50], "b": [10, 30, 20]}
    alphas = {"a": [3, 1.25, 0.5], "b": [0.9, 1.2, 2]}
    for name, flags in (("a", VICREG), ("b", SIMCLR)):
        write_config(tmp_path / name, flags)
        write_log(tmp_path / name, {"epoch": [1, 2, 3], "probe_top1": accuracies[name],
                                    "erank_r": ranks[name], "mi": [0.5, 0.25, 0],
                                    "alpha_req_z": alphas[name]})
    write_config(tmp_path / "c", VICREG | {"--seed": 1})
    write_log(tmp_path / "c", {"epoch": [1, 2], "probe_top1": [None, 40], "erank_r": [None, 1]})
    assert run_figures(*(tmp_path / name for name in "abc"), "--choose") == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("| "):
            name, epoch, run = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = (epoch, run)
    half = {half: 12.706 * half for half in (5, 10)}        # of the interval of two values
    assert rows["labels: accuracy (%)"] == (f"40.0 (0.0 … {40 + half[10]:.1f}), 2 runs",
                                            "50.0, 1 seed")
    assert rows["the last epoch"] == (f"5.0 (0.0 … {5 + half[5]:.1f}), 2 runs", "–")
    assert rows["highest effective rank of R"] == (f"20.0 (0.0 … {20 + half[10]:.1f}), 2 runs",
                                                   "30.0, 1 seed")
    assert rows["chance"][1] == "15.0, 1 seed"
    assert rows["lowest I(R;Z)"][0] == rows["the last epoch"][0]        # it falls in every run
    assert rows["closest-to-1 α-ReQ of Z"] == (f"25.0 (0.0 … {25 + half[5]:.1f}), 2 runs",
                                               "0.0, 1 seed")
    # the ratio is not known at the third epoch, whose I(R;Z) is 0
    assert rows["highest effective rank of R / I(R;Z)"][0] == "0.0 (0.0 … 0.0), 2 runs"
    assert "highest LiDAR of R" not in rows


def test_nothing_to_choose_from(tmp_path, capsys):
    write_config(tmp_path / "a")
    write_log(tmp_path / "a", {"epoch": [1, 2], "probe_top1": [None, 40], "erank_r": [None, 1]})
    assert run_figures(tmp_path / "a", "--choose") == 2
    assert "--choose: no run has accuracies at two epochs" in capsys.readouterr().err


# --- names and colours ----------------------------------------------------------------------------

@pytest.mark.parametrize("changes, expected", [
    ({}, "AdaDim"),
    ({"--beta": 0.0}, "AdaDim, β 0"),
    ({"--beta": 0.0, "--mi-scale": "1"}, "AdaDim, β 0"),        # m multiplies 0
    ({"--beta": -1.0}, "AdaDim, β −1"),
    ({"--beta": -1e-4, "--mi-scale": "1"}, "AdaDim, β −0.0001, m 1"),
    ({"--mi-scale": "1"}, "AdaDim, m 1"),
    ({"--alpha-from": "r"}, "AdaDim, α from R"),
    ({"--alpha": 0, "--beta": 0}, "VICReg"),
    ({"--alpha": 1.0, "--beta": 0.0}, "SimCLR"),
    ({"--alpha": 0.5, "--beta": 0.0}, "α 0.5"),
    ({"--alpha": "linear", "--beta": 0.0}, "α linear"),
    ({"--alpha": "cosine", "--beta": 0.01}, "α cosine, β 0.01"),
    ({"--alpha": 1.0, "--mi-scale": "1"}, "SimCLR + I(R;Z)"),
    ({"--alpha": 0.0, "--mi-scale": "1"}, "VICReg + I(R;Z)"),
    ({"--alpha": 0.0, "--beta": 0.01, "--mi-scale": "1"}, "VICReg + I(R;Z), β 0.01"),
    ({"--method": "byol", "--beta": 0.0, "--mi-scale": "1"}, "BYOL"),
    ({"--method": "byol", "--mi-scale": "1"}, "BYOL + I(R;Z)"),
    ({"--method": "byol", "--beta": -1.0, "--mi-scale": "1"}, "BYOL + I(R;Z), β −1"),
])
def test_label(changes, expected):
    assert results.label(FLAGS | changes) == expected


def test_labels_say_in_which_flags_runs_differ():
    narrow = FLAGS | {"--width": 8, "--seed": 3, "--out": "runs/b"}
    assert results.labels([FLAGS, narrow]) == ["AdaDim, width 64", "AdaDim, width 8"]
    assert results.labels([narrow, narrow | {"--seed": 4}]) == ["AdaDim", "AdaDim"]
    few = FLAGS | {"--limit-train": 100, "--baseline": True}        # which trains no other encoder
    assert results.labels([FLAGS, few]) == ["AdaDim", "AdaDim, limit-train 100"]
    spread = FLAGS | {"--w2-weight": "0.5", "--lu-weight": "0"}
    plain = FLAGS | {"--w2-weight": "0", "--lu-weight": "0"}
    assert results.labels([spread, plain]) == ["AdaDim, W₂ 0.5", "AdaDim"]
    # --alpha-every has no effect unless α is measured
    often = FLAGS | {"--alpha-every": 5}
    assert results.labels([FLAGS, often, VICREG]) == [
        "AdaDim, alpha-every 20", "AdaDim, alpha-every 5", "VICReg"]
    assert results.labels([often, VICREG]) == ["AdaDim", "VICReg"]


def test_methods_own_defaults_are_not_spelled():
    """They are named only if they differ between runs of one method."""
    adadim = FLAGS | {"--lr": 0.4, "--set": None}
    byol = FLAGS | {"--method": "byol", "--lr": 1.0, "--set": {"momentum": 0.99, "predictor": "8"}}
    slow = byol | {"--lr": 0.5}
    steady = byol | {"--set": {"momentum": 0.9, "predictor": "8"}}
    assert results.labels([adadim, byol]) == ["AdaDim", "BYOL"]
    assert results.labels([adadim, byol, slow]) == ["AdaDim", "BYOL, lr 1", "BYOL, lr 0.5"]
    assert results.labels([byol, steady]) == ["BYOL, momentum 0.99", "BYOL, momentum 0.9"]
    assert results.labels([adadim, byol | {"--width": 8}]) == ["AdaDim, width 64", "BYOL, width 8"]


def test_colours_tell_methods_apart():
    """The paper's methods keep theirs, whatever else is drawn."""
    few = figures.colours(["VICReg", "AdaDim, β 0", "α 0.4"])
    others = [f"method {i}" for i in range(len(figures.FREE_COLOURS))]
    settings = ["AdaDim", "AdaDim, width 8", "AdaDim, β 0, width 8", "method 1, width 8",
                "AdaDim (seed 1: epoch 3 of 9)"]
    many = figures.colours([*others, "VICReg", "SimCLR", "α 0.4", "α 0.6", "AdaDim, β 0",
                            *settings])
    assert all(few[name] == many[name] for name in few)
    assert len(set(map(str, many.values()))) == len(many)
    assert len(figures.colours([*others, "one more"])) == len(others) + 1


# --- bad input ------------------------------------------------------------------------------------

ONE_EPOCH = "epoch\n1\n"
NO_LOG, NO_CONFIG = "not the log of a run", "not the configuration of a run"


@pytest.mark.parametrize("log, config, words", [        # flags, or the file's text
    (None, None, "there is no folder"),
    ("loss\n1\n2\n", None, NO_LOG),
    ("epoch\none\n", None, NO_LOG),
    ("", None, NO_LOG),
    ("epoch,größe\n1,2\n".encode("latin-1"), FLAGS, NO_LOG),
    ("epoch,mi\n1,1e308\n", FLAGS, "a value beyond 1e+30"),
    ("epoch\n1\n3\n", None, "its epochs are not 1, 2, 3"),
    ("epoch\n", FLAGS, "nothing to draw"),
    (ONE_EPOCH, None, "nothing to draw"),
    (ONE_EPOCH, "{", NO_CONFIG),
    pytest.param(ONE_EPOCH, "[" * 10 ** 5, NO_CONFIG, id="deep"),
    (ONE_EPOCH, {"--alpha": 0.5}, NO_CONFIG),
    (ONE_EPOCH, FLAGS | {"--alpha": [0.5]}, NO_CONFIG),
    (ONE_EPOCH, FLAGS | {"--beta": 10 ** 400}, NO_CONFIG),
    (ONE_EPOCH, FLAGS | {"--method": 7}, NO_CONFIG),
    (ONE_EPOCH, FLAGS | {"--alpha": "\ud800"}, NO_CONFIG),
])
def test_bad_runs(log, config, words, tmp_path, capsys):
    run = tmp_path / "run"
    if log is not None:
        run.mkdir()
        (run / "log.csv").write_bytes(log if isinstance(log, bytes) else log.encode())
    if isinstance(config, dict):
        write_config(run, config)
    elif config is not None:
        (run / "config.json").write_text(config)
    assert run_figures(run, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
