"""How a text tower is run: only as far as the longest of its prompts, where that is exact."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustft.common.errors import UserError
from robustft.models.attention import attend, heads
from robustft.models.open_clip_private import ResidualAttentionBlock, can_be_cut, text_features, text_tower


class TextTower:
    """The text tower of a CLIP. It holds no weights: these are ``clip``'s.

    A tower that is causal and pools at the end-of-text token makes nothing of the positions behind it. Others
    (SigLIP's, which sees the whole context and pools at its end) run over all of it.
    """

    def __init__(self, clip: nn.Module) -> None:
        self.clip = clip

    @property
    def can_be_cut(self) -> bool:
        """Whether positions behind the end-of-text token change nothing."""
        return can_be_cut(self.clip)

    @property
    def _tower(self) -> Any:
        return text_tower(self.clip)

    def encode_text(self, tokens: Int64[Tensor, "texts context"], normalize: bool) -> Float[Tensor, "texts features"]:
        """Unit-norm embeddings, computed by open_clip's own code: what zero-shot heads are made of."""
        end = int(tokens.argmax(1).max()) + 1 if self.can_be_cut else tokens.shape[1]
        features = text_features(self.clip, tokens, end)
        return features if normalize else F.normalize(features, dim=-1)

    def encode(self, tokens: Int64[Tensor, "texts length"]) -> Float[Tensor, "texts features"]:
        """Embeddings before L2 normalisation, to train with: of the last block only the token that is pooled.

        Args:
            tokens: cut behind the longest text already, where ``can_be_cut`` allows it.
        """
        clip: Any = self.clip
        tower = self._tower
        if not self._is_plain:
            features = clip.encode_text(tokens)
            return features.to(torch.promote_types(features.dtype, torch.float32))
        length, end = tokens.shape[1], tokens.argmax(1)
        states = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        causal = tower.attn_mask[None, None, :length, :length]
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            states = self._run(_all_tokens, block, states, causal)
        pooled = tower.ln_final(self._run(_token_at, last, states, end))
        with torch.autocast(pooled.device.type, enabled=False):  # cheap, and the loss sees these numbers
            projection = tower.text_projection
            if isinstance(projection, nn.Linear):
                return projection(pooled.to(projection.weight.dtype))
            return pooled.to(projection.dtype) @ projection

    @property
    def _is_plain(self) -> bool:
        """Whether it is made of open_clip's standard parts."""
        tower = self._tower
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
        standard = bool(blocks) and all(isinstance(block, ResidualAttentionBlock) for block in blocks)
        projects = getattr(tower, "text_projection", None) is not None
        return self.can_be_cut and standard and tower.transformer.batch_first and projects

    def _run(self, block: Any, *inputs: Any) -> Tensor:
        tower = self._tower
        if tower.transformer.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    @property
    def blocks(self) -> list[Any]:
        """The transformer's blocks, first to last."""
        tower = self._tower
        found = getattr(tower.transformer, "resblocks", None)
        if found is None:
            raise UserError("the text tower has no blocks of open_clip's, which train=lora updates: leave out train=")
        return list(found)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass."""
        tower = self._tower
        if hasattr(tower.transformer, "resblocks"):
            tower.transformer.grad_checkpointing = enable
        else:  # one of Hugging Face's
            tower.set_grad_checkpointing(enable)


def _all_tokens(
    block: ResidualAttentionBlock,
    states: Float[Tensor, "texts length width"],
    causal: Float[Tensor, "1 1 length length"],
) -> Float[Tensor, "texts length width"]:
    """What ``block`` makes of a sequence; torch's own attention takes more operations for a mask."""
    seen = block.ln_1(states)
    states = states + block.ls_1(_attended(block.attn, seen, seen, causal))
    return states + block.ls_2(block.mlp(block.ln_2(states)))


def _attended(
    attention: nn.MultiheadAttention,
    query: Float[Tensor, "texts queries width"],
    key: Float[Tensor, "texts length width"],
    bias: Float[Tensor, "#texts 1 #queries length"],
) -> Float[Tensor, "texts queries width"]:
    q, k, v = heads(attention, query, key)
    return attention.out_proj(attend(q, k, v, bias.to(q.dtype)).transpose(1, 2).flatten(2))


def _token_at(
    block: ResidualAttentionBlock, states: Float[Tensor, "texts length width"], end: Int64[Tensor, " texts"]
) -> Float[Tensor, "texts width"]:
    """The token at ``end`` after ``block``, which sees itself and those before it."""
    rows, places = torch.arange(len(end), device=end.device), torch.arange(states.shape[1], device=end.device)
    seen = block.ln_1(states)
    hidden = places > end[:, None]
    bias = torch.zeros(hidden.shape, dtype=seen.dtype, device=seen.device).masked_fill(hidden, -torch.inf)
    attended = _attended(block.attn, seen[rows, end].unsqueeze(1), seen, bias[:, None, None])
    token = states[rows, end].unsqueeze(1) + block.ls_1(attended)
    return (token + block.ls_2(block.mlp(block.ln_2(token)))).squeeze(1)
