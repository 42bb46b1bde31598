"""Self-attention that can be watched: fused as ever, but a map may listen to its gradients."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Watcher = Callable[[Tensor, Tensor, Tensor, Tensor], None]
Heads = tuple[
    Float[Tensor, "batch heads queries dim"],
    Float[Tensor, "batch heads tokens dim"],
    Float[Tensor, "batch heads tokens dim"],
]


class WatchedAttention(nn.MultiheadAttention):
    """open_clip's self-attention with the same parameters and numbers, and a place to look from.

    A ``watcher`` that is set is called in the next forward pass, once, as ``watcher(q, k, v, out)``, each of shape
    [batch, heads, tokens, head_dim]; ``out`` is what the heads give before the output projection. The attention
    matrix itself is never kept for it: who needs it recomputes it from ``q`` and ``k``, one layer at a time.
    """

    watcher: Watcher | None = None

    @classmethod
    def wrap(cls, attention: nn.MultiheadAttention) -> "WatchedAttention":
        """Make the watched twin of ``attention``, sharing its parameters under the same names."""
        twin = cls(attention.embed_dim, attention.num_heads, batch_first=True, device="meta")
        twin.in_proj_weight, twin.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        twin.out_proj = attention.out_proj
        return twin

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, heads={self.num_heads}"

    def forward(  # type: ignore[override]
        self,
        query: Float[Tensor, "batch queries width"],
        key: Float[Tensor, "batch tokens width"],
        value: Float[Tensor, "batch tokens width"],
        need_weights: bool = False,
        attn_mask: Float[Tensor, "batch 1 1 tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch queries width"], None]:
        """Attend from ``query`` (all tokens or some) to ``key``; ``value`` is the same tensor as ``key``."""
        q, k, v = heads(self, query, key)
        out = attend(q, k, v, None if attn_mask is None else attn_mask.to(q.dtype))
        watcher, self.watcher = self.watcher, None  # activation checkpointing comes here again in the backward pass
        if watcher is not None:
            watcher(q, k, v, out)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def heads(
    attention: nn.MultiheadAttention,
    query: Float[Tensor, "batch queries width"],
    key: Float[Tensor, "batch tokens width"],
) -> Heads:
    """q, k and v of each head; where ``query`` is ``key`` in one product."""
    weight, bias, number = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
    if query is key:
        q, k, v = F.linear(query, weight, bias).unflatten(-1, (3, number, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v
    rows = [attention.embed_dim, 2 * attention.embed_dim]
    (of_query, of_key), (query_bias, key_bias) = weight.split(rows), bias.split(rows)
    q = F.linear(query, of_query, query_bias).unflatten(-1, (number, -1)).transpose(1, 2)
    k, v = F.linear(key, of_key, key_bias).unflatten(-1, (2, number, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    bias: Float[Tensor, "#batch 1 #queries tokens"] | None,
) -> Float[Tensor, "batch heads queries dim"]:
    """softmax(q kᵀ / √dim + bias) v.

    Fused, except in bfloat16 on CPUs: there the fused kernel's backward pass costs 2 to 4 times what plain matrix
    products do (as of torch 2.14), a tenth of a whole training step.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with torch.autocast("cpu", enabled=False):  # it would take the softmax in float32, twice the memory
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(-1) @ v
