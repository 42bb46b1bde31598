"""The command line through the real command, with a stand-in for what comes after it: `experiment.run`."""

import inspect
import json
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from robustft.cli import checks, core_settings, identity, naming
from robustft.cli import main as cli
from robustft.cli.compose import parse, texts
from robustft.cli.plan import make_plan
from robustft.cli.sources import CONF, groups
from robustft.common import configs, processes, terminal
from robustft.common.errors import UserError, user_error

ROOT = CONF.parent
NAMES = """mask.threshold mask.rate mask.cam mask.source mask.layers beta temperature alpha
    model.pretrained model.architecture init teacher checkpoint checkpoints resume optimizer.lr
    optimizer.weight_decay optimizer.warmup trainer.max_epochs data.batch_size data.root data.holdout
    data.holdout_seed data.eval_images data.num_workers seed sweep check
    trainer.accumulate_grad_batches""".split()
SHIFTS = "imagenet imagenet_v2 imagenet_r imagenet_sketch objectnet imagenet_a".split()

# Python imports sitecustomize at its start: the command finds this in place of the real module.
STAND_IN = """
import json, pathlib, sys, types, zipfile

def run(cfg):
    from robustft.common import configs, errors
    folder = pathlib.Path(cfg.run_dir)
    with open(folder / "calls", "a") as calls:
        calls.write(f"{cfg.run_name} {cfg.resume}\\n")
    if cfg.beta == 3:
        raise errors.UserError("a mistake")
    if cfg.beta == 4:
        raise RuntimeError("a bug")
    if cfg.beta == 7 and cfg.resume is None:
        zipfile.ZipFile(folder / "last.ckpt", "w").close()  # as whole as an empty state can be
        raise KeyboardInterrupt
    results = {"schema": 1, "config": configs.plain(cfg)}
    (folder / "results.json").write_text(json.dumps(results))
    return results

module = types.ModuleType("robustft.experiment")
module.run = run
sys.modules["robustft.experiment"] = module
"""


