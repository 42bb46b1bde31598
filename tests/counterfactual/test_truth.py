"""Masks of the true objects (``mask.source=truth``): those of the data, image by image, and refused where unknown."""

import pytest
import torch

from robustft.common.errors import UserError
from robustft.counterfactual.true_maps import true_maps
from tests.small import assert_refused, command, composed, do, method_of, prepared, work  # noqa: F401 (a fixture)

TRUE = ("mask=object", "fill=none", "mask.source=truth", "trainer.max_steps=2", "trainer.max_epochs=1")


@pytest.mark.parametrize("method", ["counterfactual", "kd"])
def test_every_image_is_masked_where_its_object_is(work, monkeypatch, method):  # noqa: F811
    run = prepared(work / method, *TRUE, f"method={method}")
    run.data.setup()
    objects = run.data.training_set().masks  # counted patch by patch, another way than the product's
    trained, seen = method_of(run), []
    trained.maps = true_maps(run.data, trained.student.grid)
    batch = next(iter(run.data.train_dataloader()))
    _, _, cam = trained._look(batch._replace(images=batch.images.float()))
    made = trained.mask(len(batch.images), cam, torch.Generator())
    rows, columns = trained.student.grid
    for mask, index in zip(made, batch.indices.tolist(), strict=True):
        pixels = objects[index]
        side = pixels.shape[0] // rows
        counts = [
            [int(pixels[r * side : (r + 1) * side, c * side : (c + 1) * side].sum()) for c in range(columns)]
            for r in range(rows)
        ]
        largest = max(max(row) for row in counts)
        seen.append(mask.tolist() == [count > 0.3 * largest for row in counts for count in row])
    assert len(seen) == 16 and all(seen)


@pytest.mark.slow
def test_a_run_by_the_true_objects_differs_from_one_by_maps(work):  # noqa: F811
    records = [do(work / name, *TRUE, f"mask.source={name}") for name in ("truth", "student")]
    truth, student = ((work / name / "model.safetensors").read_bytes() for name in ("truth", "student"))
    assert truth != student
    assert [record["config"]["mask"]["source"] for record in records] == ["truth", "student"]
    again = do(work / "again", *TRUE)
    assert (work / "again" / "model.safetensors").read_bytes() == truth and again["id"] == records[0]["id"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("augment=crop",), "mask.source=truth does not go with augment.kind=crop"),
        (("mask.cam=gradcam",), "mask.cam=gradcam does nothing with mask.source=truth"),
        (("mask.layers=1",), "mask.layers=1 does nothing with mask.source=truth"),
        (("method=flyp", "beta=1"), "mask.source=truth does not go with method=flyp"),
        (("mask.source=oracle",), "mask.source=oracle: expected one of student, teacher, truth"),
    ],
)
def test_where_it_cannot_be_it_is_refused(typed, said, tmp_path):
    with pytest.raises(UserError) as error:
        do(tmp_path / "run", *TRUE, *typed)
    assert said in str(error.value)
