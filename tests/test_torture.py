"""The quick form of torture.py.

    python -m pytest -q test_torture.py
"""
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs fork and /proc")
def test_nothing_is_lost():
    script = Path(__file__).with_name("torture.py")
    tried = subprocess.run([sys.executable, script, "--tries", "3", "--only",
                            "kills,pairs,damage,disks,rivals"], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "kills: 3 tried, 3 survived" in tried.stdout
