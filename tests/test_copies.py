"""Files that people copy stand alone: the formulas with their tests, the loss of each method.

    python -m pytest -q tests/test_copies.py
"""
import ast
import os
import shutil
import subprocess
import sys

import baselines
from tests.helpers import ROOT

COPIED = ("losses.py", "metrics.py", "optim.py", "test_losses.py")


def python_in(folder, *arguments):
    """Python in a folder, without this project on its path: (exit status, output)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return ended.returncode, ended.stdout


def test_formulas_and_their_tests_pass_in_an_empty_folder(tmp_path):
    for name in COPIED:
        shutil.copy(ROOT / name, tmp_path)
    status, output = python_in(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert status == 0, output
    assert " passed" in output and "skipped" not in output


def test_losses_import_torch_alone(tmp_path):
    shutil.copy(ROOT / "losses.py", tmp_path)
    code = ("import sys, torch; before = set(sys.modules); import losses; "
            "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
            "print(sorted(new - {'losses', 'torch'}))")
    status, output = python_in(tmp_path, "-c", code)
    assert (status, output) == (0, "[]\n")


def test_a_compared_method_needs_no_other():
    """A file of baselines/ imports none of its siblings but shared.py."""
    files = [path for path in (ROOT / "baselines").glob("*.py") if path.name != "__init__.py"]
    assert len(files) == 12
    for path in files:
        imported = {node.module for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.ImportFrom)}
        siblings = {module for module in imported if module.startswith("baselines")}
        assert siblings <= {"baselines.shared"}, path


def test_losses_are_had_by_name():
    """The package gives the functions, though a module of the same name is in it."""
    for name in ("byol", "barlow_twins", "dino", "sinkhorn", "sigreg"):
        assert callable(getattr(baselines, name))
    assert list(baselines.METHODS)[0] == "adadim" and len(baselines.METHODS) == 12
