"""Training methods timed side by side, each against vanilla fine-tuning and against its own floor.

A method is made as a run makes it, from its config, of random weights and images; a step of it is all that a run's step
is: loss, backward, clipping, AdamW, constraints, moving average.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from robustft.bench.measure import Step, seconds_by_round
from robustft.cli import checks, compose, identity
from robustft.cli.described import takes
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.common.randomness import generator, seeded
from robustft.components import component, make_moving, make_parts, make_recipe, make_tokenizer
from robustft.data.datamodule import Devices, RobustnessData
from robustft.data.scenes import ScenesData
from robustft.data.sets import Batch, EvaluationSet, TensorImages
from robustft.methods.contrastive import Contrastive
from robustft.models.classifier import Architecture, Classifier
from robustft.models.frozen_text import FrozenText
from robustft.models.text import without_visual
from robustft.models.weights import create_clip, model_config
from robustft.models.work import Forward, compared_by
from robustft.models.zeroshot import open_clip_tokenizer, preprocess_of, prompts_of
from robustft.training.method import AUTOCAST, Method

STEPS, IMAGES = 1000, 1000  # of the training that is stood in for
WHOLE = "prompts of whole length"


class StandIn(RobustnessData):
    """What methods ask the data for: classes, prompts, and how many images there are."""

    def __init__(self, names: Sequence[str], templates: Sequence[Any], **options: Any) -> None:
        super().__init__(**options, seed=0, holdout=0, holdout_seed=0)
        self.name, self.class_names, self.templates = "stand-in", list(names), list(templates)

    def training_set(self) -> TensorImages:
        labels = torch.arange(max(IMAGES, self.batch_size)) % len(self.class_names)
        return TensorImages(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels)

    def evaluation_sets(self) -> list[EvaluationSet]:
        return []


class Offer(Mapping[str, Any]):
    """What a run offers to its method (``robustft.inputs.Inputs``), of random weights; a model made anew every time."""

    def __init__(self, cfg: DictConfig, batch: int, device: str) -> None:
        self.cfg, self.device = cfg, device
        names: Sequence[str] = IMAGENET_CLASSNAMES
        templates: Sequence[Any] = OPENAI_IMAGENET_TEMPLATES
        if cfg.model.name == "tiny":
            names, templates = ScenesData.class_names, ScenesData.templates
        transform = preprocess_of(cfg.model.architecture, None)
        self.data = StandIn(names, templates, preprocess=transform, batch_size=batch, eval_batch_size=batch)
        self.data.devices = Devices(cuda=device == "cuda")
        self.tokenizer = make_tokenizer(cfg.model) or open_clip_tokenizer(cfg.model.architecture)
        plain = configs.plain(cfg)
        self._makers: dict[str, Any] = {
            "student": partial(self._model, 0),
            "teacher": partial(self._model, 1),
            "zeroshot": partial(self._model, 0),
            "text": lambda: FrozenText(self._clip.eval().requires_grad_(False), self.tokenizer, 100.0),
            "contexts": lambda: 100 * nn.functional.normalize(torch.randn(len(templates), self._width), dim=-1),
            "mask": lambda: plain["mask"],
            "fill": lambda: cfg.fill.kind,
            "data": lambda: self.data,
            "head": lambda: bool(cfg.constraint.head),
            "anchor": partial(self._model, 1),
            **{name: partial(cfg.get, name) for name in ("beta", "alpha", "temperature", "seed")},
        }

    @property
    def _clip(self) -> Any:
        return without_visual(create_clip(self.cfg.model.architecture, None, 0))

    @property
    def _width(self) -> int:
        return int(model_config(self.cfg.model.architecture)["embed_dim"])

    def _model(self, seed: int) -> Classifier:
        name = self.cfg.model.architecture
        clip: Any = create_clip(name, None, seed)
        with seeded("method bench head", seed):
            head = nn.Linear(self._width, len(self.data.class_names))
        nn.init.zeros_(head.bias)  # as in a zero-shot head
        visual = clip.visual
        text = without_visual(clip) if self.cfg.method.takes.get("text") in ("trained", "frozen") else None
        model = Classifier(visual, head, Architecture(name, model_config(name), preprocess_of(name, None)), text)
        if text is not None:
            model.prompts = prompts_of(model, self.tokenizer, self.data.class_names, self.data.templates)
        model.set_grad_checkpointing(self.cfg.model.grad_checkpointing)
        return model.eval()

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass
class MethodBench:
    """A training method and all that a step of it needs.

    Attributes:
        typed: a method with settings of its own, as `robustft compare` takes it: counterfactual,mask=none.
        whole: prompts are not cut at the longest of a batch.
    """

    typed: str
    model: str
    batch: int
    precision: str
    device: str
    whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.typed}, {WHOLE}" if self.whole else self.typed

    @cached_property
    def cfg(self) -> DictConfig:
        method, *own = self.typed.split(",")
        data = ["data=scenes"] if self.model != "tiny" else []  # it is there without files; its images are not used
        line = [f"method={method}", *own, f"model={self.model}", "model.pretrained=null", *data]
        cfg = compose.compose_first(compose.parse([*line, f"data.batch_size={self.batch}"]))
        with open_dict(cfg):
            cfg.pop("hydra", None)
        checks.check(cfg)
        identity.resolve(cfg)
        return cfg

    @cached_property
    def data(self) -> Batch:
        side = preprocess_of(self.cfg.model.architecture, None).size
        random = generator("method bench batch", 0)
        classes = len(self.offer.data.class_names)
        parts = (
            torch.randn(self.batch, 3, side, side, generator=random),
            torch.randint(classes, (self.batch,), generator=random),
            torch.arange(self.batch),
        )
        return Batch(*(part.to(self.device) for part in parts))

    @cached_property
    def offer(self) -> Offer:
        return Offer(self.cfg, self.batch, self.device)

    @cached_property
    def method(self) -> Method:
        """As a run makes it."""
        method = component("method", configs.plain(self.cfg)["method"], self.offer)()
        if not isinstance(method, Method):
            raise UserError(f"{self.typed}: the method does not train, so there is no step to time")
        if self.whole and isinstance(method, Contrastive):
            method.prompts = replace(method.prompts, cut=False)
        method.recipe = make_recipe(self.cfg).changed(lr=0.0)  # so that every step is like the first
        method.constraints = [
            component(f"constraint.{name}", node, self.offer)()
            for name, node in configs.plain(self.cfg)["constraint"].items()
            if isinstance(node, Mapping)
        ]
        method.steps = STEPS
        method.keep_average(make_moving(self.cfg), STEPS)  # of the model as it is before low-rank updates
        method.parts = make_parts(self.cfg)
        method.parts.start(method.student, 0)
        return method.to(self.device)

    @property
    def floor(self) -> float:
        """What a step cannot cost less than, in forward passes of the image tower: the method's own word."""
        return self.method.forwards(self.data)

    def floor_as_timed(self, rounds: int, wall: bool) -> float:
        """``floor``, where a forward pass of the text tower counts by the time it takes beside one of the image tower,
        and a backward pass by as much: of small matrices a machine does less arithmetic in a second.
        """
        precision = self._precision()

        def compare(part: Forward, whole: Forward) -> float:
            def step(forward: Forward) -> Callable[[], None]:
                @torch.no_grad()
                def run() -> None:
                    with precision():
                        forward()

                return run

            steps = {"part": step(part), "whole": step(whole)}
            taken = seconds_by_round(steps, rounds, self.device, lambda _: None, wall)
            return median(a / b for a, b in zip(taken["part"], taken["whole"], strict=True))

        with compared_by(compare):
            return self.floor

    def _precision(self) -> Callable[[], torch.autocast]:
        dtype = AUTOCAST.get(self.precision)
        return partial(torch.autocast, self.device, dtype or torch.bfloat16, enabled=dtype is not None)

    def step(self) -> Step:
        """A whole training step; ready to be called many times."""
        method, batch, options = self.method, self.data, configs.plain(self.cfg)["trainer"]
        method.trainer = SimpleNamespace(precision=self.precision)  # type: ignore[assignment]  # for these two alone
        method.on_fit_start()
        made: Any = method.configure_optimizers()
        method.trainer = None
        optimizer = made["optimizer"]
        precision, numbers = self._precision(), count()

        def step() -> None:
            with precision():
                loss: Tensor = method.training_step(batch, next(numbers))  # what is drawn for a step is drawn anew
            loss.backward()
            method.configure_gradient_clipping(
                optimizer, options["gradient_clip_val"], options["gradient_clip_algorithm"]
            )
            optimizer.step()
            method.complete_step(optimizer)

        return step


