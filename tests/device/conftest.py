"""These tests need a second device, which torch cannot forget again: they run in processes of their own.

``tests/test_second_device.py`` starts them; by hand: ``SECOND_DEVICE=1 python -m pytest tests/device``.
"""

import os

if os.environ.get("SECOND_DEVICE"):
    from tests.device import remote

    remote.set_up()
else:
    collect_ignore_glob = ["test_*.py"]
