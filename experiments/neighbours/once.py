"""Each method once at CLIP's size: two steps of ViT-B/32 on ImageNet's layout, in one process and in two.

    python experiments/neighbours/once.py DATA_ROOT WORK        # resumes; leaves once.md here and the runs in WORK

The weights are random, saved as open_clip saves them: what is shown is that it runs, how long it takes, and how far
two processes are from one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from robustft.common import paths
from robustft.common.files import write
from robustft.common.imports import script

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STUDY = script(HERE / "study.py")
SETTINGS = """model=vitb32 data=imagenet data.templates=simple data.eval_images=16 data.holdout=16 trainer=cpu
    trainer.precision=32-true logger=none trainer.enable_progress_bar=false""".split()
STEPS = ["data.batch_size=8", "trainer.max_epochs=null", "trainer.max_steps=2"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=paths.expand, help="data.root: ImageNet and its five shifts")
    parser.add_argument("work", type=paths.expand, help="a folder for weights and runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs of one process at a time, one thread each")
    parser.add_argument("--only", nargs="*", help="these systems alone")
    arguments = parser.parse_args()
    paths.make_folder(arguments.work, "WORK")
    weights = random_weights(arguments.work / "random.pt")
    common = [*SETTINGS, f"data.root={arguments.root}", f"model.pretrained={weights}"]
    vanilla, vanilla2 = arguments.work / "vanilla", arguments.work / "vanilla2"
    alone: dict[Path, list[str]] = {}
    for system, made in STUDY.SYSTEMS.items():
        settings = [*common, *made.at(made.values[0] if made.values else None)]
        settings += STEPS if not made.of else ["method.iterations=2"] if system == "tpgm" else []
        settings += [f"checkpoint={vanilla}"] if made.of == 1 else []
        settings += [f"checkpoints=[{vanilla},{vanilla2}]"] if made.of > 1 else []
        if not arguments.only or system in arguments.only:
            alone[arguments.work / system] = settings
    together = {
        folder.with_name(f"{folder.name}-two"): [*settings, "trainer.devices=2"]
        for folder, settings in alone.items()
        if not STUDY.SYSTEMS[folder.name].of
    }
    done = [run(vanilla, [*common, *STEPS, "method=finetune"])]  # leaves the head that nearly all start from
    done += [run(vanilla2, [*common, *STEPS, "method=finetune", "seed=1"])]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done += pool.map(run, alone, alone.values())
    done += map(run, together, together.values())
    write(HERE / "once.md", table(arguments.work))
    print(table(arguments.work))
    return int(not all(done))


def random_weights(file: Path) -> Path:
    """A state dict of ViT-B-32 as open_clip makes it."""
    if not file.exists():
        import open_clip
        import torch

        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-32").state_dict(), file)
    return file


def run(folder: Path, settings: list[str]) -> bool:
    """One run; whether it left results. Those that are there are kept."""
    seconds = folder.with_suffix(".seconds")
    if (folder / "results.json").exists() and seconds.exists():
        return True
    began = time.monotonic()
    line = [sys.executable, str(ROOT / "run.py"), *settings, f"hydra.run.dir={folder}", "overwrite=true"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    seconds.write_text(f"{time.monotonic() - began:.0f}")
    (folder / "last.ckpt").unlink(missing_ok=True)  # gigabytes, to go on from
    print(f"{folder.name}: {'done' if done.returncode == 0 else 'FAILED'} in {seconds.read_text()} s", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.returncode == 0


def table(work: Path) -> str:
    rows = [
        "| system | seconds | seconds, two processes | largest difference of a weight | counts |",
        "|---|---:|---:|---:|---|",
    ]
    for system in STUDY.SYSTEMS:
        if not (work / system / "results.json").exists():
            continue
        two = work / f"{system}-two"
        cells = [(work / f"{system}.seconds").read_text(), "–", "–", "–"]
        if (two / "results.json").exists():
            same = counts(work / system) == counts(two)
            cells[1:] = [two.with_suffix(".seconds").read_text(), f"{apart(work / system, two):.1e}", ""]
            cells[3] = "the same" if same else "other"
        rows.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def counts(folder: Path) -> dict[str, Any]:
    """How many images were right, by set."""
    record = json.loads((folder / "results.json").read_text("utf-8"))
    return {name: one["top1"] for name, one in {"id": record["id"], **record["ood"]}.items()}


def apart(first: Path, second: Path) -> float:
    """The largest difference of a weight, relative to the largest of its tensor."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    pairs = [(value.double(), theirs[name].double()) for name, value in ours.items() if value.is_floating_point()]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
