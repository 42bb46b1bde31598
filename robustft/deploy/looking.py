"""What `robustft app` has to say of an image: answers, maps, masks, counterfactual samples, nearest training images.

Everything is given as what JSON can hold, pictures as data URLs.
"""

import base64
import io
import sys
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePath
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.memory import enough_memory
from robustft.common.randomness import generator
from robustft.common.wording import counted
from robustft.data.own.reading import read_sent
from robustft.data.sets import Selection
from robustft.deploy.again import zeroshot_of
from robustft.deploy.images import as_picture
from robustft.deploy.model import Model, load
from robustft.deploy.neighbours import Neighbours, some_of, training_images
from robustft.deploy.source import Source
from robustft.evaluation.gallery import Shown, cam_of, filled_mask, fills_of, look, masks_of, shown_mask
from robustft.evaluation.pictures import blanked, hatched, heat, picture
from robustft.evaluation.summary import percent, set_label

TOP = 5  # classes that are named
OTHERS = 4  # training images that patches are taken from
NEAREST = 12  # training images that are shown
THUMBNAIL, LARGE = 160, 480  # pixels of the longer side
NO_MASK: dict[str, Any] = dict.fromkeys(("threshold", "rate", "cam", "layers", "source")) | {"kind": "none"}
GONE = "The run's training images cannot be read here: the terminal says why."
FINETUNED, ZEROSHOT = "fine-tuned", "zero-shot"


