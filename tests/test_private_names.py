"""The private names of others that are relied on are there and do what they are taken for: one test a name."""

import ast
import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from robustft.cli import hydra_private
from robustft.cli import main as _resolvers  # noqa: F401
from robustft.cli.sources import CONF
from robustft.training import fused
from robustft.training import lightning_private as private
from tests.small import ROOT

BATCHES = 3


# Lightning


class Counting(LightningModule):
    """Looks at its trainer after every micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, bool, bool]] = []
        self.order: list[str] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.order.append("step")
        return self.weight * batch.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.order.append("evaluation")

    def on_train_batch_end(self, *_: object) -> None:
        trainer = self.trainer
        counts = private.micro_batches_done(trainer), private.is_last_batch(trainer), private.validates_next(trainer)
        self.seen.append(counts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, checkpoint: Path | None = None, **limits: object) -> tuple[Trainer, Counting]:
    module, loader = Counting(), DataLoader(torch.ones(BATCHES), batch_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, **quiet, **limits)
    trainer.fit(module, loader, loader, ckpt_path=checkpoint)
    return trainer, module


def test_where_a_trainer_stands(tmp_path):
    _, module = fit(tmp_path, max_epochs=1, val_check_interval=2)
    assert module.seen == [(1, False, False), (2, False, True), (3, True, False)]
    assert module.order == ["step", "step", *["evaluation"] * BATCHES, "step"]


def test_attached(tmp_path):
    assert not private.is_attached(Counting())
    assert private.is_attached(fit(tmp_path, max_epochs=1)[1])


def test_the_loops_of_a_checkpoint(tmp_path):
    trainer, _ = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "within")
    trainer, _ = fit(tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "over")
    within, over = (torch.load(tmp_path / name, weights_only=False) for name in ("within", "over"))
    assert (private.next_micro_batch(within), private.next_micro_batch(over)) == (2, 0)
    before = within["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
    private.describe_as_evaluated(within, epoch_is_over=True)
    assert within["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] == before + 1


def test_epochs_are_counted_once(tmp_path):
    """Of two epochs the first is over when the state is saved: with max_steps one more is to come, not none."""
    trainer, _ = fit(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "state")
    module, loader = Counting(), DataLoader(torch.ones(BATCHES), batch_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=2 * BATCHES, limit_val_batches=0, **quiet)
    private.count_epochs_once(trainer)
    trainer.fit(module, loader, ckpt_path=tmp_path / "state")
    assert trainer.current_epoch == 2 and Counter(module.order) == {"step": BATCHES}


def test_buffers_that_devices_keep_to_themselves():
    module = Counting()
    private.leave_to_each_device(module, ["counts"])
    parallel = torch.nn.parallel.DistributedDataParallel
    assert module._ddp_params_and_buffers_to_ignore == ["counts"]
    assert "_ddp_params_and_buffers_to_ignore" in Path(parallel.__init__.__code__.co_filename).read_text()


def test_wandb_is_not_told_of_anonymity(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert "anonymous" in logger._wandb_init
    private.without_anonymous(logger)
    assert "anonymous" not in logger._wandb_init


# Hydra and OmegaConf


def test_hydra_s_own_options():
    typed = ["seed=1", "-m", "--config-dir", "mine", "beta=2", "--cfg", "job"]
    read = hydra_private.command_line().parse_intermixed_args(typed)
    assert read.overrides == ["seed=1", "beta=2"]
    assert (read.multirun, read.config_dir, read.cfg) == (True, "mine", "job")
    others = ("config_name", "config_path", "experimental_rerun", "help", "hydra_help", "shell_completion", "info")
    assert not any(getattr(read, name) for name in others)


@pytest.mark.parametrize(
    ("typed", "key", "values", "kind"),
    [
        ("seed=1", "seed", ["1"], None),
        ("+extra.name=x", "extra.name", ["x"], "add"),
        ("++seed=1", "seed", ["1"], "force_add"),
        ("~seed=1", "seed", ["1"], "delete"),
        ("mask=object,random", "mask", ["object", "random"], "sweep_override"),
        ("beta=interval(1,3)", "beta", None, "interval_sweep"),
    ],
)
def test_what_is_asked_of_a_setting_that_was_typed(typed, key, values, kind):
    override = hydra_private.override_reader()(typed)
    assert (override.key_or_group, str(override.input_line)) == (key, typed)
    told = {name: getattr(override, f"is_{name}")() for name in ("add", "force_add", "delete", "interval_sweep")}
    assert told == dict.fromkeys(told, False) | ({kind: True} if kind in told else {})
    if kind == "interval_sweep":
        found = override.value()
        assert isinstance(found, hydra_private.IntervalSweep) and (found.start, found.end) == (1, 3)
    elif override.is_sweep_override():
        assert list(override.sweep_string_iterator()) == values
    else:
        assert [override.get_value_element_as_str()] == values
    with pytest.raises(HydraException):
        hydra_private.override_reader()("seed=[")


def test_options_of_plugins():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert {"basic", "local", "slurm"} <= set(hydra_private.options_there("hydra/launcher"))
        assert {"basic", "combinations", "optuna"} <= set(hydra_private.options_there("hydra/sweeper"))


def test_a_launcher_for_a_sweeper_of_our_own():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
        made = hydra_private.launcher(context, lambda cfg: None, config)
    assert isinstance(made, Launcher) and callable(made.launch)


def test_hydra_s_sweeper_and_ours():
    asked = [hydra_private.override_reader()(typed) for typed in ("seed=1,2,3", "beta=4")]
    Plugins.instance()  # runs their modules
    from hydra_plugins.robustft_search import Combinations

    batches = []
    for sweeper in (hydra_private.basic_sweeper()(None), Combinations(None, skip=[1])):
        sweeper.overrides = sweeper.split_arguments(asked, None)
        assert not sweeper.is_done()
        batches.append(sweeper.get_job_batch())
        assert sweeper.is_done()
    assert batches[0] == [["seed=1", "beta=4"], ["seed=2", "beta=4"], ["seed=3", "beta=4"]]
    assert batches[1] == [batches[0][0], batches[0][2]]


def test_a_config_s_child_as_it_is_written():
    node = OmegaConf.create({"a": "${nowhere}", "b": {"c": 1}, "d": "???"})
    assert str(hydra_private.as_written(node, "b")) == "{'c': 1}"
    assert hydra_private.as_written(node, "a") is not None and hydra_private.as_written(node, "d") is not None


# Others


def test_what_a_cpu_multiplies():
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        assert isinstance(getattr(torch.cpu, name)(), bool)


def test_lists_of_tensors():
    """Each of torch's multi-tensor functions against plain arithmetic."""
    a, b = ([torch.randn(shape) for shape in ((3,), (2, 4))] for _ in range(2))
    factors = torch.tensor([0.5, 3.0])

    def same(made, wanted):
        assert len(made) == len(wanted) == 2 and all(torch.allclose(*pair) for pair in zip(made, wanted, strict=True))

    def changed(function, *arguments):
        made = [each.clone() for each in a]
        function(made, *arguments)
        return made

    pairs = list(zip(a, b, strict=True))
    same(fused.norms(a), [each.square().sum().sqrt() for each in a])
    same(fused.differences(a, b), [x - y for x, y in pairs])
    same(fused.quotients(a, b), [x / y for x, y in pairs])
    same(changed(fused.add_, b, -2.0), [x - 2 * y for x, y in pairs])
    same(fused.dots(a, b), [(x * y).sum() for x, y in pairs])
    same(changed(fused.divide_, b), [x / y for x, y in pairs])
    same(changed(fused.put_sums_, b, a, b), [y + x * y for x, y in pairs])
    same(changed(fused.shift_, 0.5), [x + 0.5 for x in a])
    same(changed(fused.limit_, 0.5), [x.clamp(max=0.5) for x in a])
    rows = [torch.tensor(2.0), torch.tensor([[2.0], [3.0]])]  # of fewer elements
    same(fused.quotients(a, rows), [x / y for x, y in zip(a, rows, strict=True)])
    for given in (factors, factors.tolist()):
        same(changed(fused.scale_, given), [x * factor for x, factor in zip(a, factors, strict=True)])
    same(changed(fused.move_, b, 0.25), [0.75 * x + 0.25 * y for x, y in pairs])


