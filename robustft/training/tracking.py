"""Loggers of a run: CSV, and Weights & Biases, which is offline unless the user is logged in or asks."""

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig

from robustft.common import configs, files
from robustft.common import wandb_connection as connection
from robustft.common.errors import UserError
from robustft.common.network import answers
from robustft.common.paths import readable
from robustft.common.processes import is_first_process
from robustft.common.wording import first_line
from robustft.training.lightning_private import keep_rows, read_rows, without_anonymous, write_whole

log = logging.getLogger(__name__)

WANDB_ID = "wandb_id.txt"
_COMPLETE = "the results are complete without"
# How long W&B may take to connect and, at the end, to send what is left; its own process starts late on a busy machine.
CONNECT_S, START_S, FINISH_S = 20.0, 60.0, 10.0


def make_loggers(cfg: DictConfig, folder: Path, resume_at: int | None = None) -> list[Logger]:
    """The configured loggers, writing into the run's folder.

    Args:
        resume_at: optimiser steps that an interrupted run has behind it: what was logged of them stays.

    See ``count_steps``, which tells them of the steps.
    """
    loggers: list[Logger] = []
    for kind, node in cfg.logger.items():
        options = configs.container(node, resolve=True)
        options.pop("_target_")
        if kind == "csv":
            loggers.append(_csv(folder, options, resume_at))
        elif (logger := _wandb(cfg, folder, options, resume_at)) is not None:
            loggers.append(logger)
    return loggers


# Lightning logs under a number of its own, from 0 in training and from 1 after it. These loggers write everything under
# the number of optimiser steps that are done; `steps` tells them (`count_steps`).


class StepCSVLogger(CSVLogger):
    """A resumed run does again what its last state did not know of; what was ``written`` then is not written twice."""

    steps: Callable[[], int] | None = None
    written: Collection[tuple[Any, ...]] = ()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        done = (step or 0) if self.steps is None else self.steps()
        if (done, *sorted(_told(metrics))) not in self.written:
            super().log_metrics(metrics, done)


class StepWandbLogger(WandbLogger):
    steps: Callable[[], int] | None = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, step if self.steps is None else self.steps())


def count_steps(loggers: Iterable[Logger], steps: Callable[[], int]) -> None:
    """Make ``steps`` say under which step the loggers of a run write."""
    for logger in loggers:
        if isinstance(logger, StepCSVLogger | StepWandbLogger):
            logger.steps = steps


def _told(row: Mapping[str, Any]) -> list[str]:
    """The names of what a row says something of."""
    return [name for name, value in row.items() if name not in ("step", "epoch") and value not in (None, "")]


def _csv(folder: Path, options: dict[str, Any], resume_at: int | None) -> CSVLogger:
    """Lightning's logger; a run that goes on drops what it finds behind step ``resume_at``.

    What a new run finds has gone before, or goes when it takes the place of what lies there.
    """
    path = folder / "metrics.csv"
    rows = []
    if resume_at is not None and path.is_file():
        rows = [row for row in read_rows(path) if row["step"].isdigit() and int(row["step"]) <= resume_at]
    logger = StepCSVLogger(save_dir=folder, name="", version="", **options)
    logger.written = {(int(row["step"]), *sorted(_told(row))) for row in rows}
    if is_first_process():
        if resume_at is not None:
            keep_rows(path, rows)
        write_whole(logger, list(rows[0]) if rows else [])
    return logger


def check(cfg: DictConfig) -> None:
    """Refuse a W&B that is asked to be online and cannot be, before time is spent.

    Raises:
        UserError: there is no key, or the server does not answer.
    """
    if "wandb" in cfg.logger:
        connection.mode(cfg.logger.wandb.offline)


