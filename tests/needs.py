"""What some tests need that not every machine has: without it they are shown as skipped, with the reason."""

import os
import shutil
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Where REQUIRE_BROWSER is set, as in .ci/run, a missing one is a failure.
browser = pytest.mark.skipif(BROWSER is None and not os.environ.get("REQUIRE_BROWSER"), reason="no Chromium installed")

SHARED = Path(__file__).resolve().parents[2] / "shared"  # reference data that developers may have beside the project


def shared(path: str) -> pytest.MarkDecorator:
    """Skip a test where ``path`` is not among the developers' reference data."""
    return pytest.mark.skipif(not (SHARED / path).exists(), reason=f"no reference data: {path}")
