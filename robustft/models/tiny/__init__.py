"""The small CLIP that comes with the package: an open_clip model config, a vocabulary, weights.

`experiments/pretrain_tiny` made the weights."""

from pathlib import Path

from robustft.models.tokenizer import WordTokenizer

HERE = Path(__file__).parent
ARCHITECTURE = "tiny"  # open_clip's name for it: the stem of the JSON file
WEIGHTS = HERE / "tiny.safetensors"


def register() -> None:
    """Tell open_clip of the architecture, so that `open_clip.create_model(ARCHITECTURE)` builds it."""
    import open_clip

    open_clip.add_model_config(HERE / f"{ARCHITECTURE}.json")


def tokenizer() -> WordTokenizer:
    return WordTokenizer(HERE / "words.txt")
