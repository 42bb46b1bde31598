"""The teacher's maps of all training images: those that each step would have taken, taken once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from robustft.counterfactual import teacher_maps
from robustft.counterfactual.cam import relevance
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import EvaluationSet, TensorImages
from robustft.training.recipe import Recipe, Training
from tests.counterfactual.conftest import Scene

OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "max_epochs": 2,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class Noise(RobustnessData):
    name, class_names, templates = "noise", [str(k) for k in range(10)], ["a {}"]
    images = torch.randint(256, (22, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def training_set(self) -> TensorImages:
        return TensorImages(self.images, torch.arange(22) % 10)

    def evaluation_sets(self) -> list[EvaluationSet]:
        return []


def take(scene: Scene, path: Path, **changes: Any) -> torch.Tensor | None:
    preprocess = scene.student.preprocess
    data = Noise(preprocess=preprocess, seed=0, batch_size=4, eval_batch_size=9, holdout=2, num_workers=0)
    mask = {"cam": "relevance", "layers": None}
    mask |= changes.pop("mask", {})
    training = Training(data, path, OPTIONS | changes, Recipe({"lr": 0.0, "weight_decay": 0.0}))
    return teacher_maps.teacher_maps(scene.teacher, training, mask)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


def test_the_same_masks_as_without(scene: Scene, tmp_path: Path) -> None:
    cams = take(scene, tmp_path)
    assert cams is not None and cams.dtype == torch.float32
    chosen = torch.tensor([20, 3, 11, 7])
    x = scene.teacher.preprocess.normalise(Noise.images[chosen])
    expected = relevance(scene.teacher, x, chosen % 10)[-1]
    torch.testing.assert_close(cams[chosen], expected, rtol=0, atol=1e-5)
    for threshold in (0.3, 0.4, 0.5, 0.6):
        assert torch.equal(cams[chosen] > threshold, expected > threshold)
    assert all(weight.grad is None for weight in scene.teacher.parameters())


def test_they_are_taken_once(scene: Scene, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last_layer = take(scene, tmp_path), take(scene, tmp_path, mask={"layers": 1})
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert not torch.equal(first, last_layer)
    monkeypatch.setattr(teacher_maps, "Mapper", None)
    assert torch.equal(first, take(scene, tmp_path))
    with torch.no_grad():
        scene.teacher.head.bias[0] += 1
    with pytest.raises(TypeError):  # another teacher: its maps are not known
        take(scene, tmp_path)


@pytest.mark.parametrize(
    "short", [{"max_steps": 4}, {"limit_train_batches": 2, "max_epochs": 1}, {"fast_dev_run": True}]
)
def test_not_for_a_look_whether_it_runs(scene: Scene, tmp_path: Path, cache: Path, short: dict[str, Any]) -> None:
    assert take(scene, tmp_path, **short) is None
    assert not cache.exists()
