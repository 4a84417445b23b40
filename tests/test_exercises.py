"""Tests of exercises/: solutions pass, each mistake gets its own hint, no traceback ever.

    python -m pytest -q tests/test_exercises.py
"""
import re
import shutil

import pytest
import torch
import torch.nn.functional as F

import methods
from exercises import check, few_labels, make_notebook, mistakes
from run import read_log
from tests.helpers import ROOT, SMALL, TINY, assert_resumes_exactly, exit_status, run

SOLUTIONS = {}
SOLUTIONS[1] = '''
def info_nce(z1, z2, temperature=0.1):
    z = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z)).roll(len(z1))
    return torch.nn.functional.cross_entropy(logits, partner)
'''
SOLUTIONS[2] = '''
def by_features(z):
    n, d = z.shape
    z = z - z.mean(0)
    c = z.T @ z / (n - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / d


def by_samples(z):
    n, d = z.shape
    z = z - z.mean(0)
    diagonal = z.square().sum(0) / (n - 1)
    return ((z @ z.T).square().sum() / (n - 1) ** 2 - diagonal.square().sum()) / d
'''
SOLUTIONS[3] = '''
def effective_rank(x):
    sigma = torch.linalg.svdvals(x)
    p = sigma / sigma.sum()
    return torch.special.entr(p).sum().exp()
'''
SOLUTIONS[4] = '''
def lars_step(w, g, v, lr, weight_decay=1e-4, momentum=0.9, eta=0.02):
    if w.ndim > 1:
        q = eta * w.norm() / (g.norm() + weight_decay * w.norm() + 1e-8)
        q = min(float(q) / lr, 1.0) if w.norm() > 0 else 1.0
        g = q * (g + weight_decay * w)
    v = momentum * v + g
    return w - lr * v, v
'''
SOLUTIONS[5] = '''
def wasserstein_uniformity(z):
    n, d = z.shape
    z = torch.nn.functional.normalize(z, dim=1)
    mean = z.mean(0)
    centred = (z - mean) / n ** 0.5
    root_trace = torch.linalg.svdvals(centred).sum()
    squared = mean.square().sum() + 1 + centred.square().sum() - 2 / d ** 0.5 * root_trace
    return squared.sqrt()
'''
SOLUTIONS[7] = '''
def rank(x, eps, centred, squared):
    x = x - x.mean(0) if centred else x
    s = torch.linalg.svdvals(x)
    s = s ** 2 if squared else s
    p = s / s.sum() + eps
    return torch.special.entr(p).sum().exp()
'''
MISTAKES = [(part, hint, options) for parts in mistakes.PARTS.values() for part in parts
            for hint, options in part["mistakes"]]


def functions(code):
    scope = {"torch": torch, "F": F}
    exec(code, scope)
    return scope


