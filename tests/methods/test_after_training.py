"""Model Stock, LiNeS, OSE, VRF and DaWin against public implementations and plain formulas."""

import csv
import gzip
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy import stats

import robustft
from robustft.cli import checks
from robustft.common.errors import UserError
from robustft.evaluation.metrics import best_temperature
from robustft.evaluation.predictions import read_logits
from robustft.methods import dawin, ensembles
from robustft.methods.lines import factors, scaled
from robustft.methods.model_stock import ratio, stock
from robustft.methods.vrf import VarianceReduction, nearest_of, weight
from robustft.models.classifier import Classifier
from robustft.models.files import model_files
from robustft.models.weights import save_classifier
from tests.golden.neighbours import DTYPES, Golden
from tests.methods.micro import CLASSES, load, micro, same_bits, zeros_signed
from tests.small import assert_refused, command, composed, do, work  # noqa: F401 (a fixture)

KEPT = ("keep_logits=true", "data.test_images=40", "data.train_images=200", "data.holdout=40")
TUNED = ("method=finetune", "model.pretrained=embedded", *KEPT, "optimizer.lr=3e-4", "trainer.max_epochs=3")


# Model Stock


@pytest.mark.parametrize("runs", [2, 3])
@pytest.mark.parametrize("tensor", ["weight", "bias", "conv", "opposed"])
def test_the_step_of_model_stock(tensor: str, runs: int) -> None:
    """Against both public implementations, whose guards matter for small tensors alone; of three runs one of them
    takes the mean of angles in place of cosines.
    """
    golden = Golden("model_stock", torch.float64)
    anchor = golden[f"anchor.{tensor}"].double()
    tuned = [golden[f"run{k + 1}.{tensor}"].double() for k in range(runs)]
    t = ratio([one - anchor for one in tuned])
    golden.close(t * sum(tuned) / runs + (1 - t) * anchor, f"mergekit.k{runs}.{tensor}", tolerance=5e-6)
    if runs == 2:
        assert t == pytest.approx(golden["fusion_bench.k2.ratio"][tensor], rel=5e-6)
    assert (t < 0) == (tensor == "opposed")


def test_a_small_tensor_counts_like_others() -> None:
    """The public guards send it back to the anchor: 0.63 and 0.06 in place of a cosine of about 0.7."""
    golden = Golden("model_stock", torch.float64)
    first, second = (golden[f"run{k}.tiny"].double() - golden["anchor.tiny"].double() for k in (1, 2))
    cosine = float(first @ second / (first.norm() * second.norm()))
    assert first.norm() < 1e-3 and 0.6 < cosine < 0.9
    assert ratio([first, second]) == pytest.approx(2 * cosine / (cosine + 1), rel=1e-12)
    assert ratio([1e-9 * first, 1e-9 * second]) == pytest.approx(ratio([first, second]), rel=1e-12)
    assert abs(golden["fusion_bench.k2.ratio"]["tiny"] - ratio([first, second])) > 0.03


def test_two_equal_runs_give_themselves(tmp_path: Path) -> None:
    tuned = zeros_signed(micro(1))
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path in paths:
        save_classifier(path, tuned, CLASSES)
    assert same_bits(stock(paths[:2], load, micro(0)), tuned)
    assert same_bits(stock(paths, load, micro(0)), tuned)


def test_runs_that_moved_apart_leave_the_anchor() -> None:
    zeroshot = micro(0)
    models = [micro(0), micro(0)]
    with torch.no_grad():
        models[0].head.weight[0] += 1
        models[1].head.weight[1] += 1  # orthogonal
        for model, sign in zip(models, (1, -1), strict=True):
            model.visual.proj += sign  # opposed
            model.head.bias += 1  # the same way
    named = {Path("a"): models[0], Path("b"): models[1]}
    made = stock(list(named), named.__getitem__, zeroshot)
    assert torch.equal(made.head.weight, zeroshot.head.weight) and torch.equal(made.visual.proj, zeroshot.visual.proj)
    assert torch.equal(made.head.bias, models[0].head.bias)


