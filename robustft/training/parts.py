"""Which weights are trained, and how fast: one class each, which conf/train/<name>.yaml names.

They only take weights out of the training: what a method has frozen stays frozen.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from robustft.common.errors import UserError
from robustft.models.classifier import Classifier
from robustft.models.lora import add_updates, merge
from robustft.models.text_tower import TextTower

Groups = list[dict[str, Any]]


class Parts:
    """All weights. A subclass says otherwise in ``start``, ``groups`` or ``finish``."""

    def start(self, student: Classifier, seed: int) -> None:
        """Freeze what is not trained; is called before a state is loaded and an optimiser made."""

    def groups(self, student: Classifier, groups: Groups) -> Groups:
        """Groups of parameters as the optimiser takes them, of those of the method."""
        return groups

    def finish(self, student: Classifier) -> None:
        """Leave ``student`` with the parameters it had before ``start``, under their names."""


class Head(Parts):
    """The linear head alone, on features of a frozen tower. ``method=linear_probe`` does the same on features kept."""

    def start(self, student: Classifier, seed: int) -> None:
        _freeze(student.visual.parameters())
        if student.text is not None:
            _freeze(student.text.parameters())


class Tower(Parts):
    """All but the head: with a zero-shot head, a text head that stays frozen."""

    def start(self, student: Classifier, seed: int) -> None:
        _freeze(student.head.parameters())


class LastBlocks(Parts):
    """The last blocks of the image tower, and what comes after them, head included.

    Args:
        blocks: how many, 0 to all.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def start(self, student: Classifier, seed: int) -> None:
        depths, last = depths_of(student)
        if self.blocks > last - 1:
            raise UserError(f"train.blocks={self.blocks}: the image tower has {last - 1} blocks")
        _freeze(p for p in student.parameters() if depths.get(p, last) < last - self.blocks)


class NoEmbedding(Parts):
    """All but what comes before the blocks of the image tower: embeddings of patches and positions, their norm.

    Kumar, Shen, Bubeck, Gunasekar: How to fine-tune vision models with SGD, 2022.
    """

    def start(self, student: Classifier, seed: int) -> None:
        depths, _ = depths_of(student)
        _freeze(p for p, depth in depths.items() if depth == 0)


class LayerDecay(Parts):
    """All weights, earlier ones more slowly: block k of L learns at decay^(L + 1 − k) times the rate of the head.

    What comes before the blocks counts as block 0, what comes after them as the head (Dong et al., FT-CLIP, 2022).

    Args:
        decay: 0…1 (0 excluded).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def groups(self, student: Classifier, groups: Groups) -> Groups:
        depths, last = depths_of(student)
        made: Groups = []
        for group in groups:
            for depth in range(last + 1):
                params = [p for p in group["params"] if depths.get(p, last) == depth]
                scale = group.get("lr_scale", 1.0) * self.decay ** (last - depth)
                made += [{**group, "params": params, "lr_scale": scale}] if params else []
        return made


class LowRankUpdates(Parts):
    """Low-rank updates of the matrices in the towers' blocks, and the head; merged in whatever is saved.

    Hu et al.: LoRA, ICLR 2022. Queries, keys and values of a block are one matrix, and have one update.

    Args:
        rank: r ≥ 1.
        alpha: α > 0: an update is α/r · B A.
        mlp: the matrices of the perceptrons too, not of the attention alone.
    """

    def __init__(self, rank: int, alpha: float, mlp: bool) -> None:
        self.rank, self.alpha, self.mlp = rank, alpha, mlp

    def start(self, student: Classifier, seed: int) -> None:
        depths_of(student)  # refuses a tower without blocks
        blocks = [*student.tower.blocks, *(() if student.text is None else TextTower(student.text).blocks)]
        scale = None if student.text is None else student.text.logit_scale
        kept = {*student.head.parameters(), *([] if scale is None else [scale])}
        _freeze(p for p in student.parameters() if p not in kept)
        add_updates(blocks if self.mlp else [block.attn for block in blocks], self.rank, self.alpha, seed)

    def finish(self, student: Classifier) -> None:
        merge(student)


def depths_of(student: Classifier) -> tuple[dict[nn.Parameter, int], int]:
    """Depth of the image tower's parameters, and the depth of what is in none of its blocks but comes after them.

    Before the blocks it is 0, in block k of L it is k, after them L + 1.

    Raises:
        UserError: the tower has no blocks.
    """
    tower = student.tower
    if not tower.blocks:
        raise UserError(f"{student.architecture.name} has no transformer blocks, which train= counts: leave out train=")
    depths = {p: number for number, block in enumerate(tower.blocks, start=1) for p in block.parameters()}
    return depths | dict.fromkeys(tower.embedding(), 0), len(tower.blocks) + 1


def as_groups(given: Sequence[Any]) -> Groups:
    """What a method gives to train, as groups, of weights that are trained."""
    groups = [group if isinstance(group, dict) else None for group in given]
    loose: Groups = [{"params": [p for p, group in zip(given, groups, strict=True) if group is None]}]
    every = [*loose, *(group for group in groups if group is not None)]
    trained = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in every]
    return [group for group in trained if group["params"]]


def _freeze(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)
