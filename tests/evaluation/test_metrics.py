"""Every metric against the published implementations' numbers, and against itself written out image by image."""

import csv
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor

from robustft.cli.sources import CONF, groups
from robustft.evaluation import evaluate
from robustft.evaluation.metrics import ECE, SetMetric, best_temperature, described
from robustft.evaluation.predictions import FILE, read_logits
from tests.small import composed, do, work  # noqa: F401 (a fixture)

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = [name for name in groups()["metric"] if name not in ("top1", "worst_group")]  # that one: test_groups.py


@pytest.fixture
def golden() -> tuple[dict[str, Tensor], dict[str, float]]:
    numbers = json.loads((GOLDEN / "calibration.json").read_text())
    tensors = load_file(GOLDEN / "calibration.safetensors")
    return tensors, {key.removeprefix("calibration/"): value for key, value in numbers.items()}


def made(name: str) -> SetMetric:
    node = composed().metric[name]
    return instantiate({key: value for key, value in node.items() if key != "takes"})


def measured(metric: SetMetric, probabilities: Tensor, correct: Tensor, sizes: tuple[int, ...] = (64,)) -> float:
    """By batches of these sizes, over and over."""
    metric.start(probabilities.shape[1])
    place = 0
    while place < len(probabilities):
        size = sizes[place % len(sizes)]
        metric.update(probabilities[place : place + size], correct[place : place + size])
        place += size
    return float(metric.compute())


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).bool()


def test_published_numbers(golden):
    tensors, numbers = golden
    logits, labels = tensors["calibration/logits"], tensors["calibration/labels"]
    correct, p = one_hot(labels, 6), logits.softmax(1)
    # float32 probabilities: 200 images, six digits
    assert measured(made("ece"), p, correct) == pytest.approx(numbers["ece15_set.ldifs_python.f64"], rel=1e-6)
    assert measured(made("nll"), p, correct) == pytest.approx(numbers["nll.torch.f64"], rel=1e-6)
    assert measured(made("brier"), p, correct) == pytest.approx(numbers["brier.sklearn"], rel=1e-6)
    edges = tensors["calibration/edge_probabilities"], one_hot(tensors["calibration/edge_labels"], 3)
    assert measured(ECE(10), *edges) == pytest.approx(numbers["edge10.ldifs_python"], abs=1e-6)
    assert abs(numbers["edge10.torchmetrics"] - numbers["edge10.ldifs_python"]) > 0.4  # the other way to cut bins
    temperature = best_temperature(logits, correct)
    assert temperature == pytest.approx(numbers["temperature.min_nll"], rel=1e-6)
    calibrated = measured(made("ece_calibrated"), (logits / temperature).softmax(1), correct)
    assert calibrated == pytest.approx(numbers["temperature.ece15_after"], rel=1e-5)


def plainly(name: str, p: list[list[float]], right: list[list[bool]]) -> float:
    """The metric as one reads its definition, an image at a time."""
    classes = len(p[0])
    owner = [row.index(True) for row in right]
    guess = [max(range(classes), key=lambda k, row=row: (row[k], -k)) for row in p]
    hit = [row[k] for row, k in zip(right, guess, strict=True)]
    called = [o if h else g for o, g, h in zip(owner, guess, hit, strict=True)]
    p_right = [sum(x for x, y in zip(row, of, strict=True) if y) for row, of in zip(p, right, strict=True)]
    if name == "nll":
        return sum(-math.log(x) for x in p_right) / len(p)
    if name == "brier":
        return sum(sum(x * x for x in row) - 2 * r + 1 for row, r in zip(p, p_right, strict=True)) / len(p)
    if name in ("ece", "ece_calibrated"):
        total = 0.0
        for low, high in ((k / 15, (k + 1) / 15) for k in range(15)):
            inside = [(max(row), h) for row, h in zip(p, hit, strict=True) if low < max(row) <= high]
            total += abs(sum(c - h for c, h in inside))
        return total / len(p)
    by_class = {k: [h for o, h in zip(owner, hit, strict=True) if o == k] for k in set(owner)}
    accuracies = [sum(of) / len(of) for of in by_class.values()]
    if name == "per_class":
        return sum(accuracies) / len(accuracies)
    if name == "worst_class":
        return min(accuracies)
    f1 = []
    for k in {*owner, *called}:
        both = sum(h for o, h in zip(owner, hit, strict=True) if o == k)
        f1.append(2 * both / (owner.count(k) + called.count(k)))
    return sum(f1) / len(f1)


