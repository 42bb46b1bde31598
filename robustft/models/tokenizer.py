"""A tokenizer for small vocabularies: one token a word."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.wording import counted

PADDING, START = 0, 1
SHOWN = 30  # words that a message names


class WordTokenizer:
    """Texts to token ids: start, words, end, padding.

    The end token has the highest id, which is how open_clip's text tower finds it. Case and punctuation
    are ignored.

    Args:
        vocabulary: the words in the order of their ids, or a file with one on each line.
        context_length: tokens per text, start and end included.
    """

    def __init__(self, vocabulary: Sequence[str] | str | Path, context_length: int = 12) -> None:
        if isinstance(vocabulary, str | Path):
            vocabulary = Path(vocabulary).read_text().split()
        self.words = {word: number for number, word in enumerate(vocabulary, start=START + 1)}
        self.end = START + 1 + len(self.words)
        self.vocab_size = self.end + 1
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Int64[Tensor, "batch context"]:
        """Raises UserError for a word outside the vocabulary and for a text that does not fit."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.full((len(texts), context_length or self.context_length), PADDING)
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encode(text, len(row))
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def encode(self, text: str, length: int) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        unknown = [word for word in words if word not in self.words]
        if unknown:
            raise UserError(
                f"The tokenizer does not know {', '.join(map(repr, unknown))} (in {text!r}). It knows"
                f" {counted(len(self.words), 'word')}: {' '.join(list(self.words)[:SHOWN])} … Other models know more;"
                " data.class_names gives other names, data.templates=plain (for a task retain.NAME.templates=plain) the"
                " simplest prompts."
            )
        if len(words) + 2 > length:
            raise UserError(f"{text!r} has {counted(len(words), 'word')}; the text tower takes at most {length - 2}.")
        return [START, *(self.words[word] for word in words), self.end]
