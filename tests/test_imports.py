"""Imports without the garbage collector, which is as it was afterwards."""

import gc

import pytest

from robustft.common import imports


def test_garbage_is_collected_again_afterwards():
    before = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError), imports.quick():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > before + len(kept)
        gc.disable()
        with imports.quick():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
