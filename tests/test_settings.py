"""Which settings mean something where: the table, and that what is claimed is so."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from robustft.cli import accepted, checks, core_settings, identity
from robustft.cli import compose as overrides
from robustft.cli.compose import parse as parsed
from robustft.cli.compose import texts
from robustft.cli.settings import Settings
from robustft.cli.sources import CONF, groups
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.studies import store
from tests.small import SMALL, composed, do, work  # noqa: F401 (a fixture)

SAVED = Path(__file__).parent / "data" / "saved_configs"  # config.yaml of an earlier version, by what was typed
HERE = str(Path(__file__))
METHODS = groups()["method"]
BOTH_TOWERS = ["flyp", "carot", "tracer"]
COMPARED = ["carft", "lipsum", "ldifs"]
TRAINED = ["counterfactual", "finetune", "kd", *COMPARED, "linear_probe", "lpft", *BOTH_TOWERS, "clipood"]
BY_GRADIENTS = [name for name in TRAINED if name != "linear_probe"]
DISTILLED = ["counterfactual", "kd", *COMPARED, *BOTH_TOWERS]
MOVING = ["carot", "tracer", "clipood"]
SEVERAL = ["ose", "vrf", "dawin"]  # models at inference
MASKED = {name: ["mask=object", "fill=multi"] for name in DISTILLED}
MASKED["flyp"] = ["beta=1", *MASKED["flyp"]]
ALL, NEVER = METHODS, list[str]()

# Every leaf of the config with the methods in which it matters, everything else as it comes.
MATTERS = {
    "seed sweep check prepare resume retain": ALL,  # seed: of the hold-out
    "beta": ["counterfactual", "kd", *COMPARED, "flyp"],
    "mask.kind mask.threshold mask.cam mask.source mask.layers fill.kind": DISTILLED,
    "mask.rate": NEVER,  # of mask=random
    "temperature": ["kd"],
    "alpha": ["wiseft", "lines", "ose"],
    "init": TRAINED,
    "teacher": DISTILLED,
    "checkpoint": ["evaluate", "wiseft", "tpgm", "lines", *SEVERAL],
    "checkpoints": ["soup", "model_stock"],
    "method.greedy": ["soup"],
    "method.positives": ["flyp"],
    "method.normalised": ["counterfactual"],
    "method.texts method.length method.unit_head": ["lipsum"],
    "method.axis": ["ldifs"],
    "method.iterations method.images method.rate method.norm": ["tpgm"],
    "method.weight method.cross": ["carot", "tracer"],
    "method.orthogonal": ["carot"],
    "method.features method.relations method.interactive method.mixed": ["tracer"],
    "method.margin method.template": ["clipood"],
    "method.share method.of method.middle method.width": ["vrf"],
    "method.clusters method.offset": ["dawin"],
    "method.probe.lr method.probe.epochs": ["lpft"],
    "disagreement": ["counterfactual", "finetune", "kd", *COMPARED, "lpft"],
    "model.grad_checkpointing": BY_GRADIENTS,
    "save_minutes data.batch_size data.validate augment.kind": TRAINED,
    "optimizer.lr optimizer.weight_decay optimizer.warmup optimizer.beta2": TRAINED,
    "optimizer.max_momentum optimizer.base_momentum": TRAINED,
    "method.name method._target_ model.name model.architecture model.pretrained model.tokenizer._target_": ALL,
    "schedule.name schedule._target_": TRAINED,
    "recipe.name": TRAINED,
    "moving.name": [*DISTILLED, "clipood"],
    "result moving._target_ moving.every": MOVING,
    "moving.decay moving.first_decay moving.rise": ["carot"],
    "moving.beta": ["tracer", "clipood"],
    "moving.teaches": ["carot", "tracer"],
    "moving.count": NEVER,  # of moving.every=2
    "train.name": BY_GRADIENTS,
    "augment.kind": BY_GRADIENTS,
    "optimizer.beta1 constraint.anchor constraint.head": NEVER,  # of schedule=warmup_cosine, of constraints
    "model.recipe.weight_decay": BY_GRADIENTS,  # of probes it is 0
    "model.recipe.lr model.recipe.epochs model.recipe.warmup model.recipe.batch_size model.recipe.log_every": TRAINED,
    "model.recipe.beta": ["counterfactual"],
    "model.recipe.kd_beta": ["kd"],
    "model.recipe.probe.lr model.recipe.probe.epochs": ["linear_probe", "lpft"],
    "model.recipe.precision model.recipe.threads threads overwrite": ALL,
    "data._target_ data.root data.sets.scenes data.sets.scenes_v2 data.sets.scenes_r data.sets.scenes_sketch": ALL,
    "data.sets.scenes_objectnet data.sets.scenes_a data.train_images data.test_images data.image_size": ALL,
    "data.data_seed data.correlation data.eval_batch_size data.holdout data.holdout_seed data.eval_images": ALL,
    "data.num_workers": ALL,
    "trainer.accelerator trainer.strategy trainer.devices trainer.num_nodes trainer.precision": ALL,
    "trainer.fast_dev_run trainer.limit_val_batches trainer.enable_progress_bar": ALL,
    "trainer.enable_checkpointing logger.wandb.log_model": [name for name in ALL if name not in SEVERAL],
    "keep_logits metric.ece.bins metric.ece_calibrated.bins": ALL,
    "metric.per_class._target_ metric.macro_f1._target_ metric.worst_class._target_ metric.ece._target_": ALL,
    "metric.ece_calibrated._target_ metric.nll._target_ metric.brier._target_": ALL,
    "trainer.deterministic trainer.benchmark trainer.profiler": ALL,
    "trainer.max_epochs trainer.max_steps trainer.max_time trainer.limit_train_batches": TRAINED,
    "trainer.val_check_interval trainer.check_val_every_n_epoch trainer.log_every_n_steps": TRAINED,
    "trainer.enable_model_summary trainer.accumulate_grad_batches trainer.gradient_clip_val": TRAINED,
    "trainer.gradient_clip_algorithm trainer.detect_anomaly": TRAINED,
    "trainer.min_epochs trainer.min_steps": NEVER,  # without trainer.max_time
    "logger.wandb._target_ logger.wandb.project logger.wandb.entity logger.wandb.offline logger.wandb.group": ALL,
    "logger.wandb.job_type logger.wandb.tags logger.csv._target_": ALL,
}
EXPECTED = {name: methods for names, methods in MATTERS.items() for name in names.split()}

# Where other settings take a meaning away or give one: (what is typed, what then matters, what then does not).
CASES = [
    ("mask=random", "mask.rate fill.kind", "mask.threshold mask.cam mask.source mask.layers"),
    ("mask=context", "mask.threshold", "mask.rate"),
    ("mask=none", "mask.kind beta teacher", "fill.kind mask.threshold mask.rate"),
    ("mask.cam=gradcam", "mask.threshold", "mask.layers"),
    ("schedule=warmup_cosine", "optimizer.beta1 optimizer.warmup", "optimizer.max_momentum optimizer.base_momentum"),
    ("beta=0", "beta init", "mask.kind mask.threshold fill.kind teacher method.normalised"),
    ("moving=ema", "result teacher moving.decay moving.teaches moving.every", "moving.rise"),
    ("moving=ema moving.first_decay=0.1", "moving.rise", "mask.rate"),
    ("moving=ema beta=0", "beta", "result moving.decay moving.name moving.teaches"),
    ("moving=ema beta=0 result=average", "moving.decay moving.name result", "moving.teaches"),
    ("moving=ema moving.teaches=false", "teacher", "result moving.decay moving.teaches"),
    ("moving=ema method=finetune result=average", "moving.decay moving.every", "moving.teaches"),
    ("moving=ema method=linear_probe result=average", "seed", "moving.decay moving.name result"),
    ("constraint=[l2sp,spd]", "constraint.anchor constraint.head constraint.l2sp.weight", "mask.rate"),
    ("constraint=spd train=lora", "train.rank train.alpha train.mlp", "constraint.spd.weight constraint.anchor"),
    ("train=last_k", "train.blocks train._target_", "mask.rate"),
    ("method=linear_probe train=lora", "seed", "train.rank train.name"),
    ("method=ldifs beta=0", "beta", "method.axis teacher"),
    ("method=lipsum beta=0", "method.unit_head", "method.texts method.length"),
    ("moving=trajectory", "moving.beta moving.every", "moving.count"),
    ("moving=trajectory moving.every=2", "moving.count", "mask.rate"),
    ("method=flyp", "beta method.positives", "mask.kind teacher moving.name"),
    ("method=flyp beta=1", "teacher moving.name mask.kind", "fill.kind"),
    ("method=carot method.weight=0", "method.cross method.orthogonal", "teacher mask.kind moving.decay moving.name"),
    ("method=tracer method.weight=0", "method.cross", "method.features method.mixed moving.beta"),
    ("method=tracer moving.every=2", "moving.count", "method.greedy"),
    ("method=clipood moving=none", "method.margin", "result"),
    ("method=ose", "alpha checkpoint", "trainer.enable_checkpointing logger.wandb.log_model save_minutes"),
    ("beta=0 disagreement=1", "teacher", "mask.kind"),
    ("method=kd beta=0", "beta", "temperature mask.kind teacher"),
    ("method=kd mask=random", "temperature mask.rate", "mask.threshold"),
    ("method=finetune disagreement=1", "teacher", "beta"),
    ("data.holdout=0", "seed", "data.holdout_seed trainer.val_check_interval trainer.check_val_every_n_epoch"),
    ("data.holdout=0 data.validate=all", "trainer.val_check_interval", "data.holdout_seed"),
    ("method=lpft data.holdout=0", "data.holdout_seed", "temperature"),
    ("method=zeroshot data.holdout=0", "data.holdout", "seed data.train_images data.holdout_seed"),
    ("method=zeroshot data.holdout=0 model.pretrained=null", "seed", "data.train_images"),
    ("method=zeroshot data.holdout_seed=1", "data.holdout_seed data.train_images", "seed"),
    ("trainer.gradient_clip_val=null", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
    ("trainer.max_time=00:01:00:00", "trainer.min_epochs trainer.min_steps", "temperature"),
    ("trainer.fast_dev_run=2", "trainer.gradient_clip_val", "trainer.max_epochs trainer.max_steps trainer.max_time"),
    ("trainer.fast_dev_run=true", "optimizer.lr", "trainer.limit_val_batches trainer.limit_train_batches"),
    ("trainer.enable_checkpointing=false", "optimizer.lr", "save_minutes logger.wandb.log_model"),
    ("trainer=cpu", "trainer.deterministic", "trainer.benchmark"),
    ("trainer.deterministic=true", "trainer.deterministic", "trainer.benchmark"),
    ("optimizer.lr=0.1", "optimizer.lr", "model.recipe.lr"),
    ("retain.pets=DIR retain.pets.split=test", "retain.pets.path retain.pets.split", ""),
    ("retain.pets=DIR model.pretrained=null", "", "retain.pets.path"),
    ("model=vitb32", "data.prepared data.lossy data.sets.imagenet_r", "temperature"),
    ("model=vitb32 method=evaluate", "data.lossy data.prepared", "data.batch_size"),
    ("model=vitb32 method=evaluate data.holdout=0", "data.prepared", "data.lossy"),
]


def whole(*typed: str):
    """The default config with these settings."""
    return overrides.composed([typed])[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_matters_or_is_refused(method):
    cfg = whole(f"method={method}", *MASKED.get(method, []))
    found = identity.seen(cfg, sweep=False)
    own = {name for name in found.values if name.startswith("method.") and name not in EXPECTED}
    assert not own and set(found.values) <= set(EXPECTED)
    for name in found.values:
        assert found.matters(name) == (method in EXPECTED[name]), name
        refused = False
        try:
            checks.refuse_idle([cfg], {name: "1"})
        except UserError as error:
            refused = True
            assert "\n" not in str(error) and name in str(error)
        assert refused == (method not in EXPECTED[name] or name in core_settings.CHOSEN), name


@pytest.mark.parametrize(("typed", "matters", "idle"), CASES, ids=[case[0] for case in CASES])
def test_what_other_settings_make_of_it(typed, matters, idle):
    cfg = whole(*typed.split())
    found = identity.seen(cfg, sweep=False)
    assert {name: found.matters(name) for name in matters.split()} == dict.fromkeys(matters.split(), True)
    assert {name: found.matters(name) for name in idle.split()} == dict.fromkeys(idle.split(), False)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (f"method=finetune teacher={HERE}", "teacher="),
        (f"method=zeroshot init={HERE}", "init="),
        ("method=zeroshot optimizer.lr=7", "optimizer.lr=7 does nothing with method=zeroshot"),
        (f"method=evaluate checkpoint={HERE} beta=3", "beta=3 does nothing with method=evaluate"),
        ("trainer.max_epochs=3 method=zeroshot", "trainer.max_epochs=3 does nothing with method=zeroshot"),
        ("train=head", "train=head does nothing with method=counterfactual: leave it out, or change method"),
        ("method=ldifs train=head", "train=head does nothing with method=ldifs: leave it out, or change method"),
        ("method=clipood train=head", "train=head does nothing with method=clipood: leave it out, or change method"),
        ("method=flyp train=tower", "train=tower does nothing with method=flyp: leave it out, or change method"),
        ("method=kd beta=0 temperature=3", "temperature=3 does nothing with beta=0"),
        ("mask=random beta=0", "mask=random does nothing with beta=0"),
        ("mask=random mask.threshold=0.3", "mask.threshold=0.3 does nothing with mask=random"),
        ("save_minutes=3 trainer.enable_checkpointing=false", "does nothing with trainer.enable_checkpointing=false"),
        ("optimizer.betas=[0.5,0.99]", "optimizer.beta2"),
        ("trainer.limit_test_batches=3", "there is no test loop"),
        ("trainer.callbacks=3", "objects"),
        ("method.takes.trains=false", "no setting"),
        ("mask.kind=random", "mask=NAME"),
        ("optimizer={lr: 1}", "one by one"),
        ("beta={a: 1}", "one by one"),
        ("method=finetune beta=0", "beta=0 does nothing"),
        ("method=finetune moving=ema", "moving=ema does nothing with result=student"),
        ("method=kd moving=ema beta=0", "moving=ema does nothing with beta=0"),
        ("moving=ema moving.teaches=false", "moving=ema does nothing with moving.teaches=false"),
        ("method=finetune result=average", "result=average does nothing with moving=none"),
        ("method=linear_probe moving=ema result=average", "does nothing with method=linear_probe"),
        ("method=zeroshot moving=ema", "moving=ema does nothing with method=zeroshot"),
        ("constraint=ftp train=lora", "constraint=ftp does nothing with train=lora"),
        ("method=zeroshot train=head", "train=head does nothing with method=zeroshot"),
        ("method=lpft constraint=l2sp constraint.l2sp.weight=-1", "constraint.l2sp.weight=-1: expected a number, 0 or"),
        ("moving.decay=1 moving=ema", "moving.decay=1: expected a number, 0 or more and below 1"),
    ],
)
def test_what_means_nothing_is_refused_when_typed(typed, expected):
    lines = typed.split() if "{" not in typed else [typed]
    with pytest.raises(UserError, match=".*") as raised:
        checks.check(whole(*lines), texts(parsed(lines)))
    assert expected in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "typed",
    [
        "method=finetune mask=none fill=none moving=none",  # what is so
        "method=zeroshot constraint=[]",
        "train=lora constraint=none",
        "method=finetune beta=null",
        "method=zeroshot trainer=debug",  # a component, not its settings
        "check=data optimizer.lr=1 method=zeroshot",  # looks at the data of any run
        "sweep=mine logger=none experiment=debug",
    ],
)
def test_what_is_said_without_harm_is_not(typed):
    checks.check(whole(*typed.split()), texts(parsed(typed.split())))


# Sweeps


@pytest.mark.parametrize(
    ("typed", "runs"),
    [
        ("mask=random,object mask.threshold=0.3,0.4", 3),
        ("method=finetune,counterfactual beta=1,2,3", 4),
        ("method=finetune,counterfactual mask=object,random", 3),
        ("mask=none,object fill=single,multi", 3),
        ("beta=0,1 mask=object,random", 3),
        ("beta=1,1.0", 1),
        ("seed=1,2 data.num_workers=0,1", 4),  # where and how fast is worth a comparison
        ("experiment=sweep_masking seed=1 mask=object,random", 6),
        ("experiment=sweep_masking seed=1 beta=0", None),
        ("method=finetune mask.threshold=0.3,0.4", None),
        ("mask=random mask.threshold=0.3,0.4", None),
        ("method=zeroshot,finetune beta=3", None),
        ("mask=random mask.threshold=interval(0.2,0.4)", None),  # as a search asks
        ("mask=random,object mask.threshold=interval(0.2,0.4)", 3),
        ("save_minutes=1 seed=1,2", None),  # sweeps keep no state
    ],
)
def test_jobs_of_a_sweep_that_are_one_run(typed, runs):
    asked = parsed(typed.split())
    preset = overrides.compose_first(asked).hydra.sweeper.get("params") or {}
    keys = {override.key_or_group for override in asked}
    asked = [*parsed([f"{key}={value}" for key, value in preset.items() if key not in keys]), *asked]
    jobs = [job.cfg for job in overrides.jobs(asked)]
    if runs is None:
        with pytest.raises(UserError, match="in any of the runs|takes no mask"):
            checks.refuse_idle(jobs, texts(asked), sweep=True)
    else:
        checks.refuse_idle(jobs, texts(asked), sweep=True)
        first = identity.distinct(jobs)
        assert len(set(first)) == runs and len(first) == len(jobs)


# Components of a user's own


def test_a_users_method_and_mask_are_held_to_what_they_say(tmp_path):
    (tmp_path / "mask").mkdir()
    (tmp_path / "mask" / "half.yaml").write_text(
        "defaults: [object, _self_]\nthreshold: 0.5\nsoftness: 1.0\n"
        "takes: {settings: {mask.softness: {from: 0, to: 2, when: [{mask.threshold: {above: 0.4}}]}}}\n"
    )
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "finetune_softly.yaml").write_text(
        "name: finetune\n_target_: mine.Softly\nsoftness: 1\n"
        "takes: {trains: true, masks: false, settings: {method.softness: {from: 0}}}\n"
    )

    def cfg(*typed: str):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [f"hydra.searchpath=[file://{tmp_path}]", *typed])

    def refused(expected: str, *typed: str) -> None:
        with pytest.raises(UserError, match=expected):
            checks.check(cfg(*typed), texts(parsed(typed)))

    checks.check(cfg("mask=half", "mask.softness=2"), {"mask.softness": "2"})
    refused("mask.softness=3: expected a number from 0 to 2", "mask=half", "mask.softness=3")
    refused("does nothing with mask.threshold=0.3", "mask=half", "mask.threshold=0.3", "mask.softness=1")
    refused("mask.rate=0.5 does nothing with mask=object", "mask=half", "mask.rate=0.5")
    checks.check(cfg("method=finetune_softly", "mask=none", "method.softness=2"), {"method.softness": "2"})
    refused("method.softness=-1: expected a number, 0 or more", "method=finetune_softly", "method.softness=-1")
    refused("takes no mask", "method=finetune_softly", "mask=object")
    refused("beta=1 does nothing with method=finetune", "method=finetune_softly", "beta=1")


def test_what_components_take_is_no_setting():
    cfg = whole("method=kd", "mask=object")
    identity.resolve(cfg)
    assert "takes" not in json.dumps(configs.plain(cfg))
    before = identity.identity(cfg)
    with open_dict(cfg):
        cfg.method.takes.note = "something"
    assert identity.identity(cfg) == before and not identity.differences(cfg, configs.plain(cfg))


def test_descriptions_are_sound():
    """Each names a setting that there is, and says something that can be read."""
    for group, options in groups().items():
        for option in options:
            extra = {"openclip": ("model.architecture=x", "model.pretrained=null")}.get(option, ())
            if group in ("method", "mask", "data", "schedule"):
                found = Settings(whole(f"{group}={option}", *extra))
                for name, described in [*core_settings.CORE.items(), *_own(found)]:
                    assert accepted.expected(described)
                    assert set(described) <= set(
                        "kind from to above below of any match words or_null when by only".split()
                    )
                    for case in (*described.get("when", ()), *described.get("only", {}).values()):
                        assert all(".takes." in key or key in found.values for key in case), (name, case)
                for name, _ in _own(found):
                    assert name in found.values or name.endswith(".*"), name


def _own(found: Settings):
    return [item for takes in found.takes.values() for item in (takes.get("settings") or {}).items()]


# Earlier versions


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.yaml")), ids=lambda path: path.stem)
def test_runs_of_an_earlier_version_are_still_the_same(path):
    saved = OmegaConf.to_container(OmegaConf.load(path))
    typed = (SAVED / f"{path.stem}.txt").read_text().split()
    sweep = "sweep" in typed
    then = ("data.train_images=2200", "data.holdout=200", "data.image_size=48")  # of the first version of the scenes
    cfg = whole(*then, *(one.format(file=HERE) for one in typed if one != "sweep"))
    identity.resolve(cfg, sweep=sweep)
    if saved["checkpoint"]:
        saved["checkpoint"] = HERE
    assert identity.differences(cfg, saved) == []
    for key, value in (("seed", 7), ("optimizer", saved["optimizer"] | {"betas": [0.9, 0.99]})):
        matters = key == "seed" or identity.seen(cfg, sweep=sweep).matters("optimizer.beta2")
        assert bool(identity.differences(cfg, saved | {key: value})) == matters


def test_results_of_studies_are_those_of_todays_config():
    studies = CONF.parent / "experiments"
    results = store.read(studies / "targets" / store.FILE) | store.read(studies / "probe" / store.FILE)
    for name, typed in {
        "zeroshot_draw-1000": ("method=zeroshot",),
        "vanilla_draw-1000_seed-100": ("method=finetune", "seed=100"),
        "logits_beta-0.1_draw-1000_seed-102": ("method=kd", "seed=102"),
        "features_beta-3_draw-1000_seed-101": ("mask=none", "seed=101", "beta=3"),
        "lr-0.03_epochs-20_seed-100": ("method=linear_probe", "seed=100"),
    }.items():
        cfg = whole("data.data_seed=1000", *typed)
        identity.resolve(cfg)
        assert identity.differences(cfg, results[name]["config"]) == [], name


# Values


BAD = ["abc", "", -1, 0, 2.5, 1e30, None, math.nan, math.inf, -math.inf, [1], [], True, "1"]
RIGHT_FOR_ANY = ["anything"]  # kinds


def test_no_description_falls_over_a_value():
    described = {**core_settings.CORE}
    for typed in (("method=kd",), ("method=lpft",), ("method=soup",), ("method=wiseft",), ("model=vitb32",)):
        described |= dict(_own(Settings(whole(*typed))))
    described |= dict(_own(Settings(whole("mask=random")))) | dict(_own(Settings(whole("mask=object"))))
    for name, one in described.items():
        good = [value for value in BAD if accepted.accepts(one, value)]
        if one.get("kind") not in RIGHT_FOR_ANY:
            assert len(good) <= len(BAD) // 2, (name, good)
            assert not [v for v in good if isinstance(v, float) and not math.isfinite(v)], name


@pytest.mark.parametrize(
    "name",
    ["beta", "mask.threshold", "optimizer.lr", "optimizer.base_momentum", "data.batch_size", "data.holdout", "seed"]
    + ["trainer.devices", "trainer.max_steps", "trainer.accumulate_grad_batches", "init", "model.pretrained"],
)
def test_any_value_is_accepted_or_refused_in_one_line(name):
    base = whole(*SMALL)
    for value in BAD:
        cfg = base.copy()
        OmegaConf.update(cfg, name, value)
        try:
            checks.check(cfg, {name: str(value)})
            identity.resolve(cfg)
        except UserError as error:
            assert "\n" not in str(error) and name.rpartition(".")[2] in str(error), (value, error)
            assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "trainer.devices",
            (["auto", 1, 4, -1, "-1", "2", [0, 1], "0,1"], [0, -2, [], [0, 0], "two", 1.5, True, None]),
        ),
        ("trainer.max_time", (["00:12:00:00", "00:00:00:01", None], ["00:00:00:00", "12:00", 5, "1:99:00:00", True])),
        ("trainer.limit_train_batches", ([1, 7, 0.5, 1.0, None], [0, 0.0, 1.5, -1, True, "all", math.nan])),
        ("trainer.fast_dev_run", ([True, False, 3], [0, -1, 2.5, None, "yes"])),
        ("trainer.max_steps", ([-1, 1, 500], [0, -2, 1.0, None, True])),
        ("trainer.deterministic", ([True, False, "warn", None], ["yes", 1, 0])),
        ("trainer.accelerator", (["cpu", "auto", "gpu", "mps"], ["tpu", "hpu", "xla", 1, None])),
        ("trainer.log_every_n_steps", ([1, 50], [0, -1, 2.5, None, True])),
        ("optimizer.beta2", ([0, 0.5, 0.999], [1, 1.0, -0.1, None, True, "0.9"])),
        ("seed", ([0, 2**32 - 1], [-1, 2**32, 1.0, True, None])),
    ],
)
def test_what_core_settings_accept(name, values):
    described, (good, bad) = core_settings.CORE[name], values
    assert [value for value in good if not accepted.accepts(described, value)] == []
    assert [value for value in bad if accepted.accepts(described, value)] == []


def test_several_machines_need_a_launcher(monkeypatch):
    cfg = whole("trainer.num_nodes=2", "trainer.devices=4")
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"--ntasks-per-node=4.*torchrun --nnodes=2 --nproc-per-node=4"):
        checks.check_started(cfg)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    checks.check_started(cfg)


# What is claimed to matter does


CHANGES = [
    *("beta=3", "mask.threshold=0.6", "mask.cam=gradcam", "mask.layers=1", "mask.source=teacher", "mask=random"),
    *("fill=multi", "optimizer.lr=0.001", "optimizer.weight_decay=0.5", "optimizer.beta2=0.9"),
    *("optimizer.base_momentum=0.5", "optimizer.max_momentum=0.99", "optimizer.warmup=0.5", "seed=1"),
    *("data.batch_size=8", "data.holdout_seed=1", "data.data_seed=1", "data.correlation=0.5", "data.image_size=32"),
    *("trainer.gradient_clip_val=0.01", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"),
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.train_images=80"),
]


@pytest.mark.slow
def test_a_change_of_what_matters_changes_the_model(work):  # noqa: F811
    """Weights after four steps; the whole of it twice, so that a difference is no chance."""
    few = ("trainer.max_steps=4", "data.eval_images=8")

    def weights(name: str, *typed: str) -> str:
        do(work / name, *few, *typed)
        return hashlib.sha256((work / name / "model.safetensors").read_bytes()[-400_000:]).hexdigest()

    base = weights("base")
    assert weights("again") == base
    for line in CHANGES:
        assert weights(overrides.parse([line])[0].key_or_group + "_changed", line) != base, line
    clipped = weights("norm", "trainer.gradient_clip_val=0.01")
    assert weights("value", "trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value") != clipped
    kd = weights("kd", "method=kd", "mask=object")
    assert weights("temperature", "method=kd", "mask=object", "temperature=2") != kd


def test_limits_that_leave_nothing_are_refused_once_the_data_is_known(work):  # noqa: F811
    """Before the head is built, let alone an evaluation."""
    for line, expected in {
        "trainer.limit_train_batches=0.01": "there would be no step",
        "trainer.limit_val_batches=0.1": "trainer.limit_val_batches=0.1 of the 2 batch",
        "trainer.val_check_interval=1000": "trainer.val_check_interval=1000 is more than the 3 batches",
        "data.holdout=64": "leaves nothing to train on",
        "data.holdout=60": "only|more than the 4 training images",
        "trainer.strategy=deepspeed": "others do not work with two backward passes",
        "trainer.accelerator=mps": "trainer: ",
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("robustft.components.zeroshot_classifier", lambda *_, **__: pytest.fail("too late"))
            with pytest.raises(UserError, match=expected) as raised:
                do(work / "refused", line)
        assert "\n" not in str(raised.value)


def test_a_profile_is_written(work):  # noqa: F811
    do(work / "profiled", "trainer.profiler=simple", "trainer.max_steps=1", "data.eval_images=8")
    assert "run_training_batch" in (work / "profiled" / "fit-profile.txt").read_text()


def test_the_schedule_cycles_momentum_between_what_is_set():
    import torch

    from robustft.training.recipe import Recipe

    settings = {"lr": 1.0, "weight_decay": 0.0, "warmup": 0.5, "beta2": 0.9, "base_momentum": 0.5, "max_momentum": 0.7}
    recipe = Recipe(settings)
    optimizer = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters(), **recipe.adam)
    cycle = recipe.scheduler(optimizer, 10)
    seen = []
    for _ in range(9):
        seen.append(optimizer.param_groups[0]["betas"])
        optimizer.step()
        cycle.step()
    momenta, second = zip(*seen, strict=True)
    assert set(second) == {0.9} and momenta[0] == 0.7 and min(momenta) == pytest.approx(0.5, abs=1e-6)


def test_composed_small_config_is_the_commands():
    """`overrides.composed` puts settings in by itself: that gives what Hydra gives."""
    lines = [*SMALL, "method=kd", "mask=object", "mask.threshold=0.4", "data.sets.scenes_a=false", "optimizer.lr=1e-3"]
    assert overrides.composed([lines])[0] == composed(*lines[len(SMALL) :])
