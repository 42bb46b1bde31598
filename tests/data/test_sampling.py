import pytest
import torch
from torch.utils.data import BatchSampler

from robustft.data.sampling import EvalSampler, TrainSampler, draw, split_holdout


def steps(world_size: int, accumulate: int = 1, **options) -> list[set[int]]:
    """The images of each optimiser step, all devices and micro-batches together."""
    per_rank = []
    for rank in range(world_size):
        sampler = TrainSampler(
            torch.arange(100, 150),
            12,
            seed=3,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            **options,
        )
        mine = torch.tensor(list(sampler))
        assert len(mine) == len(sampler)
        per_rank.append(mine.view(-1, 12 // world_size))
    return [set(step.tolist()) for step in torch.cat(per_rank, 1)]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 1), (1, 4), (2, 3), (4, 3)])
def test_a_step_has_the_same_images_on_any_number_of_devices(world_size: int, accumulate: int) -> None:
    single = steps(1)
    assert len(single) == 4  # 50 images: the last 2 are dropped
    assert all(len(step) == 12 for step in single)
    assert len(set.union(*single)) == 48
    assert steps(world_size, accumulate) == single


def test_epochs_differ_and_repeat_exactly() -> None:
    sampler = TrainSampler(torch.arange(50), 10, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second
    assert list(TrainSampler(torch.arange(50), 10, seed=4)) != first


def test_a_resumed_epoch_has_the_remaining_micro_batches() -> None:
    options = {"seed": 3, "rank": 1, "world_size": 2, "accumulate": 2}
    whole = TrainSampler(torch.arange(50), 12, **options)
    whole.set_epoch(2)
    resumed = TrainSampler(torch.arange(50), 12, **options, start_epoch=2, start_batch=3)
    assert list(resumed) == list(whole)[3 * 3 :]
    assert len(resumed) == len(whole)  # Lightning counts the batches of a full epoch
    for sampler in (whole, resumed):
        sampler.set_epoch(3)
    assert list(resumed) == list(whole)


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="does not split"):
        TrainSampler(torch.arange(50), 10, seed=0, world_size=3)


@pytest.mark.parametrize("images", [0, 1, 2, 10, 11, 24])
def test_evaluation_takes_the_batches_of_one_device_once_over_three(images: int) -> None:
    def batches(*devices: int) -> list[list[int]]:
        sampler = EvalSampler(images, 4, *devices)
        assert len(sampler) == len(list(sampler))
        return [list(batch) for batch in BatchSampler(sampler, 4, drop_last=False)]

    shares = [batches(rank, 3) for rank in range(3)]
    assert sorted(sum(shares, [])) == batches()
    assert sum(batches(), []) == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_draw_is_fixed_sorted_and_without_repeats() -> None:
    chosen = draw(1000, 50, seed=0).tolist()
    assert chosen == draw(1000, 50, seed=0).tolist() == sorted(set(chosen))
    assert chosen != draw(1000, 50, seed=1).tolist()


def test_holdout_is_stratified() -> None:
    labels = torch.cat([torch.full((count,), k) for k, count in enumerate([100, 50, 50, 10, 2])])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    train, held = split_holdout(labels, 53, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(212))
    assert len(held) == 53
    exact = 53 * labels.bincount() / 212
    assert ((labels[held].bincount(minlength=5) - exact).abs() < 1).all()
    assert held.tolist() != split_holdout(labels, 53, seed=1)[1].tolist()


def test_holdout_leaves_every_class_an_image_to_train_on() -> None:
    labels = torch.arange(5).repeat_interleave(2)
    train, held = split_holdout(labels, 5, seed=0)
    assert labels[train].tolist() == labels[held].tolist() == list(range(5))


def test_holdout_of_imagenet_proportions_settles_ties_by_lot() -> None:
    labels = torch.arange(1000).repeat_interleave(13)
    counts = {seed: labels[split_holdout(labels, 10_240, seed)[1]].bincount() for seed in (0, 1)}
    assert all(c.sum() == 10_240 and set(c.tolist()) == {10, 11} for c in counts.values())
    assert not torch.equal(counts[0], counts[1])


def test_holdout_is_a_plain_draw_where_a_class_has_one_image() -> None:
    train, held = split_holdout(torch.arange(100), 10, seed=0)
    assert len(held) == 10 and len(train) == 90