@pytest.fixture
def command(tmp_path):
    """Runs `python run.py ARGUMENTS` in an empty folder."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    paths = [str(tmp_path / "stand_in"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(ROOT / "run.py"), *arguments]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def accept(*typed: str):
    """The checks of a single run."""
    checks.check(composed(*typed), texts(parse(typed)))


def test_every_promised_name_is_in_the_config():
    for arguments in ([], ["model=vitb32"], ["method=wiseft"]):
        cfg = composed(*arguments)
        missing = [name for name in NAMES if name not in dict(configs.flatten(configs.plain(cfg)))]
        assert not missing
    assert list(composed("model=vitb16").data.sets) == SHIFTS
    assert "correlation" in composed().data


def test_the_trainers_arguments_are_lightnings():
    signature = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    refused = {name.removeprefix("trainer.") for name in core_settings.REFUSED if name.startswith("trainer.")}
    described = {name.removeprefix("trainer.") for name in core_settings.CORE if name.startswith("trainer.")}
    for option in groups()["trainer"]:
        offered = set(composed(f"trainer={option}").trainer)
        assert offered == described == signature - refused and refused < signature, option


def test_the_recipe_comes_with_the_model():
    tiny, vit = composed(), composed("model=vitb32")
    recipe = "optimizer.lr optimizer.weight_decay optimizer.warmup beta data.batch_size trainer.max_epochs"
    assert [OmegaConf.select(vit, name) for name in recipe.split()] == [3e-5, 0.1, 0.02, 30.0, 512, 10]
    assert (tiny.optimizer.lr, tiny.beta, tiny.data.batch_size, tiny.trainer.max_epochs) == (5e-4, 1.0, 32, 5)
    assert [composed(model, "method=kd").beta for model in ("model=tiny", "model=vitb16")] == [0.1, 1.0]
    assert composed("method=kd", "beta=3").beta == 3
    assert "scenes" in tiny.data._target_ and "imagenet" in vit.data._target_
    assert "scenes" in composed("model=vitb32", "data=scenes").data._target_
    assert vit.mask.threshold == 0.3 and (vit.mask.kind, vit.fill.kind) == ("object", "single")


def test_every_method_and_mask_is_sound_as_it_comes():
    for method in groups()["method"]:
        cfg = composed(f"method={method}")
        for need in cfg.method.takes.needs:
            files = [str(ROOT / "run.py"), str(ROOT / "README.md")]
            cfg[need] = files if need == "checkpoints" else files[0]
        checks.check(cfg)
        identity.resolve(cfg)
        assert (cfg.mask.kind == "object") == (method == "counterfactual")
        assert (cfg.beta is None) == ("beta" not in cfg.method.takes.settings)
    for mask in groups()["mask"]:
        cfg = composed(f"mask={mask}")
        checks.check(cfg)
        identity.resolve(cfg)
        assert (cfg.fill.kind == "none") == (mask == "none")
        assert (cfg.mask.threshold is None) == (mask in ("none", "random"))
        assert (cfg.mask.rate is None) == (mask != "random")
    assert composed("mask=none", "method=kd").fill.kind == "none"
    checks.check(composed("method=kd", "mask=random", "fill=multi"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("mask.threshold=0", "mask.threshold=0: expected a number between 0 and 1"),
        ("mask.threshold=abc", "mask.threshold=abc"),
        ("mask=random mask.rate=1", "mask.rate=1"),
        ("mask=random mask.rate=null", "mask.rate has no value"),
        ("beta=-1", "beta=-1: expected a number, 0 or more"),
        ("beta=null", "beta has no value"),
        ("alpha=1.1", "alpha=1.1"),
        ("temperature=0", "temperature=0"),
        ("mask.cam=rollout", "one of relevance, gradcam"),
        ("mask.source=us", "one of student, teacher"),
        ("mask.layers=[a]", "mask.layers"),
        ("optimizer.lr=0", "optimizer.lr=0"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0"),
        ("trainer.max_steps=2.5", "trainer.max_steps=2.5"),
        ("data.batch_size=1", "fill=single takes patches from other images"),
        ("data.batch_size=4 trainer.accumulate_grad_batches=8", "cannot be split"),
        ("model=vitb32", "data.root is not set"),
        ("model=vitb32 data.root=/no/such/folder", "data.root=/no/such/folder: no such folder"),
        ("model.pretrained=weights.pt", "model.pretrained=weights.pt: no such file"),
        ("model=openclip", "model.architecture has no value"),
        ("method=wiseft", "method=wiseft needs checkpoint="),
        ("method=soup", "method=soup needs checkpoints="),
        ("method=evaluate checkpoint=nothing.safetensors", "checkpoint=nothing.safetensors: no such file"),
        ("method=finetune fill=multi", "method=finetune takes no mask or fill: leave out fill=multi"),
        ("method=finetune mask.threshold=0.4", "leave out mask.threshold=0.4"),
    ],
)
def test_what_cannot_work_is_refused(arguments, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        accept(*arguments.split())


def test_a_runs_folder_stands_for_its_model(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    cfg = composed("method=wiseft", f"checkpoint={tmp_path}")
    checks.check(cfg)
    assert cfg.checkpoint == str(tmp_path / "model.safetensors")


def test_scenes_are_not_rendered_among_other_things(tmp_path):
    cfg = composed(f"data.root={tmp_path}")
    checks.check(cfg)
    (tmp_path / "scenes_v2-0.safetensors").touch()
    checks.check(cfg)
    (tmp_path / "scenes_v2-0.safetensors").rename(tmp_path / "ILSVRC2012")
    with pytest.raises(UserError, match="choose model=vitb32"):
        checks.check(cfg)


@pytest.mark.slow
def test_bad_input_gets_one_message(command, tmp_path):
    cases = {
        "mask.treshold=0.3": "unknown setting 'mask.treshold'. Did you mean mask.threshold?",
        "lr=0.1": "Did you mean optimizer.lr",
        "maks=object": "Did you mean mask?",
        "mask=objekt": "Did you mean mask=object? Options: context, none, object, random",
        "+foo=1": "unknown setting 'foo'",
        "~beta": "cannot be removed",
        "foo": "'foo' is no command",
        "seed=1 foo": "'foo' is no setting",
        "checkpoint=a=b": "cannot read 'checkpoint=a=b'",
        "mask.threshold=1.5": "mask.threshold=1.5: expected a number between 0 and 1, both excluded",
        "mask=random mask.rate=0": "mask.rate=0",
        "method=finetune mask=object": "method=finetune takes no mask or fill: leave out mask=object",
        "model=vitb32 data.prepared=copies": "data.root is not set",
        "model=vitb32 check=data": "data.root is not set",
        "mask=none fill=single": "fill=single has nothing to fill with mask=none",
        "beta=1,3": "add -m",
        "-m beta=1,3 sede=1": "Did you mean seed?",
        "-m mask=object,nothing": "mask=nothing: no such option",
        "-m seed=1,2 trainer.devices=2": "a run of a sweep takes one device",
        "-m seed=1,2 sweep=a/b": "sweep=a/b",
        "resume=nowhere": "resume=nowhere: no such folder",
        "hydra.run.dir='a,b'": "hydra.run.dir=a,b",
        "hydra/launcher=foo": "hydra/launcher=foo: no such option",
        "sweep=foo": "sweep=foo names a sweep, and this is a single run: add -m",
        "overwrite=true": "say in which one, hydra.run.dir=DIR",
        "-m seed=1,2 --cfg job": "--cfg shows the config of one run",
        "data.root=/nowhere/scenes": "data.root=/nowhere/scenes: there is no folder /nowhere",
        "schedule=cosine": "Did you mean schedule=warmup_cosine",
        "optimizer.beta1=0.8": "optimizer.beta1=0.8 does nothing with schedule=one_cycle",
        "schedule=warmup_cosine optimizer.max_momentum=0.9": "does nothing with schedule=warmup_cosine",
        "method=zeroshot schedule=warmup_cosine": "schedule=warmup_cosine does nothing with method=zeroshot",
        "constraint.anchor=init": "constraint.anchor=init does nothing with constraint=none",
        "constraint=[nothing]": "constraint=nothing: no such option",
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(lambda line: command(*line.split()), cases)
        for (line, expected), answer in zip(cases.items(), answers, strict=True):
            assert answer.returncode == 1 and expected in answer.stderr, (line, answer.stderr)
            assert answer.stderr.count("\n") == 1 and "Traceback" not in answer.stdout + answer.stderr, line
    assert not (tmp_path / "runs").exists()


def test_processes_started_by_torchrun_need_one_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for launcher, variables in {
        "torchrun": {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"},
        "srun": {"SLURM_STEP_NUM_TASKS": "4"},
    }.items():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            for line, expected in {"method=finetune": "hydra.run.dir=DIR", "-m seed=1,2": "start it once"}.items():
                patch.setattr("sys.argv", ["run.py", *line.split()])
                assert cli.main() == 1
                said = capsys.readouterr().err
                assert said.startswith(f"error: {launcher}") and expected in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_sweeper_is_not_told_of_repeated_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    swept = ["-m", "mask=random,object", "mask.threshold=0.3,0.4"]
    added = make_plan(swept).arguments
    assert "hydra/sweeper=combinations" in added and "which is made once" in capsys.readouterr().out
    added = make_plan([*swept, "hydra/sweeper=basic"]).arguments
    assert "hydra/sweeper=combinations" not in added and "made once" not in capsys.readouterr().out


@pytest.mark.parametrize("variable", processes.RANKS)
def test_which_process_speaks(monkeypatch, variable):
    assert processes.is_first_process()
    monkeypatch.setenv(variable, "1")
    assert not processes.is_first_process()


def test_help_and_errors_come_at_once(command):
    for arguments, expected in (["--help"], "mask: context, none, object, random"), (["beta=-1"], ""):
        started = time.monotonic()
        answer = command(*arguments)
        assert time.monotonic() - started < 6 and expected in answer.stdout
    heavy = "import sys, robustft.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", heavy], cwd=ROOT).returncode == 0


def test_a_single_run_has_a_folder_of_its_own(command, tmp_path):
    assert command("mask=random", "+experiment=debug").returncode == 0
    (folder,) = tmp_path.glob("runs/counterfactual_random_single_tiny/*")
    results = json.loads((folder / "results.json").read_text())
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == results["config"]
    assert results["config"]["trainer"]["enable_checkpointing"] is True
    assert (folder / "run.log").read_text()
    assert command("beta=3", "hydra.run.dir=mine").stderr == "error: a mistake\n"
    assert (tmp_path / "mine" / "error.txt").read_text() == "a mistake\n"
    bug = command("beta=4")
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "RuntimeError: a bug" in bug.stderr


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_its_folder(command, tmp_path):
    assert command("beta=7", "seed=1").returncode == 130
    (folder,) = tmp_path.glob("runs/counterfactual_object_single_tiny/*")
    started = folder.relative_to(tmp_path)
    fresh = command("resume=auto", "beta=7", "hydra.run.dir=other")
    assert "found no interrupted run" in fresh.stdout and (tmp_path / "other" / "last.ckpt").exists()
    other = command(f"resume={started}", "beta=2")
    assert other.returncode == 1 and "beta=2.0 (there: 7.0)" in other.stderr
    assert command("resume=auto", "seed=1", "beta=7", "data.num_workers=0").returncode == 0
    assert (folder / "calls").read_text().splitlines()[1].split()[1] == str(folder)
    finished = command(f"resume={started}")
    assert finished.returncode == 1 and "that run is finished" in finished.stderr
    (folder / "results.json").unlink()
    assert command(f"resume={started}").returncode == 0  # what was typed then need not be typed again
    assert json.loads((folder / "results.json").read_text())["config"]["seed"] == 1


@pytest.mark.slow
def test_a_sweep_names_its_runs_lists_failures_and_goes_on(command, tmp_path):
    line = ("-m", "mask.threshold=0.3,0.4", "beta=1,3,4")
    answer = command(*line)
    folder = tmp_path / "runs" / "sweeps" / "threshold_beta"
    names = {f"threshold-{threshold}_beta-{beta}" for threshold in (0.3, 0.4) for beta in (1, 3, 4)}
    assert answer.returncode == 1 and {path.name for path in folder.iterdir() if path.is_dir()} == names
    assert "4 of the runs in runs/sweeps/threshold_beta failed" in answer.stderr
    assert "threshold-0.3_beta-3: a mistake\n" in answer.stderr
    assert "threshold-0.4_beta-4: RuntimeError: a bug\n" in answer.stderr
    again = command(*line)
    assert again.returncode == 1 and "threshold-0.3_beta-1: finished before, skipped" in again.stdout
    calls = {name: len((folder / name / "calls").read_text().splitlines()) for name in names}
    assert calls == {name: 1 if name.endswith("beta-1") else 2 for name in names}


@pytest.mark.slow
def test_a_sweep_never_overwrites_another(command, tmp_path):
    assert command("-m", "seed=1,2", "sweep=mine").returncode == 0
    other = command("-m", "seed=1,2", "sweep=mine", "beta=2")
    assert other.returncode == 1 and "beta=2.0 (there: 1.0). Name another sweep" in other.stderr
    assert command("-m", "seed=1,2", "beta=2").returncode == 0
    (folder,) = tmp_path.glob("runs/sweeps/seed-*")
    assert {path.name for path in folder.iterdir()} == {"multirun.yaml", "seed-1", "seed-2"}


@pytest.mark.slow
def test_presets_sweep_without_a_flag_and_groups_name_runs(command, tmp_path):
    assert command("experiment=sweep_masking", "seed=1", "mask=object,random").returncode == 0
    (folder,) = tmp_path.glob("runs/sweeps/sweep_masking-*")
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    assert names == {
        f"fill-{fill}_mask-{mask}" for fill in ("none", "single", "multi") for mask in ("object", "random")
    }


@pytest.mark.slow
def test_jobs_that_are_the_same_run_are_made_once(command, tmp_path):
    answer = command("-m", "mask=random,object", "mask.threshold=0.3,0.4")
    folder = tmp_path / "runs" / "sweeps" / "mask_threshold"
    assert answer.returncode == 0, answer.stderr
    same = "mask-random_threshold-0.4: the same run as mask-random_threshold-0.3, which is made once"
    assert answer.stdout.count("the same run as") == 1 and same in answer.stdout
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "mask-random_threshold-0.3", "mask-object_threshold-0.3", "mask-object_threshold-0.4"
    }  # fmt: skip
    again = command("-m", "mask=random,object", "mask.threshold=0.3,0.4")
    assert again.returncode == 0 and again.stdout.count("finished before, skipped") == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-m beta=1,x", "beta=x: expected a number, 0 or more (of the run beta-x; none was started)"),
        ("-m beta=1 seed=1,-1", "seed=-1: expected a whole number from 0 to 4294967295 (of the run seed--1"),
        ("-m method=finetune,evaluate", "needs checkpoint=...: the model.safetensors of a run (of the run method-eval"),
        ("-m method=evaluate checkpoint=run.py,no.safetensors", "no.safetensors: no such file"),
        ("-m seed=1,2 data.root=typo/scenes", "typo"),
        ("sweep=foo", "sweep=foo names a sweep, and this is a single run: add -m"),
        ("overwrite=true", "say in which one, hydra.run.dir=DIR"),
        ("overwrite=true resume=auto", "say in which one, hydra.run.dir=DIR"),
        ("-m seed=1,2 overwrite=true", "overwrite=true is for single runs"),
    ],
)
def test_what_cannot_work_or_means_nothing_is_refused_before_a_folder_is_made(monkeypatch, tmp_path, line, expected):
    monkeypatch.chdir(tmp_path)
    Path("run.py").touch()
    with pytest.raises(UserError, match=re.escape(expected)):
        make_plan(line.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]


def test_a_mistake_is_found_in_half_a_second():
    """Beyond the start of Python and Hydra, in processor time: nothing heavy is in the way of an answer."""
    code = """
