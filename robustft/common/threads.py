"""How many threads a run computes with on the CPU: one number per model and usable cores, never chosen by load.

The number changes the last digits of what is computed, so it is part of what a run records and resumes with. What pays
off for a model was measured (experiments/speed) and stands in its recipe.
"""

import os
import sys

# How often a thread looks whether the others are done before it sleeps. libgomp's own default, 150 times more, lets
# threads burn the time of those that they wait for as soon as another process shares the cores.
SPINS = "2000"
# As the user has it, before `use` sets it for a run: others of a sweep may have another model.
ASKED = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
# Names the same in processes that a launcher starts: joblib sets OMP_NUM_THREADS there by the number of its workers.
CARRIED = "ROBUSTFT_ASKED_THREADS"


def usable_cores() -> int:
    """Physical cores this process may use: what affinity and a container's limits leave."""
    from loky import cpu_count

    return cpu_count(only_physical_cores=True)


def choose(most: int | None, processes: int = 1) -> int:
    """The number of threads of each of ``processes`` that train together on this machine.

    Args:
        most: threads that pay off for the model; None: as many as there are cores.

    Example:
        >>> choose(most=1)
        1
    """
    asked = os.environ.get(CARRIED, ASKED)
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = max(1, usable_cores() // processes)
    return cores if most is None else min(most, cores)


def sleep_early() -> None:
    """Let threads that wait leave the cores to others; has an effect before torch is imported only."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def use(count: int) -> None:
    """Compute with ``count`` threads from now on, in this process and those it starts.

    Libraries read their settings when they are loaded, so this belongs before the first import of torch; afterwards
    torch alone is told.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    sleep_early()
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
