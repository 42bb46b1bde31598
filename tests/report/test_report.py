"""`python -m robustft.report` on synthetic sweeps and on the published results of the model soups."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from robustft.report.__main__ import main, panels_of
from robustft.report.groups import curves, group_over_seeds
from robustft.report.runs import Run, comparable_averages, read_runs, zeroshot_runs

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


def test_curves_follow_their_dial(sweep: Path):
    groups = group_over_seeds(read_runs([sweep]))
    (alpha,) = curves(groups, "alpha")
    assert [group.record["alpha"] for group in alpha.groups] == [0.0, 0.5, 1.0]
    assert sorted(len(curve.groups) for curve in curves(groups, "beta")) == [2, 2]


def test_zero_shot_is_one_point_however_many_runs_tell_of_it(sweep: Path, make_run):
    runs = read_runs([sweep])
    (zero,) = zeroshot_runs(runs)
    assert (zero.top1("id"), zero.top1("ood_avg")) == (0.65, pytest.approx(0.66))
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


def test_partial_runs_are_left_out_unless_asked(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run("finetune", 0, partial=True)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 1
    assert "--partial" in capsys.readouterr().err
    make_run("lpft", 0)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert set(rows(tmp_path)) == {"zero-shot", "LP-FT"}
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path), "--partial"]) == 0
    assert set(rows(tmp_path)) == {"zero-shot", "LP-FT", "vanilla fine-tuning"}
    assert "1 of 2 runs are partial" in (tmp_path / "comparison.md").read_text()


def test_average_over_other_sets_is_not_compared(make_run, tmp_path: Path):
    make_run("finetune", 0)
    make_run("lpft", 0, shifts=("scenes_v2", "scenes_r"))
    runs = comparable_averages(read_runs([tmp_path / "runs"]))
    assert {run.record["method"]: run.top1("ood_avg") is None for run in runs} == {
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


def test_numbers_that_differ_by_rounding_are_one_setting(make_run, tmp_path, capsys):
    for seed, decay in enumerate((0.01, 0.1 * 0.1)):
        make_run("finetune", seed, config={"optimizer": {"weight_decay": decay}})
    make_run("finetune", 0, name="other", config={"optimizer": {"weight_decay": 0.1}})
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "(weight_decay=0.01) | 2 |" in text and "(weight_decay=0.1) | 1 |" in text
