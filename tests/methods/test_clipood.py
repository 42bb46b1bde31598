"""CLIPood against its public implementation and a plain loop."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from robustft.cli import checks
from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.data.sets import Batch
from robustft.experiment import make_training
from robustft.methods.clipood import margins
from robustft.models import tiny
from robustft.models.weights import create_clip
from robustft.training.loop import train
from robustft.training.moving import trajectory
from tests.golden.neighbours import DTYPES, Golden
from tests.small import composed, do, method_of, prepared, work  # noqa: F401 (a fixture)
from tests.test_resume import go_on_until_done, same_results, stops  # noqa: F401 (a fixture)
from tests.test_training import difference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_and_its_gradient(work, dtype: torch.dtype) -> None:  # noqa: F811
    golden = Golden("clipood", dtype)
    method = method_of(prepared(work / "golden", "method=clipood"))
    texts, scale, features = golden["text_unit"], golden["temperature"], golden["image_raw"].requires_grad_()
    head = nn.Linear(texts.shape[1], len(texts), dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(scale * texts)
        head.bias.zero_()
    method.student.head, method.student.encode = head, lambda images: features
    method.margins = margins(texts, scale, golden["margin"])
    labels = golden["labels"]
    loss = method.training_step(Batch(torch.zeros(len(labels), 3, 64, 64), labels, labels), 0)
    golden.close(head(F.normalize(features, dim=-1)) - method.margins[labels], "logits")
    golden.close(loss, "loss")
    golden.close(torch.autograd.grad(loss, features)[0], "grad_image_raw")


def texts_of(run, template: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings of the classes' prompts, and the scale, by open_clip."""
    clip = create_clip("tiny", None, run.cfg.seed)
    columns = open_clip.build_zero_shot_classifier(clip, tiny.tokenizer(), list(run.data.class_names), [template])
    return columns.T.double(), clip.logit_scale.exp().detach().double()


def plain_clipood(run, steps: int, margin: float, template: str) -> dict[str, torch.Tensor]:
    """The average of the image tower, as one reads it, in float64."""
    cfg, data = run.cfg, run.data
    data.setup()
    tower, (texts, scale) = run.student().double().train(), texts_of(run, template)
    optimizer = torch.optim.AdamW(tower.visual.parameters(), lr=cfg.optimizer.lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.optimizer.lr, total_steps=steps, pct_start=0.02)
    average = {name: p.detach().clone() for name, p in tower.visual.named_parameters()}
    size = cfg.data.batch_size
    for step in range(steps):
        epoch, place = divmod(step, len(data.split[0]) // size)
        random = generator("order of images", cfg.seed, epoch)
        order = data.split[0][torch.randperm(len(data.split[0]), generator=random)]
        batch = data.training_set().__getitems__(order[place * size : (place + 1) * size].tolist())
        f = F.normalize(tower.encode(tower.normalise(batch.images)), dim=-1)
        z = scale * (f @ texts.T - margin * texts[batch.labels] @ texts.T)
        F.cross_entropy(z, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(tower.visual.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        for name, weight in tower.visual.named_parameters():
            average[name].lerp_(weight.detach(), trajectory(step, steps))
    return average


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_against_a_plain_loop(work, margin: float) -> None:  # noqa: F811
    """The average of the image tower is what is left, and the head is that of one template."""
    template = "a sketch of a {}."
    settings = ("method=clipood", "optimizer.lr=1e-4", f"method.margin={margin}", f"method.template='{template}'")
    run = prepared(work / f"plain{margin}", *settings, "data.holdout=0")
    expected = plain_clipood(run, 8, margin, template)
    method = method_of(run)
    made = method.student.head.weight.detach().clone(), method.margins.clone()
    method = method.double()
    texts, scale = texts_of(run, template)
    with torch.no_grad():  # the same to the last bit: Adam makes much of little where a gradient is near 0
        method.student.head.weight.copy_(scale * texts)
        method.margins.copy_(margin * scale * texts @ texts.T)
    torch.testing.assert_close(made[0].double(), scale * texts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made[1].double(), margin * scale * texts @ texts.T, rtol=1e-5, atol=1e-5)
    model = train(method, make_training(run.cfg, run, [])).model
    start = create_clip("tiny", None, 0).visual.state_dict()
    for name, value in expected.items():
        assert (value - start[name]).abs().max() > 1e-5, name
        assert difference(name, model.visual.state_dict()[name], value) < 1e-9, name
    assert model.text is None and torch.equal(model.head.weight, scale * texts)


@pytest.mark.slow
def test_resumed_and_saved_as_an_image_tower_with_a_text_head(work, stops) -> None:  # noqa: F811
    seen, wanted = stops
    settings = ("method=clipood", "trainer.max_steps=4")
    record = do(work / "whole", *settings)
    assert record["display"]["label"] == "CLIPood" and record["protocol"]["head"] == "text"
    points = list(dict.fromkeys(seen))
    assert go_on_until_done(work / "stopped", settings, wanted, points) == record["holdout"]
    assert same_results(work / "whole", work / "stopped")
    assert all(name.startswith(("visual.", "head.")) for name in load_file(work / "whole" / "model.safetensors"))
    # It goes on from any model, whose head gives way to that of the text tower.
    do(work / "vanilla", "method=finetune", "trainer.max_steps=2")
    do(work / "on", "method=clipood", "trainer.max_steps=2", f"init={work / 'vanilla'}")
    heads = [load_file(work / name / "model.safetensors")["head.weight"] for name in ("whole", "on", "vanilla")]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{name}"])
def test_a_template_has_one_place_for_the_name(template: str) -> None:
    with pytest.raises(UserError, match="method.template=.*: expected a text with one {} for the class's name"):
        checks.check(composed("method=clipood", f"method.template='{template}'"))
