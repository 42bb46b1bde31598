"""A model that a run left, ready to be used: what `robustft.load` gives."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from robustft.data.own.reading import read_upright
from robustft.data.reading import as_seen
from robustft.deploy.source import Source, find
from robustft.models.classifier import Classifier
from robustft.models.weights import load_classifier

BATCH = 64  # images at a time
Picture = str | Path | Image.Image


class Model(Classifier):
    """A classifier with the names of its classes.

    Attributes:
        class_names: in label order.
        temperature: what logits are divided by for calibrated probabilities; None: none was fitted.
    """

    def __init__(self, model: Classifier, class_names: Sequence[str], temperature: float | None = None) -> None:
        super().__init__(model.visual, model.head, model.architecture, model.text)
        self.class_names, self.temperature = list(class_names), temperature

    def predict(
        self, images: Picture | Sequence[Picture], top: int = 5, calibrated: bool = True
    ) -> list[list[tuple[str, float]]]:
        """Name what images show.

        Args:
            images: paths, or images of Pillow's, of any size and kind; they are seen upright, as a person sees them.
            top: how many classes to name for each.
            calibrated: probabilities at the temperature that suits the hold-out, where one was fitted.

        Returns:
            for each image (class, probability), the most probable first.

        Raises:
            UserError: a file cannot be read as an image.

        Example:
            >>> model = robustft.load("runs/one")  # doctest: +SKIP
            >>> model.predict(["a.jpg"], top=2)  # doctest: +SKIP
            [[('red fox', 0.91), ('dog', 0.06)]]
        """
        listed = [images] if isinstance(images, str | Path | Image.Image) else list(images)
        answers: list[list[tuple[str, float]]] = []
        for start in range(0, len(listed), BATCH):
            pixels = torch.stack([self.preprocess.pixels(_opened(one)) for one in listed[start : start + BATCH]])
            _, probabilities = self.answer(pixels, calibrated)
            answers += list(self.named(probabilities, top))
        return answers

    @torch.inference_mode()
    def answer(
        self,
        pixels: UInt8[Tensor, "batch 3 height width"],
        calibrated: bool = True,
        masked: Bool[Tensor, "batch patches"] | None = None,
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch classes"]]:
        """Features of unit length and probabilities of a batch, on the CPU, in float32.

        Args:
            masked: patches that do not exist for the encoder, see ``Classifier.encode``.
        """
        device = self.head.weight.device
        hidden = None if masked is None else masked.to(device)
        features = self.encode(self.normalise(pixels.to(device, non_blocking=True)), hidden)
        logits = self.classify(features).float()
        temperature = self.temperature if calibrated and self.temperature is not None else 1.0
        return nn.functional.normalize(features.float(), dim=-1).cpu(), (logits / temperature).softmax(1).cpu()

    def named(self, probabilities: Float[Tensor, "batch classes"], top: int) -> Iterator[list[tuple[str, float]]]:
        """The most probable classes of each row, with their names."""
        best = probabilities.topk(min(top, len(self.class_names)), dim=1)
        for values, classes in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            yield [(self.class_names[k], value) for k, value in zip(classes, values, strict=True)]


def _opened(image: Picture) -> Image.Image:
    return as_seen(image) if isinstance(image, Image.Image) else read_upright(str(image))


def load(path: str | Path | Source, backbone: Callable[..., nn.Module] | None = None) -> Model:
    """The model of a run, see `robustft.load`."""
    source = path if isinstance(path, Source) else find(path)
    model = load_classifier(source.file, backbone=backbone)
    return Model(model, source.class_names, source.temperature()).eval()