import sys, time
import hydra, omegaconf, hydra.core.plugins
from robustft.cli import main as cli
sys.argv = ["run.py", "beta=-1"]
started = time.process_time()
assert cli.main() == 1
print(time.process_time() - started)
"""
    times = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.5


@pytest.mark.slow
def test_runs_in_other_processes_agree_on_names(command, tmp_path):
    answer = command("-m", "mask=object,random", "beta=1,3", "hydra/launcher=local")
    assert answer.returncode == 1 and "2 of the runs" in answer.stderr
    assert "mask-random_beta-1: runs/sweeps/mask_beta/mask-random_beta-1" in answer.stdout
    names = {path.parent.name for path in tmp_path.glob("runs/sweeps/mask_beta/*/results.json")}
    assert names == {"mask-object_beta-1", "mask-random_beta-1"}


def test_names_of_folders_can_be_typed_back():
    for value in ("a/b=c,d e", "x" * 200, None, [1, 2], -1, 1e-5):
        assert re.fullmatch(r"[\w.-]{1,60}", naming.slug(value))
    assert naming.slug("x" * 200) != naming.slug("x" * 201)
    assert naming.short_names(["mask.kind", "fill.kind", "beta"]) == ["mask.kind", "fill.kind", "beta"]


def test_a_mistake_is_found_inside_of_other_errors():
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = UserError("inner")
    from_worker = UserError(
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\nrobustft.common.errors.UserError: an image\n'
    )
    assert str(user_error(wrapped)) == "inner" and str(user_error(from_worker)) == "an image"
    assert user_error(RuntimeError()) is None


def test_runs_side_by_side_sign_their_lines(capsys):
    handler, logger = logging.StreamHandler(sys.stdout), logging.getLogger("robustft.test")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        with terminal.signed("beta-1"):
            logger.warning("evaluating")
            logger.warning("beta-1: finished before, skipped\nbeta-10 is another")
        logger.warning("evaluating")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().out == (
        "beta-1: evaluating\nbeta-1: finished before, skipped\nbeta-1: beta-10 is another\nevaluating\n"
    )