class Wandb(StepWandbLogger):
    """Lightning's logger, whose own failures never fail a run: after the first it is left alone."""

    failed = False

    @property
    def experiment(self) -> Any:
        """W&B's run, started when first asked for; once W&B has failed, Lightning's stand-in that takes anything."""
        if self._experiment is None:
            self.attempt(self.connect)
        return DummyLogger().experiment if self.failed else super().experiment

    def attempt(self, call: Callable[[], object], then: str = "nothing more is logged there. The run goes on") -> None:
        """Call what uses W&B; where that fails, say so in one line and what follows (``then``)."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # its service has died or does not answer, the disk is full
            self.failed = True
            log.warning("W&B failed (%s): %s", first_line(error), then)

    def connect(self) -> None:
        """Start W&B's run, in the first process; what goes wrong is raised."""
        _ = super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.attempt(lambda: super(Wandb, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        self.attempt(lambda: super(Wandb, self).log_hyperparams(params))

    def finalize(self, status: str) -> None:
        self.attempt(lambda: super(Wandb, self).finalize(status))


def _wandb(cfg: DictConfig, folder: Path, options: dict[str, Any], resume_at: int | None) -> WandbLogger | None:
    """None where W&B is disabled."""
    import wandb

    explicit, tags = options.pop("offline"), options.pop("tags")
    options.pop("log_model")  # is done in `log_results`: Lightning's way knows only its own checkpoints
    mode = connection.mode(explicit) if is_first_process() else "offline"  # the others log nothing
    if wandb.run is not None:  # of a run that failed, earlier in this process: it must not take in what comes now
        _finish(exit_code=1)
    folder.mkdir(parents=True, exist_ok=True)
    if mode == "disabled":
        return None
    again = resume_at is not None
    arguments = {
        "save_dir": folder,
        "name": cfg.run_name,
        "id": _run_id(folder, keep=again or cfg.sweep is not None),
        "resume": "allow" if again else None,  # None: what a run that is started again had logged gives way
        "config": dict(configs.flatten(configs.plain(cfg))),
        "tags": default_tags(cfg) if tags is None else tags,
        **options,
    }
    if mode == "online":
        online = _logger(arguments, "online", CONNECT_S)
        try:
            online.connect()
            return online
        except wandb.errors.Error as error:
            reason = f"W&B at {connection.host()} cannot be logged to ({first_line(error)})"
            if explicit is False:
                raise UserError(f"logger.wandb.offline=false: {reason}. {connection.ADVICE}") from error
            _say_offline(folder, reason)
    elif explicit is None and is_first_process() and connection.has_key() and connection.asked_for() == "online":
        _say_offline(folder, f"W&B at {connection.host()} does not answer")
    return _logger(arguments, "offline", START_S)


def _logger(arguments: dict[str, Any], mode: str, timeout_s: float) -> Wandb:
    import wandb

    limits = {"init_timeout": timeout_s, "finish_timeout": FINISH_S, "finish_timeout_raises": True}
    fields = wandb.Settings.model_fields  # older versions have no limit for the end
    known: dict[str, Any] = {name: value for name, value in limits.items() if name in fields}
    # Lightning's own `offline` would set WANDB_MODE for all that follows in this process.
    logger = Wandb(offline=False, mode=mode, settings=wandb.Settings(**known), **arguments)
    without_anonymous(logger)
    return logger


def _say_offline(folder: Path, reason: str) -> None:
    log.info("%s: logging offline. To send it later: wandb sync %s/wandb/offline-run-*", reason, readable(folder))


def default_tags(cfg: DictConfig) -> list[str]:
    """What the run is, to filter by: method, mask and fill where it has them, model."""
    masks = [] if cfg.mask.kind == "none" else [f"mask={cfg.mask.kind}", f"fill={cfg.fill.kind}"]
    return [cfg.method.name, *masks, cfg.model.name]


def _run_id(folder: Path, keep: bool) -> str:
    """W&B's id of the run in ``folder``: one that goes on, or is started again in a sweep, keeps its own."""
    aside = folder / files.ASIDE  # a run that is to replace another leaves its id alone until then
    path = (aside if aside.is_dir() else folder) / WANDB_ID
    if not is_first_process():
        return "of-the-first-process"  # the others log nothing
    if not keep or not path.exists():
        files.write(path, secrets.token_hex(4))
    return path.read_text().strip()


def log_results(
    loggers: Sequence[Logger], scores: dict[str, float], record: dict[str, Any], gallery: Sequence[Path]
) -> None:
    """The run's result: scores as summary metrics everywhere; on W&B the table of sets and the gallery too.

    The model follows as an artifact where ``logger.wandb.log_model`` asks for it and the run has kept one.
    """
    for logger in loggers:
        if not isinstance(logger, Wandb):
            logger.log_metrics({f"final/{name}": value for name, value in scores.items()})
            logger.finalize("success")
            continue
        logger.attempt(partial(_log_to_wandb, logger, scores, record, gallery), _COMPLETE)
        logger.finalize("success")
        _finish(folder=Path(str(logger.save_dir)))


def _log_to_wandb(
    logger: WandbLogger, scores: dict[str, float], record: dict[str, Any], gallery: Sequence[Path]
) -> None:
    import wandb

    run = logger.experiment
    run.summary.update({**scores, "wall_s": record["wall_s"]})
    run.log({f"gallery/{path.stem}": wandb.Image(str(path)) for path in gallery})
    if not run.offline and not answers(connection.host()):
        return  # what follows asks the server first
    columns = ["model", "set", "top1", "images", *record["metrics"]]
    run.log({"results": wandb.Table(columns=columns, data=_rows(record))})
    if record["config"]["logger"]["wandb"]["log_model"] and record["checkpoint"]:
        _log_model(run, Path(str(logger.save_dir)) / record["checkpoint"], scores)


def _finish(folder: Path | None = None, exit_code: int | None = None) -> None:
    """End the W&B run; a network that is gone by now costs ``FINISH_S`` and a line."""
    import wandb

    try:
        wandb.finish(exit_code=exit_code)
    except Exception as error:  # not all was sent, or the service is dead
        if folder is not None:
            log.warning(
                "W&B did not get all of this run (%s). To send it: wandb sync %s/wandb/run-*",
                first_line(error),
                folder,
            )


def _log_model(run: Any, path: Path, scores: dict[str, float]) -> None:
    """Hand the model over; where it can be sent, wait for as long as the server answers."""
    import wandb
    from wandb.sdk.artifacts.exceptions import WaitTimeoutError

    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=scores)
    artifact.add_file(str(path))
    logged = run.log_artifact(artifact)
    while not run.offline and answers(connection.host()):
        try:
            logged.wait(timeout=5)
        except WaitTimeoutError:
            continue
        break


def _rows(record: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for model, block in (("zero-shot", record["zeroshot"]), (record["method"], record)):
        if block is None:
            continue
        scores = {block["id"]["name"]: block["id"], **block["ood"]}
        scores |= {"holdout": block["holdout"]} if block["holdout"] else {}
        measured = ("top1", "n", *record["metrics"])
        rows += [[model, name, *(score.get(key) for key in measured)] for name, score in scores.items()]
    return rows
