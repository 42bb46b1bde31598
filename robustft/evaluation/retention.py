"""What a model still knows: its image tower on tasks that it was not trained for, with a text tower's head.

For another data set E with classes of its own, A(E) is the top-1 of n(f)·T with n(f) the unit features and T the unit
prompt embeddings of E's classes; what fine-tuning changed is Δ(E) = A(E) after − A(E) before (LDIFS, Mukhoti et al.
2024; negative: forgotten). T is the pre-trained text tower's, also where a method trains the text tower: then its own
is asked too (`top1_own_text`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from robustft.common.cache import cache_folder, digest, fingerprint, one_at_a_time, optional
from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.common.memory import EVALUATION, enough_memory
from robustft.common.processes import is_first_process
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import Batch, RetentionTask
from robustft.evaluation.results import Score
from robustft.evaluation.top1 import Top1
from robustft.models.classifier import Classifier
from robustft.models.prompts import Tokenizer
from robustft.models.text import digest_of, kept_rows
from robustft.models.weights import text_tower
from robustft.models.zeroshot import text_rows
from robustft.training.lightning_private import leave_to_each_device
from robustft.training.trainer import agreement, make_trainer, resolve_precision

Rows = Float[Tensor, "classes features"]
OWN = "own text: "  # before a task's name: scored with the text tower that the model was trained with


@dataclass(frozen=True)
class Question:
    """A task under a head: unit embeddings of its classes."""

    name: str
    task: RetentionTask
    rows: Rows


class Retention:
    """The tasks of a run and what the zero-shot model makes of them; says of other models what they still know.

    Args:
        rows: of each task, by its name, from the pre-trained text tower.
        trainer: arguments of Lightning's Trainer.
        folder: of the run.
    """

    def __init__(
        self,
        tasks: Sequence[RetentionTask],
        rows: Mapping[str, Rows],
        data: RobustnessData,
        trainer: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.tasks, self.rows, self.data, self.trainer, self.folder = list(tasks), rows, data, trainer, folder
        self.before: dict[str, Score] = {}

    def ask_zeroshot(self, zeroshot: Classifier) -> None:
        """Find what the zero-shot model knows; remembered by image tower, head and images."""
        whole = self.trainer["limit_val_batches"] is None and not self.trainer["fast_dev_run"]
        lightning = make_trainer(self.trainer, self.folder)
        precision = resolve_precision(self.trainer["precision"], self.trainer["accelerator"])
        settings = (fingerprint(zeroshot.visual), precision, lightning.strategy.root_device.type)
        folder = cache_folder() / "scores"
        files = {
            task.name: folder / f"{digest(*settings, self.rows[task.name].tolist(), task.images.fingerprint)}.json"
            for task in self.tasks
        }
        agree = agreement(lightning) if whole else None
        alone = agree is None and whole
        with one_at_a_time(folder / f"{settings[0]}-retention") if alone else nullcontext():
            known = {name: _kept(file) if whole else None for name, file in files.items()}
            if agree is not None:
                known = {name: score if agree(score is not None) else None for name, score in known.items()}
            missing = [task for task in self.tasks if known[task.name] is None]
            if missing:
                found = self._scores(zeroshot, [Question(t.name, t, self.rows[t.name]) for t in missing])
                known |= found
                for name in found if whole and is_first_process() else ():
                    with optional(folder):
                        write(files[name], json.dumps(found[name].as_dict()))
        self.before = {name: score for name, score in known.items() if score is not None}

    def of(self, model: Classifier, own: Mapping[str, Rows] | None = None) -> dict[str, dict[str, Any]]:
        """What ``model`` still knows, as results hold it: top1, zeroshot_top1, top1_own_text and n of each task.

        Args:
            own: of each task, from the text tower that was trained with the model; None: none was.
        """
        questions = [Question(task.name, task, self.rows[task.name]) for task in self.tasks]
        questions += [Question(OWN + task.name, task, own[task.name]) for task in self.tasks if own is not None]
        return self._record(self._scores(model, questions))

    def of_zeroshot(self) -> dict[str, dict[str, Any]]:
        """The same of the zero-shot model itself: nothing is lost."""
        return self._record(self.before)

    def _record(self, after: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "top1": after[name].top1,
                "zeroshot_top1": before.top1,
                "top1_own_text": after[OWN + name].top1 if OWN + name in after else None,
                "n": after[name].n,
            }
            for name, before in self.before.items()
            if name in after
        }

    def _scores(self, model: Classifier, questions: Sequence[Question]) -> dict[str, Score]:
        asked = list(_by_pictures(questions))
        evaluator = _Asked(model, asked)
        loaders = [self.data.eval_loader(first.task.images) for first, *_ in asked]
        with enough_memory("asking what the model still knows", EVALUATION):
            make_trainer(self.trainer, self.folder).validate(evaluator, dataloaders=loaders, verbose=False)
        model.cpu()
        return evaluator.scores


def embeddings(
    tasks: Sequence[RetentionTask],
    zeroshot: Classifier,
    tokenizer: Tokenizer,
    trained: nn.Module | None = None,
    near: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Rows]:
    """Make the unit embeddings of the classes of tasks, by their names, on the CPU.

    Args:
        zeroshot: the model whose pre-trained text tower makes them; they are kept.
        trained: a text tower that makes them instead; they are not kept.
        near: folders or files where the pre-trained one may lie.
        device: where they are computed.

    Raises:
        UserError: there is no text tower, or it does not know a word.
    """
    source = zeroshot.architecture.text if trained is None else None
    towers = [] if trained is None else [trained]  # loaded where something is not known yet

    def encode(task: RetentionTask) -> Rows:
        if not towers:
            towers.append(_pretrained(zeroshot, near))
        return text_rows(towers[0], tokenizer, task.class_names, task.templates, device=device)

    found: dict[str, Rows] = {}
    for task in tasks:
        try:
            tokens = tokenizer(task.prompts)
        except UserError as error:
            raise UserError(f"retain.{task.name}: {error} Leave it out: retain.{task.name}=false") from error
        if source is None:
            found[task.name] = encode(task)
        else:
            found[task.name] = kept_rows(source, task.prompts, tokens, cache_folder() / "heads", partial(encode, task))
    return found


def _pretrained(zeroshot: Classifier, near: Sequence[Path]) -> nn.Module:
    """The pre-trained text tower of a model; one that is in it may have been trained, by the run that left it."""
    own, source = zeroshot.text, zeroshot.architecture.text
    if own is not None and (source is None or digest_of(own) == source.sha256):
        return own
    return text_tower(zeroshot.without_text(), near)


def _kept(file: Path) -> Score | None:
    """A score that is known already."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_text("utf-8"))
        return Score(float(found["top1"]), int(found["n"]))
    return None


