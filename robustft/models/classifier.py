"""The network that is fine-tuned: an open_clip vision transformer and a linear head."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from open_clip import transformer as open_clip
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustft.common.errors import UserError
from robustft.data.sets import Preprocess
from robustft.models.activation import QuickGELU
from robustft.models.attention import WatchedAttention


@dataclass(frozen=True)
class Architecture:
    """What is needed to build the vision tower again: open_clip's name and model config, and the transform."""

    name: str
    config: dict[str, Any] = field(repr=False)
    preprocess: Preprocess


class Classifier(nn.Module):
    """Image encoder f (``visual``) and linear head g (``head``): logits = g(f(x) / ‖f(x)‖).

    State-dict keys are ``visual.<open_clip's own names>``, ``head.weight`` [classes, features] and ``head.bias``.

    Raises:
        UserError: the tower is no plain CLIP vision transformer (class token, standard blocks, learnt projection).
    """

    visual: Any  # open_clip's VisionTransformer

    def __init__(self, visual: nn.Module, head: nn.Linear, architecture: Architecture) -> None:
        super().__init__()
        _require_plain(visual, architecture.name)
        self.visual = visual
        self.head = head
        self.architecture = architecture
        for block in self.blocks:
            if not isinstance(block.attn, WatchedAttention):
                block.attn = WatchedAttention.wrap(block.attn)
            if isinstance(block.mlp.gelu, open_clip.QuickGELU):
                block.mlp.gelu = QuickGELU()

    @property
    def preprocess(self) -> Preprocess:
        return self.architecture.preprocess

    @property
    def blocks(self) -> list[Any]:
        """The transformer's residual attention blocks, first to last."""
        return list(self.visual.transformer.resblocks)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.visual.patch_size[0]

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        rows, columns = self.visual.grid_size
        return rows * columns

    def normalise(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Pixels as a loader gives them to what ``encode`` takes."""
        return self.preprocess.normalise(images)

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch features"]:
        """f(x): features after the projection, before L2 normalisation.

        Args:
            images: CLIP-normalised pixels; cast to the weights' type outside of autocast.
            masked: patches no query may attend to (they stay in the sequence; the class token is never masked).
            kept: the only patches that enter the sequence, at their own positions (shorter, hence cheaper).
        """
        visual = self.visual
        if images.is_floating_point() and not torch.is_autocast_enabled(images.device.type):  # which casts by itself
            images = images.to(visual.conv1.weight.dtype)
        tokens = visual._embeds(images)
        bias = None
        if kept is not None:
            index = F.pad(kept + 1, (1, 0))  # the class token, at position 0, stays
            tokens = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        if masked is not None:
            keys = F.pad(masked, (1, 0))[:, None, None, :]
            bias = torch.zeros(keys.shape, dtype=tokens.dtype, device=keys.device).masked_fill(keys, -torch.inf)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = self._run(block, tokens, None, None, bias)
        pooled, _ = visual._pool(self._run(_class_token, last, tokens, bias))
        with torch.autocast(pooled.device.type, enabled=False):  # cheap, and the loss sees these numbers
            return pooled.to(visual.proj.dtype) @ visual.proj

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold the encoder's large weights in ``dtype``: the casts that autocast to it makes at every use, made once.

        For a frozen model that is used under that autocast alone. The numbers do not change; the weights are rounded.
        """
        for block in self.blocks:
            block.attn.to(dtype)
            block.mlp.to(dtype)
        self.visual.conv1.to(dtype)

    def _run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.visual.transformer.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """g(f): logits of the linear head on the L2-normalised features."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(F.normalize(features.to(self.head.weight.dtype), dim=-1))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.classify(self.encode(images))


def _class_token(
    block: ResidualAttentionBlock, tokens: Float[Tensor, "batch tokens width"], bias: Tensor | None
) -> Float[Tensor, "batch 1 width"]:
    """The class token after ``block``. Of the last block's output it is all that features are made of."""
    seen = block.ln_1(tokens)
    token = tokens[:, :1] + block.ls_1(block.attn(seen[:, :1], seen, seen, attn_mask=bias)[0])
    return token + block.ls_2(block.mlp(block.ln_2(token)))


def _require_plain(visual: nn.Module, name: str) -> None:
    plain = (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and visual.proj is not None
        and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
    )
    if not plain:
        raise UserError(
            f"model {name!r} is not a plain CLIP vision transformer (class token, standard attention blocks, "
            "projection), which the relevance map and the masks need. Choose one such as ViT-B-32, ViT-B-16, "
            "ViT-L-14 or ViT-H-14."
        )
