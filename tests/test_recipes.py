"""recipe=published sets what was published, recipe=common the same for all; what is typed wins, and results say so."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf, open_dict

from robustft.cli import checks, compose, described, identity, naming, recipes, sources
from robustft.cli.main import run_in
from robustft.cli.settings import Settings
from robustft.common import configs
from robustft.common.errors import UserError
from tests.small import SMALL, UNTRAINED, work  # noqa: F401 (a fixture)

CLIP = ("model=vitb32", "data.root=.")
# From the public code of each: lr, decay, warm-up, batch, epochs, steps, clipping, schedule, augmentation; then the
# method's own.
KEYS = (
    "optimizer.lr optimizer.weight_decay optimizer.warmup data.batch_size trainer.max_epochs trainer.max_steps"
    " trainer.gradient_clip_val schedule.name augment.kind"
).split()
CROP, INCEPTION = (
    {"augment.scale": [0.9, 1.0], "augment.flip": 0.0},
    {"augment.scale": [0.08, 1.0], "augment.flip": 0.5},
)
BETAS = {"optimizer.beta1": 0.9, "optimizer.beta2": 0.999}
FLYP = (1e-5, 0.1, 500, 512, 10, -1, None, "warmup_cosine", "crop")
LIPSUM = (1e-5, 0.0, 0.1, 256, None, 50_000, None, "warmup_cosine", "flip_crop")
LDIFS = (1e-5, 0.1, 500, 128, 10, -1, 1.0, "warmup_cosine")
PUBLISHED = {
    "finetune": ((3e-5, 0.1, 500, 512, 10, -1, 1.0, "warmup_cosine", "crop"), {**CROP, **BETAS}),
    "counterfactual": (
        (3e-5, 0.1, 0.02, 512, 10, -1, 1.0, "one_cycle", None),
        {"beta": 30.0, "optimizer.max_momentum": 0.95, "optimizer.base_momentum": 0.85, "mask.kind": "object"},
    ),
    "flyp": (FLYP, {**CROP, "method.positives": "diagonal", "moving.name": "none"}),
    "carot": (
        FLYP,
        {**CROP, "method.weight": 1.5, "method.cross": 0.05, "method.orthogonal": 0.2, "moving.name": "ema_rising"}
        | {"moving.every": 500, "moving.decay": 0.9, "moving.first_decay": 0.05, "moving.rise": 0.2},
    ),
    "tracer": (
        FLYP,
        {**CROP, "method.weight": 0.9, "method.features": 2000.0, "method.relations": 1.0, "method.interactive": 1.0}
        | {"method.mixed": 1.0, "method.cross": 0.05, "moving.name": "trajectory", "moving.beta": 0.5}
        | {"moving.every": 1},
    ),
    "lipsum": (LIPSUM, {**INCEPTION, **BETAS, "beta": 1.0, "method.texts": 80, "method.length": 8}),
    "carft": (LIPSUM, {**INCEPTION, "beta": 1.0}),
    "ldifs": (LDIFS, {"beta": 10.0, "method.axis": "tokens"}),
    "clipood": (
        (5e-6, 0.1, 0, 36, None, 5_000, None, "warmup_cosine"),
        {"method.margin": 0.3, "moving.name": "trajectory", "moving.beta": 0.5, "result": "average"}
        | {"method.template": "a photo of a {}."},
    ),
}  # fmt: skip
UNPUBLISHED = ("linear_probe", "lpft", "kd")  # nobody's own way to train them for ImageNet was found
TRAINING = [name for name in sources.groups()["method"] if described.takes("method", name)["trains"]]


def composed(*typed: str):
    cfg = compose.compose_first(compose.parse(typed))
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def found(cfg, names) -> dict:
    return {name: OmegaConf.select(cfg, name) for name in names}


@pytest.mark.parametrize("method", TRAINING)
def test_published(method: str) -> None:
    typed = (*CLIP, f"method={method}", "recipe=published")
    if method in UNPUBLISHED:
        with pytest.raises(UserError, match=f"recipe=published: method={method} has none"):
            composed(*typed)
        return
    numbers, own = PUBLISHED[method]
    wanted = dict(zip(KEYS, numbers, strict=False)) | own
    cfg = composed(*typed)
    assert found(cfg, wanted) == wanted
    assert cfg.recipe.name == "published" and naming.name(cfg).endswith("_published_vitb32")
    checks.refuse_idle([cfg], compose.texts(compose.complete(compose.parse(typed))))


def test_the_published_form_of_l2sp() -> None:
    cfg = composed(*CLIP, "method=finetune", "constraint=l2sp", "recipe=published")
    wanted = dict(zip(KEYS, LDIFS, strict=False)) | {"constraint.l2sp.weight": 0.5, "constraint.head": False}
    assert found(cfg, wanted) == wanted
    for method in ("finetune", "lipsum"):
        typed = (*CLIP, f"method={method}", "constraint=l2sp", "recipe=published")
        cfg = composed(*typed)
        assert (cfg.trainer.max_epochs, cfg.trainer.max_steps) == (10, -1)
        assert recipes.in_use(cfg, compose.complete(compose.parse(typed))) == "published"
    with pytest.raises(UserError, match="constraint=spd has none"):
        composed(*CLIP, "method=finetune", "constraint=[l2sp,spd]", "recipe=published")


@pytest.mark.parametrize("model", ["tiny", "vitb32"])
@pytest.mark.parametrize("method", TRAINING)
def test_common(method: str, model: str) -> None:
    typed = (f"model={model}", f"method={method}", "recipe=common")
    cfg, plain = composed(*typed), composed(*typed[:2])
    assert (cfg.schedule.name, cfg.augment.kind, cfg.augment.scale) == ("warmup_cosine", "crop", [0.9, 1.0])
    same = [name for name in KEYS if name not in ("schedule.name", "augment.kind")]
    assert found(cfg, same) == found(plain, same)
    probes = method == "linear_probe"  # a method's own
    wanted = {"tiny": (5e-4, 0.1, 0.02, 32, 5), "vitb32": (3e-5, 0.1, 0.02, 512, 10)}[model]
    assert probes or tuple(found(cfg, KEYS).values())[:5] == wanted
    assert recipes.in_use(cfg, compose.complete(compose.parse(typed))) == "common"


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("optimizer.lr=2e-5", "optimizer.lr", 2e-5),
        ("schedule=one_cycle", "schedule.name", "one_cycle"),
        ("moving.every=7", "moving.every", 7),
        ("method.weight=0.3", "method.weight", 0.3),
        ("moving=trajectory", "moving.every", 1),  # its own, not CaRot's
    ],
)
def test_what_is_typed_wins(typed: str, name: str, value) -> None:
    settings = (*CLIP, "method=carot", "recipe=published", typed)
    cfg = composed(*settings)
    assert OmegaConf.select(cfg, name) == value and cfg.data.batch_size == 512
    assert recipes.in_use(cfg, compose.complete(compose.parse(settings))) == "typed"


def test_which_recipe_is_in_use() -> None:
    def used(*typed: str) -> str:
        return recipes.in_use(composed(*CLIP, *typed), compose.complete(compose.parse([*CLIP, *typed])))

    assert used() == used("optimizer.lr=3e-5") == used("beta=3", "augment=none", "trainer.precision=32") == "model"
    assert used("optimizer.lr=1e-5") == used("trainer.max_steps=5") == used("augment=crop") == "typed"
    assert used("method=finetune", "constraint=spd") == "model"  # without decay, which is its own
    assert used("method=finetune", "recipe=published", "optimizer.lr=3e-5", "trainer.devices=1") == "published"


def test_parts_that_mean_nothing_beside_what_is_typed() -> None:
    typed = compose.complete(compose.parse([*CLIP, "method=flyp", "recipe=published", "trainer.fast_dev_run=true"]))
    checks.refuse_idle([composed(*(str(one.input_line) for one in typed))], compose.texts(typed))


def test_sweeps() -> None:
    def jobs(*typed: str):
        return compose.jobs(compose.complete(compose.parse([*CLIP, "recipe=published", *typed])))

    assert {job.cfg.optimizer.lr for job in jobs("method=flyp", "seed=1,2")} == {1e-5}
    assert [job.cfg.optimizer.lr for job in jobs("method=flyp", "optimizer.lr=1e-5,2e-5")] == [1e-5, 2e-5]
    with pytest.raises(UserError, match=r"differs there in optimizer\.lr"):
        jobs("method=finetune,flyp")
    with pytest.raises(UserError, match="recipe=common,published: methods have settings of their own"):
        compose.jobs(compose.complete(compose.parse([*CLIP, "method=flyp", "recipe=common,published"])))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own configs: a method with a recipe, one without, and presets."""
    monkeypatch.setattr(sources, "_added", [])
    monkeypatch.syspath_prepend(str(tmp_path))
    takes = {"trains": True, "masks": False, "needs": [], "settings": {}}
    target = "robustft.methods.finetune.Finetune"
    for name, more in (("bare", {}), ("known", {"published": {"optimizer.lr": 0.25, "schedule": "warmup_cosine"}})):
        write(tmp_path / f"conf/method/{name}.yaml", {"name": name, "_target_": target, "takes": takes | more})
    preset = {"defaults": [{"override /method": "known"}, {"override /recipe": "published"}], "seed": 3}
    text = "# @package _global_\n"
    write(tmp_path / "conf/experiment/plain.yaml", preset, text)
    write(tmp_path / "conf/experiment/faster.yaml", {**preset, "optimizer": {"lr": 0.5}}, text)
    sources.add(tmp_path / "conf")
    return tmp_path


