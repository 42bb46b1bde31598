"""The method's step written directly, as a yardstick: 9 forwards' worth where ours takes 8.

Every pass stands by itself (map, teacher, x_cf, x, one backward of the sum), attention is written out and its
matrices are materialised and kept in a list, the map is the whole matrix R. Nothing is shared with the step that
trains but the mask and the fill.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustft.counterfactual.fill import Counterfactual, Fill
from robustft.counterfactual.mask import Mask
from robustft.models.classifier import Classifier
from robustft.models.open_clip_private import embed
from robustft.models.weights import create_clip

Attentions = list[Float[Tensor, "batch heads tokens tokens"]]


class DirectClassifier(nn.Module):
    """open_clip's vision tower, untouched, and a linear head; the state dict of ``Classifier``."""

    visual: Any  # open_clip's VisionTransformer

    def __init__(self, visual: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.visual, self.head = visual, head

    @classmethod
    def like(cls, model: Classifier) -> "DirectClassifier":
        """The direct twin of ``model``, with a copy of its weights."""
        visual: Any = create_clip(model.architecture.name, None, seed=0).visual
        twin = cls(visual, deepcopy(model.head))
        twin.load_state_dict(model.state_dict())
        return twin.to(model.head.weight.device)

    def encode(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        kept: Tensor | None = None,
        attentions: Attentions | None = None,
    ) -> Float[Tensor, "batch features"]:
        """f(x); the attention matrices are appended to ``attentions``."""
        tokens = embed(self.visual, images)
        if kept is not None:
            rows = torch.arange(len(kept), device=kept.device)[:, None]
            tokens = torch.cat([tokens[:, :1], tokens[rows, kept + 1]], 1)
        for block in self.visual.transformer.resblocks:
            tokens = tokens + attention(block.attn, block.ln_1(tokens), masked, attentions)
            tokens = tokens + block.mlp(block.ln_2(tokens))
        pooled = self.visual.ln_post(tokens)[:, 0]
        with torch.autocast(pooled.device.type, enabled=False):
            return pooled.to(self.visual.proj.dtype) @ self.visual.proj

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features / features.norm(dim=-1, keepdim=True))


def attention(
    module: nn.MultiheadAttention, tokens: Tensor, masked: Tensor | None, attentions: Attentions | None
) -> Float[Tensor, "batch tokens width"]:
    """Multi-head self-attention by its formula."""
    qkv = F.linear(tokens, module.in_proj_weight, module.in_proj_bias)
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = q @ k.transpose(-2, -1) * module.head_dim**-0.5
    if masked is not None:
        scores = scores.masked_fill(F.pad(masked, (1, 0))[:, None, None], -torch.inf)
    probability = scores.softmax(-1)
    if attentions is not None:
        attentions.append(probability)
    return module.out_proj((probability @ v).transpose(1, 2).flatten(2))


def relevance(
    model: DirectClassifier, images: Tensor, labels: Int64[Tensor, " batch"], layers: int | None = None
) -> Float[Tensor, "batch patches"]:
    """R ← R + A_l R from the first layer to the last, over the list of attention matrices; CAM = R[CLS, patches]."""
    attentions: Attentions = []
    logits = model.classify(model.encode(images, attentions=attentions))
    watched = attentions[-layers:] if layers else attentions
    gradients = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), watched)
    with torch.no_grad():
        dtype = torch.promote_types(watched[0].dtype, torch.float32)
        tokens = watched[0].shape[-1]
        r = torch.eye(tokens, device=images.device, dtype=dtype).expand(len(images), -1, -1)
        for probability, gradient in zip(watched, gradients, strict=True):
            a = (gradient * probability).clamp(min=0).to(dtype).mean(1)
            with torch.autocast(images.device.type, enabled=False):
                r = r + a @ r
        cam = r[:, 0, 1:]
        return cam / (cam.amax(1, keepdim=True) + 1e-8)


def objective(
    student: DirectClassifier,
    teacher: DirectClassifier,
    x: Float[Tensor, "batch 3 height width"],
    y: Int64[Tensor, " batch"],
    random: torch.Generator,
    *,
    mask: Mask,
    fill: Fill,
    beta: float,
    cam: Callable[[DirectClassifier, Tensor, Tensor], Tensor] | None = relevance,
) -> Float[Tensor, ""]:
    """L = CE(g(f(x)), y) + β · MSE(f̂(x_cf), f(x_cf)), with the graph of both terms.

    Args:
        cam: None: the mask needs no map.
    """
    replaced = mask(len(x), cam(student, x, y) if cam else None, random)
    x_cf: Counterfactual = fill(x, replaced, random)
    with torch.no_grad():
        target = teacher.encode(*x_cf)
    distance = F.mse_loss(student.encode(*x_cf), target)
    logits = student.classify(student.encode(x))
    return F.cross_entropy(logits, y) + beta * distance
