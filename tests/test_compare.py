"""robustft compare: what is run, what is chosen and said, and that what is finished is not run again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustft.common.errors import UserError
from robustft.evaluation.results import Score, Scores, results_record
from robustft.studies import compare, store
from robustft.studies.choice import System, choose, selected
from tests.small import ROOT, UNTRAINED


def names(*words: str, common: tuple[str, ...] = ()) -> list[tuple[str, str | None, tuple[float, ...]]]:
    return [(one.typed, one.dial, one.values) for one in compare.plan(list(words), list(common))[0]]


@pytest.mark.slow
def test_the_dial_and_its_values_come_from_the_method() -> None:
    assert names("finetune", "counterfactual", "wiseft") == [
        ("finetune", None, ()),
        ("counterfactual", "beta", (0.3, 1.0, 3.0)),  # the recipe's β of the embedded model is 1
        ("wiseft", "alpha", (0.25, 0.5, 0.75)),
    ]
    assert names("kd") == [("kd", "beta", (0.03, 0.1, 0.3))]
    assert names("counterfactual", common=("model=vitb32", "data.root=x")) == [("counterfactual", "beta", (9, 30, 90))]
    assert names("counterfactual", "wiseft", common=("beta=0.5,2", "alpha=0.1,0.9"))[1:] == [
        ("counterfactual", "beta", (0.5, 2.0)),
        ("wiseft", "alpha", (0.1, 0.9)),
    ]
    assert names("counterfactual", "counterfactual,mask=none", common=("beta=2",)) == [
        ("counterfactual", None, ()),
        ("counterfactual,mask=none", None, ()),
    ]
    assert names("counterfactual,beta=5", "kd", common=("beta=1,2",)) == [
        ("counterfactual,beta=5", None, ()),
        ("kd", "beta", (1.0, 2.0)),
    ]


def test_what_works_on_a_model_gets_the_vanilla_one_of_its_seed() -> None:
    found, common = compare.plan(["wiseft"], ["data.test_images=64"])
    assert [one.typed for one in found] == ["finetune", "wiseft"] and common == ["data.test_images=64"]
    vanilla, wise = found
    (entry,) = vanilla.entries(2, keep=True)
    assert (entry.name, entry.settings, entry.keep) == ("finetune_seed-2", ("method=finetune", "seed=2"), True)
    entries = list(wise.entries(2, keep=False))
    assert [one.name for one in entries] == [f"wiseft_alpha-{alpha}_seed-2" for alpha in (0.25, 0.5, 0.75)]
    assert entries[0].settings == ("method=wiseft", "checkpoint={finetune_seed-2}", "alpha=0.25", "seed=2")
    assert entries[0].needs == {"finetune_seed-2"}


@pytest.mark.parametrize(
    ("words", "settings", "expected"),
    [
        ([], ["beta=1"], "compare: name the methods"),
        (["finetun"], [], "finetun: no such method. Did you mean finetune?"),
        (["soup"], [], "soup needs checkpoints: give it behind a comma, soup,checkpoints=..."),
        (["finetune"], ["seed=3"], "seed: compare chooses it for every run; give --seeds N"),
        (["finetune"], ["method=kd"], "method: compare chooses it"),
        (["finetune"], ["optimizer.lr=1e-3,1e-4"], "optimizer.lr=0.001,0.0001: several values are for a method's dial"),
        (["counterfactual"], ["beta=one,two"], "beta"),
        (["kd"], ["betta=1"], "unknown setting 'betta'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(words, settings, expected) -> None:
    with pytest.raises(UserError) as error:
        compare.plan(words, settings)
    assert expected in str(error.value) and "\n" not in str(error.value), str(error.value)


def system(
    typed: str, value, points, base=False, retention=None, wall=10.0, shifts=True, zeroshot=(0.6, 0.7), protocol=None
) -> System:
    """A system with (ID, OOD, hold-out) of each seed."""

    def scores(ids: float, ood: float, holdout: float) -> Scores:
        return Scores("val", Score(ids, 1000), {"s": Score(ood, 1000)} if shifts else {}, Score(holdout, 500))

    def record(seed: int, ids: float, ood: float, holdout: float):
        return results_record(
            scores(ids, ood, holdout),
            **{"name": "r", "method": typed, "model": "m", "seed": seed, "partial": False, "wall_s": wall},
            **{"config": {}, "versions": {}, "beta": value, "zeroshot": scores(*zeroshot, 0.6)},
            display={"label": typed, "marker": {"colour": None, "shape": None}, "dial": "beta", "order": 1},
            protocol=protocol,
            retention=None
            if retention is None
            else {"t": {"top1": 0.8 + retention, "zeroshot_top1": 0.8, "top1_own_text": None, "n": 100}},
        )

    return System(typed, value, {seed: record(seed, *point) for seed, point in enumerate(points, start=1)}, base)


VANILLA = system("vanilla", None, [(0.82, 0.60, 0.83), (0.83, 0.62, 0.84), (0.82, 0.61, 0.83)], base=True)
ROBUST = [
    system("ours", 1.0, [(0.82, 0.70, 0.84), (0.825, 0.72, 0.85), (0.82, 0.71, 0.83)], retention=-0.05, wall=30),
    system("ours", 3.0, [(0.78, 0.74, 0.80), (0.785, 0.75, 0.80), (0.78, 0.74, 0.79)], retention=-0.02),
]
ALIKE = system("theirs", 1.0, [(0.82, 0.72, 0.82), (0.82, 0.69, 0.82), (0.825, 0.715, 0.81)])
WORSE = system("frozen", None, [(0.70, 0.78, 0.70), (0.70, 0.79, 0.71), (0.70, 0.78, 0.70)])


def test_the_hold_out_chooses_the_dial_and_the_shifts_do_not() -> None:
    assert [(one.typed, one.value) for one in selected([VANILLA, *ROBUST])] == [("vanilla", None), ("ours", 1.0)]


def test_what_it_says() -> None:
    text, said = choose([VANILLA, *ROBUST, ALIKE, WORSE])
    assert said.startswith(
        "Use ours, β=1: ID 82.2, OOD 71.0; against vanilla ID −0.2 [−0.9, +0.6], OOD +10.0 [+10.0, +10.0]"
    )
    assert "points; of what it knew of other tasks −5.0 points against zero-shot" in said
    assert "3 seeds do not tell it from theirs, β=1." in said and "frozen" not in said  # which costs 12 points of ID
    assert said.endswith("The value of its dial was chosen on the hold-out.")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][:4] == ["system", "hold-out", "ID", "OOD avg"] and rows[0][-2:] == ["Δ knows", "time a run"]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert table["zero-shot"][1:3] == ["60.0", "70.0"] and table["vanilla"][3:5] == ["–", "–"]
    assert table["ours, β=1"][3:] == ["−0.2 [−0.9, +0.6]", "+10.0 [+10.0, +10.0]", "−5.0", "30 s"]
    assert "ours, β=3" not in table


def test_curves_over_the_dials_are_compared_at_matched_id() -> None:
    worse = [
        system("theirs", 1.0, [(0.82, 0.66, 0.82), (0.825, 0.67, 0.83), (0.82, 0.66, 0.82)]),
        system("theirs", 3.0, [(0.78, 0.70, 0.80), (0.785, 0.71, 0.80), (0.78, 0.70, 0.79)]),
    ]
    text, _ = choose([VANILLA, *ROBUST, *worse])
    (row,) = [line for line in text.splitlines() if line.startswith("| theirs | 3 |")]
    # Halfway along the shared range: ours at 72.0, 73.5 and 72.5, theirs at 68, 69 and 68.
    assert row == "| theirs | 3 | 68.3 ± 0.6 | −4.3 [−5.1, −3.6] | 0.001 |"


def test_other_ends() -> None:
    assert choose([system("vanilla", None, [(0.5, 0.9, 0.5)], base=True)])[1].startswith(
        "Use the zero-shot model as it is: the best of these, vanilla, has ID 50.0, OOD 90.0 and the zero-shot model ID"
    )
    one = system("vanilla", None, [(0.8, 0.6, 0.8)], base=True)
    said = choose([one, system("ours", 1.0, [(0.79, 0.7, 0.8)])])[1]
    assert said.startswith("Use ours, β=1") and said.endswith("One seed proves little: --seeds 5.")
    assert "1 seed does not tell it from vanilla" in said
    ids = [system(t, None, [(x, 0, x)] * 2, base=t == "a", shifts=False) for t, x in (("a", 0.7), ("b", 0.8))]
    assert choose(ids)[1].startswith("Use b: ID 80.0; against a ID +10.0")


def test_what_has_looked_at_the_test_sets_is_shown_and_not_recommended() -> None:
    points = [(0.83, 0.80, 0.84), (0.84, 0.82, 0.84), (0.83, 0.81, 0.84)]
    text, said = choose([VANILLA, ROBUST[0], system("peeks", None, points, protocol={"transductive": True})])
    assert said.startswith("Use ours, β=1: ") and "peeks" not in said
    assert any(line.startswith("| peeks |") for line in text.splitlines())
    assert choose([VANILLA, ROBUST[0], system("peeks", None, points)])[1].startswith("Use peeks: ")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(folder / "cache"), "COLUMNS": "160"}
    line = [sys.executable, str(ROOT / "run.py"), "compare", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=560)


MINE = """
from robustft.methods.finetune import Finetune

