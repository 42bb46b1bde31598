"""What methods share that train both towers on pairs of images and prompts: the prompts, and losses of whole batches.

A contrastive loss sets every image of a batch against every prompt of it. It is no sum over micro-batches and devices:
features are gathered from all of them, and where a batch comes in several micro-batches, these are encoded twice (a
gradient cache: Gao, Zhang, Han and Callan, Scaling deep contrastive learning batch size, 2021). The gradient is that of
the whole batch, to rounding.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.counterfactual.cam import make_cam
from robustft.counterfactual.distillation import forwards_of_map, forwards_of_sample, make_masking
from robustft.counterfactual.fill import Counterfactual
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import Batch
from robustft.models.classifier import Classifier
from robustft.models.prompts import part_of
from robustft.models.work import share
from robustft.training.lightning_private import is_attached
from robustft.training.method import Method

Seen = dict[str, Tensor]


class Pairs(NamedTuple):
    """A batch whose images have a prompt each; see ``Batch`` and ``robustft.models.prompts.Chosen``."""

    images: Tensor
    labels: Int64[Tensor, " batch"]
    indices: Int64[Tensor, " batch"]
    tokens: Int64[Tensor, "distinct length"]
    which: Int64[Tensor, " batch"]


class Waiting(NamedTuple):
    """A micro-batch that waits for the rest of its batch: its images, what they are made into, and its features."""

    pairs: Pairs
    sample: Counterfactual | None
    ours: Seen
    theirs: Seen


class Contrastive(Method):
    """Fine-tune image tower, text tower and logit scale on images and one prompt of their class each.

    At every epoch an image gets one of its class's prompts at random, whatever the devices and micro-batches. A
    subclass says in ``objective`` what is minimised over the features of a whole batch and, where it has a teacher, in
    ``taught`` and ``teaches_texts`` what that gives. The classifier is made of the text tower again before every
    evaluation.

    Attributes:
        teaches_texts: whether the teacher's features of the prompts are compared too; a subclass says so.

    Args:
        student: with its text tower.
        mask: see conf/mask; the map is of an image's similarity to its own prompt.
        fill: none, single or multi.

    Raises:
        UserError: a batch is one image.
    """

    teaches_texts = False

    def __init__(
        self, student: Classifier, teacher: Classifier | None, data: RobustnessData, mask: Mapping[str, Any], fill: str
    ) -> None:
        super().__init__(student, teacher)
        assert student.prompts is not None
        if data.batch_size < 2:
            raise UserError(
                f"data.batch_size={data.batch_size}: an image is set against the prompts of others. Give 2 or more"
            )
        student.head.requires_grad_(False)  # it is made of the text tower
        if getattr(student.text, "logit_bias", None) is not None:
            student.text.logit_bias.requires_grad_(False)  # the same for all pairs: a softmax does not see it
        self.prompts = student.prompts
        self.images, self.pins = len(data.training_set()), data.devices.cuda  # not the data: methods are copied
        self.options, self.fill_kind = dict(mask), fill
        self.mask, self.fill = make_masking(mask, fill, student)
        self._templates: tuple[int, Int64[Tensor, " images"]] | None = None
        self._waiting: list[Waiting] = []
        self._renewed_at: int | None = None

    # What a subclass says

    @abstractmethod
    def objective(self, ours: Seen, theirs: Seen) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss over a whole batch, ``loss`` among them.

        Args:
            ours: the student's features, not normalised: ``images``, ``texts`` and, with a mask, ``counterfactuals``.
            theirs: ``labels``, and what ``taught`` and ``taught_texts`` gave.
        """

    def taught(self, pairs: Pairs, sample: Counterfactual) -> Seen:
        """What the teacher makes of a micro-batch's images, without a graph."""
        return {}

    def taught_texts(self, pairs: Pairs) -> Seen:
        """The teacher's features of the prompts, as ``texts``, where those are compared."""
        if self.teacher is None or not self.teaches_texts:
            return {}
        return {"texts": encode_texts_frozen(self.teacher, pairs)}

    def forwards_of_teacher(self, text: float) -> float:
        """What ``taught`` and ``taught_texts`` cost, in forward passes of the image tower; one of the text tower is
        ``text`` of them.
        """
        return 0.0

    # One step

    def forwards(self, batch: Batch | Pairs) -> float:
        """Forward and backward of both towers, of x_cf where there is one, its map, and the teacher."""
        pairs = batch if isinstance(batch, Pairs) else self._on_device(self.pairs(batch))
        encode, encode_text = self.student.encode, self.student.encode_text
        text = share(lambda: encode_text(pairs.tokens), lambda: encode(pairs.images))
        needed = 3 + 3 * text + (0.0 if self.teacher is None else self.forwards_of_teacher(text))
        if self.mask is None:
            return needed
        return needed + forwards_of_map(self.options, self.student) + 3 * self.of_sample

    @property
    def of_sample(self) -> float:
        """A forward pass of x_cf in those of x."""
        return forwards_of_sample(self.options, self.fill_kind, self.student)

    def parameters_to_train(self) -> Sequence[nn.Parameter]:
        return [p for p in self.student.parameters() if p.requires_grad]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch | Pairs:
        """Prompts are chosen on the CPU: how many there are and how long is asked for without waiting for a device."""
        return self.pairs(batch) if self.trainer.training else batch

    def pairs(self, batch: Batch) -> Pairs:
        labels, indices = batch.labels.cpu(), batch.indices.cpu()
        chosen = self.prompts.choose(labels, self._templates_of(self._epoch)[indices])
        if self.pins:
            return Pairs(*batch, *(part.pin_memory() for part in chosen))
        return Pairs(*batch, *chosen)

    @property
    def _epoch(self) -> int:
        return self.current_epoch if is_attached(self) else 0

    def _templates_of(self, epoch: int) -> Int64[Tensor, " images"]:
        """A template for every training image, drawn anew for every epoch."""
        if self._templates is None or self._templates[0] != epoch:
            random = generator("templates of images", self.seed, epoch)
            self._templates = epoch, torch.randint(len(self.prompts.templates), (self.images,), generator=random)
        return self._templates[1]

    def training_step(self, batch: Batch | Pairs, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of the whole batch, at its last micro-batch; up to then micro-batches are kept, without a graph."""
        pairs = batch if isinstance(batch, Pairs) else self._on_device(self.pairs(batch))
        random = self.random(batch_idx)
        is_last = self._is_last(batch_idx)
        if is_last and not self._waiting:
            _, ours, theirs = self.see(pairs, random)
            loss = self._log(self._terms(ours, theirs))
            steps = self.trainer.accumulate_grad_batches if is_attached(self) else 1
            return loss if steps == 1 else steps * loss  # one that is left over of an epoch: see `_from_cache`
        self._waiting.append(self._without_graph(pairs, random))
        return self._from_cache() if is_last else self._nothing()

    @torch.no_grad()
    def _without_graph(self, pairs: Pairs, random: torch.Generator) -> Waiting:
        sample, ours, theirs = self.see(pairs, random)  # a map has a graph all the same, which ends here
        return Waiting(pairs, sample, {name: features.detach() for name, features in ours.items()}, theirs)

    def _from_cache(self) -> Float[Tensor, ""]:
        """Encode the micro-batches again, each with its part of the whole batch's gradient.

        The loss of a step is what Lightning makes of those that are returned: their mean.
        """
        waiting, self._waiting = self._waiting, []
        steps, sizes = self.trainer.accumulate_grad_batches, [len(one.pairs.labels) for one in waiting]
        ours = {name: torch.cat([one.ours[name] for one in waiting]).requires_grad_() for name in waiting[0].ours}
        theirs = {name: torch.cat([one.theirs[name] for one in waiting]) for name in waiting[0].theirs}
        terms = self._terms(ours, theirs)
        gradients = torch.autograd.grad(terms["loss"], list(ours.values()), retain_graph=True)
        parts = zip(*(gradient.split(sizes) for gradient in gradients), strict=True)
        for number, (one, part) in enumerate(zip(waiting, parts, strict=True)):
            again = self._live(one.pairs, one.sample)
            wanted = zip(ours, part, strict=True)
            towers = steps * torch.stack([(again[name] * gradient).sum() for name, gradient in wanted]).sum()
            if number + 1 < len(waiting):
                self.back_propagate(towers)
        self._log(terms)
        return towers + steps * terms["loss"]  # of the loss, the gradient of what is no feature: the scale, say

    def _terms(self, ours: Seen, theirs: Seen) -> dict[str, Float[Tensor, ""]]:
        """The objective over all devices' images, in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return self.objective(_in_float32(self._together(ours)), _in_float32(self._together(theirs)))

    def _log(self, terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        return self.log_terms(terms["loss"], also=None, **{k: v for k, v in terms.items() if k != "loss"})

    def _is_last(self, batch_idx: int) -> bool:
        """Whether the optimiser steps after this micro-batch."""
        if not is_attached(self):
            return True
        done = batch_idx + 1
        return done % self.trainer.accumulate_grad_batches == 0 or done == self.trainer.num_training_batches

    def _nothing(self) -> Float[Tensor, ""]:
        """A loss that adds nothing to any gradient."""
        zero = 0 * self.student.text.logit_scale.sum()
        self.terms = self.terms or {"loss": zero.detach()}
        return zero

    def _together(self, mine: Seen) -> Seen:
        """Features of all devices' images, which have a gradient where they are this device's.

        DDP takes the mean over devices of gradients that are here a sum, hence the factor.
        """
        if not is_attached(self) or self.trainer.world_size == 1:
            return mine
        devices, everywhere = self.trainer.world_size, {}
        for name, value in mine.items():
            gathered: Any = self.all_gather(value.detach())
            if value.requires_grad:
                value = value + (devices - 1) * (value - value.detach())  # the same number, its gradient times devices
            parts = [value if rank == self.global_rank else part for rank, part in enumerate(gathered)]
            everywhere[name] = torch.cat(parts)
        return everywhere

    def _on_device(self, pairs: Pairs) -> Pairs:
        return Pairs(*(part.to(pairs.images.device) for part in pairs))

    # What is seen of a micro-batch

    def see(self, pairs: Pairs, random: torch.Generator) -> tuple[Counterfactual | None, Seen, Seen]:
        """The counterfactual sample, what the student makes of the micro-batch, and what the teacher does."""
        theirs = {"labels": pairs.labels, **self.taught_texts(pairs)}
        if self.mask is None:
            return None, self._live(pairs, None), theirs | self.taught(pairs, Counterfactual(pairs.images))
        texts = self._texts(pairs)
        images, cam = self._look(pairs, texts, theirs.get("texts"))
        sample = self.fill(pairs.images, self.mask(len(images), cam, random), random)
        ours = {"images": images, "texts": texts, "counterfactuals": self.student.encode(*sample)}
        return sample, ours, theirs | self.taught(pairs, sample)

    def _live(self, pairs: Pairs, sample: Counterfactual | None) -> Seen:
        """The student's features of a micro-batch whose counterfactual sample is known."""
        ours = {"images": self.student.encode(pairs.images), "texts": self._texts(pairs)}
        return ours if sample is None else ours | {"counterfactuals": self.student.encode(*sample)}

    def _texts(self, pairs: Pairs) -> Float[Tensor, "batch features"]:
        return self.student.encode_text(pairs.tokens)[pairs.which]

    def _look(self, pairs: Pairs, texts: Tensor, theirs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The student's features of x, and the map that the mask needs."""
        options, student, x = self.options, self.student, pairs.images
        if options["kind"] == "random":
            return student.encode(x), None
        draw, own = make_cam(options["cam"], options["layers"]), torch.arange(len(x), device=x.device)
        if options["source"] == "student":
            features, _, cam = draw(Prompted(student, texts), x, own)
            return features, cam
        assert self.teacher is not None
        if theirs is None:
            theirs = encode_texts_frozen(self.teacher, pairs)
        return student.encode(x), draw(Prompted(self.teacher, theirs), x, own)[-1]

    # The classifier

    def on_validation_epoch_start(self) -> None:
        self._renew_head()
        super().on_validation_epoch_start()

    def on_train_end(self) -> None:
        self._renew_head()  # there may have been no evaluation after the last step, or none at all

    def result(self) -> Classifier:
        if self._renewed_at is None:  # a run that went on from its last state, which is older than any renewal
            self.classifier().renew_head()
        return super().result()

    def _renew_head(self) -> None:
        """Make the classifier of the text tower as it is now: of many prompts, so once after a step."""
        if self._renewed_at != self.trainer.global_step:
            model = self.classifier()
            model.renew_head(None if self.trainer.world_size == 1 else self._rows_together(model))
            self._renewed_at = self.trainer.global_step

    def _rows_together(self, model: Classifier) -> Float[Tensor, "classes features"]:
        """The embeddings of the classes' prompts, a part of them from every device."""
        classes, devices = len(self.prompts.class_names), self.trainer.world_size
        mine = part_of(classes, self.global_rank, devices)
        rows = model.head.weight.new_zeros(len(part_of(classes, 0, devices)), model.head.in_features)
        if mine:
            rows[: len(mine)] = self.prompts.rows(model.text, mine)
        everywhere: Any = self.all_gather(rows)
        return everywhere.flatten(0, 1)[:classes]


def _in_float32(seen: Seen) -> Seen:
    """Features at least in float32, which not every tower gives under autocast; labels as they are."""
    return {
        name: value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
        for name, value in seen.items()
    }


def encode_texts_frozen(teacher: Classifier, pairs: Pairs) -> Float[Tensor, "batch features"]:
    """T̂(p) of each image's prompt, without a graph."""
    with torch.inference_mode():
        texts = teacher.encode_text(pairs.tokens)[pairs.which]
    return texts.clone()  # an inference tensor could not be saved for the student's backward pass


class Prompted(Classifier):
    """``model``'s image tower (shared) as a classifier whose classes are the prompts of a batch: image i is of class i.

    Args:
        texts: features of the prompts, before L2 normalisation.
    """

    rows: Tensor

    def __init__(self, model: Classifier, texts: Float[Tensor, "batch features"]) -> None:
        nn.Module.__init__(self)
        self.visual, self.architecture = model.visual, model.architecture
        vars(self)["_tower"] = (model.tower,)
        self.rows = model.scale.detach() * nn.functional.normalize(texts.detach(), dim=-1)

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.normalize(features.to(self.rows.dtype), dim=-1) @ self.rows.T