def test_one_run_is_refused_before_anything_is_read(tmp_path) -> None:
    save_file({"head.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="1 model. method=model_stock needs 2 or more"):
        checks.check(composed("method=model_stock", f"checkpoints=[{tmp_path}]"))


def test_one_run_is_no_stock() -> None:
    with pytest.raises(UserError, match="one model. Model Stock needs two"):
        stock([Path("a")], load, micro(0))


# LiNeS


@pytest.mark.parametrize("which", "ab")
def test_the_factors_of_lines(which: str) -> None:
    golden = Golden("lines", torch.float64)
    names = golden["names"]
    assert factors(names, golden[f"alpha_{which}"]) == pytest.approx(golden[f"factors_{which}"], rel=1e-12)


def test_lines_ends_and_between(tmp_path: Path) -> None:
    zeroshot, tuned = zeros_signed(micro(0)), zeros_signed(micro(1))
    assert same_bits(scaled(zeroshot, tuned, 1), tuned)
    made, start, end = (m.state_dict() for m in (scaled(zeroshot, tuned, 0), zeroshot, tuned))
    for name in start:
        last = "resblocks.1." in name
        assert torch.equal(made[name], end[name] if last else start[name]), name
    between = scaled(zeroshot, tuned, 0.3).state_dict()
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert torch.equal(between[name], (0.7 * start[name].double() + 0.3 * end[name].double()).float())


# Two models at inference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_weight_and_the_mixture_of_vrf(dtype: torch.dtype) -> None:
    golden = Golden("vrf", dtype)
    golden.close(weight(golden["distances"], golden["a"], golden["b"]), "weight")
    golden.close(weight(golden["distances"], golden["a"], golden["b_paper"]), "weight_paper_b")
    first, second = (
        (golden[f"logits_{who}"] / golden[f"temperature_{who}"]).log_softmax(1) for who in ("zero_shot", "tuned")
    )
    mixed = ensembles.mixture(first, second, golden["mixture_weight"].unsqueeze(1)).exp()
    golden.close(mixed, "mixture", tolerance=5e-6)  # its weights come from a search in single precision


def test_the_distance_of_vrf() -> None:
    golden = Golden("vrf", torch.float32)
    model = micro(0)
    made = VarianceReduction(model, model, (1.0, 1.0), golden["train_features_V"], golden["K"], 1.5, 0.6)
    golden.close(made.distance(golden["test_features"]), "knn_distance")
    golden.close(made.weight(golden["test_features"]), "mixture_weight")


def test_which_neighbour_vrf_asks() -> None:
    golden = Golden("vrf", torch.float32)
    assert nearest_of(int(golden["V_count"]), int(golden["train_count"]), 0.001, "images") == golden["K"]
    assert nearest_of(700, 2000, 0.001, "won") == 1 and nearest_of(3, 10**6, 0.9, "images") == 1
    assert nearest_of(3000, 10**6, 0.001, "won") == 3 and nearest_of(7, 7, 0.001, "images") == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_near_neighbours_are_told_apart_in_mixed_precision(dtype: torch.dtype) -> None:
    golden = Golden("vrf", torch.float32)
    model = micro(0)
    made = VarianceReduction(model, model, (1.0, 1.0), golden["train_features_V"], golden["K"], 1.5, 0.6)
    with torch.autocast("cpu", dtype):
        golden.close(made.distance(golden["test_features"]), "knn_distance")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tpgm", "vrf", "dawin"])
def test_what_is_fitted_to_the_hold_out_was_not_trained_on_it(work, method: str) -> None:  # noqa: F811
    path = tuned(work)
    typed = (f"method={method}", "model.pretrained=embedded", f"checkpoint={path}", *KEPT)
    with pytest.raises(UserError, match=f"method={method} is fitted to the hold-out.*Add data.holdout_seed=0"):
        do(work / f"{method}-other-seed", *typed, "seed=3")
    with pytest.raises(UserError, match="its own is another. Add data.holdout_seed=0 data.holdout=40$"):
        do(work / f"{method}-other-size", *typed, "seed=3", "data.holdout=60")
    with pytest.raises(UserError, match="its own is another. Add data.train_images=200$"):
        do(work / f"{method}-of-more", *typed, "data.holdout_seed=0", "data.train_images=300")
    assert not (work / f"{method}-other-seed" / "results.json").exists()
    if method == "vrf":
        do(work / "vrf-same-hold-out", *typed, "data.holdout_seed=0", "method.share=0.2")


@pytest.mark.parametrize("who", ["tuned", "zero_shot"])
def test_the_temperature_of_vrf(who: str) -> None:
    """The public search ends at a gap of 1e-3 of confidence and accuracy; here there is none."""
    golden = Golden("vrf", torch.float64)
    logits, labels = golden[f"logits_{who}"], golden["labels"]
    right = ensembles.is_right(logits, labels)
    assert float(right.double().mean()) == pytest.approx(golden[f"accuracy_{who}"])
    temperature = ensembles.confident_temperature(logits, right)
    gap = abs(float((logits / temperature).softmax(1).amax(1).mean()) - float(right.double().mean()))
    assert gap < 1e-9 and abs(golden[f"confidence_{who}"] - golden[f"accuracy_{who}"]) <= 1e-3
    assert temperature == pytest.approx(golden[f"temperature_{who}"], rel=0.05)


def test_no_temperature_makes_a_model_that_is_always_right_sure_enough() -> None:
    sure = torch.eye(3) * 5
    assert ensembles.confident_temperature(sure, torch.tensor([True] * 3)) == pytest.approx(0.01)
    assert ensembles.confident_temperature(sure, torch.tensor([False] * 3)) == pytest.approx(100)


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_mixtures_of_far_apart_probabilities_stay_finite(w: float) -> None:
    logits = torch.tensor([[0.0, 500.0, -500.0], [0.0, 1.0, 2.0]])
    first, second = logits.log_softmax(1), logits.flip(0).log_softmax(1)
    mixed = ensembles.mixture(first, second, torch.full((2, 1), w))
    expected = ((1 - w) * first.double().exp() + w * second.double().exp()).log()
    assert mixed.isfinite().all()
    fine = expected > -80
    torch.testing.assert_close(mixed[fine], expected[fine].float(), rtol=1e-5, atol=1e-5)


def tuned(work) -> Path:  # noqa: F811
    if not (work / "tuned").exists():
        do(work / "tuned", *TUNED)
    return work / "tuned"


def zeroshot(work) -> Path:  # noqa: F811
    if not (work / "zeroshot").exists():
        do(work / "zeroshot", "method=zeroshot", "model.pretrained=embedded", *KEPT)
    return work / "zeroshot"


def untrained(folder: Path, method: str, *settings: str) -> dict:
    """A run of a method that does not train."""
    return do(folder, f"method={method}", "model.pretrained=embedded", *KEPT, *settings)


def says_so(folder: Path, record: dict, models: int) -> None:
    """No model file, in results and in one line wherever a model is asked for."""
    assert record["checkpoint"] is None and not (folder / "model.safetensors").exists()
    assert record["protocol"]["models_at_inference"] == models
    for asked in (lambda: robustft.load(folder), lambda: model_files([str(folder)])):
        with pytest.raises(UserError, match=f"{folder} has no model file: method={record['method']} is ") as error:
            asked()
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="has no model file"):
        checks.check(composed("method=evaluate", f"checkpoint={folder}"))


@pytest.mark.slow
def test_ose(work) -> None:  # noqa: F811
    path = tuned(work) / "model.safetensors"
    record = untrained(work / "ose", "ose", f"checkpoint={path}", "alpha=0.3")
    says_so(work / "ose", record, models=2)
    assert record["display"]["label"] == "OSE" and record["alpha"] == 0.3
    logits = [read_logits(folder) for folder in (zeroshot(work), tuned(work), work / "ose")]
    for name in ("scenes", "scenes_a", "holdout"):
        first, second, mixed = (one[name].double().softmax(1) for one in logits)
        torch.testing.assert_close(mixed, 0.7 * first + 0.3 * second, rtol=1e-5, atol=1e-6)
    for alpha, one in ((0, zeroshot(work)), (1, tuned(work))):
        end = untrained(work / f"ose{alpha}", "ose", f"checkpoint={path}", f"alpha={alpha}")
        expected = json.loads((one / "results.json").read_text())
        assert end["id"]["top1"] == expected["id"]["top1"] and end["ood_avg"] == expected["ood_avg"]
        assert end["id"]["nll"] == pytest.approx(expected["id"]["nll"], rel=1e-5)


class Whole:
    """What VRF does, in plain float64, from models and data."""

    def __init__(self, folder: Path, share: float) -> None:
        from robustft.components import make_data

        cfg = composed("method=finetune", "model.pretrained=embedded", *KEPT)
        self.data = make_data(cfg)
        self.data.setup()
        self.models = [robustft.load(path) for path in (folder / "zeroshot", folder / "tuned")]
        images, positions = self.data.training_set(), self.data.split[0]
        seen = [self.features(model, images.images[positions]) for model in self.models]
        labels = images.labels[positions]
        wrong, right = (self.logits(m, f).argmax(1) == labels for m, f in zip(self.models, seen, strict=True))
        self.won = F.normalize(seen[1][right & ~wrong], dim=-1)
        self.nearest = max(1, round(share * len(self.won)))

    def features(self, model: Classifier, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.double().encode(model.preprocess.normalise(pixels).double())

    def logits(self, model: Classifier, features: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.double().classify(features)


@pytest.mark.slow
def test_vrf(work) -> None:  # noqa: F811
    zeroshot(work)
    path = tuned(work) / "model.safetensors"
    record = untrained(work / "vrf", "vrf", f"checkpoint={path}", "method.share=0.2", "method.middle=0.3")
    says_so(work / "vrf", record, models=2)
    assert record["settings"] == {"method.share": 0.2, "method.of": "won", "method.middle": 0.3, "method.width": 0.6}
    whole = Whole(work, 0.2)
    assert len(whole.won) > 10 and whole.nearest > 1
    held = next(s for s in whole.data.sets if s.name == "holdout")
    temperatures = []
    for model in whole.models:
        pixels = torch.stack([held.dataset[i][0] for i in range(len(held.dataset))])
        logits = whole.logits(model, whole.features(model, pixels))
        right = logits.argmax(1) == held.dataset.labels
        temperatures.append(ensembles.confident_temperature(logits, right))
    ours = read_logits(work / "vrf")["scenes_a"].double().softmax(1)
    pixels = next(s for s in whole.data.sets if s.name == "scenes_a").dataset.images
    seen = [whole.features(model, pixels) for model in whole.models]
    distances = torch.cdist(F.normalize(seen[1], dim=-1), whole.won).square().sort(1).values[:, whole.nearest - 1]
    w = 1 / (1 + ((distances - 0.3) / 0.6).exp())
    assert w.max() - w.min() > 0.05
    p = [(whole.logits(m, f) / t).softmax(1) for m, f, t in zip(whole.models, seen, temperatures, strict=True)]
    torch.testing.assert_close(ours, (1 - w[:, None]) * p[0] + w[:, None] * p[1], rtol=1e-4, atol=1e-5)


def test_vrf_with_nothing_won(work) -> None:  # noqa: F811
    with pytest.raises(UserError, match="there is none that the checkpoint gets right and the zero-shot model wrong"):
        untrained(work / "lost", "vrf", f"checkpoint={zeroshot(work)}")
    assert not (work / "lost" / "results.json").exists()
    with pytest.raises(UserError, match="data.holdout=0: method=vrf takes temperatures from the hold-out"):
        do(work / "unheld", "method=vrf", "model.pretrained=embedded", f"checkpoint={tuned(work)}", "data.holdout=0")


# DaWin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_shares_of_dawin(dtype: torch.dtype) -> None:
    golden = Golden("dawin", dtype)
    entropies = [
        dawin.entropy(golden[f"logits_{who}"] / golden[f"temperature_{who}"]) for who in ("zero_shot", "tuned")
    ]
    for found, who in zip(entropies, ("zero_shot", "tuned"), strict=True):
        golden.close(found, f"entropy_{who}")
    golden.close(dawin.shares(*entropies, offset=False), "no_offset.lambda")
    golden.close(dawin.shares(*entropies, offset=True), "offset.lambda")


def test_a_mixture_finds_its_components() -> None:
    random = np.random.default_rng(0)
    drawn = [stats.beta(*parameters).rvs(300, random_state=random) for parameters in ((4, 30), (40, 40), (30, 3))]
    values = np.concatenate(drawn)
    found = dawin.beta_mixture(values, 3)
    truth = np.repeat(range(3), 300)
    assert max((found[truth == k] == np.bincount(found[truth == k]).argmax()).mean() for k in range(3)) > 0.95
    sizes = sorted(np.bincount(found))
    assert len(sizes) == 3 and sizes[0] > 250
    assert np.array_equal(found, dawin.beta_mixture(values, 3))  # every process of a run finds the same


@pytest.mark.parametrize("values", [[0.5] * 9, [0.3, 0.7], [0.2], [0.0, 1.0, 0.5, 0.5]], ids=str)
def test_few_values_make_few_clusters(values: list[float]) -> None:
    assigned, means = dawin.plan(torch.tensor(values), 3)
    assert len(assigned) == len(values) and int(assigned.max()) + 1 == len(means) <= len(set(values))
    for number, mean in enumerate(means):
        members = torch.tensor(values)[assigned == number]
        assert mean == pytest.approx(float(members.mean()), abs=1e-6) and not math.isnan(mean)


@pytest.mark.slow
def test_dawin(work) -> None:  # noqa: F811
    path = tuned(work) / "model.safetensors"
    record = untrained(work / "dawin", "dawin", f"checkpoint={path}")
    says_so(work / "dawin", record, models=3)
    assert record["protocol"]["transductive"] and not record["protocol"]["test_set_used"]
    before = [read_logits(folder) for folder in (zeroshot(work), tuned(work))]
    images = [robustft.load(folder) for folder in (zeroshot(work), tuned(work))]
    data = Whole(work, 1.0).data
    held = next(s for s in data.sets if s.name == "holdout")
    correct = held.correct[held.dataset.labels]
    temperatures = [best_temperature(one["holdout"], correct) for one in before]
    name = "scenes_a"
    entropies = [dawin.entropy(one[name] / t) for one, t in zip(before, temperatures, strict=True)]
    assigned, means = dawin.plan(dawin.shares(*entropies, offset=True), 3)
    assert len(means) == 3
    pixels = next(s for s in data.sets if s.name == name).dataset.images
    ours = read_logits(work / "dawin")[name]
    states = [model.state_dict() for model in images]
    for number, share in enumerate(means):
        between = {key: (1 - share) * states[0][key] + share * states[1][key] for key in states[0]}
        images[0].load_state_dict(between)
        with torch.no_grad():
            logits = images[0](images[0].preprocess.normalise(pixels[assigned == number]))
        torch.testing.assert_close(ours[assigned == number], logits, rtol=1e-4, atol=1e-3)
        images[0] = robustft.load(zeroshot(work))
        states[0] = images[0].state_dict()
    with gzip.open(work / "dawin" / "predictions.csv.gz", "rt") as file:
        assert {row["set"] for row in csv.DictReader(file)} >= {"scenes", "scenes_a", "holdout"}


def test_reports_show_transductive_systems_apart(work, tmp_path) -> None:  # noqa: F811
    if not (work / "dawin").exists():
        untrained(work / "dawin", "dawin", f"checkpoint={tuned(work)}")
    from robustft.report.__main__ import main

    zeroshot(work)
    assert main([str(tuned(work)), str(work / "dawin"), "--out", str(tmp_path / "report")]) == 0
    first, second = (tmp_path / "report" / "comparison.md").read_text().split("### ")[1:]
    assert "vanilla fine-tuning" in first and "DaWin" not in first
    assert "transductive" in second.splitlines()[0] and "DaWin (transductive)" in second
    assert "vanilla fine-tuning" not in second and "they stand apart" in second


@pytest.mark.parametrize("method", ["model_stock", "lines"])
def test_weight_space_methods_leave_a_model(work, method: str) -> None:  # noqa: F811
    path = tuned(work) / "model.safetensors"
    twin = work / "twin.safetensors"
    shutil.copy(path, twin)
    given = (f"checkpoints=[{path},{twin}]",) if method == "model_stock" else (f"checkpoint={path}", "alpha=1")
    record = untrained(work / method, method, *given)
    assert record["checkpoint"] == "model.safetensors" and record["protocol"]["models_at_inference"] == 1
    made, expected = load_file(work / method / "model.safetensors"), load_file(path)
    assert all(torch.equal(value, made[name]) for name, value in expected.items())  # two equal runs; all of the way


@pytest.mark.parametrize("method", ["model_stock", "lines", "ose", "vrf", "dawin"])
def test_without_a_zero_shot_model_they_are_refused(method: str) -> None:
    here = f"checkpoints={__file__}" if method == "model_stock" else f"checkpoint={__file__}"
    model = ("model=timm", "model.architecture=vit_small_patch16_224", "model.pretrained=null")
    with pytest.raises(UserError, match=f"method={method} needs a zero-shot model, and model="):
        checks.check(composed(f"method={method}", *model, here, "data=scenes"))


def test_the_command_says_that_there_is_no_model(tmp_path: Path, work) -> None:  # noqa: F811
    folder = work / "ose"
    if not folder.exists():
        untrained(folder, "ose", f"checkpoint={tuned(work)}", "alpha=0.3")
    answer = command(tmp_path, "method=evaluate", f"checkpoint={folder}")
    assert_refused(answer, "has no model file: method=ose is more than one model at inference")
