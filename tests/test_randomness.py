"""Random streams: named after what they are for, dependent on their whole key."""

import re
from itertools import combinations

import pytest
import torch

from robustft.common.randomness import generator, seeded
from robustft.data.sampling import TrainSampler, split_holdout
from tests.small import ROOT, method_of, prepared

OWN = ("common/randomness.py", "data/scenes/recipes.py")  # scenes are drawn by NumPy, of a whole key too

KEYS = [(5,), (5, 0), (5, 0, 0), (0, 5), (50,), (-5,)]


def first(random: torch.Generator) -> list[float]:
    return torch.rand(4, generator=random).tolist()


def test_a_stream_is_the_same_again_and_no_other():
    streams = [first(generator(purpose, *keys)) for purpose in ("order", "orde", "order ") for keys in KEYS]
    assert streams == [first(generator(purpose, *keys)) for purpose in ("order", "orde", "order ") for keys in KEYS]
    assert all(one != other for one, other in combinations(streams, 2))


def test_streams_stay_what_they_are():
    """Every number that was ever reported hangs on them."""
    assert generator("order of images", 0, 0).initial_seed() == 1405642896316313943


def test_no_stream_is_made_elsewhere_and_none_serves_two_purposes():
    files = {path.relative_to(ROOT / "robustft").as_posix(): path for path in (ROOT / "robustft").rglob("*.py")}
    texts = {name: path.read_text("utf-8") for name, path in files.items() if name not in OWN}
    made = re.compile(r"manual_seed\(|Generator\(\)|default_rng|SeedSequence|np\.random|^import random$", re.M)
    assert [name for name, text in texts.items() if made.search(text)] == []
    used: dict[str, set[str]] = {}
    for name, text in texts.items():
        for purpose in re.findall(r"\b(?:generator|seeded)\(\s*\"([^\"]+)\"", text):
            used.setdefault(purpose, set()).add(name)
    assert len(used) > 10 and {purpose for purpose, places in used.items() if len(places) > 1} == {"weights"}


def test_seeds_that_are_next_to_each_other_have_nothing_in_common():
    drawn = torch.stack([torch.randn(4000, generator=generator("training step", seed, 0, 0)) for seed in range(6)])
    correlation = torch.corrcoef(drawn) - torch.eye(6)
    assert correlation.abs().max() < 0.07


def test_one_seed_gives_hold_out_order_and_masks_streams_of_their_own(tmp_path, monkeypatch):
    """They were one stream: the images held out came first, and masks were drawn by the same numbers."""
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path))
    seed, n = 7, 40
    order = list(TrainSampler(torch.arange(n), n, seed=seed))
    held = split_holdout(torch.arange(n), 10, seed)[1].tolist()  # every class has one image: a plain draw
    method = method_of(prepared(tmp_path, f"seed={seed}"))
    by_masks = torch.randperm(n, generator=method.random(0)).tolist()
    assert sorted(order[:10]) != held
    assert order != by_masks and sorted(by_masks[:10]) != held


@pytest.mark.parametrize("keys", [(3,), (3, 0)])
def test_the_own_generator_of_torch_is_as_before(keys):
    torch.manual_seed(1)
    expected = torch.rand(2, 3)
    torch.manual_seed(1)
    before = torch.rand(3)
    with seeded("weights", *keys):
        inside = torch.rand(3)
    assert torch.equal(torch.stack([before, torch.rand(3)]), expected.view(2, 3))
    assert torch.equal(inside, torch.rand(3, generator=generator("weights", *keys)))
