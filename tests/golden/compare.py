"""Our numbers beside those of the published implementation: ``python -m tests.golden.compare [FILE]``.

``published.safetensors`` holds what the published implementation gives, in float32 on a CPU, for a random ViT of
32 px, patch 8, width 128, 3 layers, 2 heads, and 8 images: inputs, weights, maps, masks, the random draws of the
fills, features, and gradients of four settings. A larger file of the same layout (with the teacher's weights and the
gradients of every setting) can be given instead.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import load_file
from torch import Tensor, nn

from robustft.counterfactual.cam import gradcam, relevance
from robustft.counterfactual.distillation import logit_distance
from robustft.counterfactual.fill import Counterfactual, replace_patches
from robustft.counterfactual.mask import make_mask
from robustft.data.sets import Batch, Preprocess
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Architecture, Classifier

FIXTURE = Path(__file__).parent / "published.safetensors"
BETA, PATCH = 30.0, 8
# Largest difference, relative to the tensor's largest magnitude (losses: to their value); masks must be identical.
TOLERANCE = {"map": 1e-5, "mask": 0.0, "features": 1e-5, "logits": 1e-5, "loss": 1e-5, "gradient": 1e-4}


@dataclass(frozen=True)
class Row:
    """One quantity: how far ours is from the published number, relative to its scale."""

    name: str
    kind: str
    difference: float

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCE[self.kind]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest magnitude; for masks the share of patches that differ."""
    if theirs.dtype == torch.bool:
        return (ours != theirs).float().mean().item()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def load_model(numbers: dict[str, Tensor], who: str) -> Classifier:
    """The ``student`` or ``teacher`` of the reference."""
    config = CLIPVisionCfg(image_size=32, patch_size=PATCH, width=128, layers=3, head_width=64)
    preprocess = Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    model = Classifier(_build_vision_tower(64, config, True), nn.Linear(64, 10), Architecture("small", {}, preprocess))
    state = {
        key.removeprefix(f"{who}."): value
        for key, value in numbers.items()
        if key.startswith((f"{who}.visual.", f"{who}.head."))
    }
    model.load_state_dict(state)
    return model.eval()


class RecordedTeacher(Classifier):
    """Gives the published features of the teacher for a setting, where the file has no weights of it."""

    patches, patch_size = 16, PATCH

    def __init__(self, features: Tensor, logits: Tensor) -> None:
        nn.Module.__init__(self)  # there is no network to build
        self.features, self.logits = features, logits

    def encode(self, *_: object) -> Tensor:
        return self.features

    def classify(self, _: Tensor) -> Tensor:
        return self.logits


def settings(numbers: dict[str, Tensor]) -> list[str]:
    """ "object0.3+single" and the like."""
    prefix = "counterfactual_features.student."
    return [key.removeprefix(prefix) for key in numbers if key.startswith(prefix)]


def make_teacher(numbers: dict[str, Tensor], setting: str) -> nn.Module:
    if "teacher.visual.proj" in numbers:
        return load_model(numbers, "teacher")
    return RecordedTeacher(numbers[f"counterfactual_features.teacher.{setting}"], numbers["teacher.logits"])


def make_setting(numbers: dict[str, Tensor], setting: str, layers: int | None = None) -> CounterfactualFinetune:
    """Our method for a setting, with the published random draws in place of our own."""
    mask, _, fill = setting.partition("+")
    if mask == "random_nofill0.5":
        mask, fill = "random0.5", "nofill"
    kind = mask.rstrip("0123456789.")
    value = float(mask.removeprefix(kind) or "nan")
    options = {"kind": kind, "threshold": value, "rate": value, "cam": "relevance", "source": "student"}
    fill = {"nofill": "none", "": "none"}.get(fill, fill)
    student, teacher = load_model(numbers, "student"), make_teacher(numbers, setting)
    made = CounterfactualFinetune(student, teacher, beta=BETA, mask=options | {"layers": layers}, fill=fill)
    if kind == "random":
        if fill == "none":
            kept = numbers["mask.random_nofill0.5.keep"]
            drawn = torch.ones(len(kept), 16, dtype=torch.bool).scatter(1, kept, False)
        else:
            drawn = numbers["mask.random0.5"].flatten(1)
        made.mask = lambda batch, cam, random: drawn
    if fill in ("single", "multi"):
        source = numbers[f"fill.{fill}.source"]
        source = source[:, None].expand(-1, 16) if fill == "single" else source.flatten(1)
        made.fill = lambda images, mask, random: Counterfactual(replace_patches(images, mask, source, PATCH))
    return made


