"""W&B with and without a key, a network, a server that answers: no run waits for it or fails by it."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from robustft.cli.main import run_in
from robustft.common import network, wandb_connection
from robustft.common.errors import UserError
from robustft.report.wandb_files import read_logged
from robustft.training import tracking
from tests.small import assert_refused, command, composed, do, work  # noqa: F401 (a fixture)
from tests.wandb_server import Server, silent_server

RUN = ("method=finetune", "trainer.max_steps=2", "logger=wandb")


@pytest.fixture(autouse=True)
def fresh(work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:  # noqa: F811
    """No key, and nothing remembered of the tests before."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    network.reachable.cache_clear()
    yield
    wandb.teardown()


def use(monkeypatch: pytest.MonkeyPatch, url: str, key: str | None = "0" * 40) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture(params=["silent", "refused", "no such name"])
def dead(request: pytest.FixtureRequest) -> Iterator[str]:
    """Addresses at which nobody answers."""
    if request.param == "silent":
        with silent_server() as url:
            yield url
    else:
        yield closed_port() if request.param == "refused" else "http://w-and-b.invalid"


def test_a_server_that_does_not_answer_costs_seconds(dead: str) -> None:
    started = time.monotonic()
    assert not network.reachable(dead)
    assert not network.reachable(dead)  # asked once
    assert time.monotonic() - started < 4