class Louder(Finetune):
    def __init__(self, student, gain: float) -> None:
        super().__init__(student)
        self.gain = gain
"""
CONFIG = """
name: louder
_target_: mine.Louder
gain: 1.0
takes: {trains: true, masks: false, label: louder, dial: method.gain, settings: {method.gain: {above: 0, to: 2}}}
"""


@pytest.mark.slow
def test_from_start_to_end_with_a_method_of_ones_own(tmp_path: Path) -> None:
    """Run, gone on with, and one more seed: what is finished is not run again."""
    (tmp_path / "own" / "conf" / "method").mkdir(parents=True)
    (tmp_path / "own" / "mine.py").write_text(MINE)
    (tmp_path / "own" / "conf" / "method" / "louder.yaml").write_text(CONFIG)
    few = [s for s in UNTRAINED if not s.startswith(("logger", "data.sets.scenes_a"))]
    typed = [*few, "data.batch_size=16", "trainer.max_epochs=1", "metric=top1", "alpha=0.5,0.9", "method.gain=1,2"]
    words = ["wiseft", "louder", *typed, "--config-dir", "own/conf", "--jobs", "1", "--out", "c"]
    first = run(tmp_path, *words, "--seeds", "1")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "5 runs: finetune; wiseft (alpha = 0.5, 0.9); louder (method.gain = 1, 2); 1 seed each" in first.stdout
    folder = tmp_path / "c"
    records = store.read(folder / store.FILE)
    assert list(records) == [
        *("finetune_seed-1", "louder_gain-1_seed-1", "louder_gain-2_seed-1"),
        *("wiseft_alpha-0.5_seed-1", "wiseft_alpha-0.9_seed-1"),
    ]
    assert {"verdict.md", "comparison.md", "scatter.png"} <= {path.name for path in folder.iterdir()}
    last = first.stdout.strip().splitlines()[-1]
    assert last.startswith("Use ") and last in (folder / "verdict.md").read_text().replace("\n\n", "\n")
    assert records["wiseft_alpha-0.5_seed-1"]["config"]["checkpoint"] == "finetune_seed-1/model.safetensors"
    assert records["louder_gain-2_seed-1"]["settings"]["method.gain"] == 2
    again = run(tmp_path, *words, "--seeds", "2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "10 runs, 5 of them finished before" in again.stdout
    both = store.read(folder / store.FILE)
    assert len(both) == 10 and {name: both[name] for name in records} == records  # with the time that each took
    assert "paired by seed" in (folder / "comparison.md").read_text()
    refused = run(tmp_path, "finetune", "--seeds", "0")
    assert refused.returncode == 1 and refused.stderr.strip() == "error: --seeds=0 --jobs=1: give one or more of each"
