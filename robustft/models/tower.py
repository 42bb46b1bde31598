"""What an image encoder has to offer so that the paper's ideas work on it: one class a family."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustft.common.errors import UserError


def as_weights(images: Tensor, weight: Tensor) -> Tensor:
    """Images in the type of the weights that meet them first, outside of autocast, which casts by itself."""
    if images.is_floating_point() and not torch.is_autocast_enabled(images.device.type):
        return images.to(weight.dtype)
    return images


class Tower:
    """How an image encoder is run, masked and looked into. It holds no weights: these are ``visual``'s.

    This one knows nothing of what it is given but that it turns images into features: it can be fine-tuned, and that
    is all. Families that can do more say so, and how.

    Attributes:
        visual: the network; called with images it gives features.
        grid: rows and columns of the map that can be taken; None: there is none.
        patch_size: side of a cell of the grid in pixels.
        prefix: tokens that stand before the patches' in the sequence.
        tokens: patches can be hidden from attention, and left out of the sequence.
    """

    grid: tuple[int, int] | None = None
    patch_size: int | None = None
    prefix = 0
    tokens = False

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch features"]:
        """Features after the projection; see ``Classifier.encode``."""
        return self.visual(as_weights(images, next(self.visual.parameters())))

    def attentions(self) -> Sequence[nn.Module]:
        """Name what a relevance map is gathered from, first to last: modules with a ``watcher`` (attention.py)."""
        return ()

    def first_row(self, tokens: int, device: torch.device) -> Float[Tensor, " tokens"] | None:
        """Where relevance starts, as weights of the last layer's tokens; None: at the token before all others."""
        return None

    def pools_by_attention(self) -> bool:
        """Whether the last of ``attentions()`` has one query of its own that pools the tokens."""
        return False

    def cam_layer(self) -> nn.Module | None:
        """Whose output Grad-CAM is taken of: [batch, tokens, width] or [batch, channels, rows, columns]."""
        return None

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold the large weights of a frozen tower in ``dtype``; see ``Classifier.keep_in``."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass.

        Raises:
            UserError: this family cannot.
        """
        if enable:
            raise UserError(f"model.grad_checkpointing=true: {type(self.visual).__name__} cannot recompute activations")

    @property
    def checkpoints(self) -> bool:
        """Whether it recomputes activations."""
        return False

    def only(
        self, tokens: Float[Tensor, "batch tokens width"], kept: Int64[Tensor, "batch kept"] | None
    ) -> Float[Tensor, "batch chosen width"]:
        """Leave those patches alone in the sequence, at their own positions; the tokens before the patches stay."""
        if kept is None:
            return tokens
        before = torch.arange(self.prefix, device=kept.device).expand(len(kept), -1)
        index = torch.cat([before, kept + self.prefix], 1)
        return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    def hiding(
        self, masked: Bool[Tensor, "batch patches"] | None, dtype: torch.dtype
    ) -> Float[Tensor, "batch 1 1 tokens"] | None:
        """Make what is added to attention scores so that nobody attends to masked patches."""
        if masked is None:
            return None
        keys = F.pad(masked, (self.prefix, 0))[:, None, None, :]
        return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill(keys, -torch.inf)

    def can(self) -> list[str]:
        """Say what it can do, in the words of settings."""
        able = ["mask=none"]
        if self.attentions():
            able.append("mask.cam=relevance")
        if self.cam_layer() is not None and self.grid is not None:
            able.append("mask.cam=gradcam")
        if self.grid is not None:
            able.append("mask=random")
        able += ["fill=single, multi"] if self.grid is not None else []
        able += ["fill=none"] if self.tokens else []
        return able
