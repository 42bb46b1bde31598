"""The zero-shot model: CLIP's image tower with a linear head made of its text embeddings."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustft.common.cache import remembered
from robustft.common.errors import UserError
from robustft.common.memory import enough_memory
from robustft.data.sets import Preprocess
from robustft.models.classifier import Architecture, Classifier
from robustft.models.files import weights_file
from robustft.models.origin import beside
from robustft.models.weights import create_clip, load_classifier, model_config, preprocess_in, read_metadata

ADVICE = ("a device with more memory free", "method=zeroshot trainer=cpu once: what it computes is kept")
Template = str | Callable[[str], str]
Tokenizer = Callable[[list[str]], Int64[Tensor, "texts context"]]


def zeroshot_classifier(
    architecture: str,
    pretrained: str | None,
    class_names: Sequence[str],
    templates: Sequence[Template],
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """The classifier that fine-tuning starts from and whose encoder teaches.

    Head: one row per class, the mean over ``templates`` of the L2-normalised text embeddings, normalised again,
    times exp(logit_scale); zero bias. With random weights (``pretrained=None``) no text is encoded: the rows are
    seeded random unit vectors. A model left by a run is taken as it is, head included.

    Args:
        device: where text is encoded; the classifier is on the CPU.

    Raises:
        UserError: see ``create_clip``, ``load_classifier`` and ``text_rows``.
    """
    if own_model(architecture, pretrained) is not None:
        model = load_classifier(weights_file(str(pretrained)), classes=class_names)
        _require_same(model.architecture.name, architecture, str(pretrained))
        return model
    clip: Any = create_clip(architecture, pretrained, seed)
    if pretrained is None:
        rows = _random_rows(len(class_names), clip.visual.output_dim, seed)
    else:
        tokenizer = tokenizer or open_clip.get_tokenizer(architecture)
        rows = text_rows(clip, tokenizer, class_names, templates, cache, device)
    head = nn.Linear(rows.shape[1], rows.shape[0])
    with torch.no_grad():
        head.weight.copy_(rows * clip.logit_scale.exp())
        head.bias.zero_()
    config = model_config(architecture)
    tower: dict[str, Any] = {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}
    described = Architecture(architecture, deepcopy(tower), preprocess_of(architecture, pretrained))
    return Classifier(clip.visual, head, described).eval()


def preprocess_of(architecture: str, pretrained: str | None) -> Preprocess:
    """The transform a model was trained with: known from its name and tag, without its weights.

    A model left by a run says it itself, open_clip and Hugging Face in a file beside their weights. Other files and
    random weights get OpenAI's mean and standard deviation.

    Raises:
        UserError: unknown architecture.
    """
    config = model_config(architecture)
    own = own_model(architecture, pretrained)
    if own is not None:
        return preprocess_in(own)
    if pretrained in (None, "embedded") or pretrained in open_clip.list_pretrained_tags_by_model(architecture):
        known: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, pretrained or "") or {}
    else:
        known = beside(weights_file(str(pretrained))).preprocess
    return Preprocess(
        size=config["vision_cfg"]["image_size"],
        mean=tuple(known.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(known.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation=known.get("interpolation") or "bicubic",
    )


def own_model(architecture: str, pretrained: str | None) -> dict[str, str] | None:
    """The metadata of a model left by a run, if ``pretrained`` is one."""
    if pretrained is None or pretrained in open_clip.list_pretrained_tags_by_model(architecture):
        return None
    path = weights_file(pretrained)
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
    text = _TextTower(clip)

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


class _TextTower:
    """CLIP's text tower run only as far as the longest prompt of a batch.

    The tower is causal and pools at the end-of-text token, so positions behind it change nothing.
    """

    def __init__(self, clip: nn.Module) -> None:
        self.clip = clip

    def encode_text(self, tokens: Int64[Tensor, "texts context"], normalize: bool) -> Float[Tensor, "texts features"]:
        end = int(tokens.argmax(1).max()) + 1
        short = {}
        if isinstance(self.clip, open_clip.CLIP):  # the other class, CustomTextCLIP, shortens these itself
            short["positional_embedding"] = self.clip.positional_embedding[:end]
            short["attn_mask"] = self.clip.attn_mask[:end, :end]
        _, features, *_ = torch.func.functional_call(self.clip, short, (None, tokens[:, :end]))
        return features if normalize else F.normalize(features, dim=-1)


def _fingerprint(
    text: _TextTower, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[Template]
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
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, features, generator=generator), dim=-1)


def _require_same(found: str, expected: str, path: str) -> None:
    if found != expected:
        raise UserError(f"{path} is a {found}, expected a {expected}. Choose the model= it was made with.")
