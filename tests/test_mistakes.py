"""Every mistake of the catalogue is told in one line, and leaves nothing that looks finished."""

from pathlib import Path

import pytest

from tests import mistakes

LINES = [line for kind in mistakes.MISTAKES.values() for line in kind]


def test_they_are_a_hundred_different_ones():
    assert len(LINES) == len(set(LINES)) >= 100


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_is_told_in_one_line(tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    wrong = [
        f"{line}: {fault}: {answer.said}"
        for _, line, words, answer in mistakes.run_all(here)
        for fault in mistakes.faults(words, answer)
    ]
    assert not wrong, "\n".join(wrong)
    assert not (here / "pwned").exists()  # nothing in a file was run
