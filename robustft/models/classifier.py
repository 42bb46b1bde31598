"""The network that is fine-tuned: an image tower and a linear head, and a text tower where that is trained too."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.data.sets import Batch, EvaluationSet, Preprocess
from robustft.models import grid, plain, timm_vit
from robustft.models.prompts import Prompts
from robustft.models.text import TextSource
from robustft.models.text_tower import TextTower
from robustft.models.tower import Tower


@dataclass(frozen=True)
class Architecture:
    """What is needed to build the image tower again: its name, its family's config, and the transform.

    Attributes:
        text: the frozen text tower that goes with it; None where there is none, or its weights are random.
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    preprocess: Preprocess
    text: TextSource | None = None


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

    Attributes:
        text: a text tower that was trained along with it: a CLIP without its image tower (``text.without_visual``),
            whose tensors are ``text.<open_clip's names>`` here and saved under open_clip's. None: the frozen one that
            ``architecture.text`` names, if there is one.
        prompts: what the head is made of by that text tower; None where a model is loaded without a run.
    """

    visual: Any
    text: Any

    def __init__(
        self, visual: nn.Module, head: nn.Linear, architecture: Architecture, text: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.visual = visual
        self.head = head
        self.architecture = architecture
        self.text = text
        self.prompts: Prompts | None = None
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
        if (text := self._modules.get("text")) is not None:
            text.eval()
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

    def encode_with_states(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch features"], list[Float[Tensor, "batch tokens channels"]]]:
        """f(x) and the tokens at several depths, of one forward pass; see ``encode`` and ``Tower``."""
        return self.tower.encode_with_states(images, masked, kept)

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold the encoder's large weights in ``dtype``: the casts that autocast to it makes at every use, made once.

        For a frozen model that is used under that autocast alone. The numbers do not change; the weights are rounded.
        """
        self.tower.keep_in(dtype)

    def encode_text(self, tokens: Int64[Tensor, "texts length"]) -> Float[Tensor, "texts features"]:
        """T(p): features of texts by the text tower, before L2 normalisation.

        Args:
            tokens: as ``Prompts.choose`` gives them.
        """
        return TextTower(self.text).encode(tokens)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """s = exp(logit_scale), of similarities to texts; trained with the towers."""
        return self.text.logit_scale.exp().reshape(())

    def renew_head(self, rows: Float[Tensor, "classes features"] | None = None) -> None:
        """Make the head anew, where a text tower makes it: s times the embeddings of the classes' prompts.

        Args:
            rows: these embeddings, where they are known; they are encoded else.
        """
        if self.text is None or self.prompts is None:
            return
        rows = self.prompts.rows(self.text) if rows is None else rows
        bias = getattr(self.text, "logit_bias", None)
        with torch.no_grad():
            self.head.weight.copy_(rows * self.text.logit_scale.exp())
            self.head.bias.fill_(0.0 if bias is None else float(bias))

    def without_text(self) -> "Classifier":
        """The same image tower and head, shared, as a classifier that has nothing more."""
        return self if self.text is None else Classifier(self.visual, self.head, self.architecture)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass.

        Raises:
            UserError: the image tower cannot.
        """
        self.tower.set_grad_checkpointing(enable)
        if self.text is not None:
            TextTower(self.text).set_grad_checkpointing(enable)

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """g(f): logits of the linear head on the L2-normalised features."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(F.normalize(features.to(self.head.weight.dtype), dim=-1))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.classify(self.encode(images))

    def judge(self, batch: Batch, of: EvaluationSet) -> Float[Tensor, "batch classes"]:
        """Logits of images of an evaluation set. What is more than one model may ask which classes the set allows."""
        return self(batch.images)


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
