"""A quick run of torture.py.

    python -m pytest -q tests/test_torture.py
"""
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs fork and /proc")
def test_nothing_is_lost():
    tried = subprocess.run([sys.executable, "-m", "tools.torture", "--tries", "1",
                            "--only", "kills,pairs,damage"],
                           capture_output=True, text=True, cwd=ROOT)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "kills: 1 tried, 1 survived" in tried.stdout
