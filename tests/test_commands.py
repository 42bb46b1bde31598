"""Commands beside a run, configs of the user's own, and paths as they are typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import robustft
from robustft.cli import commands, compose, sources
from robustft.cli import main as cli
from robustft.cli.sources import CONF
from robustft.common import entry, paths
from robustft.common.cache import cache_folder
from robustft.common.errors import UserError
from robustft.report.runs import find_files
from tests.small import prepared
from tests.test_cli import STAND_IN

ROOT = CONF.parent


@pytest.fixture(autouse=True)
def own_state(monkeypatch, tmp_path):
    """What a command leaves behind in the process it runs in."""
    monkeypatch.setattr(sources, "_added", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """The command in this process: exit status, output, error output."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    try:
        status = cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def command(tmp_path):
    """Runs `python run.py ARGUMENTS` with a stand-in for the run itself."""
    place = tmp_path / "stand_in"
    place.mkdir()
    (place / "sitecustomize.py").write_text(STAND_IN)

    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
        line = [sys.executable, str(ROOT / "run.py"), *arguments]
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)

    return run


# -- commands


def test_the_first_word_is_a_command():
    assert commands.find(["report", "runs"]) == "report"
    assert [commands.find(line) for line in ([], ["beta=3"], ["-m"], ["--help"], ["~beta"])] == [None] * 5
    with pytest.raises(UserError, match="'dashbord' is no command. Did you mean dashboard?"):
        commands.find(["dashbord"])
    with pytest.raises(UserError, match="a setting is written name=value"):
        commands.find(["xyzzy"])


def test_commands_are_reached_and_listed(monkeypatch, capsys):
    _, listed, _ = call(monkeypatch, capsys, "--help")
    for name in commands.COMMANDS:
        assert f"python run.py {name}" in listed
    status, said, _ = call(monkeypatch, capsys, "report", "--help")
    assert status == 0 and said.startswith("usage: python run.py report")
    status, _, said = call(monkeypatch, capsys, "report", "nowhere")
    assert status == 1 and said.startswith("error: There is nothing at nowhere")
    status, _, said = call(monkeypatch, capsys, "check", "model=vitb32")
    assert status == 1 and said.startswith("error: data.root is not set")


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("/usr/bin/robustft", "robustft bench"),
        ("/home/me/clone/run.py", "python run.py bench"),
        ("/site/robustft/bench/__main__.py", "python -m robustft.bench"),
        ("/site/robustft/__main__.py", "python -m robustft bench"),
    ],
)
def test_a_command_says_how_it_was_called(monkeypatch, called, expected):
    monkeypatch.setattr(sys, "argv", [called])
    assert entry.program("bench") == expected


def test_a_command_inside_of_a_room_says_how_it_was_called(monkeypatch):
    for place in ("/site", "/home/me/robustft"):  # a clone has the package's name
        monkeypatch.setattr(sys, "argv", [f"{place}/robustft/report/dashboard.py"])
        assert entry.program("dashboard") == "python -m robustft.report.dashboard"


def test_every_command_can_be_imported_and_has_a_main():
    for command in commands.COMMANDS.values():
        assert command.settings or (sources.PACKAGE.parent / f"{command.module.replace('.', '/')}.py").is_file()


NAMES = """
import json, sys
from robustft.cli import commands
for line in json.loads(sys.stdin.read()):
    try:
        status = commands.run(line[0], line[1:])
    except SystemExit as stop:
        status = stop.code
    print(line[0], status)
    assert "torch" not in sys.modules, line
"""


