"""Which process of a run this is, told from the environment, before torch is imported, and how long it lives."""

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import wait

from robustft.common.locks import here

# Set by torchrun, by SLURM, and by Lightning for the processes that it starts itself.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
LEADER = "ROBUSTFT_LEADER"  # the process that was started with the command, for those that it starts (see `here`)

_following: list[str] = []  # whom


def is_first_process() -> bool:
    """False in the further processes of a run on several devices: the first one writes and speaks for all."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def launched_together() -> str | None:
    """Who started several processes with the same command (torchrun, srun); None: this one was started alone."""
    for launcher, count in (("torchrun", "WORLD_SIZE"), ("srun", "SLURM_STEP_NUM_TASKS")):
        own = launcher != "torchrun" or "TORCHELASTIC_RUN_ID" in os.environ
        if own and os.environ.get(count, "1").isdigit() and int(os.environ.get(count, "1")) > 1:
            return launcher
    return None


def leave_foreign_service() -> None:
    """Have W&B start a process of its own: one of a notebook or script that started this command may still hold the id
    of a run that was killed. Before W&B is imported.
    """
    os.environ.pop("WANDB_SERVICE", None)


def follow() -> None:
    """Let this process end with the one that has started it for a run or a sweep, however that ends; else lead.

    Of two processes of a run, one that is killed would leave the other waiting for it, for up to half an hour; and a
    sweep that is killed would leave the runs that its launcher has begun.
    """
    own, leader = here(), os.environ.get(LEADER, "")
    if leader in (own, *_following):
        return
    place, _, number = leader.rpartition("-")
    if leader and place == own.rpartition("-")[0] and os.name == "posix":
        if number == str(os.getppid()):
            _following.append(leader)
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
            os.environ[LEADER] = own  # those that it starts itself follow it
            return
        by_lightning = os.environ.get("LOCAL_RANK", "0") != "0" and "SLURM_PROCID" not in os.environ
        if by_lightning and launched_together() is None:  # whoever started it is no more
            os._exit(1)
    os.environ[LEADER] = own


def end_with_parent() -> None:
    """Let this process end with the one that has started it by multiprocessing, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
