"""Files that people copy stand alone: the formulas with their tests, the networks, the methods.

    python -m pytest -q tests/test_copies.py
"""
import ast
import shutil
import subprocess
import sys

import pytest

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
    ("augment.py", {"torch"}),
    ("models.py", {"torch", "torchvision", "augment"}),
])
def test_copied_files_need_each_other_alone(name, needed):
    assert {module.split(".")[0] for module in imports_of(ROOT / name)} == needed


def test_copies_work_in_an_empty_folder(tmp_path):
    for name in ("losses", "metrics", "optim", "test_losses", "alpha", "augment", "models"):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    for words in (["-m", "pytest", "-q", "test_losses.py", "-k", "lars or rank"],
                  ["-c", "import alpha, models; alpha.MeasuredAlpha(); models.resnet()"]):
        subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)


def test_a_compared_method_needs_no_other():
    """And importing one loads neither the others, nor torchvision, nor train.py's files."""
    files = {path.stem for path in (ROOT / "baselines").glob("*.py")}
    methods = files - {"__init__", "all_methods", "formulas", "shared"}
    assert len(methods) == 11
    for name in methods:
        ours = {module for module in imports_of(ROOT / "baselines" / f"{name}.py")
                if not module.startswith("torch")}
        assert ours <= {"baselines.formulas", "baselines.shared", "methods", "losses"}, name
    code = ("import sys; from baselines.byol import *; from baselines.moco_v2 import *; "
            "assert not {'torchvision', 'baselines.dino', 'run'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
