"""What all commands have in common: how they were called, and how they answer."""

import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from robustft.common import signals, streams, terminal, threads
from robustft.common.errors import system_error, user_error


def answer(main: Callable[[], int | None]) -> int:
    """Call a command's ``main``; the exit status. A user's mistake and a disk's are one line each.

    SIGTERM and a closed terminal's SIGHUP count as Ctrl-C, so that nothing half-written is left.
    """
    streams.guard()
    terminal.use_plain_letters()
    threads.sleep_early()
    main_thread = threading.current_thread() is threading.main_thread()
    try:
        with signals.handled(signal.default_int_handler) if main_thread else nullcontext():
            return main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = user_error(error) or (system_error(error) if isinstance(error, OSError) else None)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1


def description(docstring: str | None) -> str:
    """Make of a module's docstring what --help shows: without the command that it may begin with, and without marks.

    Example:
        >>> description("`python -m robustft.report RUNS`: compare `RUNS`.")
        'Compare RUNS.'
    """
    text = re.sub(r"^`+[^`]+`+: ", "", docstring or "").replace("`", "")
    return text[:1].upper() + text[1:]


def program(command: str | None = None) -> str:
    """How this program was called, and with it how to call it again: ``robustft report``, ``python run.py``."""
    called = Path(sys.argv[0])
    package = next((folder for folder in called.parents if folder.name == "robustft"), None)
    if called.stem == "robustft":
        name = "robustft"
    elif called.name == "__main__.py" and called.parent.name == "robustft":
        name = "python -m robustft"
    elif command and package and command in (called.stem, called.parent.name):
        # python -m robustft.report, python -m robustft.report.dashboard
        inside = called.parent if called.name == "__main__.py" else called.with_suffix("")
        return f"python -m {'.'.join(inside.relative_to(package.parent).parts)}"
    else:
        name = "python run.py"
    return f"{name} {command}" if command else name
