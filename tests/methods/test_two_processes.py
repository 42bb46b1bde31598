"""Two processes take the step of one, for every method that trains, with and without masks."""

import pytest

from robustft.cli import described, sources
from tests.methods.test_flyp import tuned, two_processes_against_one
from tests.small import work  # noqa: F401 (a fixture)

TAKES = {name: described.takes("method", name) for name in sources.groups()["method"]}
TRAINING = [name for name, takes in TAKES.items() if takes["trains"]]
# Of the fills, that which takes no patches from the images that a process has: their pool is another one.
MASKED = ("mask=object", "fill=none")
PLAIN = [(name, ("mask=none",) if TAKES[name]["masks"] else ()) for name in TRAINING]
WITH_MASKS = [(name, MASKED) for name in TRAINING if TAKES[name]["masks"]]
OPENS = {"flyp": ("beta=3",)}  # where masks are idle as it comes


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings"), [*PLAIN, *WITH_MASKS], ids=str)
def test_two_processes_give_the_gradients_of_one(work, tmp_path, method: str, settings: tuple[str, ...]) -> None:  # noqa: F811
    """In float64, the gradients of the first step: of one process, of two, and of two with two micro-batches each."""
    more = OPENS.get(method, ()) if settings == MASKED else ()
    two_processes_against_one(tmp_path, f"method={method}", *settings, *more, f"init={tuned(work)}")
