"""timm's vision transformers, alone or as open_clip's image tower (SigLIP, SigLIP 2): pooled by a class token, by an
attention head, or by the mean.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float, Int64
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustft.common.errors import UserError
from robustft.common.randomness import seeded
from robustft.common.wording import first_line
from robustft.data.sets import Preprocess
from robustft.models.attention import Watcher, attend
from robustft.models.open_clip_private import TimmModel
from robustft.models.timm_private import Attention, AttentionPoolLatent, VisionTransformer, embed, is_plain
from robustft.models.tower import Tower, as_weights, quarters


class _Watched:
    """What timm's attention lacks: a bias that hides tokens, and a place to look from (see WatchedAttention)."""

    watcher: Watcher | None
    bias: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / √dim + bias) v, heads side by side."""
        out = attend(q, k, v, None if self.bias is None else self.bias.to(q.dtype))
        watcher, self.watcher = self.watcher, None  # activation checkpointing comes here again in the backward pass
        if watcher is not None:
            watcher(q, k, v, out)
        return out.transpose(1, 2).flatten(2)


class WatchedSelfAttention(_Watched, Attention):
    """timm's self-attention with the same parameters and numbers."""

    def forward(
        self, x: Float[Tensor, "batch tokens width"], *_: Any, **__: Any
    ) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj_drop(self.proj(self.norm(self.attend(self.q_norm(q), self.k_norm(k), v))))


