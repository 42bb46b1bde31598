"""Low-rank updates of weight matrices by parametrisation: W₀ + (α/r) B A, merged where a model is saved.

Hu et al.: LoRA, ICLR 2022.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustft.common.randomness import generator


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of every weight as the forward pass sees it: under the names of a module without updates."""
    for prefix, part in module.named_modules():
        if isinstance(part, parametrize.ParametrizationList) or ".parametrizations." in f".{prefix}.":
            continue
        before = f"{prefix}." if prefix else ""
        for name, weight in part.named_parameters(recurse=False):
            yield before + name, weight
        if parametrize.is_parametrized(part):
            assert isinstance(part.parametrizations, nn.ModuleDict)
            for name in part.parametrizations:
                yield before + name, getattr(part, name)


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that ``module`` has once its updates are merged."""
    buffers = {name: value for name, value in module.state_dict().items() if ".parametrizations." not in f".{name}"}
    return buffers | {name: weight.detach() for name, weight in named_weights(module)}


class LowRank(nn.Module):
    """W₀ ↦ W₀ + (α/r) B A, with A drawn at random and B zero to begin with.

    Args:
        rank: r ≥ 1.
        alpha: α > 0.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, random: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        bound = columns**-0.5  # as nn.Linear draws its weights
        drawn = torch.empty(rank, columns).uniform_(-bound, bound, generator=random)
        self.a = nn.Parameter(drawn.to(weight.device, weight.dtype))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = alpha / rank

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        with torch.autocast(weight.device.type, enabled=False):  # the sum is what is saved
            return torch.addmm(weight, self.b, self.a, alpha=self.scale)


def add_updates(modules: Iterable[nn.Module], rank: int, alpha: float, seed: int) -> int:
    """Give every matrix in ``modules`` an update, and train that alone; the number of matrices."""
    found = [
        (part, name)
        for module in modules
        for part in module.modules()
        for name, weight in part.named_parameters(recurse=False)
        if weight.dim() == 2
    ]
    for number, (part, name) in enumerate(found):
        update = LowRank(getattr(part, name), rank, alpha, generator("low-rank updates", seed, number))
        getattr(part, name).requires_grad_(False)
        parametrize.register_parametrization(part, name, update)
    return len(found)


def merge(module: nn.Module) -> None:
    """Make weights of the updates, which are then gone."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            assert isinstance(part.parametrizations, nn.ModuleDict)
            for name in list(part.parametrizations):
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