def test_mistakes_and_help_are_told_before_torch_is_imported(tmp_path):
    lines = {
        ("bench", "--model", "vit"): "invalid choice: 'vit' (choose from",
        ("bench", "--batch", "0"): "--batch=0: expected a whole number, 1 or more",
        ("bench", "--methods", "finetun"): "--methods finetun: no such method. There are",
        ("bench", "--methods", "linear_probe"): "--methods linear_probe: it has no step through the image tower",
        ("bench", "--peak-of", "nothing"): "--peak-of=nothing: expected one of vanilla",
        ("example", str(tmp_path)): "is there already: give a new folder",
        ("example", "new", "--images", "0"): "--images=0: expected a whole number",
        ("compare", "finetun"): "Did you mean finetune?",
        ("app", "nowhere"): "nowhere: no such file or folder",
        ("report", "nowhere"): "There is nothing at nowhere",
        **{(name, "--help"): "" for name, one in commands.COMMANDS.items() if not one.settings},
    }
    (tmp_path / "file").touch()
    asked = subprocess.run(
        [sys.executable, "-c", NAMES],
        **{"input": json.dumps(list(lines)), "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "cwd": tmp_path},
        **{"capture_output": True, "text": True, "timeout": 100},
    )
    assert asked.returncode == 0, asked.stderr
    for line, words in lines.items():
        assert words in asked.stderr, f"{line}: {asked.stderr}"
    status = re.findall(r"^(\w+) (\d)$", asked.stdout, re.MULTILINE)
    assert [name for name, _ in status] == [line[0] for line in lines]
    assert [code == "0" for _, code in status] == [line[-1] == "--help" for line in lines]


# -- configs of the user's own


@pytest.fixture
def own(tmp_path) -> Path:
    folder = tmp_path / "ours" / "own"
    for name, text in {
        "experiment/mine.yaml": "# @package _global_\nseed: 7\n",
        "mask/small.yaml": "defaults: [object]\nthreshold: 0.77\n",
        "colour/blue.yaml": "shade: 3\n",
        "data/mine.yaml": "defaults: [scenes]\n_target_: beside.Data\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder.parent / "beside.py").write_text("from robustft.data.scenes import ScenesData as Data\n")
    return folder


def test_own_configs_are_known_everywhere(monkeypatch, capsys, own):
    place = ("--config-dir", str(own))
    _, said, _ = call(monkeypatch, capsys, *place, "experiment=mine", "mask=small", "+colour=blue", "--cfg", "job")
    assert "seed: 7" in said and "threshold: 0.77" in said and "shade: 3" in said
    _, said, _ = call(monkeypatch, capsys, *place, "--help")
    assert "mask: context, none, object, random, small" in said and "colour: blue" in said
    _, _, said = call(monkeypatch, capsys, *place, "mask=smal")
    assert "Did you mean mask=small?" in said
    _, _, said = call(monkeypatch, capsys, *place, "+colour=bleu")
    assert "Did you mean colour=blue?" in said
    assert str(own.parent) in sys.path and str(own.parent) in os.environ["PYTHONPATH"].split(os.pathsep)


def test_own_configs_that_cannot_be_are_refused(monkeypatch, capsys, own):
    status, _, said = call(monkeypatch, capsys, "--config-dir=nowhere", "seed=1")
    assert status == 1 and said.startswith("error: --config-dir=nowhere: no such folder") and said.count("\n") == 1
    (own / "mask" / "object.yaml").write_text("kind: object\nthreshold: 0.9\n")  # ours would be used
    status, _, said = call(monkeypatch, capsys, f"--config-dir={own}", "seed=1")
    assert status == 1 and "mask/object.yaml has the name of one of robustft's own" in said
    for refused in ("--config-path=x", "--config-name=x", "hydra.searchpath=[x]"):
        status, _, said = call(monkeypatch, capsys, refused, "seed=1")
        assert status == 1 and "--config-dir DIR" in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_run_with_own_configs_goes_on_with_them(command, own, tmp_path):
    first = command("--config-dir", "ours/own", "experiment=mine", "beta=7", "hydra.run.dir=mine", "+colour=blue")
    assert first.returncode == 130, first.stderr
    assert (tmp_path / "mine" / sources.RECORD).read_text() == f"{own}\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = command(f"resume={tmp_path / 'mine'}", cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["config"]["seed"] == 7
    (tmp_path / "mine" / "results.json").unlink()
    own.rename(own.with_name("moved"))
    gone = command(f"resume={tmp_path / 'mine'}")
    assert gone.returncode == 1 and f"configs in {own}, which is no more" in gone.stderr
    assert gone.stderr.count("\n") == 1
    moved = command(f"resume={tmp_path / 'mine'}", "--config-dir", str(own.with_name("moved")))
    assert moved.returncode == 0, moved.stderr


def test_a_module_that_is_not_found_is_one_line(tmp_path):
    with pytest.raises(UserError, match="data._target_=nothing.Data: cannot be imported .*--config-dir"):
        prepared(tmp_path, "data._target_=nothing.Data").data  # noqa: B018


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sede: 7", "experiment=wrong: unknown setting 'sede' in it. Did you mean seed?"),
        ("mask:\n  treshold: 0.5", "unknown setting 'mask.treshold' in it. Did you mean mask.threshold?"),
        ("beta: [3", "wrong.yaml"),
        ("logger:\n  csv: null\nmask:\n  threshold: 0.5", ""),
    ],
)
def test_a_misspelt_name_in_ones_own_preset_is_found(monkeypatch, capsys, own, text, expected):
    (own / "experiment" / "wrong.yaml").write_text(f"# @package _global_\n{text}\n")
    status, _, said = call(monkeypatch, capsys, f"--config-dir={own}", "experiment=wrong", "--cfg", "job")
    assert status == bool(expected) and expected in said and said.count("\n") == bool(expected)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local", "submitit_local"])
