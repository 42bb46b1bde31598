"""The data module of the embedded benchmark: rendered scenes in memory."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.data.datamodule import RobustnessData
from robustft.data.scenes.cache import cached, default_folder
from robustft.data.scenes.captions import TASKS, TEMPLATES
from robustft.data.scenes.images import SceneImages
from robustft.data.scenes.recipes import CLASSES, CORRELATION, ID, SETS, Recipe
from robustft.data.scenes.retention import retention_task
from robustft.data.sets import EvaluationSet, RetentionTask

EVALUATION_SETS = tuple(SETS)[1:]  # the ID set, then the shifts
SMALLEST, LARGEST = 24, 512  # pixels


class ScenesData(RobustnessData):
    """Rendered scenes in memory.

    Args:
        root: folder that keeps the rendered sets; None: the user's cache.
        sets: by name of the set, False to leave it out.
        train_images: images to train on, the hold-out included.
        test_images: images in each evaluation set.
        image_size: pixels a side at which the scenes are rendered.
        correlation: probability that a training or ID image shows its class in its home context; else the
            context is any of the eight.
        data_seed: which draw of all sets. 0 is the one to report; choose settings on others.

    Raises:
        UserError: a number out of range, or a set that does not exist.
    """

    name = "scenes"
    class_names = CLASSES
    templates = TEMPLATES

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        sets: Mapping[str, Any] | None = None,
        train_images: int = 4000,
        test_images: int = 2000,
        image_size: int = 64,
        correlation: float = CORRELATION,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        self.root = expand(root) if root else default_folder()
        self.shown = {name: True for name in EVALUATION_SETS} | dict(sets or {})
        self.total_images, self.test_images = train_images, test_images
        self.image_size, self.correlation, self.data_seed = image_size, correlation, data_seed
        super().__init__(**common)

    @cached_property
    def _training(self) -> SceneImages:
        return self._images("train", self.total_images)

    @cached_property
    def _evaluation(self) -> list[EvaluationSet]:
        correct = torch.eye(len(CLASSES), dtype=torch.bool)
        sets = []
        for name in EVALUATION_SETS:
            if self.shown[name] is not False:
                images = self._images(name, self.test_images)
                keys = [str(i) for i in range(len(images))]
                sets.append(EvaluationSet(name, images, correct, keys, objects=images.masks))
        return sets

    def training_set(self) -> SceneImages:
        return self._training

    def evaluation_sets(self) -> list[EvaluationSet]:
        return self._evaluation

    def objects(self) -> Bool[Tensor, "images height width"]:
        """Give the pixels in which the object is seen, at the resolution of rendering."""
        return self._training.masks

    def retention_tasks(self) -> list[RetentionTask]:
        """What the small CLIP learnt from captions and fine-tuning never asks for: context and style of a scene."""
        side, images, size = self.preprocess.size, self.test_images, self.image_size
        return [
            retention_task(name, side, images=images, size=size, data_seed=self.data_seed, root=self.root)
            for name in TASKS
        ]

    def verify(self, training: bool = True) -> None:
        """Nothing to find: what is not in the cache is rendered."""

    def _images(self, name: str, count: int) -> SceneImages:
        recipe = correlated(SETS[name], self.correlation)
        scenes = cached(recipe, count, size=self.image_size, seed=self.data_seed, name=name, folder=self.root)
        return SceneImages(scenes, self.preprocess.size)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        least_values = {
            "train_images": 2 * len(CLASSES),
            "test_images": 1,
            "data_seed": 0,
            "image_size": SMALLEST,
        }
        values = {"train_images": self.total_images, **{k: getattr(self, k) for k in list(least_values)[1:]}}
        for option, least in least_values.items():
            if not isinstance(values[option], int) or values[option] < least:
                raise UserError(f"data.{option}={values[option]}: give a whole number, {least} or more.")
        if self.image_size > LARGEST:
            raise UserError(f"data.image_size={self.image_size}: give at most {LARGEST} pixels.")
        if not 0 <= self.correlation <= 1:
            raise UserError(f"data.correlation={self.correlation}: give a probability from 0 to 1.")
        for name, shown in self.shown.items():
            if name not in EVALUATION_SETS:
                raise UserError(f"data.sets.{name}: there is no such set; there are {', '.join(EVALUATION_SETS)}.")
            if not (shown is None or isinstance(shown, bool)):
                raise UserError(f"data.sets.{name}={shown}: the scenes are rendered; give false to leave the set out.")
        if self.shown["scenes"] is False:
            raise UserError("data.sets.scenes=false: the ID set is what the shifts are compared with; keep it.")


def correlated(recipe: Recipe, correlation: float) -> Recipe:
    """The recipe with another correlation of class and context, for the sets that have one by design."""
    if recipe.home is None or recipe not in (ID, SETS["scenes_v2"]):
        return recipe
    return replace(recipe, home=recipe.home * correlation / CORRELATION)
