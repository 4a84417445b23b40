"""Tests of what is made of many runs: metrics.py's main on made logs with known answers, and study.py.

    python -m pytest -q test_study.py
"""
import csv
import math
import sys

import pytest
from PIL import Image

import metrics
import study
from train import COLUMNS


def write_log(folder, columns, cut=""):
    """A log.csv with these columns (name → values, None for an empty field)."""
    folder.mkdir(parents=True)
    rows = [",".join(columns)] + [",".join("" if value is None else str(value) for value in row) for row in zip(*columns.values())]
    (folder / "log.csv").write_text("\n".join(rows) + "\n" + cut)


def made_run(folder, accuracy, rank, information, epochs=3, cut=""):
    """A whole log that ends with these values; the last epoch is one without evaluation."""
    values = {name: [0.1 * e for e in range(1, epochs + 1)] for name in COLUMNS}
    values |= {"epoch": list(range(1, epochs + 1)), "alpha": [0.5] * epochs}
    for name, end in (("probe_top1", accuracy), ("erank_r", rank), ("erank_z", 2 * rank), ("mi", information)):
        values[name] = [end / 2] * (epochs - 2) + [end, None]
    write_log(folder, values, cut)


def run(program, *flags):
    try:
        program.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code
    return 0


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_summary_and_correlations_of_made_logs(tmp_path, capsys):
    """Four runs: accuracy is 10 + 2·rank, so its r with the rank is 1; I falls as accuracy grows, r = −1; the ratio by hand."""
    for i, (rank, information) in enumerate(((10, 0.4), (20, 0.3), (30, 0.2), (40, 0.1))):
        folder = tmp_path / ("alpha-0-beta-0-seed-0", "alpha-0-beta-0-seed-1", "alpha-1-beta-0-seed-0", "mine")[i]
        made_run(folder, 10 + 2 * rank, rank, information, epochs=3 + i, cut="4,1.5,0.2" if i == 1 else "")     # cut off in mid-line
    assert run(metrics, *(folder for folder in sorted(tmp_path.iterdir())), "--out", tmp_path / "out") == 0

    found = {row["quantity"]: row for row in table(tmp_path / "out" / "correlations.csv")}
    assert float(found["effective rank of R"]["r"]) == pytest.approx(1) and found["effective rank of R"]["runs"] == "4"
    assert float(found["I(R;Z)"]["r"]) == pytest.approx(-1) and float(found["I(R;Z)"]["abs_r"]) == pytest.approx(1)
    ratios, accuracies = [25, 200 / 3, 150, 400], [30, 50, 70, 90]
    mx, my = sum(ratios) / 4, sum(accuracies) / 4
    by_hand = sum((x - mx) * (y - my) for x, y in zip(ratios, accuracies)) / math.sqrt(
        sum((x - mx) ** 2 for x in ratios) * sum((y - my) ** 2 for y in accuracies))
    assert float(found["effective rank of R / I(R;Z)"]["r"]) == pytest.approx(by_hand)

    rows = {row["method"]: row for row in table(tmp_path / "out" / "summary.csv")}
    assert rows.keys() == {"α 0, β 0", "α 1, β 0", "mine"}
    vicreg = rows["α 0, β 0"]
    assert vicreg["runs"] == "2" and float(vicreg["probe_top1"]) == 40 and float(vicreg["probe_top1_std"]) == 10
    assert float(vicreg["erank_z"]) == 30 and float(vicreg["alpha"]) == 0.5 and float(rows["mine"]["probe_top1_std"]) == 0
    for name in ("dynamics", "plane"):
        with Image.open(tmp_path / "out" / f"{name}.png") as figure:
            assert figure.width > 500 and len(figure.convert("L").getcolors(256)) > 20      # something is drawn