def test_a_server_answers_also_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    assert network.answers(server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert network.answers("http://w-and-b.invalid")  # by way of the proxy
    monkeypatch.setenv("no_proxy", "w-and-b.invalid")
    assert not network.answers("http://w-and-b.invalid")
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    assert network.answers("https://w-and-b.invalid")  # only that proxy knows
    server.die()


@pytest.mark.slow
def test_with_a_key_and_no_network_a_run_logs_offline(dead: str, monkeypatch, tmp_path: Path, caplog) -> None:
    use(monkeypatch, dead)
    started = time.monotonic()
    with caplog.at_level("INFO"):
        record = do(tmp_path / "run", *RUN)
    assert time.monotonic() - started < 40 and record["holdout"]
    (said,) = [r.getMessage() for r in caplog.records if "W&B" in r.getMessage()]
    assert dead in said and "does not answer" in said and "wandb sync" in said and str(tmp_path / "run") in said
    wandb.teardown()  # as at the end of the process: until then its service may hold back what it has to write
    (logged,) = read_logged([tmp_path / "run"])
    assert "holdout/top1" in logged.summary
    assert list(tmp_path.glob("run/wandb/offline-run-*"))


def test_without_a_key_nothing_is_asked(monkeypatch, caplog) -> None:
    server = Server()
    use(monkeypatch, server.url, key=None)
    assert wandb_connection.mode(None) == "offline" and not server.asked
    server.die()


@pytest.mark.parametrize("key", [None, "0" * 40, "no key at all"])
def test_online_that_cannot_be_is_refused_before_time_is_spent(key, monkeypatch, tmp_path: Path) -> None:
    with silent_server() as url:
        use(monkeypatch, url, key)
        started = time.monotonic()
        with pytest.raises(UserError) as error:
            do(tmp_path / "run", *RUN, "logger.wandb.offline=false")
        assert time.monotonic() - started < 10
    assert "\n" not in str(error.value) and str(error.value).startswith("logger.wandb.offline=false: W&B")
    assert ("does not answer" if key == "0" * 40 else "no key") in str(error.value)
    assert not list((tmp_path / "run").glob("wandb"))


@pytest.mark.slow
def test_the_command_refuses_in_one_line(work: Path) -> None:  # noqa: F811
    with silent_server() as url:
        environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": ""}
        answer = command(work, *RUN, "logger.wandb.offline=false", **environment)
        assert_refused(answer, "logger.wandb.offline=false", "does not answer")


@pytest.mark.parametrize("variable", ["WANDB_MODE=disabled", "WANDB_DISABLED=true"])
def test_disabled_writes_nothing(variable: str, monkeypatch, tmp_path: Path) -> None:
    use(monkeypatch, "http://w-and-b.invalid")
    monkeypatch.setenv(*variable.split("="))
    assert do(tmp_path / "run", *RUN)["id"]
    assert not list(tmp_path.rglob("wandb*"))
    assert (tmp_path / "run" / "metrics.csv").is_file()


@pytest.mark.parametrize(("said", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")])
def test_what_the_environment_says(said: str, mode: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    assert wandb_connection.mode(None) == mode
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="WANDB_MODE=sometimes: expected online, offline or disabled"):
        tracking.check(composed(*RUN))
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="leave one"):
        wandb_connection.mode(False)


@pytest.mark.parametrize(
    "setting", ["offline=maybe", "offline=1", "log_model=all", "tags=3", "tags=[1]", "project=null", "group=7"]
)
def test_settings_that_cannot_be_are_refused(setting: str, tmp_path: Path) -> None:
    name, value = setting.split("=")
    with pytest.raises(UserError, match=rf"logger\.wandb\.{name}=.*: expected"):
        do(tmp_path / "run", *RUN, f"logger.wandb.{setting}")


@pytest.mark.slow
def test_online_it_logs_and_the_server_is_asked_once(monkeypatch, tmp_path: Path, capfd) -> None:
    server = Server()
    use(monkeypatch, server.url)
    for name in ("one", "two"):
        assert do(tmp_path / name, *RUN)["id"]
    assert network.reachable.cache_info().misses == 1  # of both runs
    assert {(tmp_path / name / "wandb_id.txt").read_text() for name in ("one", "two")} == set(server.runs)
    assert not list(tmp_path.rglob("offline-run-*"))
    assert "wandb" not in capfd.readouterr().err  # a run has a table of its own
    server.die()


def test_a_network_that_dies_on_the_way_costs_seconds(monkeypatch, tmp_path: Path, caplog) -> None:
    server = Server()
    use(monkeypatch, server.url)
    monkeypatch.setattr(tracking, "FINISH_S", 2.0)
    log_results, took = tracking.log_results, []

    def with_no_network(*arguments) -> None:
        server.die()
        started = time.monotonic()
        log_results(*arguments)
        took.append(time.monotonic() - started)

    monkeypatch.setattr("robustft.experiment.log_results", with_no_network)
    settings = ("logger.wandb.log_model=true", "trainer.enable_checkpointing=true")
    with caplog.at_level("WARNING"):
        assert do(tmp_path / "run", *RUN, *settings)["id"]
    assert took[0] < 15
    (said,) = [r.getMessage() for r in caplog.records if "W&B" in r.getMessage()]
    assert "wandb sync" in said and "\n" not in said
    wandb.teardown()  # as at the end of the process
    (logged,) = read_logged([tmp_path / "run"])
    assert "holdout/top1" in logged.summary


def test_a_dead_service_does_not_fail_a_run(monkeypatch, tmp_path: Path, caplog) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(tracking.WandbLogger, "log_metrics", fails)
    with caplog.at_level("WARNING"):
        assert do(tmp_path / "run", *RUN)["id"]
    assert len([r for r in caplog.records if "W&B failed (Connection lost)" in r.getMessage()]) == 1


def test_a_service_that_does_not_start_does_not_fail_a_run(monkeypatch, tmp_path: Path, caplog) -> None:
    """On a busy machine W&B's own process may not answer in time; asked again, it says that the id is in use."""
    answers = iter([TimeoutError("Timed out waiting for the service"), *[RuntimeError("run ID is in use")] * 99])

    def fails(**_: object) -> None:
        raise next(answers)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", fails)
    with caplog.at_level("WARNING"):
        assert do(tmp_path / "run", *RUN)["id"]
    said = [r.getMessage() for r in caplog.records if "W&B" in r.getMessage()]
    assert said == ["W&B failed (Timed out waiting for the service): nothing more is logged there. The run goes on"]


@pytest.mark.slow
def test_the_service_of_a_notebook_is_not_joined(work: Path) -> None:  # noqa: F811
    """It may still hold the id of a run that was killed; here there is none where it says."""
    environment = {"WANDB_MODE": "offline", "WANDB_SERVICE": "3-1-tcp-localhost-9"}
    answer = command(work, *RUN, "hydra.run.dir=alone", **environment)
    assert answer.returncode == 0 and "W&B" not in answer.stderr, answer.stderr
    wandb.teardown()
    (logged,) = read_logged([work / "alone"])
    assert "holdout/top1" in logged.summary


@pytest.mark.slow
def test_a_run_of_a_sweep_that_is_started_again_keeps_its_id(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for _ in range(2):
        run_in(composed(*RUN, "sweep=mine"), tmp_path / "job", [], sweep=True)
        ids.append((tmp_path / "job" / "wandb_id.txt").read_text())
        for left in ("results.json", "last.ckpt", "best.safetensors", "model.safetensors"):  # as if it had been killed
            (tmp_path / "job" / left).unlink(missing_ok=True)
    assert ids[0] == ids[1]
    (tmp_path / "job" / "predictions.csv.gz").unlink()
    do(tmp_path / "job", *RUN, "overwrite=true")  # another run in that folder, not of a sweep
    assert (tmp_path / "job" / "wandb_id.txt").read_text() != ids[0]
