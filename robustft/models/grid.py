"""Any other image tower: convolutional ones leave a grid of features that Grad-CAM can be taken of."""

from typing import Any

import torch
from torch import nn

from robustft.models.open_clip_private import ModifiedResNet, TimmModel
from robustft.models.tower import Tower


class GridTower(Tower):
    """A network that is run as it is, with the module whose output is a map of features [batch, channels, h, w]."""

    def __init__(self, visual: Any, layer: nn.Module, size: int) -> None:
        super().__init__(visual)
        self.layer = layer
        shapes: list[torch.Size] = []
        hook = layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
        training = visual.training
        try:
            with torch.no_grad():
                visual.eval()(torch.zeros(1, 3, size, size))
        finally:
            hook.remove()
            visual.train(training)
        if shapes and len(shapes[0]) == 4 and size % shapes[0][2] == 0:
            rows, columns = shapes[0][2:]
            self.grid, self.patch_size = (rows, columns), size // rows

    def cam_layer(self) -> nn.Module:
        return self.layer


def last_map(visual: nn.Module) -> nn.Module | None:
    """Find the last module of a convolutional tower that gives a map; None where nothing is known."""
    if isinstance(visual, ModifiedResNet):
        return visual.layer4
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    for name in ("stages", "layer4", "blocks"):
        part = getattr(trunk, name, None)
        if isinstance(part, nn.Sequential | nn.ModuleList) and len(part) and name != "blocks":
            return part[-1] if isinstance(part, nn.ModuleList) else part
        if isinstance(part, nn.Module) and name == "layer4":
            return part
    return None
