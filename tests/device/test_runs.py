"""Whole runs on the device: every method, evaluation, resuming, pictures; the CPU's results bit for bit."""

import gzip
import json
import signal
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from omegaconf import open_dict
from safetensors.torch import load_file, save_file

import robustft
from robustft.cli import identity, resuming
from robustft.cli.main import run_in
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.components import component
from robustft.data.loading import make_loader
from robustft.data.sampling import EvalSampler
from robustft.data.sets import EvaluationSet, TensorImages
from robustft.evaluation import disagreement
from robustft.evaluation.evaluate import Evaluation
from robustft.evaluation.evaluator import Evaluator
from robustft.evaluation.predictions import write_predictions
from robustft.models import zeroshot
from robustft.models.files import BEST
from robustft.models.text_tower import TextTower
from robustft.models.tiny import tokenizer
from robustft.models.weights import create_clip
from robustft.training.checkpoints import SCORE, KeepBest, KeepState
from robustft.training.method import Method
from robustft.training.trainer import make_trainer
from tests.device import remote
from tests.methods.micro import micro, same_bits
from tests.small import composed

SETTINGS = """data.train_images=32 data.holdout=8 data.batch_size=8 data.test_images=8 data.eval_batch_size=5
    trainer.max_epochs=2""".split()
NAMES = ["fish", "boat", "star"]
TEMPLATES = ["a {}.", "a photo of a {}."]


class Place:
    """A device, and runs on it with a cache of their own."""

    def __init__(self, folder: Path, accelerator: str) -> None:
        self.folder, self.accelerator = folder / accelerator, accelerator

    def do(self, name: str, *settings: str, **options: Any) -> Path:
        """The folder of a run; the same one is done once."""
        folder = self.folder / name
        if not resuming.is_finished(folder):
            self.again(name, *settings, **options)
        return folder

    def again(self, name: str, *settings: str, resume: bool = False) -> None:
        typed = [*SETTINGS, *settings, f"trainer.accelerator={self.accelerator}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROBUSTFT_CACHE", str(self.folder / "cache"))
            cfg = composed(*typed, *(["resume=auto"] if resume else []))
            run_in(cfg, self.folder / name, list(settings))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Place]:
    folder = tmp_path_factory.mktemp("runs")
    return Place(folder, "cpu"), Place(folder, "auto")