class WatchedPool(_Watched, AttentionPoolLatent):
    """timm's pooling by attention from one latent query."""

    def forward(self, x: Float[Tensor, "batch tokens width"], *_: Any, **__: Any) -> Float[Tensor, "batch width"]:
        if self.pos_embed is not None:
            x = x + self.pos_embed.unsqueeze(0).to(x.dtype)
        q = self.q(self.latent.expand(x.shape[0], -1, -1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.proj_drop(self.proj(self.attend(self.q_norm(q), self.k_norm(k), v)))
        if self.mlp is not None:
            out = out + self.mlp(self.norm(out))
        return out[:, 0]


def trunk_of(visual: nn.Module) -> VisionTransformer | None:
    """The vision transformer of timm's in an image tower, if it is one that can be looked into."""
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else visual
    return trunk if is_plain(trunk, (Attention, WatchedSelfAttention)) else None


class TimmTower(Tower):
    """Runs timm's blocks, with masked patches hidden from all of them and from the pooling head.

    Where patches are pooled without a class token, an image of which all are masked keeps them: nothing would be left.
    """

    tokens = True

    def __init__(self, visual: Any, trunk: VisionTransformer) -> None:
        super().__init__(visual)
        self.trunk: Any = trunk
        rows, columns = trunk.patch_embed.grid_size
        self.grid, self.patch_size = (rows, columns), trunk.patch_embed.patch_size[0]
        self.prefix = trunk.num_prefix_tokens
        for attention in self._all():
            if not isinstance(attention, _Watched):
                attention.__class__ = (
                    WatchedPool if isinstance(attention, AttentionPoolLatent) else WatchedSelfAttention
                )
            attention.watcher = attention.bias = None

    @property
    def blocks(self) -> list[Any]:
        return list(self.trunk.blocks)

    def embedding(self) -> list[nn.Parameter]:
        after = (self.trunk.blocks, self.trunk.norm, self.trunk.attn_pool, self.trunk.fc_norm, self.trunk.head)
        known = {p for module in after if isinstance(module, nn.Module) for p in module.parameters()}
        return [p for p in self.trunk.parameters() if p not in known]

    def _all(self) -> list[Any]:
        pool = [self.trunk.attn_pool] if self.trunk.global_pool == "map" else []
        return [*(block.attn for block in self.trunk.blocks), *pool]

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch features"]:
        return self._encode(images, masked, kept, [])

    def encode_with_states(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch features"], list[Float[Tensor, "batch tokens channels"]]]:
        states: list[Tensor] = []
        return self._encode(images, masked, kept, states), states

    def _encode(
        self, images: Tensor, masked: Tensor | None, kept: Tensor | None, states: list[Tensor]
    ) -> Float[Tensor, "batch features"]:
        """Features; appends to ``states``."""
        trunk, at = self.trunk, quarters(len(self.trunk.blocks))
        if masked is not None and trunk.global_pool != "token":  # what pools the patches needs one
            masked = masked & ~masked.all(1, keepdim=True)
        tokens = self.only(embed(trunk, as_weights(images, trunk.patch_embed.proj.weight)), kept)
        bias = self.hiding(masked, tokens.dtype)
        attentions = self._all()
        for attention in attentions:
            attention.bias = bias
        try:
            tokens = trunk.norm_pre(tokens)
            states.append(tokens)
            for number, block in enumerate(trunk.blocks, start=1):
                tokens = self._run(block, tokens)
                if number in at:
                    states.append(tokens)
            features = self._pooled(trunk.norm(tokens), masked)
        finally:
            for attention in attentions:
                attention.bias = None
        return features

    def _pooled(self, tokens: Tensor, masked: Tensor | None) -> Tensor:
        trunk = self.trunk
        if trunk.global_pool == "avg" and masked is not None:  # of the patches that are there
            there = (~masked).unsqueeze(-1).to(tokens.dtype)
            pooled = (tokens[:, self.prefix :] * there).sum(1) / there.sum(1)
            features = trunk.head(trunk.head_drop(trunk.fc_norm(pooled)))
        else:
            features = trunk.forward_head(tokens)
        return self.visual.head(features) if isinstance(self.visual, TimmModel) else features

    def _run(self, block: Any, tokens: Tensor) -> Tensor:
        if not (self.checkpoints and torch.is_grad_enabled()):
            return block(tokens)
        bias = block.attn.bias  # is gone by the time of the backward pass

        def again(tokens: Tensor) -> Tensor:
            before, block.attn.bias = block.attn.bias, bias
            try:
                return block(tokens)
            finally:
                block.attn.bias = before

        return checkpoint(again, tokens, use_reentrant=False)

    def attentions(self) -> Sequence[nn.Module]:
        return self._all()

    def pools_by_attention(self) -> bool:
        return self.trunk.global_pool == "map"

    def first_row(self, tokens: int, device: torch.device) -> Float[Tensor, " tokens"] | None:
        if self.trunk.global_pool != "avg":
            return None
        row = torch.zeros(tokens, device=device)
        row[self.prefix :] = 1 / (tokens - self.prefix)
        return row

    def cam_layer(self) -> nn.Module:
        return self.trunk.blocks[-1].norm1

    def keep_in(self, dtype: torch.dtype) -> None:
        for block in self.trunk.blocks:
            block.attn.to(dtype)
            block.mlp.to(dtype)
        self.trunk.patch_embed.proj.to(dtype)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.trunk.set_grad_checkpointing(enable)

    @property
    def checkpoints(self) -> bool:
        return self.trunk.grad_checkpointing


def build(name: str, pretrained: str | None, seed: int) -> nn.Module:
    """A model of timm's without its classifier.

    Args:
        pretrained: "timm" for the weights that timm has under this name, or None for random ones drawn with ``seed``.

    Raises:
        UserError: unknown name; weights that cannot be fetched.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:9]}*")[:4]) or "timm.list_models() lists them"
        raise UserError(f"model.architecture={name} is unknown to timm. Nearest: {near}.")
    with seeded("weights", seed):
        try:
            return timm.create_model(name, pretrained=pretrained == "timm", num_classes=0)
        except Exception as error:  # whatever the hub, the network or the disk says
            raise UserError(
                f"timm's weights of {name} could not be fetched ({first_line(error)}). Download them on"
                " a connected machine and pass the file: model.pretrained=FILE."
            ) from error


def preprocess(name: str) -> Preprocess:
    """The transform that timm evaluates its weights of this name with.

    Raises:
        UserError: unknown name; images that are padded, or no squares.
    """
    if not timm.is_model(name):
        build(name, None, 0)
    config = timm.get_pretrained_cfg(name)
    known = resolve_data_config(pretrained_cfg={} if config is None else config.to_dict())
    *_, height, width = known["input_size"]
    if known["crop_mode"] == "border" or height != width:
        raise UserError(f"model.architecture={name} pads its images or takes no squares, which is not supported.")
    return Preprocess(
        size=width,
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        interpolation=known["interpolation"],
        resize="squash" if known["crop_mode"] == "squash" else "shortest",
        crop=known["crop_pct"],
    )
