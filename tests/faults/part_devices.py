"""Runs on 1 to 4 processes: the same counts and accuracies, weights within a bound, on any state and any cache.

Every method, every mask and source of masks of the registry, with fills that take no patches from other images (the
pool of such is what one process has). Then trainings that go on with another number of processes, and runs whose
processes find different things in their caches, as one that appears between two looks: none may wait for ever.
"""

import json
import shutil
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from robustft.cli import described, sources
from tests.faults.case import Case, Options
from tests.faults.trials import Command, End, Trials
from tests.test_training import counts, difference

# Sums over images have another order on several processes. Of a tensor's largest weight, or of 1.
BOUND = 1e-5
COUNTS = (1, 2, 3, 4)
RESUMED = ((1, 2), (2, 1), (2, 3), (4, 2))

# 15 images of a set: unequal shares, and a last batch that some processes have none of.
DATA = (
    *("model=tiny", "model.pretrained=embedded", "data=scenes", "data.holdout=16", "data.test_images=15"),
    *("data.eval_batch_size=4", "data.sets.scenes_v2=false", "data.sets.scenes_r=false"),
    *("data.sets.scenes_sketch=false", "data.train_images=88", "trainer=cpu", "trainer.enable_progress_bar=false"),
    *("logger=none", "hydra.run.dir=run"),
)
TRAINED = ("data.batch_size=24", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optimizer.lr=1e-4")
OPENS = {"flyp": ("beta=3",)}  # where masks are idle as it comes


def run(options: Options) -> Iterator[Case]:
    trials = Trials(options.folder)
    try:
        tuned, scenes = _tuned(trials)
        kinds = _kinds(tuned)
        numbers = COUNTS[1:2] if options.quick else COUNTS[1:]
        if options.quick:
            kinds = {name: kinds[name] for name in ("finetune",)}
        for name, settings in kinds.items():
            yield _alike(trials, name, settings, numbers, scenes)
        trained = (*DATA, *TRAINED, "method=finetune")
        if not options.quick:
            yield _resumed(trials, trained, scenes)
        yield from _caches(trials, scenes, options.quick)
    finally:
        trials.close()


def _kinds(tuned: Path) -> dict[str, tuple[str, ...]]:
    """The settings of every method, and of every mask and source of masks."""
    found: dict[str, tuple[str, ...]] = {}
    model = tuned / "run" / "model.safetensors"
    for method in sources.groups()["method"]:
        takes = described.takes("method", method)
        needs = {
            "checkpoint": f"checkpoint={model}",
            "checkpoints": f"checkpoints=[{model},{tuned / 'other'}/model.safetensors]",
        }
        own = (f"method={method}", *(needs[need] for need in takes.get("needs", ())))
        own = (*DATA, *(TRAINED if takes["trains"] else ()), *own)
        found[method] = (*own, "mask=none") if takes["masks"] else own
        if takes["masks"]:
            found[f"{method} with masks"] = (*own, "mask=object", "fill=none", *OPENS.get(method, ()))
    for mask in sources.groups()["mask"]:
        chosen = described.takes("mask", mask).get("settings", {}).get("mask.source", {}).get("of", [])
        for source in chosen or [None]:
            name = f"mask={mask}" + (f" mask.source={source}" if source else "")
            settings = (f"mask={mask}", *(("fill=none",) if mask != "none" else ()))
            settings += (f"mask.source={source}",) if source else ()
            found[name] = (*DATA, *TRAINED, "method=counterfactual", *settings)
    return found


def _tuned(trials: Trials) -> tuple[Path, Path]:
    """A folder with two fine-tuned models, and one of rendered scenes."""
    folder = trials.new_folder()
    for name, seed in (("run", 0), ("other", 1)):
        typed = (
            *DATA[:-1],
            *TRAINED,
            "method=finetune",
            f"seed={seed}",
            f"hydra.run.dir={name}",
            "data.holdout_seed=0",
        )
        (ended,) = trials.run([trials.do(Command(typed), folder)])
        if ended.status != 0:
            raise RuntimeError(f"a fine-tuned model cannot be made: {ended.said}")
    return folder, folder / "cache" / "scenes"


def _on(
    trials: Trials, settings: Sequence[str], count: int, scenes: Path, **options: Any
) -> Generator[None, None, Any]:
    """A run on so many processes, in a folder of its own, with nothing in its cache but the scenes."""
    folder = trials.new_folder()
    shutil.copytree(scenes, folder / "cache" / "scenes")
    ended = yield from trials.do(_command(settings, count, **options), folder)
    return folder, ended


def _command(settings: Sequence[str], count: int, **options: Any) -> Command:
    several = (f"trainer.devices={count}", "trainer.strategy=ddp") if count > 1 else ()
    return Command((*settings, *several), ranks=1 if options.get("real") else count, **options)


def _alike(trials: Trials, name: str, settings: Sequence[str], numbers: Sequence[int], scenes: Path) -> Case:
    (expected, one), *others = trials.run([_on(trials, settings, count, scenes) for count in (1, *numbers)])
    if one.status != 0:
        raise RuntimeError(f"{name} fails by itself: {one.said}")
    lost, apart = [], [0.0]
    for count, (folder, ended) in zip(numbers, others, strict=True):
        problems = _problems(expected, folder, ended, apart)
        lost += [f"on {count} processes: {'; '.join(problems)}"] if problems else []
    figure = f"weights apart by at most {max(apart):.1e}"
    return Case(f"{name} on {', '.join(map(str, numbers))} processes", len(numbers), tuple(lost), figure=figure)


def _problems(expected: Path, folder: Path, ended: Any, apart: list[float]) -> list[str]:
    """What is not as on one process."""
    if ended.status != 0:
        return [f"status {ended.status} after {ended.seconds:.0f} s: {(ended.said.strip().splitlines() or ['?'])[-1]}"]
    one, other = (json.loads((place / "run" / "results.json").read_text()) for place in (expected, folder))
    problems = [f"process {process} was left" for process in ended.orphans]
    if one["zeroshot"] != other["zeroshot"]:
        problems.append("the zero-shot model's scores are others")
    problems += [f"{key} differs" for key in ("id", "ood", "holdout") if _counted(one[key]) != _counted(other[key])]
    model = Path("run") / "model.safetensors"
    if (expected / model).exists():
        ours, theirs = load_file(expected / model), load_file(folder / model)
        for name, value in ours.items():
            if not value.is_floating_point():
                continue
            far = float(difference(name, value, theirs[name])) / max(1.0, float(value.abs().max()))
            apart.append(far)
            if far > BOUND or not torch.isfinite(theirs[name]).all():
                problems.append(f"{name} is apart by {far:.1e}")
    return problems


def _counted(scores: Any) -> Any:
    return None if scores is None else counts(scores)


def _resumed(trials: Trials, settings: Sequence[str], scenes: Path) -> Case:
    """A training killed in the middle of an epoch goes on with another number of processes."""
    settings = (*settings, "save_minutes=0", "resume=auto")
    apart = [0.0]

    def trial(first: int, then: int) -> Generator[None, None, list[str]]:
        folder = trials.new_folder()
        shutil.copytree(scenes, folder / "cache" / "scenes")
        end = End(9, "before KeepState.on_train_batch_end #5")
        yield from trials.do(_command(settings, first), folder, end)
        ended = yield from trials.do(_command(settings, then), folder)
        if ended.status == 1 and ended.said.count("error:") == 1 and "Traceback" not in ended.said:
            return []  # refused in one line
        problems = _problems(expected, folder, ended, apart)
        if "continuing" not in ended.said:
            problems.append("it did not go on from its state")
        return [f"{first} then {then} processes: {'; '.join(problems)}"] if problems else []

    ((expected, _),) = trials.run([_on(trials, settings, 1, scenes)])
    lost = [line for lines in trials.run([trial(*pair) for pair in RESUMED]) for line in lines]
    pairs = ", ".join(f"{first} then {then}" for first, then in RESUMED)
    figure = f"weights apart by at most {max(apart):.1e}"
    return Case(f"resumed with another number of processes ({pairs})", len(RESUMED), tuple(lost), figure=figure)


def _caches(trials: Trials, scenes: Path, quick: bool) -> Iterator[Case]:
    """One process finds in its cache what the other does not."""
    trained = (*DATA, *TRAINED)
    kinds = {
        "scores": (*trained, "method=finetune"),
        "features": (*trained, "method=linear_probe"),
        "probes": (*trained, "method=lpft"),
        "maps": (*trained, "method=counterfactual", "mask=object", "fill=none", "mask.source=teacher"),
    }
    for kind, settings in kinds.items():
        if quick and kind != "scores":
            continue
        ((expected, one),) = trials.run([_on(trials, settings, 1, scenes)])
        if one.status != 0 or not any((expected / "cache" / kind).glob("*.safetensors")):
            raise RuntimeError(f"nothing is kept in cache/{kind}: {one.said}")
        full = {"ROBUSTFT_CACHE": str(expected / "cache")}
        ways = [(finder, False) for finder in (0, 1)] + [(1, True)] * (not quick and kind == "scores")
        trying = [
            _on(trials, settings, 2, scenes, real=real, by_rank=[full if rank == finder else {} for rank in (0, 1)])
            for finder, real in ways
        ]
        lost = []
        for (finder, real), (folder, ended) in zip(ways, trials.run(trying), strict=True):
            problems = _problems(expected, folder, ended, [])
            how = "by the command" if real else "by a launcher"
            lost += [f"found by process {finder} alone, {how}: {'; '.join(problems)}"] if problems else []
        yield Case(f"cache/{kind} that one of 2 processes finds", len(ways), tuple(lost))