def test_logs_of_other_lengths_and_columns(tmp_path, capsys, monkeypatch):
    made_run(tmp_path / "whole", 50, 10, 0.3)
    write_log(tmp_path / "old", {"epoch": [1, 2], "probe_top1": [20, 30]})      # from before the other metrics
    write_log(tmp_path / "begun", {name: [] for name in COLUMNS})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(metrics, tmp_path / "whole", tmp_path / "old", tmp_path / "begun", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "begun has no epoch yet" in out and "pip install matplotlib" in out
    rows = {row["method"]: row for row in table(tmp_path / "out" / "summary.csv")}
    assert float(rows["old"]["probe_top1"]) == 30 and rows["old"]["mi"] == "nan" and rows.keys() == {"whole", "old"}
    monkeypatch.undo()
    assert run(metrics, tmp_path / "whole", tmp_path / "old", "--out", tmp_path / "drawn") == 0
    assert (tmp_path / "drawn" / "plane.png").stat().st_size > 5000


def test_methods_and_their_colours():
    assert metrics.method("alpha-ada-beta-minus-0.0001-mi-scale-1-seed-12") == "α ada, β −0.0001, m 1"
    assert metrics.method("cifar10-alpha_0.5-beta_0-seed0") == "cifar10-α 0.5, β 0" and metrics.method("mine") == "mine"
    few = metrics.colours(["α 0, β 0", "α ada, β 0"])
    many = metrics.colours(["α 0, β 0", "α 0.4, β 0", "α ada, β 0", "α ada, β 0.0001", "mine", "α 1, β 0"])
    assert all(few[name] == many[name] for name in few) and len(set(map(str, many.values()))) == 6


@pytest.mark.parametrize("make, words", [
    (lambda p: None, "log.csv"), (lambda p: write_log(p, {"loss": [1, 2]}), "not the log of a run"),
    (lambda p: write_log(p, {"epoch": ["one"]}), "not the log of a run"), (lambda p: write_log(p, {"epoch": []}), "nothing to draw"),
    (lambda p: (p.mkdir(), (p / "log.csv").write_text("")), "not the log of a run"),
])
def test_bad_logs(make, words, tmp_path, capsys):
    make(tmp_path / "run")
    assert run(metrics, tmp_path / "run", "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


# --- studies ------------------------------------------------------------------------------------------------------------

def test_grids():
    assert len(study.runs(["alpha"], 3)) == 27
    both = study.runs(["alpha", "ablation"], 1)
    assert len(both) == 9 + 5       # 0.5 and the four with β are new
    assert both["alpha-ada-beta-0.0001-mi-scale-1-seed-0"] == ["--alpha", "ada", "--beta", "0.0001", "--mi-scale", "1", "--seed", "0"]
    assert "--alpha-from" not in study.runs(["from"], 1)["alpha-ada-beta-0.0001-seed-0"]        # so it is shared


def test_a_study_skips_resumes_and_goes_on_after_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(study.STUDIES, "from", ["--alpha 0 --beta 0", "--alpha 1 --beta 0 --lr 1e30 --warmup-epochs 0", "--alpha 0.5 --beta 0"])
    command = ["from", "--seeds", 1, "--devices", "cpu,cpu", "--out", tmp_path, "--",
               *"--dataset shapes --arch resnet18 --width 2 --projector 8-8 --limit-train 128 --batch-size 64 --epochs 2".split()]
    assert run(study, *command) == 1
    out = capsys.readouterr().out
    assert "2 of 3 runs are finished" in out and "failed: alpha-1-beta-0-lr-1e30" in out
    assert "NaN or infinite" in (tmp_path / "alpha-1-beta-0-lr-1e30-warmup-epochs-0-seed-0" / "output.txt").read_text()
    logs = {path: path.read_bytes() for path in tmp_path.glob("alpha-0*/log.csv")}
    assert len(logs) == 2 and all(text.count(b"\n") == 3 for text in logs.values())

    (tmp_path / "alpha-0.5-beta-0-seed-0" / "finished.txt").unlink()       # as if it had been cut off: resumed
    assert run(study, *command) == 1
    out = capsys.readouterr().out
    assert "alpha-0-beta-0-seed-0: was finished" in out and "alpha-0.5-beta-0-seed-0: finished" in out
    assert {path: path.read_bytes() for path in logs} == logs


@pytest.mark.parametrize("flags", ["everything", "", "alpha --seeds 0", "alpha -- --seed 3", "alpha --out {}/file/x", "alpha --typo"])
def test_bad_studies(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(study, *flags.format(tmp_path).split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
