"""The commands beside a run: ``robustft report RUNS``. A new one is a line in `COMMANDS`."""

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from robustft import streams, terminal
from robustft.errors import UserError, system_error, user_error


@dataclass(frozen=True)
class Command:
    """What a first word on the command line stands for.

    Attributes:
        summary: what it does, for --help.
        module: its ``main`` is called with the arguments behind the word, and returns the exit status.
        settings: of a run, instead of a module: what the word is short for.
    """

    summary: str
    module: str = ""
    settings: tuple[str, ...] = ()


COMMANDS = {
    "report": Command("compare runs in tables, a scatter plot and a page", "robustft.report.__main__"),
    "dashboard": Command("a W&B workspace that compares the runs of a project", "robustft.dashboard"),
    "bench": Command("time the training step on this machine", "robustft.bench.__main__"),
    "check": Command("is the data complete? trains nothing (check=data)", settings=("check=data",)),
}


def find(arguments: Sequence[str]) -> str | None:
    """The command that the first argument names; None where the arguments are the settings of a run.

    Raises:
        UserError: it is a word (settings have a '=', options begin with '-'), but no command.
    """
    if not arguments or not re.fullmatch(r"[A-Za-z][\w-]*", arguments[0]):
        return None
    if arguments[0] in COMMANDS:
        return arguments[0]
    near = difflib.get_close_matches(arguments[0], COMMANDS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{arguments[0]!r} is no command.{hint} Commands: {', '.join(COMMANDS)};"
        " a setting is written name=value, see --help"
    )


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command; the exit status. Its module is imported only now."""
    return answer(lambda: import_module(COMMANDS[name].module).main(list(arguments)))


def answer(main: Callable[[], int | None]) -> int:
    """Call a command's ``main``; the exit status. A user's mistake and a disk's are one line each."""
    streams.guard()
    terminal.use_plain_letters()
    try:
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


def program(command: str | None = None) -> str:
    """How this program was called, and with it how to call it again: ``robustft report``, ``python run.py``."""
    called = Path(sys.argv[0])
    if called.stem == "robustft":
        name = "robustft"
    elif called.name == "__main__.py" and called.parent.name == "robustft":
        name = "python -m robustft"
    elif command and command in (called.stem, called.parent.name):  # python -m robustft.report
        return f"python -m robustft.{command}"
    else:
        name = "python run.py"
    return f"{name} {command}" if command else name


def summaries() -> str:
    """The commands with their summaries, a line each, for --help."""
    width = max(map(len, COMMANDS))
    return "\n".join(f"  {program()} {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
