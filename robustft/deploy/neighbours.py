"""The training images of a run, and which of them its model takes for most like another image."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import SequentialSampler

from robustft.common.cache import cache_folder, digest, fingerprint, remembered
from robustft.common.errors import UserError, reason, user_error
from robustft.common.randomness import generator
from robustft.data.loading import make_loader
from robustft.data.sampling import draw
from robustft.data.sets import Selection, take
from robustft.deploy.again import data_of, refuse_other_classes
from robustft.deploy.model import Model
from robustft.deploy.source import Source

BATCH = 32  # images at a time: a question waits for no more


def training_images(source: Source, model: Model, most: int) -> Selection:
    """Images that a run was trained on, the hold-out left out.

    Args:
        model: what the run left; a label is the number of one of its classes.
        most: how many; of more a fixed draw.

    Raises:
        UserError: nothing tells the run's data, it is gone, or has other classes now.
    """
    try:
        data = data_of(source)
        refuse_other_classes(source, data, model.class_names)
        trained_on = data.split[0]
        return Selection(data.training_set(), trained_on[draw(len(trained_on), most, seed=0)])
    except OSError as error:
        raise UserError(f"{error.filename}: {reason(error)}") from error


def some_of(images: Selection, count: int, seed: int) -> UInt8[Tensor, "count 3 height width"]:
    """Draw training images at random, as the model sees them."""
    random = generator("patches of others", seed)
    return take(images, torch.randperm(len(images), generator=random)[:count].tolist()).images


class Neighbours:
    """Features of training images, encoded in a thread of their own and kept in the user's cache.

    Args:
        encode: gives the features, of unit length, of a batch of pixels; called by that thread.

    Attributes:
        done: images encoded so far.
        failed: it ended without features, and has said why.
    """

    def __init__(self, images: Selection, encode: Callable[[Tensor], Tensor]) -> None:
        self.images, self._encode = images, encode
        self.done = 0
        self.failed = False
        self._features: Float[Tensor, "images features"] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether they can be searched."""
        return self._features is not None

    def start(self, model: Model) -> None:
        """Encode them, or read what is kept of this model; returns at once, and does nothing the second time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=[model], daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Give up, after the batch at hand."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def nearest(self, features: Float[Tensor, " features"], count: int) -> Iterator[tuple[int, float]]:
        """The images most like one with these features, of unit length: position and cosine, best first."""
        assert self._features is not None
        best = (self._features @ features).topk(min(count, len(self._features)))
        yield from zip(best.indices.tolist(), best.values.tolist(), strict=True)

    def _run(self, model: Model) -> None:
        try:
            name = digest(fingerprint(model.visual), self.images.identity(), next(model.parameters()).device.type)
            path = cache_folder() / "nearest" / f"{name}.safetensors"
            self._features = remembered(path, self._make)["features"]
            self.done = len(self.images)
        except _Stopped:
            pass
        except Exception as error:  # a thread has nobody to raise it to
            if (mistake := user_error(error)) is None:
                traceback.print_exc()
            print(f"left out: the nearest training images ({mistake or type(error).__name__})", file=sys.stderr)
            self.failed = True

    def _make(self) -> dict[str, Tensor]:
        images: Any = self.images
        features = []
        for batch in make_loader(images, SequentialSampler(images), BATCH, num_workers=0):
            if self._stopped.wait(0.005):  # long enough for a question to be let in before the next batch
                raise _Stopped
            features.append(self._encode(batch.images))
            self.done += len(batch.labels)
        return {"features": torch.cat(features)}


class _Stopped(Exception):
    """The program ends."""