def write(path: Path, content: dict, before: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + yaml.safe_dump(content, sort_keys=False))


def test_methods_of_ones_own(own: Path) -> None:
    cfg = composed_with(own, "method=known", "recipe=published")
    assert (cfg.optimizer.lr, cfg.schedule.name) == (0.25, "warmup_cosine")
    with pytest.raises(UserError, match=r"recipe=published: method=bare has none\. It stands in its YAML"):
        composed_with(own, "method=bare", "recipe=published")
    assert composed_with(own, "method=bare", "recipe=common").schedule.name == "warmup_cosine"


def test_presets_choose_recipes(own: Path) -> None:
    cfg = composed_with(own, "experiment=plain")
    assert (cfg.optimizer.lr, cfg.schedule.name, cfg.seed) == (0.25, "warmup_cosine", 3)
    cfg = composed_with(own, "experiment=faster")
    assert (cfg.optimizer.lr, cfg.schedule.name) == (0.5, "warmup_cosine")
    assert recipes.in_use(cfg, compose.parse(["experiment=faster"])) == "typed"


def composed_with(own: Path, *typed: str):
    assert sources.added() == own / "conf"
    return composed(*typed)


def test_runs_by_different_recipes_are_different_runs() -> None:
    """Even where all else is the same, as with a recipe that was typed out."""
    common = composed("method=finetune", "recipe=common")
    spelled = composed("method=finetune", "schedule=warmup_cosine", "augment=crop")
    assert identity.identity(common) != identity.identity(spelled)
    identity.resolve(common)
    assert identity.differences(common, configs.plain(spelled)) == ["recipe.name=common (there: model)"]
    older = {key: value for key, value in configs.plain(spelled).items() if key != "recipe"}
    assert not [line for line in identity.differences(spelled, older) if "recipe" in line]
    assert Settings(composed("method=zeroshot")).why_idle("recipe") == "method=zeroshot"


@pytest.mark.slow
def test_results_say_which_recipe(work: Path) -> None:  # noqa: F811
    """The run's own, and of what does not train that of the model it works on."""

    def protocol(name: str, *typed: str) -> str | None:
        settings = SMALL if typed[0] == "method=finetune" else UNTRAINED
        cfg = composed(*settings, *typed)
        run_in(cfg, work / name, list(typed))
        record = json.loads((work / name / "results.json").read_text())
        return record["protocol"]["recipe"]

    assert protocol("common", "method=finetune", "recipe=common") == "common"
    assert protocol("mine", "method=finetune", "recipe=common", "optimizer.lr=1e-3") == "typed"
    assert protocol("wise", "method=wiseft", f"checkpoint={work}/common/model.safetensors") == "common"
    mixed = f"checkpoints=[{work}/common/model.safetensors,{work}/mine/model.safetensors]"
    assert protocol("soup", "method=soup", mixed) == "typed"
    assert protocol("zeroshot", "method=zeroshot") is None
