"""A sweep that chooses its runs: Optuna looks for the settings with the best hold-out accuracy.

    python run.py -m hydra/sweeper=optuna beta='tag(log, interval(0.1, 30))' mask.threshold='interval(0.2, 0.7)'

The hold-out is part of the training images: there is no way to ask for another objective, because settings that
were chosen by OOD accuracy say nothing about OOD. The study is kept in the sweep's folder: the same command goes on
with it, and more trials can be asked for later. (Hydra's own Optuna plugin needs an Optuna from before 2023.)
"""

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from robustft.cli import compose, hydra_private, naming
from robustft.cli.hydra_private import IntervalSweep, JobReturn, Override
from robustft.common.errors import UserError, install
from robustft.common.locks import locked
from robustft.common.wording import counted

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

JOURNAL = "optuna.log"


class HoldoutSearch(Sweeper):
    """Hydra's interface to the search.

    Args:
        trials: runs with a result, in all: those of earlier calls count.
        n_jobs: runs that are chosen at a time, for launchers that run several.
        seed: of the sampler.
        params: what is searched, as on the command line: `interval(a, b)` for numbers between a and b, tagged `log`
            or `int` where they are meant so, and lists of values.
    """

    def __init__(self, trials: int, n_jobs: int, seed: int, params: dict[str, Any] | None = None) -> None:
        at_a_time = n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)  # as joblib counts
        self.trials, self.n_jobs, self.seed, self.params = trials, at_a_time, seed, params or {}
        self.launcher: Launcher | None = None
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = hydra_private.launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> float:
        """Run what is left of the trials; the best hold-out accuracy of all."""
        assert self.config is not None and self.launcher is not None
        if find_spec("optuna") is None:
            raise UserError(f"hydra/sweeper=optuna needs Optuna: {install('optuna')}")
        if self.trials < 1:
            raise UserError(f"hydra.sweeper.trials={self.trials}: expected how many runs to make in all, 1 or more")
        folder = Path(self.config.hydra.sweep.dir)
        asked = {override.key_or_group: override for override in compose.parse([*self._preset(), *arguments])}
        constants = [str(override.input_line) for override in asked.values() if not override.is_sweep_override()]
        space = {key: distribution(override) for key, override in asked.items() if override.is_sweep_override()}
        if not space:
            raise UserError("nothing to search: give at least one setting as interval(a, b) or as a list of values")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Another one would take the trials that are under way for those of a search that was killed.
            with locked(folder / "search", wait=False):
                OmegaConf.save(self.config, folder / "multirun.yaml")
                return self._search(open_study(folder, space, self.seed), space, constants)
        except BlockingIOError:
            raise UserError(f"another process is at work on this search, in {folder}") from None

    def _search(self, study: "Study", space: "dict[str, BaseDistribution]", constants: list[str]) -> float:
        assert self.launcher is not None
        done, begun = len(_complete(study)), len(study.trials)
        if done:
            print(f"search by hold-out accuracy: {done} of {counted(self.trials, 'trial')} done before")
        while done < self.trials:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.trials - done))]
            batch = [constants + typed(trial.params) for trial in trials]
            self.validate_batch_is_legal(batch)
            results = self.launcher.launch(batch, initial_job_idx=begun)
            for trial, result in zip(trials, results, strict=True):
                tell(study, trial, result)
            done, begun = done + len(trials), begun + len(trials)
        return self._say_best(study)

    def _preset(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.params.items()]

    def _say_best(self, study: "Study") -> float:
        complete = _complete(study)
        if not complete:
            raise UserError("no trial of the search has a result: their errors are above")
        best = study.best_trial
        print(
            f"best of {counted(len(complete), 'trial')} by hold-out accuracy, {best.value:.1%}:"
            f" {' '.join(typed(best.params))}"
        )
        return float(best.values[0])


def distribution(override: Override) -> "BaseDistribution":
    """Choose what Optuna draws a setting from.

    Raises:
        UserError: an interval without its bounds in order, or a logarithmic one that contains 0.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    interval = override.value()
    if not isinstance(interval, IntervalSweep):
        return CategoricalDistribution(compose.values(override))
    kind: Any = IntDistribution if "int" in interval.tags else FloatDistribution
    number = int if "int" in interval.tags else float
    assert interval.start is not None and interval.end is not None
    try:
        return kind(number(interval.start), number(interval.end), log="log" in interval.tags)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def open_study(folder: Path, space: "dict[str, BaseDistribution]", seed: int) -> "Study":
    """Open the study in a sweep's folder, or make it; trials without a result are queued again."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name=f"holdout-{naming.digest(repr(sorted(space.items())))}",  # another space is another study
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
    State = optuna.trial.TrialState
    for trial in study.get_trials(states=[State.RUNNING]):  # the search was killed
        study.tell(trial.number, state=State.FAIL)
    known = [trial.params for trial in study.get_trials(states=[State.COMPLETE])]
    known += [trial.system_attrs["fixed_params"] for trial in study.get_trials(states=[State.WAITING])]
    for trial in study.get_trials(states=[State.FAIL]):
        if trial.params not in known:
            study.enqueue_trial(trial.params)
            known.append(trial.params)
    return study


def tell(study: "Study", trial: "Trial", result: JobReturn) -> None:
    """Report a run to the study: its hold-out accuracy, or that it failed."""
    from optuna.trial import TrialState

    record = result.return_value  # None after an error, which is shown at the end
    if record is None:
        study.tell(trial, state=TrialState.FAIL)
        return
    if not record["holdout"]:
        raise UserError("a search needs a hold-out, and these runs have none")
    study.tell(trial, record["holdout"]["top1"])


def typed(params: dict[str, Any]) -> list[str]:
    """Drawn values as they would be typed: numbers with three digits, which is plenty and keeps names short."""
    return [f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()]


def _complete(study: "Study") -> Sequence[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=[TrialState.COMPLETE])