def retained(found: Mapping[str, Mapping[str, Any]] | None) -> dict[str, float]:
    """Retention under the names that loggers use: the top-1 of each task, and the mean of what fine-tuning changed."""
    if not found:
        return {}
    delta = sum(one["top1"] - one["zeroshot_top1"] for one in found.values()) / len(found)
    return {f"retention/{name}": one["top1"] for name, one in found.items()} | {"retention/delta": delta}


def _by_pictures(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Questions of the same pictures together, so that each picture is encoded once."""
    together: dict[str, list[Question]] = {}
    for question in questions:
        together.setdefault(question.task.images.dataset.identity(), []).append(question)
    yield from together.values()


class _Asked(LightningModule):
    """Encodes each picture once, and counts what every head makes of it."""

    def __init__(self, model: Classifier, asked: Sequence[Sequence[Question]]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # see RobustnessData
        self.model, self.asked = model, asked
        self.tops = nn.ModuleList(
            nn.ModuleList(Top1(question.task.images.correct) for question in questions) for questions in asked
        )
        constants = {}
        for group, questions in enumerate(asked):
            for number, question in enumerate(questions):
                constants[f"rows_{group}_{number}"] = question.rows
                constants[f"labels_{group}_{number}"] = question.task.images.dataset.labels
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        leave_to_each_device(self, [name for name, _ in self.named_buffers()])
        self.scores: dict[str, Score] = {}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch._replace(images=self.model.normalise(batch.images))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        features = self.model.encode(batch.images)
        tops: Any = self.tops[dataloader_idx]
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=-1)
            for number, top1 in enumerate(tops):
                labels: Int64[Tensor, " images"] = self.get_buffer(f"labels_{dataloader_idx}_{number}")
                rows = self.get_buffer(f"rows_{dataloader_idx}_{number}")
                top1.update(unit @ rows.T, labels[batch.indices])

    def on_validation_epoch_end(self) -> None:
        for tops, questions in zip(self.tops, self.asked, strict=True):
            for top1, question in zip(tops, questions, strict=True):  # type: ignore[call-overload]
                if top1.update_called or self.trainer.world_size > 1:
                    self.scores[question.name] = top1.score()
