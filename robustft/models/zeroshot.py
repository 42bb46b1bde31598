"""The zero-shot model: CLIP's image tower with a linear head made of its text embeddings."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustft.common.cache import remembered
from robustft.common.errors import UserError
from robustft.common.memory import enough_memory
from robustft.common.randomness import generator, seeded
from robustft.common.wording import first_line
from robustft.data.sets import Preprocess
from robustft.models import plain, timm_vit
from robustft.models.classifier import Architecture, Classifier
from robustft.models.files import weights_file
from robustft.models.open_clip_private import build_tower
from robustft.models.origin import beside
from robustft.models.prompts import Prompts, Template, Tokenizer
from robustft.models.reading import read_state
from robustft.models.text import TextSource, without_visual
from robustft.models.text_tower import TextTower
from robustft.models.weights import create_clip, fit, load_classifier, model_config, preprocess_in, read_metadata

ADVICE = ("a device with more memory free", "method=zeroshot trainer=cpu once: what it computes is kept")
Backbone = str | Callable[[], nn.Module] | None
FIRST_SCALE = 1 / 0.07  # of logits where no text tower says it: what CLIP's training starts with


def zeroshot_classifier(
    architecture: str,
    pretrained: str | None,
    class_names: Sequence[str],
    templates: Sequence[Template],
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    backbone: Backbone = None,
    check: Callable[[Classifier], None] = lambda model: None,
    text: bool = False,
) -> Classifier:
    """The classifier that fine-tuning starts from and whose encoder teaches.

    Head: one row per class, the mean over ``templates`` of the L2-normalised text embeddings, normalised again,
    times exp(logit_scale); the bias is the model's logit_bias, the same for every class, or zero. Without a text tower
    and with random weights (``pretrained=None``) no text is encoded: the rows are seeded random unit vectors. A model
    left by a run is taken as it is, head included.

    Args:
        device: where text is encoded; the classifier is on the CPU.
        backbone: whose model it is: None for open_clip's, "timm", or a maker of the user's own.
        check: refuses a model that cannot do what will be asked of it, before weights are fetched or text encoded.
        text: keep the text tower, which makes the head also with random weights.

    Raises:
        UserError: see ``create_clip``, ``load_classifier`` and ``text_rows``.
    """
    if own_model(architecture, pretrained) is not None:
        own = None if backbone is None or backbone == "timm" else type(built(architecture, seed, backbone))
        model = load_classifier(weights_file(str(pretrained)), classes=class_names, backbone=own)
        _require_same(model.architecture.name, architecture, str(pretrained))
        check(model)
        if not text:
            return model.without_text()
        if model.text is None:
            raise UserError(f"model.pretrained={pretrained} is a model without a text tower, which is asked for here")
        model.prompts = prompts_of(model, tokenizer, class_names, templates)
        return model
    preprocess = preprocess_of(architecture, pretrained, backbone)
    if backbone is not None:
        visual: Any = built(architecture, seed, backbone)
        kind = {"backbone": "timm"} if backbone == "timm" else {"backbone": "own", "settings": visual.describe()}
        described = Architecture(architecture, kind, preprocess)
        rows = _random_rows(len(class_names), _features(visual), seed)
        model = Classifier(visual, _head(rows, FIRST_SCALE), described).eval()
        check(model)
        if pretrained == "timm":
            visual.load_state_dict(timm_vit.build(architecture, "timm", seed).state_dict())
        elif pretrained is not None:
            fit(visual, read_state(weights_file(pretrained)), weights_file(pretrained), architecture)
        return model
    config = model_config(architecture)
    tower: dict[str, Any] = {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}
    described = Architecture(architecture, deepcopy(config if text else tower), preprocess)
    if not plain.is_plain_config(config):
        bare = Classifier(build_tower(config), nn.Linear(config["embed_dim"], 1), described)
        check(bare)  # before weights are fetched
    if tokenizer is None and (text or pretrained is not None):
        tokenizer = open_clip_tokenizer(architecture)  # first: it is small, and may be missing
    clip: Any = create_clip(architecture, pretrained, seed)
    if tokenizer is None or (pretrained is None and not text):
        rows = _random_rows(len(class_names), config["embed_dim"], seed)
    else:
        if pretrained is not None:
            described = replace(described, text=TextSource.of(architecture, pretrained, clip))
        rows = text_rows(clip, tokenizer, class_names, templates, cache, device)
    bias = getattr(clip, "logit_bias", None)
    head = _head(rows, float(clip.logit_scale.detach().exp()), 0.0 if bias is None else float(bias.detach()))
    with torch.no_grad():
        head.weight.copy_(rows * clip.logit_scale.exp())
    model = Classifier(clip.visual, head, described, without_visual(clip) if text else None).eval()
    model.prompts = prompts_of(model, tokenizer, class_names, templates) if text else None
    return model


def prompts_of(
    model: Classifier, tokenizer: Tokenizer | None, class_names: Sequence[str], templates: Sequence[Template]
) -> Prompts:
    """The prompts of which a model's own text tower makes its head."""
    can_be_cut = TextTower(model.text).can_be_cut
    return Prompts(tokenizer or open_clip_tokenizer(model.architecture.name), class_names, templates, can_be_cut)


def built(architecture: str, seed: int, backbone: Backbone) -> nn.Module:
    """A backbone that is not open_clip's, with random weights.

    Raises:
        UserError: timm has none of that name; the user's own lacks what is needed.
    """
    if backbone == "timm":
        return timm_vit.build(architecture, None, seed)
    assert callable(backbone)
    with seeded("weights", seed):
        visual = backbone()
    for name in ("features", "preprocess", "describe"):
        if not hasattr(visual, name):
            raise UserError(
                f"model.backbone: {type(visual).__name__} has no {name!r}; a backbone has features (their number),"
                " preprocess (the transform of its images) and describe() (the settings that make it again)"
            )
    return visual


