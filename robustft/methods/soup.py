"""Model soups: the mean of the weights of several fine-tuned models.

Wortsman et al.: Model soups, ICML 2022. The greedy soup takes the models in order of their hold-out accuracy and
keeps each that does not lower the soup's (their Recipe 1).
"""

import logging
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

from robustft.common.wording import counted
from robustft.methods.weights import State, add, with_weights
from robustft.models.classifier import Classifier

log = logging.getLogger(__name__)


def mean(
    checkpoints: Sequence[Path],
    load: Callable[[Path], Classifier],
    accuracy: Callable[[Classifier], float],
    zeroshot: Classifier,
    greedy: bool = False,
) -> Classifier:
    """Average the weights of ``checkpoints``: the uniform soup, or the greedy one.

    Args:
        accuracy: of a model on the hold-out, in 0…1.
    """
    if greedy:
        for path in checkpoints:  # all of them fit, before any is evaluated
            load(path)
        return greedy_soup(checkpoints, load, accuracy)
    total: State = reduce(lambda state, path: add(state, load(path)), checkpoints, {})
    return with_weights(zeroshot, total, len(checkpoints))


def greedy_soup(
    paths: Sequence[Path], load: Callable[[Path], Classifier], accuracy: Callable[[Classifier], float]
) -> Classifier:
    """Make the greedy soup; equally good models come in the order they are given. One is in memory at a time."""
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
    log.info("the soup is made of %d of %s", count, counted(len(paths), "model"))
    return soup
