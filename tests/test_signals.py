"""Readers that go away and terminals that are closed, with real processes."""

import logging
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import SequentialSampler

from robustft.cli import main as cli
from robustft.common import locks, processes, signals
from robustft.data.loading import make_loader
from robustft.data.sets import Batch, TensorImages
from robustft.training.checkpoints import read_position
from tests.small import ROOT, SMALL
from tests.test_cli import STAND_IN

TALKING = "\n" + STAND_IN.replace(
    "def run(cfg):", "def run(cfg):\n    print('x' * 99999)\n    print(1, file=sys.stderr)"
)

# The second step signals all processes of the run, and waits until the reader of its output is gone.
AT_STEP = """
import os, time, torch
original, count = torch.optim.AdamW.step, 0

def step(self, closure=None):
    global count
    count += 1
    if count == 2 and os.environ.get("SIGNAL"):
        os.killpg(0, int(os.environ["SIGNAL"]))
        time.sleep(0.5)
    return original(self, closure)

torch.optim.AdamW.step = step
"""


@pytest.fixture(autouse=True)
def as_at_a_terminal():
    """A suite in the background of a script, or under nohup, is told to ignore these, and so are all that it starts."""
    handlers = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    known = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in known.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(folder: Path, *arguments: str, stand_in: str = "", shell: str = "", **environment: str) -> subprocess.Popen:
    """``python run.py`` in a session of its own; ``shell`` is a script in which "$@" stands for the command."""
    (folder / "stand_in").mkdir(exist_ok=True)
    (folder / "stand_in" / "sitecustomize.py").write_text(stand_in)
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    paths = os.pathsep.join([str(folder / "stand_in"), str(ROOT)])
    known = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ROBUSTFT_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", shell or '"$@"', "bash", *line],
        cwd=folder,
        env={**os.environ, **known, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("shell", ['"$@" | head -c 1', '"$@" 2>&1 | true', '"$@" >&- 2>&-', '"$@" 2>&1 > /dev/full'])
def test_a_sweep_goes_on_without_its_reader(tmp_path, shell):
    process = start(tmp_path, "-m", "seed=1,2,3", "beta=1", stand_in=TALKING, shell=shell)
    said = "".join(process.communicate(timeout=120))
    assert process.returncode == 0 and "Traceback" not in said and "Error" not in said, said
    found = {path.parent.name for path in tmp_path.glob("runs/sweeps/seed*/*/results.json")}
    assert found == {"seed-1", "seed-2", "seed-3"}
    assert not list(tmp_path.glob("runs/sweeps/seed*/*/error.txt"))


@pytest.mark.slow
def test_the_status_stays_true_without_a_reader(tmp_path):
    failed = start(tmp_path, "-m", "seed=1,2", "beta=3", stand_in=TALKING, shell='"$@" 2>&1 | true')
    failed.communicate(timeout=120)
    assert failed.returncode == 1 and len(list(tmp_path.glob("runs/sweeps/*/*/error.txt"))) == 2
    for line in (["--help"], ["report", "--help"], ["--cfg", "job"]):
        shown = start(tmp_path, *line, shell='"$@" | true')
        assert "".join(shown.communicate(timeout=120)) == "" and shown.returncode == 0


@pytest.mark.slow
def test_launched_runs_go_on_without_a_reader(tmp_path):
    line = ["-m", "seed=1,2", "beta=1", "hydra/launcher=local"]
    process = start(tmp_path, *line, stand_in=TALKING, shell='"$@" 2>&1 | true')
    process.communicate(timeout=200)
    assert process.returncode == 0 and len(list(tmp_path.glob("runs/sweeps/*/*/results.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGHUP", "SIGTERM"])
def test_a_signal_to_all_of_a_pipe_keeps_the_state(tmp_path, number):
    """As Ctrl-C in `run.py | tee log`, a closed terminal, and timeout do: the reader and the loaders get it too."""
    settings = [*SMALL, "data.num_workers=1", "hydra.run.dir=mine", "save_minutes=100"]
    process = start(
        tmp_path, *settings, stand_in=AT_STEP, shell='"$@" 2>&1 | cat', SIGNAL=str(int(getattr(signal, number)))
    )
    process.communicate(timeout=300)
    deadline = time.monotonic() + 120  # the shell that is waited for has died by the signal
    while not (tmp_path / "mine" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert read_position(tmp_path / "mine").step == 2
    again = start(tmp_path, *settings, "resume=auto")
    said = again.communicate(timeout=300)
    assert again.returncode == 0 and "continuing mine" in said[0], said
    assert (tmp_path / "mine" / "results.json").exists()


def test_signals_that_were_ignored_stay_ignored():
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no SIGHUP on this system")
    assert signals.stopping() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert signals.stopping(interrupt=False) == [signal.SIGTERM]
        with signals.handled(signal.default_int_handler):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) != signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_what_ends_a_run_says_how_to_go_on(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it's").mkdir()
    zipfile.ZipFile(tmp_path / "it's" / "last.ckpt", "w").close()
    with (
        pytest.raises(KeyboardInterrupt, match='Resume with: .* "resume=\\\\"it\'s\\\\""'),
        cli._interruptions(tmp_path / "it's", sweep=False),
    ):
        os.kill(os.getpid(), getattr(signal, number))
        time.sleep(1)


class Slow(TensorImages):
    """Images that take a while."""

    def __getitems__(self, indices: list[int]) -> Batch:
        time.sleep(0.05)
        return super().__getitems__(indices)


@pytest.mark.parametrize("number", ["SIGINT", "SIGHUP", "SIGTERM"])
def test_loader_processes_leave_the_end_to_the_run(number):
    def note(received: int, _: object) -> None:
        got.append(received)

    got: list[int] = []
    images = Slow(torch.zeros(64, 3, 4, 4, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    loader = make_loader(images, SequentialSampler(images), 4, num_workers=2)
    with signals.handled(note, interrupt=True):
        batches = iter(loader)
        next(batches)
        for worker in torch.multiprocessing.active_children():
            os.kill(worker.pid, getattr(signal, number))
        assert sum(1 for _ in batches) == 15
    assert not got


def test_a_handler_may_speak_to_nobody(monkeypatch):
    def gone(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(signals.os, "write", gone)
    signals.say("stopping")
    logging.getLogger(__name__).info("still here")


# A process of a run starts another one, as Lightning does for its devices and a launcher does for the runs of a sweep.
LEADS = """
import os, subprocess, sys, time
from robustft.common import processes
processes.follow()
kind, *others = sys.argv[1:]
if kind != "none":
    environment = {**os.environ, "LOCAL_RANK": "1"} if kind == "device" else os.environ
    started = subprocess.Popen([sys.executable, "-c", os.environ["CODE"], *(others or ["none"])], env=environment)
    print(started.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("kinds", [("device",), ("sweep",), ("sweep", "device")], ids=" of a ".join)
def test_nobody_is_left_of_a_command_that_is_killed(kinds):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CODE": LEADS}
    line = [sys.executable, "-c", LEADS, *kinds]
    first = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    started = [int(first.stdout.readline()) for _ in kinds]
    time.sleep(2)
    assert first.poll() is None
    for process in started:
        os.kill(process, 0)
    assert all(Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" for process in started)
    first.kill()
    assert first.wait(60) == -signal.SIGKILL
    assert first.stdout.read() == ""  # at its end: the others, which had it too, are no more


@pytest.mark.skipif(os.name != "posix", reason="there parents are not told of")
def test_a_process_that_a_launcher_of_its_own_starts_leads(monkeypatch):
    """torchrun's and SLURM's end what they start themselves; what the environment says may be of elsewhere."""
    for leader in ("", "another-0123abcd-1", f"{locks.here().rpartition('-')[0]}-1"):
        monkeypatch.setenv(processes.LEADER, leader)
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("SLURM_PROCID", "1")
        processes.follow()
        assert os.environ[processes.LEADER] == locks.here()
