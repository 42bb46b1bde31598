"""What --cost says of a study: the kinds of step, the images of each, and real trials of them."""

from collections import Counter

import pytest

from robustft import cost
from robustft.cost import PROBE, VANILLA, count, kinds, measure
from robustft.study import Entry, Study, main
from tests.small import SMALL, work  # noqa: F401 (a fixture)

MASKED = ("mask=object", "fill=single")
ENTRIES = [
    Entry("zeroshot", ("method=zeroshot",)),
    Entry("vanilla", ("method=finetune", "seed=1"), keep=True),
    Entry("longer", ("method=finetune", "optimizer.lr=1e-3", "trainer.max_epochs=4")),
    Entry("lpft", ("method=lpft",)),
    Entry("probe", ("method=linear_probe", "trainer.max_epochs=3")),
    Entry("masked", (*MASKED, "mask.threshold=0.6", "beta=3")),
    Entry("average", ("method=wiseft", "checkpoint={vanilla}")),
    Entry("taught", (*MASKED, "teacher={average}")),
]
IMAGES = 3 * 16  # of an epoch: 64, 16 of them held out, in batches of 16


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("method=soup", "checkpoints=[{a},{b}]"), []),
        (("method=lpft", "seed=2"), [PROBE, VANILLA]),
        (("method=kd", "temperature=4", "beta=0.1"), [("method=kd",)]),
        (("seed=3",), [()]),
        (("mask=random", "fill=multi", "mask.rate=0.25"), [("mask=random", "fill=multi")]),
        (("mask=random", "fill=none", "mask.rate=0.25"), [("mask=random", "fill=none", "mask.rate=0.25")]),
        (("mask=object", "mask.layers=1", "disagreement=3"), [("mask=object", "mask.layers=1")]),
    ],
)
def test_kinds_of_step(settings, expected):
    assert kinds(Entry("run", settings)) == expected


def test_images_are_counted():
    found = count(ENTRIES, [*SMALL, "model.recipe.probe.epochs=5"])
    assert found.runs == len(ENTRIES)
    assert found.trainings == {VANILLA: 3, PROBE: 2, MASKED: 2}
    assert found.trained == {VANILLA: (2 + 4 + 2) * IMAGES, PROBE: (5 + 3) * IMAGES, MASKED: 2 * 2 * IMAGES}
    assert found.encoded == 64
    assert count(ENTRIES[:2], SMALL).encoded == 0
    assert count(ENTRIES[1:2], [*SMALL, "trainer.max_steps=4"]).trained == {VANILLA: 4 * 16}


def test_hours():
    found = cost.Cost(
        runs=10,
        trained=Counter({VANILLA: 6000, PROBE: 900}),
        encoded=300,
        images_per_s={VANILLA: 2.0, PROBE: 90.0},
        run_s=7.0,
    )
    assert found.total_s == 6000 / 2 + 900 / 90 + 300 / 6 + 10 * 7


def test_trials(work, monkeypatch, capsys):  # noqa: F811
    folder = work / "costs"
    folder.mkdir()
    monkeypatch.chdir(work)
    study = Study(ENTRIES, folder, SMALL)
    seen = {}

    def more(results):
        seen.update(results)
        yield Entry("more", ("method=finetune", "trainer.max_epochs=1"))

    found = measure(study, more, steps=3)
    assert found.runs == len(ENTRIES) + 1
    assert found.trained[VANILLA] == (2 + 4 + 2 + 1) * IMAGES
    assert set(found.images_per_s) == {VANILLA, PROBE, MASKED}
    assert all(rate > 0 for rate in found.images_per_s.values())
    assert found.run_s > 0
    assert set(seen) == {entry.name for entry in ENTRIES}
    assert seen["lpft"]["method"] == "finetune" and seen["average"]["method"] == "zeroshot"
    assert all(record["config"]["trainer"]["max_steps"] == 3 for record in seen.values() if record["fill"])
    assert not (folder / "results").exists() and not list((study.work / "cost").glob("*"))

    monkeypatch.setattr("robustft.cost.measure", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["study.py", "--cost", *SMALL])
    main(str(folder / "study.py"), lambda cfg: ENTRIES, lambda *_: pytest.fail("nothing is to be run"))
    said = capsys.readouterr().out
    assert f"in all: {found.total_s / 3600:.3g} hours" in said
    assert "mask=object fill=single" in said


def test_a_trial_that_fails(work, monkeypatch):  # noqa: F811
    monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["study.py", "--cost", *SMALL])
    with pytest.raises(SystemExit, match=r"error: mask=object mask\.layers=0 failed: .*\(log: .*run\.log\)"):
        main(str(work / "study.py"), lambda cfg: [Entry("bad", ("mask=object", "mask.layers=0"))], lambda *_: None)
    with pytest.raises(SystemExit, match="the first step is not timed"):
        monkeypatch.setattr("sys.argv", ["study.py", "--cost", "--steps", "1", *SMALL])
        main(str(work / "study.py"), lambda cfg: ENTRIES[:2], lambda *_: None)