def _features(visual: Any) -> int:
    return int(visual.features if hasattr(visual, "preprocess") else visual.num_features)


def _head(rows: Float[Tensor, "classes features"], scale: float, bias: float = 0.0) -> nn.Linear:
    head = nn.Linear(rows.shape[1], rows.shape[0])
    with torch.no_grad():
        head.weight.copy_(rows * scale)
        head.bias.fill_(bias)
    return head


def open_clip_tokenizer(architecture: str) -> Tokenizer:
    """open_clip's, which lies on a hub for some models.

    Raises:
        UserError: it cannot be fetched, or needs a package that is not there.
    """
    try:
        return open_clip.get_tokenizer(architecture)
    except Exception as error:  # whatever the hub, the network or a missing package says
        raise UserError(
            f"the tokenizer of {architecture} could not be fetched ({first_line(error)}). On a connected machine with"
            " the package transformers it is kept in the Hugging Face cache, which can be copied"
        ) from error


def preprocess_of(architecture: str, pretrained: str | None, backbone: Backbone = None) -> Preprocess:
    """The transform a model was trained with: known from its name and tag, without its weights.

    A model left by a run says it itself, open_clip and Hugging Face in a file beside their weights, timm by the name,
    a backbone of the user's own by itself. Other files and random weights get what all of the architecture's published
    weights have in common, else OpenAI's mean and standard deviation.

    Raises:
        UserError: unknown architecture; images that are padded.
    """
    own = own_model(architecture, pretrained)
    if own is not None:
        return preprocess_in(own)
    if backbone == "timm":
        return timm_vit.preprocess(architecture)
    if backbone is not None:
        visual: Any = built(architecture, 0, backbone)
        return visual.preprocess
    config = model_config(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = [open_clip.get_pretrained_cfg(architecture, tag) or {} for tag in tags if pretrained in (tag, None)]
    if pretrained not in (None, "embedded", *tags):
        beside_it = beside(weights_file(str(pretrained))).preprocess
        known = [beside_it] if beside_it else [open_clip.get_pretrained_cfg(architecture, tag) or {} for tag in tags]
    found = {_preprocess(config["vision_cfg"]["image_size"], one) for one in known}
    return found.pop() if len(found) == 1 else _preprocess(config["vision_cfg"]["image_size"], {})


def _preprocess(size: int, known: Mapping[str, Any]) -> Preprocess:
    """A transform as open_clip describes it; OpenAI's where nothing is said."""
    if known.get("resize_mode") == "longest":
        raise UserError("model.pretrained: these weights take images padded to squares, which is not supported.")
    return Preprocess(
        size=size,
        mean=tuple(known.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(known.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation=known.get("interpolation") or "bicubic",
        resize=known.get("resize_mode") or "shortest",
    )


def own_model(architecture: str, pretrained: str | None) -> dict[str, str] | None:
    """The metadata of a model left by a run, if ``pretrained`` is one."""
    if pretrained in (None, "timm") or pretrained in open_clip.list_pretrained_tags_by_model(architecture):
        return None
    path = weights_file(str(pretrained))
    return read_metadata(path) if path.is_file() else None


def text_rows(
    clip: nn.Module,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[Template],
    cache: Path | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "classes features"]:
    """Unit-norm class embeddings of the prompt ensemble, on the CPU, with progress.

    Args:
        clip: on the CPU, where it is again afterwards.
        cache: a folder that keeps them by text tower, prompts and tokens, since ImageNet's 80,000 prompts take long.
        device: where they are computed.

    Raises:
        UserError: the device has not enough memory.
    """
    text = TextTower(clip)

    def encode() -> dict[str, Tensor]:
        with enough_memory("encoding the names of classes", *ADVICE), _without_visual(clip), _on(device, clip):
            columns = open_clip.build_zero_shot_classifier(
                text, tokenizer, list(class_names), list(templates), num_classes_per_batch=4, device=device,
                use_tqdm=len(class_names) * len(templates) > 2000,
            )  # fmt: skip
        return {"rows": columns.T.float().cpu().contiguous()}

    if cache is None:
        return encode()["rows"]
    key = _fingerprint(text, tokenizer, class_names, templates)
    return remembered(cache / f"{key}.safetensors", encode)["rows"]


@contextmanager
def _without_visual(clip: Any) -> Iterator[None]:
    """The image tower is set aside: it says nothing about text and need not travel to a device."""
    visual, clip.visual = clip.visual, None
    try:
        yield
    finally:
        clip.visual = visual


@contextmanager
def _on(device: torch.device | str, module: nn.Module) -> Iterator[None]:
    module.to(device)
    try:
        yield
    finally:
        module.cpu()


def _fingerprint(
    text: TextTower, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[Template]
) -> str:
    digest = hashlib.sha256(repr(text.clip).encode())
    for name, value in sorted(text.clip.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    prompts = [t.format(c) if isinstance(t, str) else t(c) for c in class_names for t in templates]
    digest.update(str(len(class_names)).encode())
    for prompt in prompts:
        digest.update(prompt.encode() + b"\0")
    digest.update(tokenizer(prompts[:64]).numpy().tobytes())
    return digest.hexdigest()[:32]


def _random_rows(classes: int, features: int, seed: int) -> Float[Tensor, "classes features"]:
    return F.normalize(torch.randn(classes, features, generator=generator("head", seed)), dim=-1)


def _require_same(found: str, expected: str, path: str) -> None:
    if found != expected:
        raise UserError(f"{path} is a {found}, expected a {expected}. Choose the model= it was made with.")