@pytest.mark.parametrize("number", SOLUTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_solution_passes(number, seed):
    assert check.report(number, functions(SOLUTIONS[number]), seed=seed) == check.POINTS[number]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("part, hint, options", MISTAKES)
def test_each_mistake_gets_its_own_hint(part, hint, options, seed):
    def mistaken(*arguments):
        return part["wrong"](*arguments, **options)

    with pytest.raises(check.NotYet) as why:
        check.check_part(part, {part["name"]: mistaken}, seed)
    assert str(why.value) == f"{part['name']}: {hint}"


@pytest.mark.parametrize("number, code, words", [
    (2, SOLUTIONS[2].replace("by_samples", "_").replace("by_features", "by_samples")
     + "\nby_features = by_samples", "by_samples is right, but makes d × d"),
    (2, SOLUTIONS[2].replace("z = z - z.mean(0)", "z -= z.mean(0)"), "changes its input"),
    (3, SOLUTIONS[3].replace("torch.special.entr(p)", "(-p * p.log())"), mistakes.ZERO_P),
    (5, SOLUTIONS[5].replace("svdvals(centred)",
                             "eigvalsh((centred.T @ centred).double()).abs().sqrt()"),
     mistakes.GRADIENT),
    (7, "def rank(x, eps, centred, squared): return x.mean()", "rank differs for as it is, with"),
])
def test_other_faults_are_named(capsys, number, code, words):
    assert check.report(number, functions(code)) == 0
    printed = capsys.readouterr().out
    assert words in printed and printed.count("\n") == 1


def test_files_that_cannot_run(tmp_path, capsys):
    """Stubs, missing files, syntax errors, crashes: one line each, status 1."""
    (tmp_path / "ex1_info_nce.py").write_text("def info_nce(:")
    (tmp_path / "ex3_effective_rank.py").write_text("import torch\n1 / 0\n")
    (tmp_path / "ex4_lars.py").write_text("exit()")
    shutil.copy(ROOT / "exercises" / "ex5_wasserstein.py", tmp_path)
    assert exit_status(check.main, "--all", "--folder", tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    expected = ["line 1: ", "there is no ex2_covariance.py", "line 2 raised ZeroDivisionError",
                "line 1 raised SystemExit", "is not written yet"]
    for line, words in zip(lines, expected):
        assert words in line
    assert lines[-1] == "0 of 47 points" and len(lines) == 8


# --- exercises 6, 8 and 10, the notebook ----------------------------------------------------------

def test_the_notebook_runs_from_top_to_bottom(capsys, monkeypatch):
    """As it is, each check says that nothing is written; with solutions, each passes."""
    monkeypatch.syspath_prepend(ROOT / "exercises")
    for solved in (False, True):
        scope = {}
        for cell in make_notebook.notebook()["cells"]:
            code = cell["source"] if cell["cell_type"] == "code" else ""
            if solved and "raise NotImplementedError" in code:
                number, = [n for n in SOLUTIONS if re.search(r"def \w+", code)[0] in SOLUTIONS[n]]
                code = "import torch\n" + SOLUTIONS[number]
            exec(code, scope)
        assert capsys.readouterr().out.count("passed" if solved else "is not written yet") == 4


def test_few_labels(tmp_path, capsys):
    """Of a run, and of its backbone.pt and encoder.json alone."""
    assert run(*TINY, "--epochs", 1, "--eval-every", 1, "--limit-train", 640, "--out",
               tmp_path / "run") == 0
    (tmp_path / "bare").mkdir()
    for name in ("backbone.pt", "encoder.json"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "bare")
    capsys.readouterr()
    tables = []
    for folder, flags in {"run": [], "bare": SMALL[:4]}.items():
        assert exit_status(few_labels.main, tmp_path / folder, *flags, "--epochs", 1, "--out",
                           tmp_path / "few.png") == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and tables[0].count("±") == 6 and "all labels" in tables[0]
    y = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, 0])
    assert y[few_labels.labels_per_class(y, 2, seed=0)].bincount().tolist() == [2, 2, 2]


def test_halfway_resumes_exactly(tmp_path, monkeypatch):
    """The answer in TEACHING.md: α goes half way, and survives a restart between two epochs."""
    text = (ROOT / "docs" / "TEACHING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    monkeypatch.setitem(methods.METHODS, "halfway", None)       # so that it is removed afterwards
    exec(code, {"__name__": "halfway"})
    flags = [*TINY, "--method", "halfway", "--alpha-every", 1]
    assert_resumes_exactly(flags, tmp_path, step=8, saved_at=(2, 0))
    adadim = tmp_path / "adadim"
    assert run(*TINY, "--alpha-every", 1, "--epochs", 4, "--out", adadim) == 0
    half, whole = (read_log(folder / "log.csv")["alpha"] for folder in (tmp_path / "whole", adadim))
    assert half[1] == pytest.approx(whole[1] / 2, rel=1e-6) and whole[1] > 0


def test_the_table_of_exercises():
    """Its points are those of check.py, and each exercise has answers."""
    text, answers = ((ROOT / "docs" / name).read_text(encoding="utf-8")
                     for name in ("EXERCISES.md", "TEACHING.md"))
    rows = re.findall(r"^\|.*\[(\d+)\. .*\| (\d+) \+ \d+ \|$", text, re.M)
    by_check = {int(number): int(points) for number, points in rows if points != "0"}
    assert len(rows) == 12 and by_check == check.POINTS
    for document in (text, answers):
        assert re.findall(r"^## (\d+)\. ", document, re.M) == [str(n) for n in range(1, 13)]


def test_the_wrong_lines():
    """There are three, and naming two of them gives two thirds of the points."""
    hits = [n for n in range(1, 50) if exit_status(check.main, "6", "--line", n) == 0]
    assert len(hits) == len(mistakes.BUGS) == 3
    assert exit_status(check.main, "6", "--line", *hits) == 0
    assert exit_status(check.main, "6", "--line", hits[0], 1) == 1
    assert check.report(6, lines=hits[:2]) == 6