def compare(path: Path = FIXTURE) -> Iterator[Row]:
    """Every quantity in the file, computed by the code that trains."""
    numbers = load_file(path)
    losses = json.loads((Path(__file__).parent / "published.json").read_text())
    student, x, y = load_model(numbers, "student"), numbers["images"], numbers["labels"]

    features, logits, cam = relevance(student, x, y)
    yield Row("features", "features", difference(features, numbers["student.features"]))
    yield Row("logits", "logits", difference(logits, numbers["student.logits"]))
    yield Row("relevance", "map", difference(cam, numbers["cam.attention_relevance_normalized"].flatten(1)))
    published = numbers["cam.gradcam"].flatten(1)
    published = published / (published.amax(1, keepdim=True) + 1e-8)
    yield Row("gradcam", "map", difference(gradcam(student, x, y)[2], published))
    for key in numbers:
        kind, value = key.removeprefix("mask.")[:-3], key[-3:]
        if key.startswith("mask.") and kind in ("object", "context"):
            ours = make_mask(kind, 16, threshold=float(value))(len(x), cam, torch.Generator())
            yield Row(f"{kind} mask {value}", "mask", difference(ours, numbers[key].flatten(1)))

    for setting in settings(numbers):
        yield from compare_setting(numbers, losses[setting], setting)

    if "teacher.logits" in numbers:
        teacher = RecordedTeacher(numbers["teacher.features"], numbers["teacher.logits"])
        kd = logit_distance(student, teacher, Counterfactual(x), None, temperature=10.0)  # type: ignore[arg-type]
        yield Row("KD at T = 10", "loss", abs(kd.item() / losses["kd_T10_factual"] - 1))


def compare_setting(numbers: dict[str, Tensor], losses: dict[str, float], setting: str) -> Iterator[Row]:
    """Features, losses and gradients of one mask and fill, through the method's ``training_step``."""
    method = make_setting(numbers, setting)
    student, teacher, measured = method.student, method.teacher, method.distance
    seen: list[Counterfactual] = []
    method.distance = lambda s, t, x_cf, known: (seen.append(x_cf), measured(s, t, x_cf, known))[1]
    batch = Batch(numbers["images"], numbers["labels"], torch.arange(len(numbers["images"])))
    method.training_step(batch, 0).backward()
    terms = method.terms

    with torch.no_grad():
        ours = student.encode(*seen[0]), teacher.encode(*seen[0])
    for who, encoded in zip(("student", "teacher"), ours, strict=True):
        published = numbers[f"counterfactual_features.{who}.{setting}"]
        yield Row(f"{setting}: {who}'s features of x_cf", "features", difference(encoded, published))
    for name, value in (("ce", terms["ce"]), ("mse", terms["distance"]), ("total_beta30", terms["loss"])):
        yield Row(f"{setting}: {name}", "loss", abs(value.item() / losses[name] - 1))
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    yield Row(f"{setting}: gradient norm", "gradient", abs(norm.item() / losses["grad_norm"] - 1))
    for name, gradient in gradients.items():
        if (key := f"grad.{setting}.{name}") in numbers:
            assert gradient is not None
            yield Row(f"{setting}: gradient of {name}", "gradient", difference(gradient, numbers[key]))


def weight_average(numbers: dict[str, Tensor]) -> Row:
    """Logits of the average of student and teacher, for files with both models' weights."""
    student, teacher = load_model(numbers, "student"), load_model(numbers, "teacher")
    other = teacher.state_dict()
    student.load_state_dict({key: (value + other[key]) / 2 for key, value in student.state_dict().items()})
    with torch.no_grad():
        return Row("WiSE 0.5 logits", "logits", difference(student(numbers["images"]), numbers["wise0.5.logits"]))


def main(path: Path) -> int:
    rows = list(compare(path))
    for row in rows:
        verdict = "ok" if row.passed else "TOO FAR"
        print(f"{row.name:52} {row.difference:9.2e}  (at most {TOLERANCE[row.kind]:.0e})  {verdict}")
    print(f"{sum(row.passed for row in rows)} of {len(rows)} within tolerance")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURE))