def same_results(here: Path, there: Path) -> None:
    """Scores, each image's prediction, weights and pictures."""
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (here, there))
    for key in ("id", "ood", "ood_avg", "holdout", "zeroshot"):
        assert ours[key] == theirs[key], key
    for name in ("predictions.csv.gz", *(f"gallery/{path.name}" for path in (there / "gallery").iterdir())):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    weights, expected = load_file(here / "model.safetensors"), load_file(there / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


RUNS = {
    "counterfactual": ("disagreement=2", "trainer.val_check_interval=1"),
    "finetune": ("method=finetune", "trainer.accumulate_grad_batches=2"),
    "teacher_maps": ("mask.source=teacher", "fill=multi"),
    "kd": ("method=kd", "mask=random", "fill=none", "data.validate=all"),
    "linear_probe": ("method=linear_probe",),
    "lpft": ("method=lpft", "method.probe.epochs=2"),
    "text": ("method=zeroshot", "model.pretrained=embedded"),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(places, name):
    cpu, device = (place.do(name, *RUNS[name]) for place in places)
    same_results(device, cpu)
    if name == "counterfactual":
        steps = {file: disagreement.read(file) for file in (place / disagreement.FILE for place in (cpu, device))}
        here, there = steps.values()
        assert len(here) == 3 and here == there
    if name == "teacher_maps":
        assert list((places[1].folder / "cache" / "maps").glob("*.safetensors"))


@pytest.mark.parametrize("method", ["wiseft", "soup", "greedy_soup", "evaluate", "init_and_teacher"])
def test_of_models_left_by_runs(places, method):
    folders = []
    for place in places:
        one, two = (place.do(name, *RUNS[name]) / "model.safetensors" for name in ("counterfactual", "finetune"))
        settings = {
            "wiseft": ["method=wiseft", f"checkpoint={one}"],
            "soup": ["method=soup", f"checkpoints=[{one},{two}]"],
            "greedy_soup": ["method=soup", "method.greedy=true", f"checkpoints=[{one},{two}]"],
            "evaluate": ["method=evaluate", f"checkpoint={two}"],
            "init_and_teacher": [f"init={one}", f"teacher={two}", "trainer.max_epochs=1"],
        }
        folders.append(place.do(method, *settings[method]))
    same_results(folders[1], folders[0])


def test_cached_scores_and_heads_are_taken(places, monkeypatch):
    place = places[1]
    settings = ("model.pretrained=embedded", "method=finetune", "trainer.max_epochs=1")
    first = place.do("first", *settings)
    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", None)
    monkeypatch.setattr("robustft.common.cache.save_tensors", None)
    same_results(place.do("second", *settings), first)


def test_resumed(places, monkeypatch):
    """Stopped after a step and in an evaluation, each time resumed."""
    cpu, device = places
    settings = ("disagreement=2", "trainer.val_check_interval=1")
    after_step, in_evaluation = KeepState.on_train_batch_end, KeepState.on_validation_batch_end

    def stop(self, trainer, step):
        if trainer.state.fn == "fit" and trainer.global_step == step:
            self.received = signal.SIGTERM

    def train_batch_end(self, trainer, *rest):
        stop(self, trainer, 2)
        after_step(self, trainer, *rest)

    def validation_batch_end(self, trainer, *rest):
        stop(self, trainer, 4)
        in_evaluation(self, trainer, *rest)

    for hook, visit in (("on_train_batch_end", train_batch_end), ("on_validation_batch_end", validation_batch_end)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="interrupted after step"):
            patch.setattr(KeepState, hook, visit)
            device.again("resumed", *settings, resume=hook.startswith("on_validation"))
    device.again("resumed", *settings, resume=True)
    same_results(device.folder / "resumed", cpu.do("counterfactual", *RUNS["counterfactual"]))


SETS = {
    "plain": torch.eye(3, dtype=torch.bool),
    "some of the classes": torch.tensor([[True, False, False], [False, False, True]]),
    "several right classes for a label": torch.tensor([[True, False, True], [False, True, False]]),
}


def test_every_kind_of_evaluation_set(tmp_path):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 16, 16), generator=random, dtype=torch.uint8)
    sets = []
    for name, correct in SETS.items():
        labels = torch.randint(len(correct), (20,), generator=random)
        sets.append(EvaluationSet(name, TensorImages(pixels, labels), correct, [str(i) for i in range(20)]))
    found = []
    for accelerator in ("cpu", "auto"):
        options = configs.plain(composed(f"trainer.accelerator={accelerator}"))["trainer"]
        run = composed(f"trainer.accelerator={accelerator}")
        metrics = {name: component(f"metric.{name}", node, {}) for name, node in configs.plain(run)["metric"].items()}
        evaluator = Evaluator(
            micro(3),
            sets,
            keep_predictions=True,
            keep_logits=True,
            metrics=lambda metrics=metrics: {name: make() for name, make in metrics.items()},
            temperature=2.0,
        )
        loaders = [make_loader(s.dataset, EvalSampler(20, 6), 6, num_workers=0) for s in sets]
        make_trainer(options, tmp_path).validate(evaluator, loaders, verbose=False)
        file = tmp_path / f"{accelerator}.csv.gz"
        evaluation = Evaluation(sets)
        evaluation.take(evaluator)
        write_predictions(file, evaluation, ["one", "two", "three"])
        found.append((evaluator.scores, gzip.decompress(file.read_bytes()).decode().splitlines()))
    assert found[0] == found[1] and len(found[0][1]) == 1 + 60
    assert evaluator.predictions["plain"].device.type == remote.NAME


@pytest.mark.parametrize("cached", [False, True])
def test_text_rows(tmp_path, cached):
    clip: Any = create_clip("tiny", "embedded", 0)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    cache = tmp_path if cached else None
    rows = zeroshot.text_rows(clip, tokenizer(), NAMES, TEMPLATES, cache, remote.NAME)
    for attempt in range(2):  # the second time from the cache, without a move
        assert {value.device.type for value in clip.state_dict().values()} == {rows.device.type} == {"cpu"}
        assert clip.visual is not None and all(torch.equal(clip.state_dict()[k], v) for k, v in before.items())
        with remote.syncs() as waits:
            again = zeroshot.text_rows(clip, tokenizer(), NAMES, TEMPLATES, cache, remote.NAME if attempt else "cpu")
        assert torch.equal(rows, again) and not (cached and waits)


def test_zeroshot_classifier(tmp_path):
    made = [
        zeroshot.zeroshot_classifier("tiny", "embedded", NAMES, TEMPLATES, tokenizer=tokenizer(), device=device)
        for device in ("cpu", remote.NAME)
    ]
    assert same_bits(*made) and {value.device.type for value in made[1].state_dict().values()} == {"cpu"}


def test_a_loaded_model_moves(places):
    place = places[1]
    model = robustft.load(place.do("finetune", *RUNS["finetune"]))
    images = model.preprocess.normalise(torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8))
    with torch.inference_mode():
        expected = model(images)
        assert torch.equal(model.to(remote.NAME)(images.to(remote.NAME)).cpu(), expected)
        with pytest.raises(remote.DevicesMixed):
            model(images)


