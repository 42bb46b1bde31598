"""Self-attention that can be watched: fused as ever, but a map may listen to its gradients."""

from collections.abc import Callable
from typing import Self

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Watcher = Callable[[Tensor, Tensor, Tensor, Tensor], None]


class WatchedAttention(nn.MultiheadAttention):
    """open_clip's self-attention with the same parameters and numbers, and a place to look from.

    While ``watcher`` is set it is called in each forward pass as ``watcher(q, k, v, out)``, each of shape
    [batch, heads, tokens, head_dim]; ``out`` is what the heads give before the output projection. The attention
    matrix itself is never kept: who needs it recomputes it from ``q`` and ``k``, one layer at a time.
    """

    watcher: Watcher | None = None

    @classmethod
    def wrap(cls, attention: nn.MultiheadAttention) -> Self:
        """The watched twin of ``attention``, sharing its parameters under the same names."""
        twin = cls(attention.embed_dim, attention.num_heads, batch_first=True, device="meta")
        twin.in_proj_weight, twin.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        twin.out_proj = attention.out_proj
        return twin

    def forward(  # type: ignore[override]
        self,
        query: Float[Tensor, "batch tokens width"],
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Float[Tensor, "batch 1 1 tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens width"], None]:
        """Attend to ``query`` itself (``key`` and ``value`` are the same tensor in a ViT's block)."""
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.watcher is not None:
            self.watcher(q, k, v, out)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None
