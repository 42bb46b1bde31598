"""Where Hydra looks for sweepers: hydra/sweeper=optuna is `robustft.search`."""

from robustft import search


class HoldoutSearch(search.HoldoutSearch):
    """See there."""