def test_a_loss_that_is_not_finite_is_found_when_it_is_looked_at(places):
    """The step that is named is the first bad one, on the CPU and where it is looked at only now and then."""
    said = []
    for place in places:
        with pytest.raises(UserError, match="no longer finite at step") as caught:
            place.again(
                "diverges", "optimizer.lr=1e30", "trainer.log_every_n_steps=5", "trainer.check_val_every_n_epoch=3"
            )
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_best_weights_are_restored_to_a_model_on_the_device(tmp_path):
    best, model = micro(1), micro(2).to(remote.NAME)
    save_file(best.state_dict(), tmp_path / BEST, {SCORE: "0.5"})
    KeepBest(tmp_path, True, ["one", "two", "three"]).restore(model)
    assert {value.device.type for value in model.state_dict().values()} == {remote.NAME}
    assert same_bits(model.cpu(), best)


def test_the_old_fault_is_found(monkeypatch):
    """The whole CLIP moved in place, its rows brought back: they met a scale that had stayed on the device."""

    def text_rows(clip, tokenizer, class_names, templates, cache=None, device="cpu"):
        text = TextTower(clip.to(device))
        columns = open_clip.build_zero_shot_classifier(text, tokenizer, class_names, templates, device=device)
        return columns.T.float().cpu().contiguous()

    monkeypatch.setattr(zeroshot, "text_rows", text_rows)
    with pytest.raises(remote.DevicesMixed, match="aten.mul.Tensor, a torch.float32 of shape .3, 96. is on the cpu"):
        test_zeroshot_classifier(None)


# Out of memory


def full_above(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with more than so many images does not fit."""
    normalise = Method.on_after_batch_transfer

    def limited(self, batch, dataloader_idx):
        if self.trainer.training and len(batch.images) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return normalise(self, batch, dataloader_idx)

    monkeypatch.setattr(Method, "on_after_batch_transfer", limited)


def test_micro_batches_that_fit(places, monkeypatch, caplog):
    cpu, device = places
    settings = ("method=finetune", "data.batch_size=12", "data.holdout=8")
    expected = cpu.do("by_four", *settings, "trainer.accumulate_grad_batches=3")
    full_above(5, monkeypatch)
    with pytest.raises(UserError, match="out of memory while training.*trainer.accumulate_grad_batches=2 .or auto"):
        device.again("too_large", *settings)
    auto = "trainer.accumulate_grad_batches=auto"
    with caplog.at_level("INFO", "robustft"):
        found = device.do("auto", *settings, auto)
    assert "trainer.accumulate_grad_batches=3: 4 images at a time fit on remote:0" in caplog.text
    same_results(found, expected)
    assert json.loads((found / "results.json").read_text())["config"]["trainer"]["accumulate_grad_batches"] == 3
    assert "trainer.accumulate_grad_batches=3" in resuming.saved_overrides(found)
    assert auto not in resuming.saved_overrides(found)


def test_a_resumed_run_takes_the_number_of_micro_batches_that_it_began_with(places, monkeypatch):
    device = places[1]
    settings = ("method=finetune", "trainer.accumulate_grad_batches=auto", "trainer.check_val_every_n_epoch=2")
    full_above(2, monkeypatch)
    step = KeepState.on_train_batch_end

    def stop(self, trainer, *rest):
        self.received = signal.SIGTERM if trainer.max_steps == -1 else None  # not in the steps that are tried
        step(self, trainer, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KeepState, "on_train_batch_end", stop)
        device.again("auto_resumed", *settings)
    folder = device.folder / "auto_resumed"
    cfg = composed(*SETTINGS, *settings, "trainer.accelerator=auto")
    identity.resolve(cfg)
    with open_dict(cfg):
        assert resuming.newest_interrupted(cfg, [folder]) == folder
    monkeypatch.setattr("robustft.training.accumulation.micro_batches_that_fit", None)  # nothing is tried again
    device.again("auto_resumed", *settings, resume=True)
    record = json.loads((folder / "results.json").read_text())
    assert record["config"]["trainer"]["accumulate_grad_batches"] == 4


def test_nothing_fits(places, monkeypatch):
    full_above(1, monkeypatch)
    with pytest.raises(UserError, match="2 images at a time.*grad_checkpointing"):
        places[1].again("nothing_fits", "trainer.accumulate_grad_batches=auto")  # a fill needs two


def test_out_of_memory_elsewhere(places, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="while evaluating .*data.eval_batch_size"):
        patch.setattr("robustft.evaluation.evaluator.predict", full)
        places[1].again("full", "method=zeroshot")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="encoding the names of classes.*trainer=cpu"):
        patch.setattr(open_clip, "build_zero_shot_classifier", full)
        zeroshot.text_rows(create_clip("tiny", "embedded", 0), tokenizer(), NAMES, TEMPLATES, None, remote.NAME)
