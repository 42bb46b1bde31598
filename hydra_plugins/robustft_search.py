"""Where Hydra looks for sweepers: hydra/sweeper=optuna is `robustft.cli.search`, the usual one is here."""

from collections.abc import Sequence
from typing import Any

from robustft.cli import hydra_private, search


class HoldoutSearch(search.HoldoutSearch):
    """See there."""


class Combinations(hydra_private.basic_sweeper()):
    """Hydra's own sweeper, less the jobs at the positions in ``skip``."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None = None, skip: Sequence[int] = ()
    ) -> None:
        super().__init__(max_batch_size, params)
        self.skip, self.seen = set(skip), 0

    def get_job_batch(self) -> Any:
        batch = super().get_job_batch()
        numbered = list(enumerate(batch, self.seen))
        self.seen += len(numbered)
        return [job for number, job in numbered if number not in self.skip]
