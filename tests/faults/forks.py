"""Commands without the seconds that Python and torch take to start: forks of a process that has imported all.

`Forks` starts ``python -m tests.faults.forks``, which imports the product and then forks for every command that it is
sent, a line of JSON each. A fork is what the command would be: a session of its own, its own folder, environment and
output, and the same entry point.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Forks:
    """Starts commands in forks, and says when they have ended."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.statuses: dict[int, int] = {}
        self._read()  # it is ready

    def start(self, command: list[str], folder: Path, out: Path, environment: dict[str, str], pipe: bool) -> int:
        """Start a command (what is typed after ``python run.py``); its process.

        Args:
            pipe: what it says goes through a pipe to ``cat``, of the same process group.
        """
        request = {"command": command, "folder": str(folder), "out": str(out), "environment": environment, "pipe": pipe}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        while "started" not in (answer := self._read()):
            pass
        return answer["started"]

    def status(self, process: int) -> int | None:
        """The exit status, below 0 that of a signal; None: it is at work."""
        while select.select([self.process.stdout], [], [], 0)[0]:
            self._read()
        return self.statuses.get(process)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        # One line at a time, and no more: what waits in a buffer is not seen by select.
        line = bytearray()
        while not line.endswith(b"\n"):
            if not (byte := os.read(self.process.stdout.fileno(), 1)):
                raise RuntimeError("the process that starts commands is gone")
            line += byte
        answer = json.loads(line)
        if "ended" in answer:
            self.statuses[answer["ended"]] = answer["status"]
        return answer


def _serve() -> int:
    import_all()
    gc.collect()
    gc.freeze()  # what is imported is not looked at again, in any of the forks
    told = os.dup(1)
    os.dup2(2, 1)  # what libraries say is not for the asker

    def tell(**what: Any) -> None:
        os.write(told, json.dumps(what).encode() + b"\n")

    tell(ready=True)
    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            if not (read := os.read(0, 1 << 16)):
                os._exit(0)
            waiting += read
            *lines, waiting = waiting.split(b"\n")
            for line in lines:
                process = os.fork()
                if process == 0:
                    os.close(told)
                    return _command(**json.loads(line))
                tell(started=process)
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not process:
                break
            tell(ended=process, status=os.waitstatus_to_exitcode(status))


def import_all() -> None:
    """What commands import in the course of their work; nothing of it is used yet."""
    import lightning.pytorch  # noqa: F401
    import open_clip  # noqa: F401
    import torch

    import robustft.cli.main
    import robustft.deploy.export
    import robustft.deploy.formats.as_open_clip
    import robustft.deploy.model
    import robustft.deploy.predict
    import robustft.experiment  # noqa: F401

    torch.set_num_threads(1)


def _command(command: list[str], folder: str, out: str, environment: dict[str, str], pipe: bool) -> int:
    """Be the command."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if pipe:
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        assert reader.stdin is not None
        file = os.dup(reader.stdin.fileno())
        reader.stdin.close()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.argv[:] = [str(ROOT / "run.py"), *command]
    from robustft.cli.main import main
    from tests.faults import points

    points.install()
    return main()


if __name__ == "__main__":
    sys.exit(_serve())