def test_a_dashboard_s_specification():
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    made = workspaces.Workspace(entity="me", project="robustft", name="ID and OOD")
    assert isinstance(made._spec, dict) and json.dumps(made._spec)


def test_a_hugging_face_table_says_which_one_it_is():
    datasets = pytest.importorskip("datasets")
    one, other = (datasets.Dataset.from_dict({"label": [label]}) for label in (0, 1))
    assert isinstance(one._fingerprint, str) and one._fingerprint != other._fingerprint


def test_a_csv_loggers_rows_stay(tmp_path):
    """Of `_experiment`, and of two methods that our writer has otherwise: Lightning's delete, and write anew."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n1,2\n")
    logger = CSVLogger(tmp_path, name="", version="")
    private.write_whole(logger, ["step", "a"])
    assert path.read_text() == "step,a\n1,2\n"
    logger.log_metrics({"b": 3.0}, step=2)
    logger.save()
    first, second = private.read_rows(path)
    assert (first["step"], first["a"], first["b"]) == ("1", "2", "")
    assert (second["step"], second["a"], second["b"]) == ("2", "", "3.0")
    assert type(logger.experiment) is private.KeptRows


def test_a_device_without_images_stays_in_an_evaluation():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    private.evaluate_on_every_device(trainer)
    for loop in (trainer.validate_loop, trainer.fit_loop.epoch_loop.val_loop):
        for devices, batches, skips in ((1, [0], True), (2, [0], False), (2, [0, 3], False), (2, [], True)):
            loop._max_batches = batches
            loop.trainer = SimpleNamespace(world_size=devices, sanity_checking=False)
            assert loop.skip == skips


# Where each is asked for, from robustft/ on.
PLACES = {
    "training/lightning_private.py": {
        "_trainer", "_should_check_val_fx", "_data_fetcher", "_wandb_init", "_experiment",
        "fit_loop", "epoch_loop", "batch_progress",
    },
    "cli/hydra_private.py": {"_get_node"},
    "models/open_clip_private.py": {"_embeds", "_pool"},
    "models/timm_private.py": {"_pos_embed"},
    "training/fused.py": {
        "_foreach_norm", "_foreach_sub", "_foreach_div", "_foreach_div_", "_foreach_add_",
        "_foreach_mul_", "_foreach_lerp_", "_foreach_clamp_max_",
    },
    "training/trainer.py": {"_is_avx512_bf16_supported", "_is_amx_tile_supported"},
    "report/dashboard.py": {"_spec"},
    "data/own/huggingface.py": {"_fingerprint"},
}  # fmt: skip
PUBLIC = {"_replace", "_asdict", "_target_", "_exit"}  # documented, in spite of the line
LOOPS = {"fit_loop", "epoch_loop", "batch_progress"}  # Lightning's, without one


def test_nowhere_else():
    """No other file of ours asks an object of somebody else's for a private name."""
    for path in (ROOT / "robustft").rglob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            own |= isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if not own and (node.attr.startswith("_") or node.attr in LOOPS):
                found.add(node.attr)
        assert found - PUBLIC == PLACES.get(str(path.relative_to(ROOT / "robustft")), set()), path


def test_hydra_s_inner_modules_are_imported_in_one_file():
    allowed = {"hydra.core.hydra_config"}  # documented
    for path in [*(ROOT / "robustft").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        inner = {name for name in modules if name.startswith(("hydra._internal", "hydra.core"))} - allowed
        assert not inner or path.name == "hydra_private.py", path


@pytest.mark.parametrize("package", ["lightning", "hydra-core", "omegaconf", "open_clip_torch", "timm"])
def test_versions_have_an_upper_bound(package):
    """A release that may have moved a private name is not taken before it has been tried."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (line,) = (line for line in project["dependencies"] if re.match(rf"{package}[^\w-]", line))
    assert ",<" in line, line
