"""The network that is fine-tuned: an image tower and a linear head."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.data.sets import Preprocess
from robustft.models import grid, plain, timm_vit
from robustft.models.tower import Tower


@dataclass(frozen=True)
class Architecture:
    """What is needed to build the image tower again: its name, its family's config, and the transform."""

    name: str
    config: dict[str, Any] = field(repr=False)
    preprocess: Preprocess


def tower_of(visual: nn.Module, size: int) -> Tower:
    """How a network of whatever family is run and looked into; ``size``: of its images, in pixels."""
    if isinstance(own := getattr(visual, "tower", None), Tower):
        return own  # a backbone of the user's own says it itself
    if plain.is_plain(visual):
        return plain.PlainTower(visual)
    if (trunk := timm_vit.trunk_of(visual)) is not None:
        return timm_vit.TimmTower(visual, trunk)
    layer = grid.last_map(visual)
    return Tower(visual) if layer is None else grid.GridTower(visual, layer, size)


class Classifier(nn.Module):
    """Image encoder f (``visual``) and linear head g (``head``): logits = g(f(x) / ‖f(x)‖).

    State-dict keys are ``visual.<the network's own names>``, ``head.weight`` [classes, features] and ``head.bias``.
    What can be asked of the encoder besides features depends on its family: see ``tower``.
    """

    visual: Any

    def __init__(self, visual: nn.Module, head: nn.Linear, architecture: Architecture) -> None:
        super().__init__()
        self.visual = visual
        self.head = head
        self.architecture = architecture
        self.tower  # noqa: B018 -- replaces what has to be watched, before weights are loaded

    @property
    def tower(self) -> Tower:
        """How the encoder is run, masked and looked into. It is made anew for every copy: it holds modules."""
        made = vars(self).get("_tower")
        if made is None or made[0].visual is not self.visual:
            made = (tower_of(self.visual, self.architecture.preprocess.size),)  # in a tuple: it is no module of ours
            vars(self)["_tower"] = made
        return made[0]

    def train(self, mode: bool = True) -> "Classifier":
        """The encoder stays in evaluation mode: batch normalisation keeps its statistics, nothing is dropped.

        So that features depend neither on who else is in a batch nor on how it is split over devices, and a student
        that is its teacher's twin agrees with it.
        """
        super().train(mode)
        if "visual" in self._modules:  # a head on known features has none
            self.visual.eval()
        return self

    @property
    def preprocess(self) -> Preprocess:
        return self.architecture.preprocess

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels.

        Raises:
            UserError: there are no patches.
        """
        if self.tower.patch_size is None:
            raise self.refusal("patches")
        return self.tower.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            UserError: there are no patches.
        """
        if self.tower.grid is None:
            raise self.refusal("patches")
        return self.tower.grid

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        rows, columns = self.grid
        return rows * columns

    def refusal(self, what: str) -> UserError:
        """That the model lacks ``what``, and what it can do."""
        return UserError(
            f"{self.architecture.name} ({type(self.visual).__name__}) has no {what}. It can do:"
            f" {', '.join(self.tower.can())}"
        )

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
        return self.tower.encode(images, masked, kept)

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold the encoder's large weights in ``dtype``: the casts that autocast to it makes at every use, made once.

        For a frozen model that is used under that autocast alone. The numbers do not change; the weights are rounded.
        """
        self.tower.keep_in(dtype)

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """g(f): logits of the linear head on the L2-normalised features."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(F.normalize(features.to(self.head.weight.dtype), dim=-1))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.classify(self.encode(images))


def check_can(model: Classifier, mask: str, cam: str | None, fill: str) -> None:
    """Refuse a mask or a fill that the model cannot make.

    Args:
        mask: kind of mask; "none" asks for nothing.
        cam: relevance or gradcam, where the mask is made from a map.

    Raises:
        UserError: says what it can do.
    """
    tower = model.tower
    if mask == "none":
        return
    if tower.grid is None:
        raise model.refusal("patches, which masks are made of")
    if cam == "relevance" and not tower.attentions():
        raise model.refusal("attention that a relevance map could be made from")
    if cam == "gradcam" and tower.cam_layer() is None:
        raise model.refusal("map of features that Grad-CAM could be taken of")
    if fill == "none" and not tower.tokens:
        raise model.refusal("sequence of patches that masked ones could be left out of")