@dataclass(frozen=True)
class Timed:
    """What a method's step takes, beside vanilla fine-tuning's that was timed in turn with it.

    Attributes:
        seconds: of a step, the median.
        vs_vanilla: times a vanilla step, the median over rounds.
        floor: forward passes that it cannot do without, the text tower's by their arithmetic.
        floor_as_timed: the same, the text tower's by their time.
    """

    seconds: float
    vs_vanilla: float
    floor: float
    floor_as_timed: float

    @property
    def forwards(self) -> float:
        """What it costs, in forward passes: a vanilla step is three."""
        return 3 * self.vs_vanilla

    @property
    def floor_share(self) -> float:
        """The floor as a share of what it costs."""
        return self.floor / self.forwards

    @property
    def timed_share(self) -> float:
        """The same of ``floor_as_timed``."""
        return self.floor_as_timed / self.forwards


def rows(names: Sequence[str], whole: bool) -> list[tuple[str, bool]]:
    """(method as typed, whether its prompts are whole): those with a text tower once more with ``whole``."""
    found = []
    for name in names:
        found.append((name, False))
        if whole and takes("method", name.partition(",")[0]).get("text") == "trained":
            found.append((name, True))
    return found


def time_method(
    method: MethodBench, vanilla: MethodBench, rounds: int, progress: Callable[[str], None], wall: bool = True
) -> Timed:
    """Time a method's step and a vanilla one in turn."""
    steps = {"method": method.step(), "vanilla": vanilla.step()}
    taken = seconds_by_round(steps, rounds, method.device, lambda _: progress(method.name), wall)
    ratio = median(a / b for a, b in zip(taken["method"], taken["vanilla"], strict=True))
    return Timed(median(taken["method"]), ratio, method.floor, method.floor_as_timed(rounds, wall))