def cases() -> Iterator[tuple[Tensor, Tensor]]:
    """Plain sets with ties and classes without images; sets in which several classes are right."""
    for seed in range(4):
        random = torch.Generator().manual_seed(seed)
        logits = (4 * torch.randn(90, 7, generator=random)).round() / 2  # ties
        labels = torch.randint(0, 5, (90,), generator=random)
        right = one_hot(labels, 7)
        if seed % 2:
            right[:, 5] |= labels == 1
            right[:, 0] |= labels == 1
        yield logits.double().softmax(1), right


@pytest.mark.parametrize("name", NAMES)
def test_as_one_reads_it(name):
    for p, right in cases():
        expected = plainly(name, p.tolist(), right.tolist())
        for sizes in ((90,), (1,), (7, 2, 31)):
            assert measured(made(name), p, right, sizes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_in_any_batches_and_on_any_devices(name):
    """Of a model that is sure: its losses are tiny, and their sum in floating point depends on the order."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 100, (4000,), generator=random)
    logits = 10 * torch.randn(4000, 100, generator=random) + 20 * one_hot(labels, 100)
    p, right = logits.softmax(1), one_hot(labels, 100)
    whole = measured(made(name), p, right, (4000,))
    assert measured(made(name), p, right, (250,)) == measured(made(name), p, right, (13, 2, 31)) == whole
    devices = [made(name) for _ in range(3)]
    for rank, metric in enumerate(devices):
        measured(metric, p[rank::3], right[rank::3], (61,))
    first, *others = devices
    for state, reduction in first._reductions.items():
        assert reduction.__name__ == "dim_zero_sum"
        for other in others:  # as an all-reduce does
            setattr(first, state, getattr(first, state) + getattr(other, state))
    first._computed = None
    assert float(first.compute()) == whole


def test_bins_are_open_below_and_closed_above():
    """A confidence of 3/15 belongs to (2/15, 3/15], together with smaller ones; one above does not."""
    first = one_hot(torch.zeros(2, dtype=torch.int64), 5)  # the first is right, the second wrong: its best is class 1
    for most, expected in ((0.2, abs(0.2 - 1 / 2)), (0.1999, abs(0.19995 - 1 / 2)), (0.2001, (0.8 + 0.2001) / 2)):
        p = torch.tensor([[0.2] * 5, [0.19, most, 0.1, 0.1, 0.1]])
        assert measured(made("ece"), p, first) == pytest.approx(expected, abs=1e-6)
    for k in range(1, 15):  # every edge, as float32 has it
        p = torch.tensor([[k / 15, 0.0], [k / 15 - 1 / 50, 0.0]])
        assert measured(made("ece"), p, torch.tensor([[True, False], [False, True]])) == pytest.approx(
            abs(2 * k / 15 - 1 / 50 - 1) / 2, abs=1e-6
        )
    closed = torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])
    assert measured(made("ece"), *closed) == 0


def test_probabilities_that_became_zero_or_one():
    sure = torch.tensor([[1.0, 0.0]])
    right, wrong = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    assert measured(made("nll"), sure, wrong) == pytest.approx(87.336544)
    assert measured(made("nll"), sure, right) == 0
    assert (measured(made("brier"), sure, wrong), measured(made("brier"), sure, right)) == (2, 0)


def test_a_mean_of_batches_is_another_number():
    p, right = next(cases())
    parts = [measured(made("ece"), p[k : k + 30], right[k : k + 30]) for k in range(0, 90, 30)]
    assert abs(sum(parts) / 3 - measured(made("ece"), p, right)) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_says_what_a_reader_needs(name):
    metric = made(name)
    (told,) = described({name: metric}).values()
    assert told["label"] and told["unit"] in ("%", "nats", "") and told["higher_is_better"] in (True, False)
    assert (CONF / "metric" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.slow
def test_a_run_measures_them_and_its_files_give_most_of_them_again(work: Path):  # noqa: F811
    """With a CSV reader and gzip alone; what a probability of each class is needed for, from the logits."""
    record = do(work / "one", "method=finetune", "trainer.max_steps=2", "keep_logits=true")
    assert record["schema"] == 2 and set(record["metrics"]) == set(NAMES)
    sets = {record["id"]["name"]: record["id"], **record["ood"], "holdout": record["holdout"]}
    rows: dict[str, list[dict[str, str]]] = {}
    with gzip.open(work / "one" / FILE, "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["set"], []).append(row)
    logits = read_logits(work / "one")
    assert set(rows) == set(sets) == set(logits)
    for name, score in sets.items():
        log_p, most, squares, entropy = (
            [float(row[key]) for row in rows[name]] for key in ("log_p_right", "max_p", "sum_p2", "entropy")
        )
        hits = [row["correct"] == "1" for row in rows[name]]
        n = len(hits)
        assert score["nll"] == pytest.approx(-sum(log_p) / n, rel=1e-6)
        brier = sum(s - 2 * math.exp(lp) + 1 for s, lp in zip(squares, log_p, strict=True)) / n
        assert score["brier"] == pytest.approx(brier, rel=1e-5)
        bins = [math.ceil(15 * p) for p in most]
        ece = sum(abs(sum(p - h for p, h, b in zip(most, hits, bins, strict=True) if b == k)) for k in range(1, 16))
        assert score["ece"] == pytest.approx(ece / n, abs=1e-6)
        p = logits[name].double().softmax(1)
        assert entropy == pytest.approx((-(p * p.log()).sum(1)).tolist(), rel=1e-4)
        own = torch.tensor([int(row["right_classes"]) for row in rows[name]])
        assert score["ece_calibrated"] == pytest.approx(
            measured(
                made("ece_calibrated"),
                (logits[name].double() / record["calibration"]["temperature"]).softmax(1),
                one_hot(own, p.shape[1]),
            ),
            abs=1e-6,
        )
    again = do(work / "two", "method=finetune", "trainer.max_steps=3", "keep_logits=true")  # zero-shot: remembered
    assert again["zeroshot"] == record["zeroshot"] and "ece" in again["zeroshot"]["id"]
    assert again["calibration"]["zeroshot_temperature"] == record["calibration"]["zeroshot_temperature"]


@pytest.mark.slow
def test_the_zeroshot_model_is_evaluated_once_whatever_is_measured(tmp_path: Path, monkeypatch):
    """Other metrics, and the hold-out of another seed: its temperature, and the scores that it calibrates."""
    trained = ("model.pretrained=embedded", "method=finetune", "trainer.max_steps=1")
    short = (*trained, "data.holdout_seed=1")
    evaluated: list[str] = []
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    validate = evaluate._validate

    def watched(evaluator, *rest):
        if evaluator.keep_logits and not evaluator.keep_predictions:
            evaluated.extend(s.name for s in evaluator.sets)
        validate(evaluator, *rest)

    asked: list[Path] = []
    remember = evaluate.remembered
    monkeypatch.setattr(
        evaluate, "remembered", lambda path, *rest, **how: asked.append(path) or remember(path, *rest, **how)
    )
    monkeypatch.setattr(evaluate, "_validate", watched)
    few = do(tmp_path / "few", *short, "metric=[nll]")
    assert evaluated == ["holdout", "scenes", "scenes_objectnet", "scenes_a"]
    more = do(tmp_path / "more", *short)
    assert len(evaluated) == 4 and set(more["metrics"]) == set(NAMES)
    # Once a run: processes that ask again, one after the other had kept it, would wait for each other for ever.
    assert len(asked) == 8 and len(set(asked)) == 4
    other = do(tmp_path / "other", *trained, "data.holdout_seed=2")
    assert evaluated[4:] == ["holdout"]
    for name in NAMES:
        changed = other["zeroshot"]["id"][name] != more["zeroshot"]["id"][name]
        assert changed == (name == "ece_calibrated"), name
    assert few["zeroshot"]["id"]["nll"] == more["zeroshot"]["id"]["nll"]
    own = do(tmp_path / "own", trained[0], "method=zeroshot", "data.holdout_seed=1")  # measures batch by batch
    assert len(evaluated) == 5 and own["calibration"]["temperature"] == more["calibration"]["zeroshot_temperature"]
    for key in ("id", "ood", "holdout"):
        assert own[key] == more["zeroshot"][key]


def test_without_a_holdout_nothing_is_calibrated(work: Path):  # noqa: F811
    record = do(work / "bare", "method=finetune", "trainer.max_steps=1", "data.holdout=0")
    assert record["calibration"] is None and record["id"]["ece_calibrated"] is None
    assert record["id"]["ece"] is not None


def test_top1_alone(work: Path):  # noqa: F811
    record = do(work / "plain", "method=finetune", "trainer.max_steps=1", "metric=top1")
    assert record["metrics"] == {} and set(record["id"]) == {"name", "top1", "n"}
