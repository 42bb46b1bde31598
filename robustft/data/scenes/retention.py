"""What the pre-trained model can tell of scenes and no fine-tuning asks for: their context and their style."""

from pathlib import Path

import torch

from robustft.data.scenes.cache import cached, default_folder
from robustft.data.scenes.captions import TASKS
from robustft.data.scenes.images import SceneImages
from robustft.data.scenes.recipes import PRETRAINING
from robustft.data.sets import EvaluationSet, RetentionTask


def retention_task(
    task: str, resolution: int, *, images: int = 2000, size: int = 64, data_seed: int = 0, root: Path | None = None
) -> RetentionTask:
    """Make a zero-shot task on images of the pre-training recipe, on a draw that is neither trained nor tested on.

    Args:
        task: "context" (one of eight places) or "style" (photo, six kinds of sketches, eight of renditions).
        resolution: pixels a side that the model takes.
        size: pixels a side at which the scenes are rendered.
        data_seed: which draw, as that of the evaluation sets.
        root: folder that keeps the rendered images; None: the user's cache.

    Raises:
        KeyError: there is no such task.
    """
    names, templates = TASKS[task]
    folder = root or default_folder()
    scenes = cached(PRETRAINING, images, size=size, seed=data_seed, name="retention", folder=folder)
    labels = {"context": scenes.contexts, "style": scenes.styles}[task]
    shown = SceneImages(scenes._replace(labels=labels), resolution)
    correct = torch.eye(len(names), dtype=torch.bool)
    return RetentionTask(EvaluationSet(task, shown, correct, [str(i) for i in range(len(shown))]), names, templates)
