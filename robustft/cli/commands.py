"""The commands beside a run: ``robustft report RUNS``. A new one is a line in `COMMANDS`."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from robustft.common import imports
from robustft.common.entry import answer, program
from robustft.common.errors import UserError


@dataclass(frozen=True)
class Command:
    """What a first word on the command line stands for.

    Attributes:
        summary: what it does, for --help.
        module: its ``main`` is called with the arguments behind the word, and returns the exit status.
        settings: of a run, instead of a module: what the word is short for.
        configs: it takes --config-dir, as runs do.
    """

    summary: str
    module: str = ""
    settings: tuple[str, ...] = ()
    configs: bool = False


COMMANDS = {
    "report": Command("compare runs in tables, a scatter plot and a page", "robustft.report.__main__"),
    "dashboard": Command("a W&B workspace that compares the runs of a project", "robustft.report.dashboard"),
    "bench": Command("time the training step on this machine", "robustft.bench.__main__"),
    "check": Command("is the data complete? trains nothing (check=data)", settings=("check=data",), configs=True),
    "compare": Command("which method? each over its dial, on your data", "robustft.studies.compare", configs=True),
    "predict": Command("what images show, by the model of a run", "robustft.deploy.predict"),
    "export": Command("the model of a run for open_clip, ONNX, torch.export, transformers", "robustft.deploy.export"),
    "app": Command("a page to drop images on, for the model of a run", "robustft.deploy.app"),
    "example": Command("a folder of images to try everything with", "robustft.data.example"),
}


def find(arguments: Sequence[str]) -> str | None:
    """Find the command that the first argument names; None where the arguments are the settings of a run.

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


def behind_configs(arguments: Sequence[str]) -> list[str]:
    """Put the command first, where ``--config-dir DIR`` stands before it.

    Raises:
        UserError: the command takes no configs.
    """
    first = arguments[0] if arguments else ""
    options = 2 if first in ("--config-dir", "-cd") else int(first.startswith("--config-dir="))
    rest = list(arguments[options:])
    if not options or not rest or rest[0] not in COMMANDS:
        return list(arguments)
    if not COMMANDS[rest[0]].configs:
        raise UserError(f"{rest[0]} takes no configs: leave out --config-dir")
    return [rest[0], *arguments[:options], *rest[1:]]


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command; the exit status. Its module is imported only now."""

    return answer(lambda: imports.quickly(COMMANDS[name].module).main(list(arguments)))


def summaries() -> str:
    """List the commands with their summaries, a line each, for --help."""
    width = max(map(len, COMMANDS))
    return "\n".join(f"  {program()} {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
