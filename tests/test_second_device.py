"""Every path that moves tensors, on a device whose tensors do not mix with the CPU's (tests/device)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small import ROOT

FILES = sorted(path.name for path in (Path(__file__).parent / "device").glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_on_a_second_device(file, tmp_path):
    """In a process of its own: see tests/device/conftest.py."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"SECOND_DEVICE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}"]
    done = subprocess.run(
        [*line, f"tests/device/{file}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout
