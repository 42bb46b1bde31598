"""`python -m robustft.report` on synthetic sweeps and on the published results of the model soups."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from robustft.common.errors import UserError
from robustft.evaluation.results import write_results
from robustft.report import plot, schema1
from robustft.report.__main__ import main, panels_of
from robustft.report.groups import curves, group_over_seeds
from robustft.report.page import payload
from robustft.report.runs import Run, comparable_averages, read_runs, zeroshot_runs
from robustft.report.table import comparison
from robustft.studies import store

PUBLISHED = Path(__file__).parent / "fixtures"
MASK = {"kind": "object", "threshold": 0.3, "cam": "relevance", "source": "student"}


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "comparison.csv").open() as file:
        return {row["system"]: row for row in csv.DictReader(file)}


def test_published_soups(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(PUBLISHED / "*.jsonl"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("members (72)", "greedy soup", "uniform soup"))
    table = (tmp_path / "comparison.md").read_text()
    line = next(line for line in table.splitlines() if "uniform soup" in line)
    assert line == "| uniform soup | – | 80.0 | **51.6** | 68.5 | **66.5** | 47.7 | **46.0** | **29.2** |"
    members = rows(tmp_path)["members (72)"]
    given = [json.loads(line) for line in (PUBLISHED / "soup_members_vitb32.jsonl").read_text().splitlines()]
    tops = [line["ImageNet"] for line in given]
    assert members["runs"] == "72"
    assert float(members["id"]) == pytest.approx(sum(tops) / 72)
    assert (float(members["id_min"]), float(members["id_max"])) == (min(tops), max(tops))


def test_all_lists_every_run(tmp_path: Path):
    assert main([str(PUBLISHED), "--out", str(tmp_path), "--all"]) == 0
    assert len(rows(tmp_path)) == 3 + 72


def test_groups_differ_in_nothing_but_the_seed(sweep: Path):
    groups = group_over_seeds(read_runs([sweep]))
    assert [len(group.runs) for group in groups] == [3] * len(groups)
    assert {group.label for group in groups} == {
        "vanilla fine-tuning",
        *(f"WiSE-FT, α={alpha}" for alpha in ("0", "0.5", "1")),
        *(f"object mask, single-fill, t={t}, β={beta}" for t in (0.3, 0.5) for beta in (1, 3)),
    }
    assert sorted(groups[0].by_seed("id")) == [0, 1, 2]


def test_equal_labels_are_told_apart_by_the_config(make_run, tmp_path: Path):
    make_run("finetune", 0, name="a", config={"optimizer": {"lr": 0.1}})
    make_run("finetune", 0, name="b", config={"optimizer": {"lr": 0.2}})
    make_run("wiseft", 0, name="c", alpha=0.5, config={"checkpoint": "runs/vanilla_seed-0/model.safetensors"})
    make_run("wiseft", 0, name="d", alpha=0.5, config={"checkpoint": "runs/ours_seed-0/model.safetensors"})
    labels = {group.label for group in group_over_seeds(read_runs([tmp_path / "runs"]))}
    assert labels == {
        *("vanilla fine-tuning (lr=0.1)", "vanilla fine-tuning (lr=0.2)"),
        *("WiSE-FT, α=0.5 (checkpoint=vanilla)", "WiSE-FT, α=0.5 (checkpoint=ours)"),
    }


def test_models_made_of_several_are_told_by_the_folders_of_these(make_run, tmp_path: Path):
    at = ("2026-11-30_20-55-52", "2026-11-30_20-58-00")
    for name, folders in {"a": ("flyp_tiny", "flyp_tiny"), "b": ("flyp_tiny", "tracer_tiny")}.items():
        paths = [f"runs/{folder}/{time}" for folder, time in zip(folders, at, strict=True)]
        make_run("soup", 0, name=name, config={"method": {"greedy": False}, "checkpoints": paths})
    for name, folder in {"c": "flyp_tiny", "d": "vanilla_tiny"}.items():
        make_run("wiseft", 0, name=name, alpha=0.5, config={"checkpoint": f"runs/{folder}/{at[0]}/model.safetensors"})
    labels = {group.label for group in group_over_seeds(read_runs([tmp_path / "runs"]))}
    assert {label[label.index("(") :] for label in labels} == {
        *("(checkpoints=2 × flyp_tiny)", "(checkpoints=flyp_tiny + tracer_tiny)"),
        *("(checkpoint=flyp_tiny)", "(checkpoint=vanilla_tiny)"),
    }


def test_curves_follow_their_dial(sweep: Path):
    groups = group_over_seeds(read_runs([sweep]))
    (alpha,) = [c for c in curves(groups) if c.dial == "alpha"]
    assert [group.record["alpha"] for group in alpha.groups] == [0.0, 0.5, 1.0]
    assert sorted(len(curve.groups) for curve in curves(groups) if curve.dial == "beta") == [2, 2]


def test_zero_shot_is_one_point_however_many_runs_tell_of_it(sweep: Path, make_run):
    runs = read_runs([sweep])
    (zero,) = zeroshot_runs(runs)
    assert (zero.value("id"), zero.value("ood_avg")) == (0.65, pytest.approx(0.66))
    make_run("zeroshot", 0, 0.65, 0.66)
    assert zeroshot_runs(read_runs([sweep])) == []


def test_other_zero_shot_models_are_one_system_where_only_the_seed_differs(make_run, tmp_path: Path):
    """As with random weights; how others were trained is no property of a zero-shot model."""
    random, trained = {"model": {"pretrained": None}}, {"optimizer": {"lr": 0.1}, "data": {"batch_size": 8}}
    make_run("zeroshot", 0, 0.65, 0.66, config=random)
    make_run("finetune", 1, zeroshot=(0.1, 0.2), config=random | trained)
    labels = [group.label for group in group_over_seeds(_all(tmp_path))]
    assert sorted(labels) == ["vanilla fine-tuning", "zero-shot"]
    make_run("finetune", 2, zeroshot=(0.1, 0.3), config={"model": {"pretrained": "openai"}} | trained)
    labels = [group.label for group in group_over_seeds(_all(tmp_path))]
    assert sum(label.startswith("zero-shot (pretrained=") for label in labels) == 2


def _all(folder: Path) -> list[Run]:
    runs = read_runs([folder / "runs"])
    return [*runs, *zeroshot_runs(runs)]


def test_table_with_differences_and_effective_robustness(sweep: Path, tmp_path: Path):
    out = tmp_path / "out"
    line = ["--baselines", str(sweep / "finetune*"), str(sweep / "wiseft*")]
    assert main([str(sweep), "--out", str(out), "--baseline", "vanilla", *line]) == 0
    ours = rows(out)["object mask, single-fill, t=0.3, β=1"]
    # OOD of ours over the seeds: 61, 61.2, 61.4; of vanilla: 50, 51, 52.
    assert float(ours["ood_avg"]) == pytest.approx(0.612)
    assert float(ours["ood_avg_std"]) == pytest.approx(0.002)
    assert float(ours["ood_avg_minus_vanilla"]) == pytest.approx((0.11 + 0.102 + 0.094) / 3)
    assert ours["ood_avg_minus_vanilla_n"] == "3"
    assert float(ours["id_minus_vanilla"]) == pytest.approx(-0.02)
    assert float(ours["effective_robustness"]) != 0
    markdown = (out / "comparison.md").read_text()
    row = next(row for row in markdown.splitlines() if "t=0.3, β=1 " in row)
    half = 4.302653 * 0.008 / 3**0.5 * 100
    assert f"+10.2 [+{10.2 - half:.1f}, +{10.2 + half:.1f}]" in row
    assert "−2.0 [−2.0, −2.0]" in row and "61.2 ± 0.2" in row
    assert "Δ OOD to vanilla" in markdown and "eff. robustness" in markdown
    latex = (out / "comparison.tex").read_text()
    assert r"$\beta$=1 & 3 &" in latex and r"61.2 $\pm$ 0.2" in latex and r"\bottomrule" in latex
    assert latex.count("{tabular}") == 2 and "β" not in latex and "−" not in latex


def test_scatter_is_drawn(sweep: Path, tmp_path: Path):
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "scatter.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "out" / "scatter.svg").read_text()
    for text in (
        "zero-shot",
        "vanilla fine-tuning",
        "WiSE-FT",
        "object mask, single-fill",
        "over α",
        "over β",
    ):
        assert f">{text}<" in svg


@pytest.mark.parametrize("old", ["scenes-1", None])  # results of the first pictures do not say it
def test_versions_of_the_pictures_are_not_mixed(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str], old):
    new = make_run("finetune", 0)
    assert main([str(new), "--out", str(tmp_path)]) == 0
    older = make_run("finetune", 1, benchmark=old)
    assert main([str(older), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    for arguments in ([str(new), str(older)], [str(new), "--baselines", str(older)]):
        assert main([*arguments, "--out", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert "scenes-2" in said and "scenes-1" in said and "other pictures" in said
    imagenet = json.loads((new / "results.json").read_text())
    imagenet["id"]["name"], imagenet["protocol"]["benchmark"] = "imagenet", None
    (tmp_path / "imagenet.json").write_text(json.dumps(imagenet))
    assert main([str(new), str(tmp_path / "imagenet.json"), "--out", str(tmp_path)]) == 0  # a panel of its own


def test_partial_runs_are_left_out_unless_asked(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run("finetune", 0, partial=True)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 1
    assert "--partial" in capsys.readouterr().err
    make_run("lpft", 0)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert set(rows(tmp_path)) == {"zero-shot", "LP-FT"}
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path), "--partial"]) == 0
    assert set(rows(tmp_path)) == {"zero-shot", "LP-FT", "vanilla fine-tuning"}
    assert "1 of 2 runs is a partial evaluation." in (tmp_path / "comparison.md").read_text()


def test_average_over_other_sets_is_not_compared(make_run, tmp_path: Path):
    make_run("finetune", 0)
    make_run("lpft", 0, shifts=("scenes_v2", "scenes_r"))
    runs = comparable_averages(read_runs([tmp_path / "runs"]))
    assert {run.record["method"]: run.value("ood_avg") is None for run in runs} == {
        "finetune": False,
        "lpft": True,
    }
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert rows(tmp_path)["LP-FT"]["ood_avg"] == ""


def test_models_have_tables_of_their_own(make_run, tmp_path: Path):
    make_run("finetune", 0)
    make_run("finetune", 0, model="vitb32", name="b")
    panels = panels_of(read_runs([tmp_path / "runs"]))
    assert [[group.label for group in groups] for groups in panels] == [["zero-shot", "vanilla fine-tuning"]] * 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{", "not valid JSON"),
        ("results.json", "{}", "'schema' is missing"),
        ("published.jsonl", '{"model_name": "a"}', "line 1"),
        ("published.jsonl", '{"model_name": "a", "ImageNet": 76.1}', "fractions"),
        ("published.jsonl", "", "empty"),
        ("published.jsonl", "{", "line 1 is not valid JSON"),
        ("results.jsonl", '{"schema": 2, "entry": "run"}', "line 1 is not the result of a run: 'name' is missing"),
        ("other", None, "nothing at"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "message"), [("wisefit", "No system fits"), ("wiseft", "fits 3 systems")])
def test_unknown_or_unclear_baseline(sweep: Path, capsys: pytest.CaptureFixture[str], name: str, message: str):
    assert main([str(sweep), "--out", str(sweep), "--baseline", name]) == 1
    assert message in capsys.readouterr().err


def test_command_fails_without_traceback(tmp_path: Path):
    command = [sys.executable, "-m", "robustft.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: No results.json in {tmp_path}. " + (
        "Name results.json files, folders of runs, or a quoted glob.\n"
    )


def test_results_of_a_study_are_those_of_its_runs(sweep: Path, tmp_path: Path):
    """One file of lines says what the runs' own files say."""
    records = {file.parent.name: json.loads(file.read_text()) for file in sweep.rglob("results.json")}
    store.write(tmp_path / "study" / "results.jsonl", {k: {"entry": k, **record} for k, record in records.items()})
    for place in (sweep, tmp_path / "study", tmp_path / "study" / "results.jsonl"):
        assert main([str(place), "--out", str(tmp_path / place.name), "--baseline", "vanilla"]) == 0
    tables = {(tmp_path / name / "comparison.csv").read_text() for name in ("runs", "study", "results.jsonl")}
    assert len(tables) == 1 and len(records) == 24