def test_own_configs_and_modules_are_found_in_launched_runs(own, tmp_path, launcher):
    small = """data=mine data.train_images=32 data.holdout=8 data.test_images=8 data.batch_size=8 trainer=cpu
        trainer.max_steps=1 model.pretrained=null data.sets.scenes_v2=false data.sets.scenes_r=false
        data.sets.scenes_sketch=false logger=none""".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(tmp_path / "cache")}
    line = [sys.executable, str(ROOT / "run.py"), "-m", "--config-dir", str(own), "mask=small,object", *small]
    done = subprocess.run(
        [*line, f"hydra/launcher={launcher}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = {path.parent.name for path in tmp_path.glob("runs/sweeps/*/*/results.json")}
    assert found == {"mask-small", "mask-object"}


# -- paths


@pytest.mark.parametrize(
    "text",
    [
        "it's",
        'a "b"',
        "a b",
        "a (1)",
        "Müller/日本",
        "a\\",
        "a\\'",
        "\\\\'\\",
        "a\\b",
        "a=b,c",
        "[x]",
        "~/x",
        "'",
        "\"'",
    ],
)
def test_any_text_is_quoted_for_hydra(text):
    override = OverridesParser.create().parse_override(f"name={paths.quote(text)}")
    assert override.value() == text
    shown = paths.typed("name", text)  # through a shell, to the command
    (argument,) = subprocess.run(
        [sys.executable, "-c", "import shlex, sys; print(*shlex.split(sys.argv[1]), sep='\\n')", shown],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    (override,) = compose.parse([argument])
    assert override.value() == text


@pytest.mark.parametrize(
    "path", ["it's", "~/data", "/home/Müller/日本", "/data/a (1)", "/a[1]=b", "a&b;c", "Müller's (old)"]
)
def test_a_path_need_not_be_quoted(path):
    (override,) = compose.parse([f"data.root={path}"])
    assert override.value() == path
    (again,) = compose.parse([str(override.input_line)])
    assert again.value() == path


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("checkpoint=ü,it's,/b", ["ü", "it's", "/b"]),
        ("checkpoints=[it's, /ü,b]", ["it's", "/ü", "b"]),
        ("mask.layers=[ü,1]", ["ü", 1]),
    ],
)
def test_several_paths_need_no_quotes_either(argument, expected):
    (override,) = compose.parse([argument])
    (again,) = compose.parse([str(override.input_line)])
    for read in (override, again):
        value = read.value()
        assert (
            value if isinstance(value, list) else [getattr(one, "text", one) for one in read.sweep_iterator()]
        ) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("+colour=blue", "unknown setting 'colour'. A group of your own comes with --config-dir DIR"),
        ("logger=none logger.wandb.project=x", "It belongs to logger=wandb, which is not chosen"),
        ("logger=csv logger.wandb.tags=x", "It belongs to logger=wandb, which is not chosen"),
        ("model=vitb32 data.root=. data.correlation=1", "It belongs to data=scenes, which is not chosen"),
        ("model.backbone=timm", "It belongs to model=timm, which is not chosen"),
        ("metric=top1 metric.ece.bins=3", "It belongs to metric=ece, which is not chosen"),
        ("mask.treshold=0.3", "Did you mean mask.threshold?"),
        ("trainer.precision=7", "one of auto, 32-true, bf16-mixed, 16-mixed, 32, bf16, 16\n"),
    ],
)
def test_hints(monkeypatch, capsys, line, expected):
    status, _, said = call(monkeypatch, capsys, *line.split())
    assert status == 1 and expected in said and said.count("\n") == 1, said


def test_help_lists_settings_alone(command):
    said = command("--help").stdout
    assert "takes:" not in said and "threshold: 0.3" in said and "lr: ${model.recipe.lr}" in said, said


