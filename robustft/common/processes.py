"""Which process of a run this is, told from the environment, before torch is imported."""

import os

# Set by torchrun, by SLURM, and by Lightning for the processes that it starts itself.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


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