def test_numbers_that_differ_by_rounding_are_one_setting(make_run, tmp_path, capsys):
    for seed, decay in enumerate((0.01, 0.1 * 0.1)):
        make_run("finetune", seed, config={"optimizer": {"weight_decay": decay}})
    make_run("finetune", 0, name="other", config={"optimizer": {"weight_decay": 0.1}})
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "(weight_decay=0.01) | 2 |" in text and "(weight_decay=0.1) | 1 |" in text


def test_repeated_seeds_count_once(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Three runs of seed 1 and one of seed 2 are two observations, wherever a number is made of them."""
    for number, (id_top1, ood) in enumerate([(0.70, 0.40), (0.72, 0.44), (0.74, 0.48)]):
        make_run("kd", 1, id_top1, ood, name=f"kd-1-{number}")
    make_run("kd", 2, 0.80, 0.60, name="kd-2")
    for seed, ood in ((1, 0.40), (2, 0.50)):
        make_run("finetune", seed, 0.60 + seed / 10, ood)
    line = [str(tmp_path / "runs" / "finetune*"), str(tmp_path / "runs" / "kd-2")]
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path), "--baseline", "vanilla", "--baselines", *line]
    assert main([*arguments, "--all"]) == 0
    found = {key: float(value) for key, value in rows(tmp_path)["KD"].items() if value and value[0] in "-0123456789"}
    assert (found["runs"], found["seeds"]) == (4, 2)
    assert found["id"] == pytest.approx((0.72 + 0.80) / 2) and found["ood_avg"] == pytest.approx((0.44 + 0.60) / 2)
    assert found["id_std"] == pytest.approx(0.08 / 2**0.5) and found["ood_avg_std"] == pytest.approx(0.16 / 2**0.5)
    assert found["id_minus_vanilla"] == pytest.approx(((0.72 - 0.70) + (0.80 - 0.80)) / 2)
    assert found["ood_avg_minus_vanilla"] == pytest.approx(((0.44 - 0.40) + (0.60 - 0.50)) / 2)
    assert found["ood_avg_minus_vanilla_n"] == 2
    singles = [rows(tmp_path)[f"· seed 1, kd-1-{number}"] for number in range(3)]
    within = sum(float(row["effective_robustness"]) for row in singles) / 3
    other = float(rows(tmp_path)["· seed 2"]["effective_robustness"])
    assert found["effective_robustness"] == pytest.approx((within + other) / 2)
    note = "Runs of one seed count once, by their mean (KD, seed 1: 3 runs)."
    assert note in capsys.readouterr().out and note in (tmp_path / "comparison.md").read_text()


def test_points_and_curves_weight_seeds_equally(make_run, tmp_path: Path):
    for alpha in (0.5, 1.0):
        for number in range(3):
            make_run("wiseft", 1, 0.70, 0.40 + number / 50, alpha=alpha, name=f"w-{alpha}-{number}")
        make_run("wiseft", 2, 0.80, 0.60, alpha=alpha, name=f"w-{alpha}")
    groups = group_over_seeds(read_runs([tmp_path / "runs"]))
    (curve,) = [c for c in curves(groups) if c.dial == "alpha"]
    for group in curve.groups:
        assert sorted(group.points()) == [pytest.approx((0.70, 0.42)), pytest.approx((0.80, 0.60))]
        assert group.by_seed("ood_avg") == {1: pytest.approx(0.42), 2: pytest.approx(0.60)}


def test_a_result_given_twice_is_one_run(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_run("finetune", 1, 0.7)
    make_run("finetune", 2, 0.8)
    (tmp_path / "again").symlink_to(tmp_path / "runs")
    patterns = [tmp_path / "runs", str(tmp_path / "r*"), tmp_path / "runs/../runs", tmp_path / "again"]
    assert len(read_runs([*patterns, folder / "results.json"])) == 2
    assert capsys.readouterr().err == ""
    shutil.copytree(folder, tmp_path / "runs" / "backup")
    assert len(read_runs(patterns)) == 2
    assert "1 copy of other results left out" in capsys.readouterr().err


def test_zero_shot_runs_of_several_seeds(make_run, tmp_path: Path):
    """With random weights each seed has another zero-shot model: what is paired with them is their mean."""
    for seed, ood in ((1, 0.1), (2, 0.2), (2, 0.4)):
        make_run("zeroshot", seed, 0.1, ood, name=f"zero-{seed}-{ood}", zeroshot=(0.1, ood))
    make_run("finetune", 1, 0.5, 0.5, zeroshot=(0.1, 0.1))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path), "--baseline", "zero-shot"]) == 0
    assert float(rows(tmp_path)["zero-shot"]["ood_avg"]) == pytest.approx((0.1 + 0.3) / 2)
    assert float(rows(tmp_path)["vanilla fine-tuning"]["ood_avg_minus_zero_shot"]) == pytest.approx(0.5 - 0.2)


BAD = {
    "cut short": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "step 3: loss 0.2",
    "empty": lambda text: "",
    "of another program": lambda text: '{"accuracy": 0.5}',
    "of a later version": lambda text: text.replace('"schema": 2', '"schema": 99'),
    "NaN": lambda text: text.replace('"wall_s": 9.0', '"wall_s": NaN'),
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "binary": lambda text: b"\xff\xfe\x00",
    "a folder": None,
}


def spoil(file: Path, change) -> None:
    text = file.read_text()
    file.unlink()
    if change is None:
        file.mkdir()
    elif isinstance(changed := change(text), bytes):
        file.write_bytes(changed)
    else:
        file.write_text(changed)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_among_others_is_passed_over(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind):
    make_run("finetune", 1)
    bad = make_run("lpft", 1) / "results.json"
    spoil(bad, BAD[kind])
    patterns = ["runs", "runs/*", *(["runs/*/results.json"] if kind != "a folder" else [])]
    for pattern in (tmp_path / pattern for pattern in patterns):
        assert [run.record["method"] for run in read_runs([pattern])] == ["finetune"]
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("passed over: ") and str(bad) in line and len(line) < 400
    if kind != "a folder":  # named by the user it is a mistake
        assert main([str(tmp_path / "runs"), str(bad), "--out", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "out").exists()


def test_many_bad_files_take_few_lines_and_nothing_left_is_an_error(make_run, tmp_path: Path, capsys):
    for seed in range(9):
        (make_run("lpft", seed) / "results.json").write_text("{")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "8 more" in line and "Nothing is left" in line
    make_run("finetune", 1)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[-1] == "passed over: 6 more files that are no results of runs"


@pytest.mark.slow
def test_no_wrong_value_ends_in_a_traceback(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every value of a results file in turn is something else: it is passed over, or harmless."""
    make_run("finetune", 1)
    file = make_run("counterfactual", 1, mask=MASK, fill="single", beta=1) / "results.json"
    good = json.loads(file.read_text())

    def places(node, path=()):
        yield path
        for key in node if isinstance(node, dict) else ():
            yield from places(node[key], (*path, key))

    for path in list(places(good))[1:]:
        for value in (None, "text", 1e999, [1], {"a": 1}):
            record = json.loads(json.dumps(good))
            node = record
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            file.write_text(json.dumps(record))
            try:
                panels = panels_of(read_runs([tmp_path / "runs"]))
            except UserError as error:  # the version of the pictures, or what it stands in
                assert path[0] == "protocol" and "other pictures" in str(error), (path, value)
                continue
            payload(panels)
            for groups in panels:
                comparison(groups, list(groups[0].record["ood"]))
            assert len(capsys.readouterr().err.splitlines()) <= 1, (path, value)


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_a_place_that_cannot_be_written_is_one_line(make_run, tmp_path: Path, capsys, option: str):
    make_run("finetune", 1)
    (tmp_path / "file").write_text("")
    for place in ("file/below", "file" if option == "--out" else "runs"):
        assert main([str(tmp_path / "runs"), option, str(tmp_path / place)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {option}={tmp_path / place}: ")


def test_a_study_s_results_are_a_folder_of_runs(make_run, tmp_path: Path):
    for seed in (1, 2):
        shutil.copy(make_run("finetune", seed) / "results.json", tmp_path / f"vanilla_seed-{seed}.json")
    assert len(read_runs([tmp_path / "runs"])) == 2
    shutil.rmtree(tmp_path / "runs")
    assert len(read_runs([tmp_path])) == 2


def test_what_is_incidental_to_a_run_is_so_to_a_report():
    """Else results from before a setting was added are another system than those from after."""
    from robustft.cli import identity
    from robustft.cli.core_settings import CORE
    from robustft.report import runs

    names = {name.replace("*", "any") for name in CORE}
    others = {name for name in names if identity.INCIDENTAL.fullmatch(name) and not runs.INCIDENTAL.match(name)}
    assert others == {"trainer.max_time"}


def test_what_is_still_known_of_other_tasks(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, pets in enumerate((0.70, 0.60)):
        make_run("finetune", seed, retention={"pets": (0.80, pets), "cars": (0.50, 0.50)})
    make_run("kd", 0, beta=1.0)  # an older run, that was not asked
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "Δ knows: mean change against zero-shot, in points" in capsys.readouterr().out
    table = (tmp_path / "out" / "comparison.md").read_text()
    cells = {
        line.split("|")[1].strip(): [cell.strip(" *") for cell in line.split("|")[-4:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    }
    assert cells["system"] == ["knows pets", "knows cars", "Δ knows"]
    assert cells["zero-shot"] == ["80.0", "50.0", "–"]
    assert cells["vanilla fine-tuning"] == ["65.0 ± 7.1", "50.0 ± 0.0", "−7.5 ± 3.5"]
    assert cells["KD, β=1"] == ["–", "–", "–"]
    assert float(rows(tmp_path / "out")["vanilla fine-tuning"]["retention"]) == pytest.approx(-0.075)
    assert float(rows(tmp_path / "out")["vanilla fine-tuning"]["retention.pets"]) == pytest.approx(0.65)


def test_runs_that_were_not_asked_have_no_columns_of_it(sweep: Path, tmp_path: Path):
    assert main([str(sweep), "--out", str(tmp_path)]) == 0
    assert "knows" not in (tmp_path / "comparison.md").read_text()


def test_what_runs_are_asked_makes_no_other_system_of_them(make_run, tmp_path: Path):
    for seed in range(2):
        make_run("finetune", seed, config={"retain": {"pets": {"path": f"/data/{seed}"}}})
    (group,) = group_over_seeds(read_runs([tmp_path / "runs"]))
    assert len(group.runs) == 2


def test_many_systems_are_told_apart_and_leave_room_for_the_picture(make_run, tmp_path: Path, recwarn):
    for number in range(40):
        file = make_run("finetune", 0, 0.8, 0.6, name=f"run-{number}", config={"lr": number}) / "results.json"
        record = json.loads(file.read_text())
        record["display"] = schema1.display(record) | {"label": f"system {number}"}
        write_results(file, record)
    groups = group_over_seeds(read_runs([tmp_path / "runs"]))
    looks = plot.styles(groups)
    assert len(looks) == 40 and len({(look.colour, look.marker) for look in looks.values()}) == len(plot.SHAPES)
    assert len({look.marker for look in list(looks.values())[:12]}) == 12
    plot.scatter([groups], tmp_path / "many")
    assert not [one for one in recwarn if "constrained_layout" in str(one.message)]
    width, height = Image.open(tmp_path / "many.png").size
    assert height >= 200 * plot.LINE * plot.LINES and width > 200 * 2 * plot.COLUMN
