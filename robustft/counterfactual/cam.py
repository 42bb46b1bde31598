"""Class activation maps: how much each patch of an image speaks for its true label.

Both maps share one forward pass with the loss: they return the features and logits they were made from, with the
graph still alive, so that cross-entropy costs no second forward. Weight gradients are never computed here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustft.models.classifier import Classifier

Explanation = tuple[Float[Tensor, "batch features"], Float[Tensor, "batch classes"], Float[Tensor, "batch patches"]]
Explain = Callable[[Classifier, Tensor, Tensor], Explanation]


def relevance(
    model: Classifier,
    images: Float[Tensor, "batch 3 height width"],
    labels: Int64[Tensor, " batch"],
    layers: int | None = None,
) -> Explanation:
    """Explain the true labels' logits by generic attention relevance (Chefer, Gur, Wolf, ICCV 2021, eqs. 5-7).

    With attention P of a layer and s the sum of the true logits, A = mean over heads of relu(dS/dP ∘ P), and the map
    is the class token's row of (I + A_L) ··· (I + A_1). That row obeys r ← r + r A from the LAST layer to the first,
    starting at the class token, which is the order of back-propagation: it is gathered in the backward pass, with
    one layer's A alive at a time.

    Args:
        layers: take only the last so many layers into account (a pooling head is one); the backward pass stops
            there. None: all.

    Returns:
        Features, logits, and the map, at most 1 and at least 0, each image divided by its maximum.
    """
    tower = model.tower
    attentions: list[Any] = list(tower.attentions())
    if not attentions:
        raise model.refusal("attention that a relevance map could be made from")
    depth = len(attentions)
    watched = attentions[depth - min(layers or depth, depth) :]
    pooling = tower.pools_by_attention()
    outputs: list[Tensor] = []
    hooks = []
    row: Tensor | None = None

    def gather(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> None:
        nonlocal row
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            start = tower.first_row(k.shape[2], k.device) if row is None else None
            if start is not None:  # the mean of the tokens: r starts with the weight that each has in it
                row = start.expand(len(k), -1)
                row = torch.baddbmm(row.unsqueeze(1), row.unsqueeze(1), _attention_relevance(q, k, v, grad)).squeeze(1)
            elif row is None:  # r starts as the class token's unit vector: only that query's attention matters
                row = _attention_relevance(q[:, :, :1], k, v, grad[:, :, :1])[:, 0]
                if not pooling:  # a pooling head's query is no token
                    row[:, 0] += 1
            else:
                a = _attention_relevance(q, k, v, grad)
                row = torch.baddbmm(row.unsqueeze(1), row.unsqueeze(1), a).squeeze(1)

    def watch(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        if not out.requires_grad:  # a frozen model: its graph begins here
            out.requires_grad_()
        hooks.append(out.register_hook(partial(gather, q.detach(), k.detach(), v.detach())))
        outputs.append(out)

    for attention in watched:
        attention.watcher = watch
    try:
        features, logits, score = _score(model, images, labels)
        with torch.autocast(score.device.type, enabled=False):
            torch.autograd.grad(score, outputs[0], retain_graph=True)
    finally:
        for attention in watched:
            attention.watcher = None
        for hook in hooks:
            hook.remove()
    assert row is not None
    return features, logits, _normalise(row[:, tower.prefix :])


def _attention_relevance(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    grad: Float[Tensor, "batch heads queries dim"],
) -> Float[Tensor, "batch queries tokens"]:
    """A = mean_h relu(dS/dP ∘ P), from the queries, keys and values of a layer and dS/d(P v)."""
    probability = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).float().softmax(-1)
    gradient = (grad @ v.transpose(-2, -1)).float()
    return gradient.mul_(probability).relu_().mean(1)


def gradcam(
    model: Classifier, images: Float[Tensor, "batch 3 height width"], labels: Int64[Tensor, " batch"]
) -> Explanation:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the true labels' logits at the first norm of the last block.

    Of a convolutional tower: at its last map of features. Channel weights are the gradient summed over ALL tokens (or
    places); the map is relu(Σ_c weight_c · activation_c) at the patch tokens, each image divided by its maximum.
    """
    activations: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: Tensor) -> None:
        activations.append(output if output.requires_grad else output.requires_grad_())

    tower = model.tower
    layer = tower.cam_layer()
    if layer is None:
        raise model.refusal("map of features that Grad-CAM could be taken of")
    hook = layer.register_forward_hook(keep)
    try:
        features, logits, score = _score(model, images, labels)
        with torch.autocast(score.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(score, activations[0], retain_graph=True)
    finally:
        hook.remove()
    with torch.no_grad():
        activation = activations[0]
        if activation.ndim == 4:  # a grid: channels before places
            activation, gradient = activation.flatten(2).mT, gradient.flatten(2).mT
        weights = gradient.float().sum(1, keepdim=True)
        cam = (activation[:, tower.prefix :].float() * weights).sum(-1).relu()
    return features, logits, _normalise(cam)


def make_cam(kind: str, layers: int | None = None) -> Explain:
    """Choose the configured map; ``layers`` is that of ``relevance``."""
    return gradcam if kind == "gradcam" else partial(relevance, layers=layers)


def _score(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        features = model.encode(images)
        logits = model.classify(features)
        score = logits.gather(1, labels.unsqueeze(1)).sum()
    return features, logits, score


def _normalise(cam: Float[Tensor, "batch patches"]) -> Float[Tensor, "batch patches"]:
    return cam / (cam.amax(1, keepdim=True) + 1e-8)
