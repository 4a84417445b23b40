"""Files that people copy stand alone: the formulas with their tests, the loss of each method.

    python -m pytest -q tests/test_copies.py
"""
import ast
import shutil
import subprocess
import sys

import pytest

import baselines
from tests.helpers import ROOT


def imports_of(path):
    """The modules that a file imports anywhere, but for Python's own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize("name, needed", [
    ("losses.py", {"torch"}),
    ("metrics.py", {"torch", "losses"}),
    ("optim.py", {"torch"}),
    ("test_losses.py", {"torch", "pytest", "losses", "metrics", "optim"}),
])
def test_copied_files_need_each_other_alone(name, needed):
    assert {module.split(".")[0] for module in imports_of(ROOT / name)} == needed


def test_metrics_and_losses_work_in_an_empty_folder(tmp_path):
    for name in ("losses.py", "metrics.py"):
        shutil.copy(ROOT / name, tmp_path)
    code = ("import torch, metrics; x = torch.eye(9)\n"
            "assert round(metrics.representation_metrics(x, x)['erank_r'], 3) == 9")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, check=True)


def test_a_compared_method_needs_no_other():
    """A file of baselines/ imports none of its siblings but shared.py."""
    files = [path for path in (ROOT / "baselines").glob("*.py") if path.name != "__init__.py"]
    assert len(files) == 12
    for path in files:
        siblings = {module for module in imports_of(path) if module.startswith("baselines")}
        assert siblings <= {"baselines.shared"}, path


def test_losses_are_imported_by_name():
    """The package has the functions, although it has modules of the same names."""
    for name in ("byol", "barlow_twins", "dino", "sinkhorn", "sigreg"):
        assert callable(getattr(baselines, name))
    assert list(baselines.METHODS)[0] == "adadim" and len(baselines.METHODS) == 12
