"""Everything of timm's that is no part of its public interface: tests/models/test_private_names.py says when it has
moved. Versions of timm are bounded in pyproject.toml.
"""

from typing import Any

from jaxtyping import Float
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

__all__ = ["Attention", "AttentionPoolLatent", "PatchEmbed", "VisionTransformer"]

POOLS = ("token", "map", "avg")


def is_plain(trunk: nn.Module, known: tuple[type, ...] = (Attention,)) -> bool:
    """Whether it is a vision transformer whose patches, attention (of ``known`` types) and pooling are standard."""
    if not isinstance(trunk, VisionTransformer) or trunk.global_pool not in POOLS:
        return False
    attentions = [getattr(block, "attn", None) for block in trunk.blocks]
    plain = all(type(a) in known and getattr(a, "gate", None) is None for a in attentions)
    pool = trunk.attn_pool
    one_query = isinstance(pool, AttentionPoolLatent) and pool.latent_len == 1 and pool.pool == "token"
    pools = one_query if trunk.global_pool == "map" else True
    return plain and pools and type(trunk.patch_embed) is PatchEmbed  # not of convolutions before it


def embed(trunk: Any, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
    """Class and register tokens and the patches, with their positions."""
    return trunk._pos_embed(trunk.patch_embed(images))
