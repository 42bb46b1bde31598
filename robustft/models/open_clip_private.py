"""Everything of open_clip's that is no part of its public interface: tests/models/test_private_names.py says when it
has moved. Versions of open_clip are bounded in pyproject.toml.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int64
from open_clip.model import _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

__all__ = ["ModifiedResNet", "QuickGELU", "ResidualAttentionBlock", "TimmModel", "VisionTransformer"]


def build_tower(config: dict[str, Any]) -> nn.Module:
    """An image tower of whatever family, with random weights, from a model config; nothing is fetched."""
    vision = dict(config["vision_cfg"])
    if vision.get("timm_model_pretrained"):
        vision["timm_model_pretrained"] = False  # the weights come from elsewhere
    return _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


def embed(visual: Any, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
    """The class token and the patches with their positions, as they enter the first block."""
    return visual._embeds(images)


def pool(visual: Any, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
    """The class token as the projection takes it."""
    pooled, _ = visual._pool(tokens)
    return pooled


def can_be_cut(clip: nn.Module) -> bool:
    """Whether positions behind the end-of-text token change nothing: a causal text tower that pools at that token."""
    tower = _text_tower(clip)
    pools = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    appended = getattr(tower, "cls_emb", None) is not None  # CoCa's last token
    return getattr(tower, "attn_mask", None) is not None and pools == "argmax" and not appended


def text_features(clip: nn.Module, tokens: Int64[Tensor, "texts context"], end: int) -> Float[Tensor, "texts features"]:
    """L2-normalised features of texts of which the first ``end`` tokens are looked at, of all where ``end`` is all."""

    tower, prefix = _text_tower(clip), "" if isinstance(clip, open_clip.CLIP) else "text."
    short = {}
    if end < tokens.shape[1]:
        short[f"{prefix}positional_embedding"] = tower.positional_embedding[:end]
        short[f"{prefix}attn_mask"] = tower.attn_mask[:end, :end]
    _, features, *_ = torch.func.functional_call(clip, short, (None, tokens[:, :end]))
    return features


def _text_tower(clip: nn.Module) -> Any:
    """What runs over the tokens: open_clip keeps it apart in some models."""
    return clip if isinstance(clip, open_clip.CLIP) else getattr(clip, "text", None)


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip tells the root logger of every step of building a model."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)
