"""What a step frees stays with the process, for the next step."""

import subprocess
import sys
from pathlib import Path

import pytest

from robustft.common.allocator import keep_freed

LARGE = """
import resource, sys, torch
from pathlib import Path
if sys.argv[1] == "trainer":
    from robustft.training.trainer import make_trainer
    make_trainer({"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False}, Path())
faults = []
for _ in range(30):  # aligned blocks are a little larger than what a freed one leaves: the first find no room in it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 * 2**20 // 4)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="of glibc")


def faults(how: str, tmp_path: Path, **variables: str) -> int:
    """How many pages the system hands out for a tensor of 64 MB where one was freed before."""
    line = [sys.executable, "-c", LARGE, how]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(tmp_path), **variables}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@linux
def test_a_trainer_on_a_cpu_keeps_what_was_freed(tmp_path: Path) -> None:
    assert faults("nothing", tmp_path) > 1000  # without it there is something to keep
    assert faults("trainer", tmp_path) < 100


@pytest.mark.slow
@linux
def test_variables_of_the_user_are_left_as_they_are(tmp_path: Path) -> None:
    assert faults("trainer", tmp_path, MALLOC_MMAP_THRESHOLD_="1000000") > 1000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed()
