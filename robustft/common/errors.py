"""Users' mistakes: raised as `UserError`, shown as one short message without a traceback."""

import re

_IN_WORKER = "robustft.common.errors.UserError: "
_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)")


class UserError(Exception):
    """A mistake the user can put right.

    The message names the thing, what was found, what was expected, and what to do.
    """


class FolderTaken(UserError):
    """A run folder is another run's: nothing in it may change."""


def user_error(error: BaseException | None) -> UserError | None:
    """Find the `UserError` at the root of an exception, if that is what it comes from.

    Hydra wraps what a constructor raises, and a loader's worker process sends its exceptions as text
    with a traceback in it: both are unwrapped. That such a process was killed is the machine's doing, not ours.
    """
    while error is not None:
        if isinstance(error, UserError):
            message = str(error)
            return UserError(message.rsplit(_IN_WORKER, 1)[1].strip()) if _IN_WORKER in message else error
        if isinstance(error, RuntimeError) and (died := _WORKER_DIED.search(str(error))):
            # Which signal, may be known to the cause alone.
            first = None if died["signal"] else user_error(error.__cause__)
            return first or UserError(_why(died["signal"]))
        error = error.__cause__
    return None


def _why(signal: str | None) -> str:
    if signal == "Bus error":
        return (
            "a loader process died of a lack of shared memory (/dev/shm). In Docker give more of it: docker run"
            " --shm-size=8g. Or load with fewer processes, or without: data.num_workers=0"
        )
    killed = "was killed, most likely because the machine's memory is full" if signal == "Killed" else "died"
    return (
        f"a loader process {killed}{'' if signal in (None, 'Killed') else f' ({signal})'}. Load with fewer processes"
        " or without (data.num_workers=0), or in smaller batches (data.batch_size, data.eval_batch_size)"
    )


def reason(error: OSError) -> str:
    """Say what the operating system has to say, without the number and the path."""
    return error.strerror or str(error) or type(error).__name__


def system_error(error: OSError) -> UserError:
    """Make one line of an error of the operating system: the path, and what is wrong with it."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return UserError(f"{where}{reason(error)}")


def install(extra: str) -> str:
    """Give the command that installs an extra, right in a clone and where the package is installed."""
    return f'pip install "robustft[{extra}]"'
