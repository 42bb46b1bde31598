"""open_clip's plain vision transformers: class token, standard blocks, learnt projection."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustft.models import open_clip_private as private
from robustft.models.activation import QuickGELU
from robustft.models.attention import WatchedAttention
from robustft.models.open_clip_private import ResidualAttentionBlock, VisionTransformer
from robustft.models.tower import Tower, as_weights


def is_plain(visual: nn.Module) -> bool:
    """Whether it is such a tower."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and visual.proj is not None
        and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
    )


def is_plain_config(config: dict[str, Any]) -> bool:
    """Whether open_clip's config of a model is that of such a tower; told without building it."""
    vision = config["vision_cfg"]
    others = ("timm_model_name", "attentional_pool", "no_ln_pre")
    return isinstance(vision.get("layers", 12), int) and not any(vision.get(name) for name in others)


class PlainTower(Tower):
    """Runs the blocks by itself: the last one for the class token alone, masked patches hidden from all of them."""

    prefix = 1
    tokens = True

    def __init__(self, visual: Any) -> None:
        super().__init__(visual)
        rows, columns = visual.grid_size
        self.grid, self.patch_size = (rows, columns), visual.patch_size[0]
        for block in self.blocks:
            if not isinstance(block.attn, WatchedAttention):
                block.attn = WatchedAttention.wrap(block.attn)
            if isinstance(block.mlp.gelu, private.QuickGELU):
                block.mlp.gelu = QuickGELU()

    @property
    def blocks(self) -> list[Any]:
        """The transformer's residual attention blocks, first to last."""
        return list(self.visual.transformer.resblocks)

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch features"]:
        visual = self.visual
        tokens = self.only(private.embed(visual, as_weights(images, visual.conv1.weight)), kept)
        bias = self.hiding(masked, tokens.dtype)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = self._run(block, tokens, None, None, bias)
        pooled = private.pool(visual, self._run(_class_token, last, tokens, bias))
        with torch.autocast(pooled.device.type, enabled=False):  # cheap, and the loss sees these numbers
            return pooled.to(visual.proj.dtype) @ visual.proj

    def _run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.checkpoints and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def attentions(self) -> Sequence[nn.Module]:
        return [block.attn for block in self.blocks]

    def cam_layer(self) -> nn.Module:
        return self.blocks[-1].ln_1

    def keep_in(self, dtype: torch.dtype) -> None:
        for block in self.blocks:
            block.attn.to(dtype)
            block.mlp.to(dtype)
        self.visual.conv1.to(dtype)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.visual.set_grad_checkpointing(enable)

    @property
    def checkpoints(self) -> bool:
        return self.visual.transformer.grad_checkpointing


def _class_token(
    block: ResidualAttentionBlock, tokens: Float[Tensor, "batch tokens width"], bias: Tensor | None
) -> Float[Tensor, "batch 1 width"]:
    """The class token after ``block``. Of the last block's output it is all that features are made of."""
    seen = block.ln_1(tokens)
    token = tokens[:, :1] + block.ls_1(block.attn(seen[:, :1], seen, seen, attn_mask=bias)[0])
    return token + block.ls_2(block.mlp(block.ln_2(token)))
