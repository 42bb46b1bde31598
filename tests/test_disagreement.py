"""The disagreement through training against a plain implementation; measuring it changes nothing."""

import pytest
import torch
from safetensors.torch import load_file

import robustft
from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.counterfactual.cam import relevance
from robustft.data.sampling import draw
from robustft.evaluation.disagreement import FILE, KINDS, read
from tests.small import do, prepared, work  # noqa: F401 (a fixture)

SETTINGS = ("mask=object", "fill=single", "disagreement=3", "trainer.check_val_every_n_epoch=9")  # the last weights


@pytest.mark.slow
@pytest.mark.parametrize("method", ["counterfactual", "finetune"])
def test_through_training(work, method):  # noqa: F811
    settings = SETTINGS if method == "counterfactual" else (f"method={method}", *SETTINGS[2:])
    do(work / method, *settings)
    rows = read(work / method / FILE)
    assert list(rows) == [0, 2, 4, 6]
    assert rows[0] == pytest.approx([0] * len(KINDS), abs=1e-9)  # the student begins as the teacher
    factual = [row[KINDS.index("factual")] for row in rows.values()]
    assert factual[1] > 1e-5 and all(value > 0 for value in rows[6])

    student = robustft.load(work / method / "model.safetensors")
    run = prepared(work / f"{method}-plain", *settings)
    run.data.setup()
    teacher, images = run["teacher"], next(s for s in run.data.sets if s.name == "holdout").dataset
    chosen = draw(len(images), len(images), run.cfg.seed)
    x, y = student.preprocess.normalise(torch.stack([images[int(k)][0] for k in chosen])), images.labels[chosen]
    expected = dict.fromkeys(("factual", "object_single"), 0.0)
    size = run.cfg.data.batch_size
    for number, (part, labels) in enumerate(zip(x.split(size), y.split(size), strict=True)):
        mask = relevance(student, part, labels)[-1] > 0.3
        wide = mask.view(-1, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        other = part[torch.randperm(len(part), generator=generator("disagreement", run.cfg.seed, number))]
        for kind, image in (("factual", part), ("object_single", torch.where(wide, other, part))):
            with torch.no_grad():
                expected[kind] += float(((student.encode(image) - teacher.encode(image)) ** 2).mean()) * len(part)
    for kind, value in expected.items():
        assert rows[6][KINDS.index(kind)] == pytest.approx(value / len(x), rel=1e-4), kind


def test_an_image_alone_has_none_to_take_patches_from(work):  # noqa: F811
    do(work / "odd", *SETTINGS, "data.holdout=17", "data.train_images=65")
    assert len(read(work / "odd" / FILE)) == 4
    with pytest.raises(UserError, match="disagreement=3 takes patches from other images"):
        do(work / "alone", "method=finetune", "disagreement=3", "data.batch_size=1")


@pytest.mark.slow
def test_training_is_what_it_was(work):  # noqa: F811
    do(work / "watched", *SETTINGS)
    do(work / "plain", *SETTINGS, "disagreement=0")
    assert not (work / "plain" / FILE).exists()
    ours, theirs = (load_file(work / name / "model.safetensors") for name in ("watched", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_where_it_means_nothing(work):  # noqa: F811
    with pytest.raises(UserError, match="disagreement"):
        do(work / "probe", "method=linear_probe", "disagreement=3")
