"""The gradients of a run's first step, in float64: ``python -m tests.methods.first_gradients FOLDER setting=value``.

On several devices each of their processes runs this, and the first one writes.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from robustft.common.processes import is_first_process
from robustft.experiment import make_training
from robustft.inputs import Inputs
from robustft.methods.linear_probe import LinearProbe
from robustft.training.constraint import Constraint
from robustft.training.loop import train
from tests.small import method_of, prepared

FILE = "gradients.safetensors"


class Recorded(Constraint):
    """Keeps the gradients of the first step, as they are before clipping."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def attach(self, student: torch.nn.Module, device: torch.device) -> None:
        self.student = student

    def add_gradient(self) -> None:
        named = self.student.named_parameters()
        self.gradients = self.gradients or {name: p.grad.clone() for name, p in named if p.grad is not None}


def first_gradients(run: Inputs) -> dict[str, torch.Tensor]:
    """Of every tensor that is trained."""
    method, recorded = method_of(run).double(), Recorded()
    if method.teacher is not None:
        method.teacher.double()
    if isinstance(method, LinearProbe):
        method.result().double()  # only its head is a part of the method
    train(method, replace(make_training(run.cfg, run, []), constraints=[recorded]))
    return recorded.gradients


if __name__ == "__main__":
    folder, *settings = sys.argv[1:]
    found = first_gradients(prepared(Path(folder), *settings, "trainer.max_steps=1", "data.holdout=0"))
    if is_first_process():
        save_file(found, Path(folder) / FILE)
