"""Localisation on hand-made maps with known answers, and against pixels that are counted one by one."""

import pytest
import torch

from robustft.counterfactual.true_maps import maps_of, patch_coverage
from robustft.evaluation.localisation import best_iou, iou, localise, on_object, points_at


def square_scene() -> torch.Tensor:
    """A 8×8 image with an object of 4×4 pixels at the upper left and one pixel in the next patch."""
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = True
    mask[0, 0, 4] = True
    return mask


def test_coverage_is_the_share_of_object_pixels():
    assert patch_coverage(square_scene(), (2, 2)).tolist() == [[1.0, 1 / 16, 0.0, 0.0]]
    assert patch_coverage(square_scene(), (4, 2)).tolist() == [[1.0, 1 / 8, 1.0, 0, 0, 0, 0, 0]]


def test_a_map_that_is_the_object():
    found = localise(torch.tensor([[1.0, 0.1, 0.0, 0.0]]), patch_coverage(square_scene(), (2, 2)), [0.05, 0.3])
    assert (found.images, found.pointing, found.pointing_chance) == (1, 1.0, 0.25)
    assert (found.touching, found.touching_chance) == (1.0, 0.5)
    assert found.iou == pytest.approx({0.05: 17 / 32, 0.3: 16 / 17})
    assert found.ceiling == pytest.approx(16 / 17)


def test_a_map_that_only_touches_the_object():
    found = localise(torch.tensor([[0.1, 1.0, 0.2, 0.0]]), patch_coverage(square_scene(), (2, 2)), [0.3])
    assert (found.pointing, found.touching) == (0.0, 1.0)
    assert found.iou == pytest.approx({0.3: 1 / 32})


def test_a_map_that_misses_and_an_empty_mask():
    coverage = patch_coverage(square_scene(), (2, 2))
    assert points_at(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), coverage > 0).tolist() == [False]
    assert iou(torch.zeros(1, 4, dtype=torch.bool), coverage).tolist() == [0.0]


def test_an_object_too_thin_for_half_a_patch_is_where_most_of_it_is():
    assert on_object(torch.tensor([[0.5, 0.49, 0.9], [0.2, 0.3, 0.0], [0.0, 0.0, 0.0]])).tolist() == [
        [True, False, True],
        [False, True, False],
        [False, False, False],
    ]


def test_iou_counts_pixels():
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(20, 12, 12, generator=random) < 0.3
    mask = torch.rand(20, 9, generator=random) < 0.5
    painted = mask.unflatten(1, (3, 3)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    counted = (painted & truth).sum((1, 2)) / (painted | truth).sum((1, 2))
    torch.testing.assert_close(iou(mask, patch_coverage(truth, (3, 3))), counted)


def test_no_mask_is_better_than_the_ceiling():
    random = torch.Generator().manual_seed(1)
    coverage = torch.rand(5, 6, generator=random)
    every = torch.tensor([[bool(number >> bit & 1) for bit in range(6)] for number in range(64)])
    best = torch.stack([iou(every, row.expand(64, 6)).max() for row in coverage])
    torch.testing.assert_close(best_iou(coverage), best)


def test_the_true_object_as_a_map_has_its_largest_at_one():
    assert maps_of(square_scene() & (torch.arange(8) > 0), (2, 2)).tolist() == [[1.0, pytest.approx(1 / 12), 0.0, 0.0]]
    assert maps_of(torch.zeros(1, 8, 8, dtype=torch.bool), (2, 2)).tolist() == [[0.0] * 4]
