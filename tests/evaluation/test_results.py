"""results.json: the contract, atomic writing, what bad files get, and the table."""

import json
import math
from pathlib import Path
from types import ModuleType

import pytest

from robustft.common.errors import UserError
from robustft.common.imports import script
from robustft.evaluation.results import Score, Scores, read_results, results_record, write_results
from robustft.evaluation.summary import metrics_table, percent, print_table, set_label
from tests.needs import SHARED, shared

CONTRACT = SHARED / "checks" / "results_contract.py"
ROOT_KEYS = (
    "schema name method model mask fill beta alpha temperature seed partial id ood ood_avg holdout zeroshot"
    " checkpoint wall_s train_images_per_s retention calibration settings display protocol metrics config versions"
).split()
SHIFTS = ("imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a")


def scores(base: int) -> Scores:
    shifts = {name: Score((base + 10 * k) / 1000, 1000) for k, name in enumerate(SHIFTS)}
    return Scores("imagenet", Score(0.776, 500), shifts, holdout=Score(81 / 99, 99))


def record(**changes):
    given = {
        "name": "object-single",
        "method": "counterfactual",
        "model": "vitb32",
        "seed": 3,
        "partial": False,
        "wall_s": 12.5,
        "config": {"trainer": {"limit": math.inf}, "path": Path("a") / "b", "ids": (1, 2)},
        "versions": {"torch": "2.11"},
        "zeroshot": scores(400),
        "mask": {
            "kind": "object",
            "threshold": 0.3,
            "rate": None,
            "cam": "relevance",
            "source": "student",
            "x": 1,
        },
        "fill": "single",
        "beta": 30,
        "checkpoint": "model.safetensors",
        "train_images_per_s": 100.0,
    }
    return results_record(scores(500), **{**given, **changes})


def test_record_keeps_the_contract():
    made = record()
    assert list(made) == ROOT_KEYS
    assert set(made["mask"]) == {"kind", "threshold", "rate", "cam", "source", "layers"}
    assert set(made["zeroshot"]) == {"id", "ood", "ood_avg", "holdout"}
    assert list(made["ood"]) == list(SHIFTS)
    assert made["id"] == {"name": "imagenet", "top1": 0.776, "n": 500}
    assert made["ood_avg"] == pytest.approx(0.52)
    assert made["config"] == {"trainer": {"limit": "inf"}, "path": str(Path("a") / "b"), "ids": [1, 2]}
    for score in (made["id"], made["holdout"], *made["ood"].values()):
        assert abs(score["top1"] * score["n"] - round(score["top1"] * score["n"])) < 1e-6
    nothing = results_record(
        Scores("scenes", Score(0.5, 2)),
        **{"name": "z", "method": "zeroshot", "model": "tiny", "seed": 0, "partial": True},
        **{"wall_s": 1.0, "config": {}, "versions": {}},
    )
    nulls = "mask fill beta alpha temperature ood_avg holdout zeroshot checkpoint train_images_per_s"
    assert [key for key in ROOT_KEYS if nothing[key] is None] == [*nulls.split(), "retention", "calibration"]


def contract() -> ModuleType:
    return script(CONTRACT)


@shared("checks/results_contract.py")
def test_outside_check_accepts_the_files(tmp_path: Path):
    write_results(tmp_path / "full.json", record())
    write_results(tmp_path / "plain.json", record(mask=None, fill=None, zeroshot=None, beta=None))
    assert [contract().faults(path) for path in sorted(tmp_path.iterdir())] == [[], []]


def test_written_file_reads_back_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "run" / "results.json"
    write_results(path, record())
    write_results(path, record(seed=4))
    assert read_results(path) == json.loads(json.dumps(record(seed=4)))
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "results.json"
    write_results(path, record())
    with pytest.raises(ValueError):
        write_results(path, record(wall_s=math.nan))
    assert read_results(path)["wall_s"] == 12.5
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Cannot read .*No such file"),
        ("{", "not valid JSON"),
        ("\xff", "not text"),
        ("[1]", "holds a list"),
        ({"schema": 3}, "schema is 3"),
        ({"seed": None}, "'seed' is None"),
        ({"seed": True}, "'seed' is True"),
        ({"ood": {"imagenet_v2": {"top1": 64.7}}}, "'ood.imagenet_v2.top1' is 64.7"),
        ({"ood_avg": None}, "'ood_avg' is None"),
        ({"id": {"top1": 0.5, "n": 2}}, "'id.name' is missing"),
        ({"zeroshot": {"id": {}}}, "'zeroshot.ood' is missing"),
        ({"wall_s": ...}, "'wall_s' is missing"),
    ],
)
def test_bad_file_is_a_user_error(tmp_path: Path, text, message: str):
    path = tmp_path / "results.json"
    if isinstance(text, dict):
        changed = {key: value for key, value in {**record(), **text}.items() if value is not ...}
        path.write_text(json.dumps(changed))
    elif text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as error:
        read_results(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_percent_rounds_ties_up():
    assert [percent(x) for x in (0.79972, 0.0125, 0.0625, 0.6295, 0.0005, 0.0004999, 1.0, 0.0)] == [
        *("80.0", "1.3", "6.3", "63.0", "0.1", "0.0", "100.0", "0.0")
    ]
    assert percent(-0.02125, 2) == "-2.13"
    assert percent(2 / 3, 2) == "66.67"


def test_set_labels():
    names = (
        "imagenet",
        "imagenet_v2",
        "imagenet_sketch",
        "objectnet",
        "scenes",
        "scenes_objectnet",
        "my_shift",
    )
    assert [set_label(name) for name in names] == [
        *("ImageNet", "V2", "Sketch", "ObjectNet", "Scenes", "ObjectNet", "my_shift")
    ]


def test_table_shows_zero_shot_and_model(capsys: pytest.CaptureFixture[str]):
    print_table(record())
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in lines if "│" in line}
    assert cells["zero-shot"] == ["77.6", "42.0", "40.0", "41.0", "42.0", "43.0", "44.0", "81.8"]
    assert cells["counterfactual"] == ["77.6", "52.0", "50.0", "51.0", "52.0", "53.0", "54.0", "81.8"]
    assert not any("Partial" in line for line in lines)
    heading = next(line for line in lines if "OOD avg" in line)
    assert heading.index("OOD avg") < heading.index("V2") < heading.index("Sketch") < heading.index("hold-out")


@pytest.mark.parametrize("shifts", [True, False])
def test_the_heading_of_further_metrics_says_what_is_there(shifts: bool):
    metric = {"ece": {"label": "ECE", "unit": "%", "higher_is_better": False}}
    found = record(metrics=metric) | ({} if shifts else {"ood": {}, "ood_avg": None})
    assert metrics_table(found).title == f"Further metrics{' (OOD: mean of the shifts)' * shifts}"


def test_table_without_zero_shot_and_with_a_remark(capsys: pytest.CaptureFixture[str]):
    print_table(record(zeroshot=None, partial=True))
    out = capsys.readouterr().out
    assert "zero-shot" not in out and "counterfactual" in out
    assert "Partial: 500 to 1,000 images a set" in out
