"""Counts, cut messages and lists in messages."""

import re
from pathlib import Path

import pytest

from robustft.common.errors import UserError
from robustft.common.wording import counted, difference, first_line, noun, short
from robustft.deploy.push import push
from tests.small import ROOT


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_281_167, "1,281,167 images")]
)
def test_counts_agree_with_their_nouns(number: int, words: str) -> None:
    assert counted(number, "image") == words


def test_other_plurals_are_said() -> None:
    assert [counted(n, "copy", "copies") for n in (1, 2)] == ["1 copy", "2 copies"]
    assert [noun(n, "is", "are") for n in (1, 2)] == ["is", "are"]


def test_no_noun_is_left_to_guess() -> None:
    things = "image|run|row|model|trial|file|word|problem|folder|device|batch|class|copy|seed|round"
    guess = re.compile(rf"\b({things})\((s|es)\)")
    counted_by_hand = re.compile(rf"\{{len\([^{{}}]*\)(:,)?\}} (\w+ )?({things})(e?s)\b")
    for path in (ROOT / "robustft").rglob("*.py"):
        for text in re.findall(r'"(?:[^"\\\n]|\\.)*"', path.read_text()):
            assert not guess.search(text) and not counted_by_hand.search(text), f"{path}: {text}"


def test_long_texts_are_cut_between_words() -> None:
    text = "We couldn't connect to the hub. An error happened while it was loaded"
    for most in range(20, len(text)):
        cut = short(text, most)
        assert len(cut) <= most and cut.endswith(" …"), cut
        kept = cut.removesuffix(" …")
        assert text.startswith(kept) and not text[len(kept)].isalnum(), cut
    assert short(text, len(text)) == text
    assert short("x" * 30, 20) == "x" * 19 + "…"
    assert short("see " + "x" * 30, 20) == "see " + "x" * 15 + "…"  # a path, an address


def test_what_an_error_says_is_one_line() -> None:
    assert first_line(OSError("gone " * 50)).endswith("gone …") and len(first_line(OSError("gone " * 50))) <= 160
    assert first_line(RuntimeError("\n one\ntwo")) == "one"
    assert first_line(RuntimeError("  ")) == first_line(RuntimeError()) == "RuntimeError"


def test_no_message_is_cut_inside_of_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cutting = re.compile(r"str\(error\S*\).*\[:\d+\]|repr\(.*\)\[:\d+\]|!r:\.\d+|str\(error\S*\)\.splitlines\(\)\[0\]")
    places = [path for path in (ROOT / "robustft").rglob("*.py") if cutting.search(path.read_text())]
    assert not places

    class Hub:
        def create_repo(self, *_: object, **__: object) -> str:
            raise OSError("No connection to the hub, and nothing is in the cache. " * 3 + "An error happened")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    with pytest.raises(UserError, match=r"did not take it \(No connection .* the cache\. .* …\)"):
        push(tmp_path, "me/mine")


def test_what_differs_is_shown() -> None:
    names = ["boat", "cup", "fish", "house", "tree"]
    assert difference(names, [*names[:-1], "shrub"]) == "tree is new, shrub is missing"
    assert difference(names, [*names, "a", "b", "c", "d"]) == "a, b, c, … are missing"
    assert difference(["crane", *names], [*names, "crane", "crane"]) == "crane is missing"  # ImageNet has two
    assert difference([*names[:3], "tree", "house"], names) == "the same in another order: tree is where house was"