@pytest.mark.parametrize(
    ("argument", "character"),
    [("a=b=c", "="), ("beta=rang(1)", "("), ("data.root='/ü,/b", "'"), ("a=[[ü]]", "["), ("a='b", "'"), ("a=1)", ")")],
)
def test_a_character_that_needs_quotes_is_named(argument, character):
    with pytest.raises(UserError, match=re.escape(f"it holds {character!r}. If that is text, put it in quotes")):
        compose.parse([argument])


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["Müller's (old) runs", "~/x"])
def test_a_run_and_a_sweep_go_where_they_are_told(command, tmp_path, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / folder.replace("~", "home")
    assert command(f"hydra.run.dir={paths.quote(folder)}", "beta=7").returncode == 130
    again = command(f"resume={paths.quote(folder)}")
    assert again.returncode == 0 and (expected / "results.json").exists(), again.stderr
    assert command("-m", "seed=1,2", f"hydra.sweep.dir={paths.quote(folder + '-s')}").returncode == 0
    assert (expected.with_name(expected.name + "-s") / "seed-2" / "results.json").exists()
    assert not (tmp_path / "~").exists()


def test_home_folders_are_known_to_all(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ROBUSTFT_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "results.json").touch()
    for pattern in ("~/runs", "~/ru*"):
        assert [file.path for file in find_files([pattern])] == [tmp_path / "runs" / "a" / "results.json"]
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "nothing"))):
        robustft.load("~/nothing")
    with pytest.raises(UserError, match="no home folder"):
        paths.expand("~nobody-of-that-name/x")


def test_a_windows_line_end_is_called_that(monkeypatch, capsys):
    for argument in ("seed=1\r", "data.root=/a\r", "report\r"):
        status, _, said = call(monkeypatch, capsys, argument)
        assert status == 1 and "Windows line end" in said and said.count("\n") == 1
    monkeypatch.setenv("ROBUSTFT_CACHE", "/tmp/cache\r")
    with pytest.raises(UserError, match="Windows line end"):
        cache_folder()


# -- places that cannot be, and what means nothing


def test_impossible_places_are_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for line in (
        "hydra.run.dir=/proc/x",
        "hydra.run.dir=file",
        "hydra.run.dir=file/x",
        "-m seed=1,2 hydra.sweep.dir=/proc/x",
        "-m seed=1,2 hydra.sweep.dir=file/x",
        "bench --model tiny --json /proc/x/b.json",
        "bench --model tiny --json runs",
        "dashboard runs --out file/x",
    ):
        status, _, said = call(monkeypatch, capsys, *line.split())
        assert status == 1 and said.startswith("error: ") and said.count("\n") == 1, (line, said)
        assert any(place in said for place in ("=/proc/x", "=file", "=runs")), said


@pytest.mark.slow
def test_the_speed_of_a_missing_folder(tmp_path):
    line = [sys.executable, str(ROOT / "experiments/speed/loader.py"), "nowhere"]
    answer = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1 and answer.stderr.startswith("error: nowhere/ILSVRC2012/train: no such folder")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-m seed=1", "nothing is swept"),
        ("-m", "nothing is swept"),
        ("-m seed=1,2 hydra/launcher=lokal", "Did you mean hydra/launcher=local?"),
        ("-m seed=1,2 hydra/sweeper=optun", "Did you mean hydra/sweeper=optuna?"),
        ("-m seed=1,2 hydra/launcher=local hydra.launcher.n_jobs=0", "n_jobs=0: expected"),
        ("-m seed=1,2 hydra/launcher=local hydra.launcher.n_jobs=two", "hydra.launcher.n_jobs=two"),
        ("-m seed=1,2 hydra/sweeper=optuna hydra.sweeper.n_jobs=0", "n_jobs=0: expected"),
        ("-m seed=1,2 hydra/sweeper=optuna hydra.sweeper.trials=0", "trials=0: expected"),
        ("hydra.run.dir='a,b'", "holds ','"),
        ("hydra.run.dir='a=b'", "holds '='"),
    ],
)
def test_what_means_nothing_is_refused(monkeypatch, capsys, tmp_path, line, expected):
    status, _, said = call(monkeypatch, capsys, *line.split())
    assert status == 1 and said.startswith("error: ") and expected in said and said.count("\n") == 1, said


def test_a_sweep_of_one_that_has_a_name_runs(command, tmp_path):
    answer = command("-m", "seed=1", "sweep=mine")
    assert answer.returncode == 0 and "nothing is swept: one run, in runs/sweeps/mine" in answer.stdout
    assert (tmp_path / "runs" / "sweeps" / "mine" / "run" / "results.json").exists()


def test_extras_that_are_missing_say_how_to_get_them(monkeypatch):
    loader = "hydra._internal.config_loader_impl.ConfigLoaderImpl.get_group_options"
    monkeypatch.setattr(loader, lambda *_: ["basic", "local", "slurm"])
    for launcher, extra in {"local": "joblib", "joblib": "joblib", "slurm": "submitit"}.items():
        with pytest.raises(UserError, match=re.escape(f'pip install "robustft[{extra}]"')):
            compose.compose_first(compose.parse([f"hydra/launcher={launcher}"]))