class Looker:
    """A run's models, asked about one image at a time: maps watch the models' modules, and memory is bounded.

    Args:
        source: of the run.
        device: to compute on.
        most: training images among which the nearest are looked for; 0: none are looked at.

    Attributes:
        models: by name, the one that training started from first, where it can be made.
        notes: what is missing and why, in general words: paths are for the terminal alone.
    """

    def __init__(self, source: Source, device: torch.device, most: int) -> None:
        self.source, self.most, self._turn = source, most, threading.Lock()
        self.notes: list[str] = []
        model = load(source).to(device)
        self.model = model
        self.models = {**self._zeroshot(device), FINETUNED: model}
        if self._method == "zeroshot":
            self.models = {ZEROSHOT: model}
        if model.temperature is None:
            self.notes.append("No temperature was fitted on a hold-out: probabilities are as trained.")
        self.maps = all(cam_of(one) is not None for one in self.models.values())
        if not self.maps:
            self.notes.append(f"{source.architecture} has no patches to map, mask and fill.")
        self._mask, self._fill = self._recipe()

    @property
    def _method(self) -> str | None:
        return (self.source.results or {}).get("method")

    def _zeroshot(self, device: torch.device) -> dict[str, Model]:
        if self._method == "zeroshot":
            self.notes.append("This run trained nothing: there is one model.")
            return {}
        try:
            return {ZEROSHOT: zeroshot_of(self.source, self.model.class_names).to(device)}
        except (UserError, OSError) as error:
            self.notes.append("The zero-shot model cannot be made here: the terminal says why.")
            _say("the zero-shot model", error)
            return {}

    def _recipe(self) -> tuple[dict[str, Any], str]:
        """The settings of the mask, complete, and the fill; of a run that does not mask they are an illustration."""
        config: Mapping[str, Any] = self.source.config or {}
        used = (self.source.results or {}).get("mask", config.get("mask"))
        mask = {**NO_MASK, **used} if used and config.get("beta") != 0 else NO_MASK
        self._by_zeroshot = mask["source"] == "teacher" and config.get("teacher") is None
        fill = (config.get("fill") or {}).get("kind", "none")
        return shown_mask(mask, list(self.models.values())) if self.maps else mask, fill

    @cached_property
    def _training(self) -> Selection | None:
        if not self.most:
            return None
        try:
            return training_images(self.source, self.model, self.most)
        except UserError as error:
            _say("training images, and what is filled in from them", error)
            return None

    @cached_property
    def _neighbours(self) -> Neighbours | None:
        return None if self._training is None else Neighbours(self._training, self._encode)

    def _encode(self, pixels: Tensor) -> Tensor:
        with self._turn, enough_memory("encoding training images", "--nearest=0", "--device=cpu"):
            return self.model.answer(pixels)[0]

    def stop(self) -> None:
        """End what is computed in the background."""
        if (neighbours := vars(self).get("_neighbours")) is not None:
            neighbours.stop()

    # What the page asks

    def about(self) -> dict[str, Any]:
        """What the page is about: the run, its scores, its classes."""
        results = self.source.results
        label = f" ({results['display']['label']})" if results and results.get("display") else ""
        lines = [f"{self.source.architecture}, {counted(len(self.model.class_names), 'class', 'classes')}{label}."]
        if results is not None:
            blocks = {ZEROSHOT: results["zeroshot"]} if results["zeroshot"] is not None else {}
            blocks = {**blocks, FINETUNED: results} if self._method != "zeroshot" else {ZEROSHOT: results}
            told = " → ".join(percent(block["id"]["top1"]) for block in blocks.values())
            lines.append(f"Top-1, {' → '.join(blocks)}: {told} on {set_label(results['id']['name'])}")
            if all(block["ood_avg"] is not None for block in blocks.values()):
                lines[-1] += f", {' → '.join(percent(block['ood_avg']) for block in blocks.values())} under shift"
            lines[-1] += f" (%{', of a part of the images' if results['partial'] else ''})."
        return {
            "name": (results or {}).get("name") or self.source.folder.resolve().name,
            "about": " ".join(lines),
            "models": list(self.models),
            "classes": self.model.class_names,
            "maps": self.maps,
            "notes": self.notes,
        }

    def answers(self, content: bytes) -> dict[str, Any]:
        """What each model says.

        Raises:
            UnreadableImage: it is none.
        """
        with self._turn, _memory():
            image = read_sent(content)
            pixels = self.model.preprocess.pixels(image)[None]
            return {
                "picture": _url(_small(image, LARGE)),
                "size": list(image.size),
                "answers": {name: self._best(model, pixels) for name, model in self.models.items()},
            }

    def look(self, content: bytes, target: int | None, draw: int) -> dict[str, Any]:
        """Where the models look, what the masks take out, and what becomes of it.

        Args:
            target: the class that is explained; None: the one that the run's model names.
            draw: which training images patches are taken from.

        Raises:
            UnreadableImage: it is none.
        """
        with self._turn, _memory():
            pixels = self.model.preprocess.pixels(read_sent(content))[None]
            if target is None:
                target = int(self.model.answer(pixels)[1].argmax())
            seen = {"target": target, "seen": _tile("what the models see", "", picture(pixels[0]))}
            if not self.maps:
                return seen
            right = torch.zeros(1, len(self.model.class_names), dtype=torch.bool)
            right[0, target] = True
            shown = Shown(pixels, right, torch.ones_like(right[0]))
            cams = {name: look(model, shown, self._mask).cam for name, model in self.models.items()}
            maps = [_tile(name, "", heat(picture(pixels[0]), cam[0])) for name, cam in cams.items() if cam is not None]
            whose = ZEROSHOT if self._by_zeroshot and ZEROSHOT in cams else [*cams][-1]
            cam = cams[whose]
            assert cam is not None
            return {**seen, "maps": maps, "by": self._mask["cam"], **self._counterfactual(pixels, cam, whose, draw)}

    def nearest(self, content: bytes) -> dict[str, Any]:
        """The training images that the run's model takes for most like this one, or how far it is with looking.

        Raises:
            UnreadableImage: it is none.
        """
        told = self.progress()
        if not told["ready"]:
            return told
        neighbours = self._neighbours
        assert neighbours is not None
        with self._turn, _memory():
            pixels = self.model.preprocess.pixels(read_sent(content))[None]
            features = self.model.answer(pixels)[0][0]
        return {**told, "images": [self._neighbour(*one) for one in neighbours.nearest(features, NEAREST)]}

    def progress(self) -> dict[str, Any]:
        """How many training images have been looked at; the first time that it is asked for, this begins."""
        with self._turn:
            neighbours = self._neighbours
        if neighbours is None:
            return {"ready": False, "note": GONE if self.most else "Training images are not looked at (--nearest 0)."}
        neighbours.start(self.model)
        if neighbours.failed:
            return {"ready": False, "note": "The training images cannot be encoded: the terminal says why."}
        return {"ready": neighbours.ready, "done": neighbours.done, "of": len(neighbours.images)}

    # Parts of it

    def _best(self, model: Model, pixels: UInt8[Tensor, "1 3 height width"]) -> list[tuple[str, float, int]]:
        """The most probable classes: name, probability, number (names may be alike)."""
        _, probabilities = model.answer(pixels)
        numbers = probabilities[0].topk(min(TOP, len(model.class_names))).indices.tolist()
        return [(name, p, k) for (name, p), k in zip(next(model.named(probabilities, TOP)), numbers, strict=True)]

    def _counterfactual(
        self, pixels: UInt8[Tensor, "1 3 height width"], cam: Float[Tensor, "1 rows columns"], whose: str, draw: int
    ) -> dict[str, Any]:
        """The masks, and what each fill makes of that of the run, with what the models say of it."""
        mask, random = self._mask, generator("masks and fills", draw)
        grid, masks = cam.shape[1:], masks_of(cam, self._mask, self._fill, random)
        drawn = picture(pixels[0])
        kinds = [
            {
                **_tile(f"{name} mask", note, hatched(drawn, patches[0].unflatten(0, grid))),
                "masked": float(patches.float().mean()),
                "used": name == mask["kind"],
            }
            for name, (patches, note) in masks.items()
        ]
        filled = filled_mask(mask)
        own = masks[filled][0]
        samples: list[tuple[str, str, Any, Tensor, Tensor | None]] = []
        if self.model.tower.tokens:  # else nothing can be left out
            samples.append(("no fill", "left out", blanked(drawn, own[0].unflatten(0, grid)), pixels, own))
        if (found := self._others(draw)) is not None:
            others = torch.cat([pixels, found])
            chosen = torch.zeros(len(others), own.shape[1], dtype=torch.bool)
            chosen[0] = own[0]
            single, multi = fills_of(others, chosen, self.model.patch_size, random)
            samples.append(("single fill", "from another image", picture(single[0]), single[:1], None))
            samples.append(
                ("multi fill", f"from {counted(len(others) - 1, 'other')}", picture(multi[0]), multi[:1], None)
            )
        used = None if mask["kind"] == "none" else f"{'no' if self._fill == 'none' else self._fill} fill"
        return {
            "whose": whose,
            "filled": filled,
            "illustration": mask["kind"] == "none",
            "masks": kinds,
            "agreement": self._said(pixels, None).get("agreement"),
            "fills": [
                {**_tile(title, note, image), "used": title == used, **self._said(x_cf, masked)}
                for title, note, image, x_cf, masked in samples
            ],
            "note": None if found is not None else GONE if self.most else "Without training images (--nearest 0).",
        }

    def _others(self, draw: int) -> UInt8[Tensor, "others 3 height width"] | None:
        """Training images to take patches from."""
        if (training := self._training) is None:
            return None
        try:
            return some_of(training, OTHERS, draw)
        except UserError as error:  # files that have gone since
            _say("what is filled in from training images", error)
            return None

    def _said(
        self, pixels: UInt8[Tensor, "1 3 height width"], masked: Bool[Tensor, "1 patches"] | None
    ) -> dict[str, Any]:
        """What the models say of pixels, and the cosine of their features where there are two of them."""
        found = {name: model.answer(pixels, masked=masked) for name, model in self.models.items()}
        features = [features[0] for features, _ in found.values()]
        agreement = {"agreement": float(features[0] @ features[1])} if len(features) == 2 else {}
        best = {name: next(self.models[name].named(p, 1))[0] for name, (_, p) in found.items()}
        return {"says": best, **agreement}

    def _neighbour(self, position: int, cosine: float) -> dict[str, Any]:
        training = self._training
        assert training is not None
        try:
            image = _url(_small(as_picture(training, position), THUMBNAIL))
        except UserError:  # it could be read a moment ago
            image = None
        return {
            "picture": image,
            "class": self.model.class_names[int(training.labels[position])],
            "name": PurePath(training.key(position)).name,  # no path of this machine
            "cosine": cosine,
        }


def _say(missing: str, error: Exception) -> None:
    """On the terminal, where paths may be named."""
    print(f"left out: {missing} ({str(error).removeprefix('--zero-shot: ')})", file=sys.stderr)


def _memory() -> Any:
    return enough_memory("looking at an image", "--device=cpu")


def _tile(title: str, note: str, drawn: Any) -> dict[str, Any]:
    return {"title": title, "note": note, "picture": _url(Image.fromarray(drawn))}


def _small(image: Image.Image, side: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "WEBP", quality=88, method=2)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
