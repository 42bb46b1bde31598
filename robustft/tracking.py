"""Loggers of a run: CSV, and Weights & Biases, which is offline unless the user is logged in or asks."""

import csv
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig

from robustft import config
from robustft.cache import is_first_process

WANDB_ID = "wandb_id.txt"


def make_loggers(cfg: DictConfig, folder: Path, resume_at: int | None = None) -> list[Logger]:
    """The configured loggers, writing into the run's folder.

    Args:
        resume_at: optimiser steps that an interrupted run has behind it: what was logged of them stays.

    See ``count_steps``, which tells them of the steps.
    """
    loggers: list[Logger] = []
    for kind, node in cfg.logger.items():
        options = config.container(node, resolve=True)
        options.pop("_target_")
        if kind == "csv":
            loggers.append(_csv(folder, options, resume_at))
        else:
            loggers.append(_wandb(cfg, folder, options))
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
    """Lightning's logger, which deletes what it finds: the rows up to step ``resume_at`` are put back."""
    path = folder / "metrics.csv"
    rows, names = [], []
    if resume_at is not None and path.is_file():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row["step"].isdigit() and int(row["step"]) <= resume_at]
            names = list(reader.fieldnames or [])
    logger = StepCSVLogger(save_dir=folder, name="", version="", **options)
    logger.written = {(int(row["step"]), *sorted(_told(row))) for row in rows}
    if rows and is_first_process():
        writer = logger.experiment
        with path.open("w", newline="") as file:
            lines = csv.DictWriter(file, names)
            lines.writeheader()
            lines.writerows(rows)
        writer.metrics_keys = names
    return logger


def _wandb(cfg: DictConfig, folder: Path, options: dict[str, Any]) -> WandbLogger:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if wandb.run is not None:  # of a run that failed, earlier in this process: it must not take in what comes now
        wandb.finish(exit_code=1)
    folder.mkdir(parents=True, exist_ok=True)
    offline, tags = options.pop("offline"), options.pop("tags")
    options.pop("log_model")  # is done in `log_results`: Lightning's way knows only its own checkpoints
    if offline is None:
        offline = not logged_in()
    logger = StepWandbLogger(
        save_dir=folder,
        name=cfg.run_name,
        id=_run_id(folder),
        resume="allow",
        offline=offline,
        mode="offline" if offline else "online",
        config=dict(config.flatten(config.plain(cfg))),
        tags=default_tags(cfg) if tags is None else tags,
        **options,
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever its value
    return logger


def default_tags(cfg: DictConfig) -> list[str]:
    """What the run is, to filter by: method, mask and fill where it has them, model."""
    masks = [] if cfg.mask.kind == "none" else [f"mask={cfg.mask.kind}", f"fill={cfg.fill.kind}"]
    return [cfg.method.name, *masks, cfg.model.name]


def logged_in() -> bool:
    """Whether W&B has a key and is not told to stay offline."""
    import wandb

    return os.environ.get("WANDB_MODE", "online") == "online" and wandb.login(prompt=False, verify=False)


def _run_id(folder: Path) -> str:
    """W&B's id of the run in ``folder``: a resumed run goes on under the same one."""
    path = folder / WANDB_ID
    if not is_first_process():
        return "of-the-first-process"  # the others log nothing
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def log_results(
    loggers: Sequence[Logger], accuracies: dict[str, float], record: dict[str, Any], gallery: Sequence[Path]
) -> None:
    """The run's result: accuracies as summary metrics everywhere; on W&B the table of sets and the gallery too.

    The model follows as an artifact where ``logger.wandb.log_model`` asks for it and the run has kept one.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            run.summary.update({**accuracies, "wall_s": record["wall_s"]})
            table = wandb.Table(columns=["model", "set", "top1", "images"], data=_rows(record))
            run.log({"results": table} | {f"gallery/{path.stem}": wandb.Image(str(path)) for path in gallery})
            if record["config"]["logger"]["wandb"]["log_model"] and record["checkpoint"]:
                _log_model(run, Path(str(logger.save_dir)) / record["checkpoint"], accuracies)
        else:
            logger.log_metrics({f"final/{name}": value for name, value in accuracies.items()})
        logger.finalize("success")
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def _log_model(run: Any, path: Path, accuracies: dict[str, float]) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=accuracies)
    artifact.add_file(str(path))
    run.log_artifact(artifact)


def _rows(record: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for model, block in (("zero-shot", record["zeroshot"]), (record["method"], record)):
        if block is None:
            continue
        scores = {block["id"]["name"]: block["id"], **block["ood"]}
        scores |= {"holdout": block["holdout"]} if block["holdout"] else {}
        rows += [[model, name, score["top1"], score["n"]] for name, score in scores.items()]
    return rows
