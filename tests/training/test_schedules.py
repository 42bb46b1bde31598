"""Schedules of the learning rate where a rise is longer than the training."""

import logging

import pytest
import torch

from robustft.training.schedules import one_cycle, warmup_cosine


@pytest.mark.parametrize("schedule", [one_cycle, warmup_cosine])
@pytest.mark.parametrize(("warmup", "said"), [(500, True), (10, True), (9, False), (0.02, False)])
def test_a_rise_as_long_as_the_training_is_told_of(schedule, warmup: float, said: bool, caplog):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    with caplog.at_level(logging.WARNING, "robustft"):
        scheduler = schedule(optimizer, 10, 1e-3, warmup)
    assert ("the training has 10 steps" in caplog.text) == said
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step() if len(rates) < 10 else None
    assert (rates == sorted(rates)) == said or warmup == 9
    assert max(rates) <= 1e-3 + 1e-12
