"""Mistakes that people make, through the real command: what each is told.

    python -m tests.mistakes [FILE.md]     # run them all (minutes); the table

Each has to end with a status other than 0 and one line that begins with ``error: ``, without a traceback, and leave
nothing behind that looks finished. ``tests/test_mistakes.py`` runs all of them, among the slow tests.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from robustft.common.files import write
from tests.small import ROOT

SHORT = """model=tiny model.pretrained=null data.train_images=64 data.holdout=16 data.test_images=16 data.batch_size=16
    trainer=cpu trainer.max_steps=2 logger=none trainer.enable_progress_bar=false"""
FOLDERS = "robustft model=tiny model.pretrained=null logger=none trainer.max_steps=2 data=folders data.train=photos"
OTHERS = "robustft model=vitb16 model.pretrained=null logger=none data=folders data.train=photos"

# By kind: a command in the folder that `lay_out` makes, and words of what is said. "SHORT" is a run of seconds.
MISTAKES: dict[str, dict[str, str]] = {
    "names": {
        "robustft mask.treshold=0.3": "unknown setting 'mask.treshold'. Did you mean mask.threshold?",
        "robustft lr=0.1": "Did you mean optimizer.lr",
        "robustft maks=object": "Did you mean mask?",
        "robustft mask=objekt": "Did you mean mask=object? Options: context, none, object, random",
        "robustft method=finetuning": "Did you mean method=finetune",
        "robustft model=vitb23": "model=vitb23: no such option. Did you mean model=vitb32",
        "robustft data=folder": "Did you mean data=folders",
        "robustft metric=[eec]": "metric=eec: no such option",
        "robustft schedule=cosine": "Did you mean schedule=warmup_cosine",
        "robustft constraint=[nothing]": "constraint=nothing: no such option",
        "robustft augment=crops": "Did you mean augment=crop?",
        "robustft moving=exponential": "moving=exponential: no such option",
        "robustft train=backbone": "train=backbone: no such option",
        "robustft +foo=1": "unknown setting 'foo'",
        "robustft ~beta": "cannot be removed",
        "robustft foo": "'foo' is no command",
        "robustft seed=1 foo": "'foo' is no setting",
        "robustft checkpoint=a=b": "cannot read 'checkpoint=a=b'",
        "robustft hydra/launcher=foo": "hydra/launcher=foo: no such option",
    },
    "values": {
        "robustft mask.threshold=1.5": "expected a number between 0 and 1, both excluded",
        "robustft mask.threshold=abc": "mask.threshold=abc",
        "robustft mask=random mask.rate=0": "mask.rate=0",
        "robustft mask=random mask.rate=null": "mask.rate has no value",
        "robustft beta=-1": "beta=-1: expected a number, 0 or more",
        "robustft beta=null": "beta has no value",
        "robustft beta=nan": "beta=",
        "robustft seed=-1": "seed=-1: expected a whole number from 0",
        "robustft seed=1.5": "seed=1.5",
        "robustft method=kd temperature=0": "temperature=0",
        "robustft mask.cam=rollout": "one of relevance, gradcam",
        "robustft mask.layers=[a]": "mask.layers",
        "robustft optimizer.lr=0": "optimizer.lr=0",
        "robustft optimizer.lr=fast": "optimizer.lr=fast",
        "robustft optimizer.weight_decay=-0.1": "optimizer.weight_decay=-0.1",
        "robustft trainer.max_epochs=0": "trainer.max_epochs=0",
        "robustft trainer.max_steps=2.5": "trainer.max_steps=2.5",
        "robustft trainer.precision=fp12": "trainer.precision=fp12",
        "robustft trainer.accelerator=npu9": "trainer.accelerator=npu9",
        "robustft trainer.accelerator=gpu": "trainer.accelerator=gpu",
        "robustft trainer.devices=-3": "trainer.devices=-3",
        "robustft threads=0": "threads=0",
        "robustft moving=ema result=teacher": "result=teacher: expected one of student, average",
        "robustft data.batch_size=1": "fill=single takes patches from other images",
        "robustft data.batch_size=4 trainer.accumulate_grad_batches=8": "cannot be split",
        "robustft data.holdout=1000000": "data.holdout=1000000",
    },
    "what does nothing": {
        "robustft method=finetune mask=object": "method=finetune takes no mask or fill: leave out mask=object",
        "robustft method=finetune mask.threshold=0.4": "leave out mask.threshold=0.4",
        "robustft mask=none fill=single": "fill=single has nothing to fill with mask=none",
        "robustft optimizer.beta1=0.8": "optimizer.beta1=0.8 does nothing with schedule=one_cycle",
        "robustft schedule=warmup_cosine optimizer.max_momentum=0.9": "does nothing with schedule=warmup_cosine",
        "robustft method=zeroshot schedule=warmup_cosine": "schedule=warmup_cosine does nothing with method=zeroshot",
        "robustft method=zeroshot optimizer.lr=1e-4": "does nothing with method=zeroshot",
        "robustft constraint.anchor=init": "constraint.anchor=init does nothing with constraint=none",
        "robustft result=average": "result=average",
        "robustft alpha=0.3": "alpha=0.3 does nothing with method=counterfactual",
        "robustft method=finetune beta=2": "beta=2 does nothing with method=finetune",
        "robustft data.shifts.x=photos": "data.shifts.x=photos does nothing with data=scenes",
        "robustft sweep=foo": "sweep=foo names a sweep, and this is a single run: add -m",
        "robustft overwrite=true": "say in which one, hydra.run.dir=DIR",
        "robustft retain.style=false retain.style.kind=table": "does nothing with retain.style=false",
        "robustft method=flyp teacher=done": "teacher",
    },
    "sweeps": {
        "robustft beta=1,3": "add -m",
        "robustft -m beta=1,3 sede=1": "Did you mean seed?",
        "robustft -m mask=object,nothing": "mask=nothing: no such option",
        "robustft -m beta=1,x": "beta=x: expected a number, 0 or more (of the run beta-x; none was started)",
        "robustft -m seed=1,2 trainer.devices=2": "a run of a sweep takes one device",
        "robustft -m seed=1,2 sweep=a/b": "sweep=a/b",
        "robustft -m seed=1,2 --cfg job": "--cfg shows the config of one run",
        "robustft -m seed=1,2 overwrite=true": "overwrite=true is for single runs",
        "robustft -m method=finetune,evaluate": "needs checkpoint=",
    },
    "files that are not there": {
        "robustft resume=nowhere": "resume=nowhere: no such folder",
        "robustft model.pretrained=weights.pt": "model.pretrained=weights.pt: no such file",
        "robustft method=wiseft": "method=wiseft needs checkpoint=",
        "robustft method=soup": "method=soup needs checkpoints=",
        "robustft method=soup checkpoints='runs/*/none'": "checkpoints",
        "robustft method=evaluate checkpoint=nothing.safetensors": "checkpoint=nothing.safetensors: no such file",
        "robustft method=evaluate checkpoint=photos": "checkpoint=photos",
        "robustft init=nothing": "init=nothing",
        "robustft model=vitb32": "data.root is not set",
        "robustft model=vitb32 data.root=/no/such/folder": "data.root=/no/such/folder: no such folder",
        "robustft model=vitb32 model.pretrained=null data.root=photos logger=none": "ILSVRC2012/train",
        "robustft model=openclip": "model.architecture has no value",
        "robustft --config-dir nowhere": "nowhere",
    },
    "own images": {
        "robustft data=folders": "data.train is not set: give the folder",
        "robustft data=folders data.train=foto": "data.train=foto: no such folder",
        "robustft data=folders data.train=table.csv": "no such folder (that is a file)",
        "robustft data=folders data.train=flat": "lies in it directly",
        "robustft data=folders data.train=hollow": "Its folders are empty",
        "robustft data=folders data.train=splits": "which are no classes",
        f"{FOLDERS} data.val=v": "data.val=v: no such folder",
        f"{FOLDERS} data.val_share=1": "data.val_share=1: expected a number between 0 and 1",
        f"{FOLDERS} data.shifts.more=strangers": "1 class unknown to the training images: dgo (dog?)",
        f"{FOLDERS} data.shifts.val=strangers": "a shift cannot be called 'val'",
        f"{FOLDERS} data.class_names=n.json": "data.class_names=n.json: no such file",
        f"{FOLDERS} data.batch_size=64": "data.batch_size=64 is more than",
        f"{FOLDERS} data.holdout=500": "can be held out",
        f"{FOLDERS} data.lossy=true": "unknown setting 'data.lossy'",
        f"{FOLDERS} data.shots=0": "data.shots=0: expected a whole number, 1 or more",
        f"{FOLDERS} augment=crop augment.scale=[0.5,2]": "augment.scale=[0.5, 2]",
        f"{FOLDERS} data.prepared=copies": "data.prepared=copies: no such folder",
        f"{FOLDERS} retain.pets=nowhere": "retain.pets",
        f"{FOLDERS} retain.pets=photos": "retain.pets",
        "robustft model=tiny model.pretrained=null logger=none data=folders data.train=empty": "the file is empty",
        "robustft model=tiny model.pretrained=null logger=none data=folders data.train=page": "a web page",
        "robustft model=tiny model.pretrained=null logger=none data=folders data.train=cut": "runcated",
        "robustft model=tiny model.pretrained=null logger=none data=domains data.root=.": "data.source",
        "robustft model=tiny model.pretrained=null logger=none data=domains data.root=domains data.source=foto": (
            "Did you mean photo?"
        ),
        "robustft data=domains": "data.root is not set",
        "robustft data=table": "data.path is not set: give the table",
        "robustft data=table data.path=t.csv": "data.path=t.csv: no such file",
        "robustft data=table data.path=table.csv": "images are not there",
        "robustft data=table data.path=columns.csv": "no column 'path'",
        "robustft data=table data.path=broken.parquet": "broken.parquet",
        "robustft data=huggingface": "data.path is not set",
        "robustft model=tiny data=folders data.train=photos logger=none": "does not know",
    },
    "models": {
        f"robustft {SHORT} optimizer.lr=1e30 trainer.max_steps=10": "no longer finite at step",
        "SHORT data.batch_size=128": "data.batch_size=128",
        "SHORT method=finetune init=noise.safetensors": "noise.safetensors",
        "SHORT method=finetune init=cut.safetensors": "cut.safetensors",
        "SHORT method=finetune init=code.pt": "code.pt",
        "SHORT model.pretrained=noise.safetensors": "noise.safetensors",
        f"{OTHERS} method=evaluate checkpoint=done": "done/model.safetensors is a tiny",
        "robustft method=model_stock checkpoints=[done]": "1 model. method=model_stock needs 2 or more",
    },
    "other commands": {
        "robustft predict": "required",
        "robustft predict nowhere photos": "nowhere",
        "robustft predict done nowhere.jpg": "nowhere.jpg",
        "robustft predict done photos --top 0": "--top",
        "robustft predict done photos --out answers.xml": "answers.xml",
        "robustft predict done photos --device tpu9": "--device=tpu9: not here",
        "robustft export done out --format tf": "--format",
        "robustft export nowhere out --format pt2": "nowhere",
        "robustft export done photos --format pt2": "photos",
        "robustft report nowhere": "nowhere",
        "robustft report photos": "photos",
        "robustft compare": "required",
        "robustft compare finetune finetun": "finetun",
        "robustft compare finetune --seeds 0": "--seeds",
        "robustft app nowhere": "nowhere",
        "robustft bench --model vit": "vit",
        "robustft example photos": "photos is there already",
        "robustft predcit done photos": "Did you mean predict",
    },
}

LONGEST = 100  # seconds to an answer
UNFINISHED = (".log", ".run.lock", "config.yaml", "overrides.yaml", "error.txt")  # what a failed run may leave


@dataclass(frozen=True)
class Answer:
    """What a command ended with.

    Attributes:
        status: of its exit.
        said: on standard error.
        error: its line that begins with "error: ", without that; empty if there is none, or more than one.
        left: files that it left.
        seconds: that it took.
    """

    status: int
    said: str
    error: str
    left: list[str]
    seconds: float


def lay_out(folder: Path) -> None:
    """Make what the commands are about: images, tables, damaged files, and a finished run."""
    for domain in ("photos", "domains/photo", "domains/sketch"):
        for number, kind in enumerate(("cat", "dog")):
            for image in range(10):
                _picture(folder / domain / kind / f"{image}.png", 20 * number + image)
    for name in ("strangers/cat/1", "strangers/dgo/1", "flat/1", "splits/train/cat/1", "splits/val/cat/1"):
        _picture(folder / f"{name}.png", 1)
    (folder / "hollow" / "cat").mkdir(parents=True)
    whole = (folder / "photos" / "cat" / "1.png").read_bytes()
    for name, content in (("empty", b""), ("page", b"<!DOCTYPE html><html>404</html>"), ("cut", whole[:-40])):
        for number, kind in enumerate(("cat", "dog")):
            for image in range(5):
                _picture(folder / name / kind / f"{image}.png", 20 * number + image)
        (folder / name / "dog" / "5.png").write_bytes(content)
    (folder / "table.csv").write_text("path,label\nx.png,cat\ny.png,cat\n")
    (folder / "columns.csv").write_text("file,label\nx.png,cat\n")
    (folder / "broken.parquet").write_bytes(b"PAR1 and so on")
    (folder / "noise.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "code.pt").write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    done = answer(f"robustft {SHORT} hydra.run.dir=done", folder, longest=300)
    assert done.status == 0, done.said or done.error
    (folder / "cut.safetensors").write_bytes((folder / "done" / "model.safetensors").read_bytes()[:5000])


def _picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise((32, 32), 40 + shade).convert("RGB")
    image.putpixel((0, 0), (shade, 0, 0))
    image.save(path)


def answer(line: str, folder: Path, longest: float = LONGEST) -> Answer:
    """Run a command there."""
    cache = folder.parent / "cache"
    words = shlex.split(line.replace("SHORT", f"robustft {SHORT}") if line.startswith("SHORT") else line)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(cache), "COLUMNS": "200", "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    before, started = files(folder), time.monotonic()
    command = [sys.executable, str(ROOT / "run.py"), *words[1:]]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=longest,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Answer(-1, "", f"still running after {longest} s", sorted(files(folder) - before), longest)
    seconds = time.monotonic() - started
    errors = [part for part in done.stderr.splitlines() if "error: " in part]
    error = errors[0].partition("error: ")[2] if len(errors) == 1 else ""
    return Answer(done.returncode, done.stdout + done.stderr, error, sorted(files(folder) - before), seconds)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def faults(words: str, found: Answer) -> Iterator[str]:
    """What is wrong with an answer."""
    if found.status not in (1, 2):
        yield f"exit status {found.status}"
    if "Traceback" in found.said:
        yield "a traceback"
    if not found.error:
        yield "not one line that begins with error:"
    elif words not in found.error:
        yield f"it does not say {words!r}"
    if len(found.error) > 500:
        yield f"{len(found.error)} characters"
    if left := [name for name in found.left if not name.endswith(UNFINISHED)]:
        yield f"left behind: {', '.join(left)}"


def run_all(folder: Path, kinds: Sequence[str] = tuple(MISTAKES)) -> Iterator[tuple[str, str, str, Answer]]:
    """Kind, command, expected words and answer of each, one after the other."""
    lay_out(folder)
    for kind in kinds:
        for line, words in MISTAKES[kind].items():
            yield kind, line, words, answer(line, folder)


def main(target: Path | None) -> int:
    import tempfile

    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "here"
        here.mkdir()
        for kind, line, words, found in run_all(here):
            bad = list(faults(words, found))
            wrong += bool(bad)
            print(
                f"{found.seconds:5.1f} s  {line}\n         {found.error}",
                *(f"    !!! {each}" for each in bad),
                sep="\n",
            )
            rows.append((kind, line, found))
    print(f"{len(rows)} mistakes, {wrong} not answered as they should be")
    if target is not None and not wrong:
        write(target, table(rows))
    return wrong


def table(rows: Sequence[tuple[str, str, Answer]]) -> str:
    lines = ["| typed | said | s |", "|---|---|---:|"]
    for _, line, found in rows:
        shown = line.replace(f"robustft {SHORT}", "SHORT").replace(FOLDERS, "FOLDERS").replace(OTHERS, "OTHERS")
        said = found.error.replace("|", "\\|")
        lines.append(f"| `{shown}` | {said} | {found.seconds:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
