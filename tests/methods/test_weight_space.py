"""WiSE-FT and soups, tensor by tensor."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from robustft.common.errors import UserError
from robustft.methods.soup import greedy_soup, mean
from robustft.methods.wiseft import interpolated
from robustft.models.classifier import Classifier
from robustft.models.files import model_files
from robustft.models.weights import load_classifier, save_classifier
from tests.methods.micro import CLASSES, load, micro, same_bits, saved, zeros_signed


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [saved(tmp_path, seed) for seed in range(1, 6)]


def test_wiseft_ends_are_the_two_models_bit_for_bit(files: list[str], tmp_path: Path) -> None:
    tuned = zeros_signed(micro(1))
    save_classifier(tmp_path / "tuned.safetensors", tuned, CLASSES)
    for alpha, expected in ((0, zeros_signed(micro(0))), (1, tuned), (0.0, zeros_signed(micro(0))), (1.0, tuned)):
        made = interpolated(zeros_signed(micro(0)), load(tmp_path / "tuned.safetensors"), alpha)
        assert same_bits(made, expected)


def test_wiseft_between_is_the_formula_over_all_weights(files: list[str]) -> None:
    zeroshot, tuned = micro(0), micro(1)
    before = {name: value.clone() for name, value in zeroshot.state_dict().items()}
    for alpha in (0.1, 0.5, 0.7):
        made = interpolated(zeroshot, load(files[0]), alpha).state_dict()
        assert {"head.weight", "head.bias", "visual.proj", "visual.conv1.weight"} <= made.keys()
        for name, value in made.items():
            exact = (1 - alpha) * before[name].double() + alpha * tuned.state_dict()[name].double()
            assert torch.equal(value, exact.float())
    assert all(torch.equal(value, before[name]) for name, value in zeroshot.state_dict().items())


def test_a_soup_of_one_model_is_that_model(files: list[str]) -> None:
    tuned = zeros_signed(micro(7))
    path = Path(files[0]).with_name("one.safetensors")
    save_classifier(path, tuned, CLASSES)
    assert same_bits(soup([path]), tuned)
    assert same_bits(greedy_soup([path], load_classifier_at, lambda model: 0.5), tuned)


def test_a_soup_of_two_is_wiseft_halfway(files: list[str]) -> None:
    zeroshot = load_classifier_at(files[1])
    halfway = interpolated(zeroshot, load(files[0]), 0.5)
    for pair in (files[:2], files[1::-1]):
        assert same_bits(soup(pair), halfway)


def test_a_soup_of_twins_is_the_model(files: list[str]) -> None:
    paths = []
    for k in range(7):
        path = Path(files[0]).with_name(f"twin{k}.safetensors")
        save_classifier(path, micro(1), CLASSES)
        paths.append(str(path))
    assert same_bits(soup(paths), micro(1))


def test_a_uniform_soup_is_the_mean_whatever_the_order(files: list[str]) -> None:
    made = [soup(paths) for paths in (files, files[::-1])]
    assert same_bits(*made)
    for name, value in made[0].state_dict().items():
        stacked = torch.stack([micro(seed).state_dict()[name].double() for seed in range(1, 6)])
        torch.testing.assert_close(value, stacked.mean(0).float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_soup_against_a_plain_loop(files: list[str], seed: int) -> None:
    """Accuracies in steps of 1/4 of a stand-in hold-out, so that equal ones occur often."""
    probe = micro(100 + seed).head.weight.detach()

    def accuracy(model: Classifier) -> float:
        return round(4 * float(torch.sigmoid((model.head.weight.detach() * probe).sum() * 3))) / 4

    paths = random.Random(seed).sample(files, len(files))
    order = sorted(paths, key=lambda path: accuracy(load_classifier_at(path)), reverse=True)
    kept: list[dict[str, torch.Tensor]] = []
    best = -1.0
    for path in order:
        candidate = [*kept, load_classifier_at(path).state_dict()]
        mean = {name: sum(state[name].double() for state in candidate) / len(candidate) for name in candidate[0]}
        model = micro(0)
        model.load_state_dict(mean)
        if accuracy(model) >= best:
            kept, best, expected = candidate, accuracy(model), model
    assert same_bits(greedy_soup([Path(path) for path in paths], load_classifier_at, accuracy), expected)


def test_checkpoints_may_be_a_glob_or_a_list_of_both(files: list[str]) -> None:
    folder, paths = Path(files[0]).parent, [Path(file) for file in files]
    assert model_files(str(folder / "*.safetensors")) == paths
    assert model_files([files[3], str(folder / "[12].safetensors"), files[3]]) == [paths[3], *paths[:2]]
    with pytest.raises(UserError, match="no such file"):
        model_files(str(folder / "*.pt"))


def test_mismatched_models_are_refused(files: list[str], tmp_path: Path) -> None:
    other = saved(tmp_path, 20, architecture="another")
    fewer = saved(tmp_path, 21, classes=2)
    for wrong, message in ((other, "is a another, expected a micro"), (fewer, "made for 2 classes")):
        for greedy in (False, True):
            with pytest.raises(UserError, match=message):
                soup([files[0], wrong], greedy)


def soup(paths: Sequence[str | Path], greedy: bool = False) -> Classifier:
    return mean([Path(path) for path in paths], load, lambda model: 0.5, micro(0), greedy)


def load_classifier_at(path: str | Path) -> Classifier:
    return load_classifier(Path(path))
