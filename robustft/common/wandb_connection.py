"""Whether W&B is used online, offline or not at all: what is asked for, whether there is a key, whether it answers."""

import os
from typing import Any

from robustft.common.errors import UserError
from robustft.common.network import reachable
from robustft.common.wording import short

ADVICE = "Without the setting the run logs offline, and `wandb sync` sends it later."


def mode(offline: bool | None) -> str:
    """How W&B is used: online, offline or disabled.

    Args:
        offline: what the user asks for; None: online where there is a key and the server answers.

    Raises:
        UserError: it is to be online and cannot.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # before W&B first reads its settings
    asked = asked_for()
    if asked == "disabled":
        return "disabled"
    if offline is False and asked == "offline":
        raise UserError("logger.wandb.offline=false, but W&B is set to offline (WANDB_MODE): leave one out")
    if offline or (offline is None and asked == "offline"):
        return "offline"
    if not has_key():
        if offline is False:
            raise UserError(
                "logger.wandb.offline=false: W&B has no key here. Give it one (wandb login, or WANDB_API_KEY=...)."
                f" {ADVICE}"
            )
        return "offline"
    if not reachable(host()):
        if offline is False:
            raise UserError(f"logger.wandb.offline=false: W&B at {host()} does not answer. {ADVICE}")
        return "offline"
    return "online"


def asked_for() -> str:
    """Read the environment and W&B's settings files: online (also where they say nothing), offline or disabled.

    Raises:
        UserError: WANDB_MODE is none of those.
    """
    if os.environ.get("WANDB_MODE") == "":  # means unset; W&B does not take it
        del os.environ["WANDB_MODE"]
    said = os.environ.get("WANDB_MODE") or str(_settings().mode)
    found = {"dryrun": "offline", "run": "online", "shared": "online"}.get(said, said)
    if found not in ("online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE={said}: expected online, offline or disabled")
    return "disabled" if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true") else found


def host() -> str:
    """Give the address of W&B's server."""
    return os.environ.get("WANDB_BASE_URL") or str(_settings().base_url)


def _settings() -> Any:
    """W&B's, of the environment and its files; starts nothing."""
    from wandb.sdk import wandb_setup

    try:
        return wandb_setup.singleton().settings
    except ValueError as error:  # pydantic's
        what = short(" ".join(str(error).split()), 200)
        raise UserError(f"W&B cannot read its settings ({what}): see the variables WANDB_*") from error


def has_key() -> bool:
    """Whether the user has logged in to W&B; asks nobody over the network."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except (wandb.errors.Error, ValueError):  # not of the form of a key
        return False
