"""Model soups: the mean of the weights of several fine-tuned models.

Wortsman et al.: Model soups, ICML 2022. The greedy soup takes the models in order of their hold-out accuracy and
keeps each that does not lower the soup's (their Recipe 1).
"""

import logging
from collections.abc import Callable, Sequence
from functools import reduce

from robustft.common.errors import UserError
from robustft.experiment import Run
from robustft.methods.weights import State, add, with_weights
from robustft.models.classifier import Classifier
from robustft.models.files import model_files
from robustft.training.loop import Trained

log = logging.getLogger(__name__)


def make(run: Run) -> Trained:
    paths = expand(run.cfg.checkpoints)
    if run.cfg.method.greedy:
        for path in paths:  # all of them fit, before any is evaluated
            run.load(path)
        return Trained(greedy(paths, run.load, holdout_accuracy(run)))
    total: State = reduce(lambda state, path: add(state, run.load(path)), paths, {})
    return Trained(with_weights(run.zeroshot, total, len(paths)))


def greedy(
    paths: Sequence[str], load: Callable[[str], Classifier], accuracy: Callable[[Classifier], float]
) -> Classifier:
    """The greedy soup; models as good as each other come in the order they are given. One is in memory at a time."""
    alone = {path: accuracy(load(path)) for path in paths}
    first, *rest = sorted(paths, key=lambda path: -alone[path])
    soup, total, count, best = load(first), add({}, load(first)), 1, alone[first]
    log.info("hold-out %.2f%%: starts with %s", 100 * best, first)
    for path in rest:
        larger = add(total, load(path))
        candidate = with_weights(soup, larger, count + 1)
        found = accuracy(candidate)
        keeps = found >= best
        log.info("hold-out %.2f%% with %s: %s", 100 * found, path, "kept" if keeps else "left out")
        if keeps:
            soup, total, count, best = candidate, larger, count + 1, found
    log.info("the soup is made of %d of %d models", count, len(paths))
    return soup


def holdout_accuracy(run: Run) -> Callable[[Classifier], float]:
    """Measures a model on the hold-out of the run's data.

    Raises:
        UserError: there is none.
    """
    run.data.setup("validate")
    sets = [s for s in run.data.sets if s.name == "holdout"]
    if not sets:
        raise UserError("data.holdout=0: the greedy soup chooses by the hold-out. Leave data.holdout to its default.")
    return lambda model: run.evaluate(model, sets).scores["holdout"].top1


def expand(checkpoints: str | Sequence[str]) -> list[str]:
    """The files meant by a list of files, folders of runs and globs: in its order, those of a glob by name, none twice.

    Raises:
        UserError: there are none.
    """
    return [str(path) for path in model_files(checkpoints)]
