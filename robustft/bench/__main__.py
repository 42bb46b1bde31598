"""``python -m robustft.bench --model vitb32 --batch 16 --json FILE``: time the training step on this machine.

In one run, on random weights and images: vanilla fine-tuning, the method written directly (robustft/bench/direct.py,
checked to give the same loss and gradients), ours, and ours with known maps, each in the precision that training
picks on this machine and in float32.
"""

import argparse
import sys

from robustft.bench.names import ALL, MODELS, MORE, VARIANTS, chosen
from robustft.common import entry, paths
from robustft.common.errors import UserError


def main(arguments: list[str]) -> None:
    """Check the arguments, then measure, print the table, write the JSON.

    Raises:
        UserError: an argument that cannot be; what `robustft.bench.timing.measure` raises.
    """
    options = parse(arguments)
    check(options)
    from robustft.bench.timing import measure  # torch and open_clip take seconds to import

    measure(options)


def check(options: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is computed; names of methods are filled in.

    Raises:
        UserError: names the argument.
    """
    for name in ("batch", "rounds", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: expected a whole number, 1 or more")
    if options.methods is not None:
        options.methods = chosen(options.methods or [ALL])
    peak_of = (options.peak_of or VARIANTS[0]).removesuffix("_fp32")
    if peak_of not in (*VARIANTS, *MORE):
        raise UserError(f"--peak-of={options.peak_of}: expected one of {', '.join((*VARIANTS, *MORE))}")
    if options.json:
        paths.for_file(options.json, "--json")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=entry.program("bench"), description=entry.description(__doc__))
    parser.add_argument("--model", choices=MODELS, default="vitb32")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--precision", choices=("auto", "bf16-mixed", "32-true"), default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="medians are taken over so many rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU, if there")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="with --methods: cpu counts processor time, which other programs hardly lengthen (use --threads 1)",
    )
    parser.add_argument("--json", type=paths.expand, help="where to write the numbers")
    parser.add_argument(
        "--more",
        nargs="*",
        choices=MORE,
        default=[],
        help="also ours with x's graph kept to the end; with the map of the last layer alone; random masks, no-fill",
    )
    parser.add_argument(
        "--methods",
        nargs="*",
        metavar="METHOD",
        help="time these training methods instead, each in turn with vanilla fine-tuning, against what it says it costs"
        " at least: all (the default), or names, with settings of their own behind commas (counterfactual,mask=none)",
    )
    parser.add_argument(
        "--whole-prompts", action="store_true", help="with --methods: those with a text tower once more, prompts uncut"
    )
    parser.add_argument("--peak-of", metavar="VARIANT", help="print the peak memory of one step, in bytes; no more")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(entry.answer(lambda: main(sys.argv[1:])))
