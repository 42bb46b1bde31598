"""Low-rank updates of weight matrices by parametrisation: W₀ + (α/r) B A, merged where a model is saved.

Hu et al.: LoRA, ICLR 2022.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize


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
