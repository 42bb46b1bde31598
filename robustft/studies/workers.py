"""The processes in which a study's runs are made."""

import contextlib
import logging
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from omegaconf import open_dict

from robustft.cli import compose, resuming, sources
from robustft.common import processes, signals
from robustft.common.errors import UserError
from robustft.common.wording import first_line


def outcome(future: Future[str | None], name: str) -> str | None:
    """Say what went wrong in a run, if anything did.

    Raises:
        UserError: its process is no more.
    """
    try:
        return future.result()
    except BrokenProcessPool as cause:
        raise UserError(f"{name}: its process was killed. Was there enough memory?") from cause


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that stop, and leave their state behind, when this one is interrupted, and die with it."""
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(sources.added(),)
    ) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one (of timeout, say) would cut the shutdown short
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker(configs: Path | None) -> None:
    """A worker dies with its parent, leaves Ctrl-C to it, and logs elsewhere than into the first run's folder.

    Args:
        configs: the user's own folder of configs.
    """
    if configs is not None:
        sources.add(configs)
    logging.basicConfig(level=logging.WARNING)  # before a library does, with what is then standard error
    processes.end_with_parent()
    signals.leave_to_parent()  # which passes it on


def execute(folder: str, settings: list[str]) -> str | None:
    """One run in this process, its output in ``folder``/run.log; the error's text if it failed."""
    from robustft.cli.main import run_in

    path = Path(folder)
    if resuming.is_finished(path) and not (path / "last.ckpt").exists():
        shutil.rmtree(path)  # its result was kept, and has been deleted since: this one is to be another
    path.mkdir(parents=True, exist_ok=True)
    with (
        (path / "run.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        handler, logger = logging.StreamHandler(log), logging.getLogger("robustft")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            cfg = compose.compose_first(compose.parse(settings))
            with open_dict(cfg):
                cfg.pop("hydra")
            run_in(cfg, path, settings, sweep=True)  # one device; goes on with what was interrupted
        except KeyboardInterrupt:
            return "interrupted"
        except Exception as error:
            import traceback

            traceback.print_exc(file=log)
            return first_line(error, 1000)
        finally:
            logger.removeHandler(handler)
    return None
