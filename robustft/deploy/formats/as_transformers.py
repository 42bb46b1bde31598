"""A folder that transformers loads as its CLIP or SigLIP, with the class head beside, as for open_clip."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.common.errors import UserError
from robustft.deploy.formats.as_open_clip import HEAD, write_head

if TYPE_CHECKING:
    from torch import Tensor

    from robustft.data.sets import Preprocess
    from robustft.deploy.export import Parts
    from robustft.deploy.source import Source
    from robustft.deploy.text import Whole

PACKAGES, TOWERS = ("transformers",), True
INSTEAD = "--format=open_clip keeps both of its towers, onnx and pt2 take any model"
# What transformers' CLIP can say of a tower. Anything else that a config sets would be lost.
VISION = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
FILTERS = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
LOAD = """\
```python
import json

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{folder}").eval()
processor = AutoImageProcessor.from_pretrained("{folder}", backend="pil")  # the pixels that it was trained with
head, classes = load_file("{folder}/head.safetensors"), json.load(open("{folder}/classes.json"))

{read}
with torch.no_grad():
    features = model.get_image_features(**processor(image, return_tensors="pt"))
    features = getattr(features, "pooler_output", features)
logits = torch.nn.functional.normalize(features, dim=-1) @ head["weight"].T + head["bias"]
print(classes[logits[0].argmax()])
```

From a hub: `OWNER/NAME` in place of `{folder}`. {temperature}{text}"""


def refusal(source: "Source") -> str | None:
    """Why neither CLIP nor SigLIP of transformers can hold the image tower."""
    tower, name = source.tower, source.architecture
    if tower.get("backbone"):
        return f"{name} has no text tower, which transformers' CLIP has: --format=onnx and pt2 take any model"
    vision: Mapping[str, Any] = tower["vision_cfg"]
    if not isinstance(vision.get("layers", 12), int):
        return f"{name} is a ResNet, and transformers' CLIP has vision transformers alone: {INSTEAD}"
    if "timm_model_name" in vision:
        fits = vision["timm_model_name"].startswith("vit_") and vision.get("timm_pool") == "map"
        return None if fits else f"{name} has timm's {vision['timm_model_name']}, which transformers lacks: {INSTEAD}"
    if more := unlike(vision, VISION):
        return f"{name} is no plain vision transformer (vision_cfg.{more[0]}), as transformers' CLIP has: {INSTEAD}"
    return None


def unlike(config: Mapping[str, Any], known: set[str]) -> list[str]:
    """What a config sets that is not among what is known."""
    return [key for key, value in config.items() if key not in known and value not in (None, False)]


def write(parts: "Parts", folder: Path) -> None:
    """Write the model, its image processor, tokenizer, head and class names.

    Raises:
        UserError: the towers are none that transformers has.
    """
    from transformers.utils import logging

    from robustft.common import files
    from robustft.models.weights import model_config

    logging.disable_progress_bar()
    assert parts.whole is not None
    name = parts.model.architecture.name
    config = model_config(name)
    make = siglip_of if "timm_model_name" in config["vision_cfg"] else clip_of
    try:
        model = make(parts.whole, config)
    except RuntimeError as error:  # weights that have no place in it, or lack
        raise UserError(f"{name}: transformers has no such towers: {INSTEAD}") from error
    model.save_pretrained(folder)
    files.write(folder / "preprocessor_config.json", json.dumps(processor_of(parts.model.preprocess), indent=2) + "\n")
    write_tokenizer(parts.whole, folder)
    write_head(parts, folder)


def clip_of(whole: "Whole", config: Mapping[str, Any]) -> Any:
    """transformers' CLIP with the weights of open_clip's.

    Args:
        config: open_clip's of the model.

    Raises:
        UserError: the text tower is another.
        RuntimeError: the weights do not fit.
    """
    from transformers import CLIPConfig, CLIPModel

    from robustft.models.names import to_hugging_face

    text, vision = config["text_cfg"], config["vision_cfg"]
    if more := ["custom_text"] if config.get("custom_text") else unlike(text, TEXT):
        raise UserError(f"its text tower ({more[0]}) is none that transformers' CLIP has: {INSTEAD}")
    vision_width, text_width, end = vision.get("width", 768), text.get("width", 512), text["vocab_size"] - 1
    of_vision = {
        "hidden_size": vision_width,
        "intermediate_size": int(vision_width * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": vision.get("layers", 12),
        "num_attention_heads": vision_width // vision.get("head_width", 64),
        "image_size": vision.get("image_size", 224),
        "patch_size": vision.get("patch_size", 16),
    }
    of_text = {
        "hidden_size": text_width,
        "intermediate_size": int(text_width * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": text["vocab_size"],
        # open_clip pools at the highest token, which is the last of the vocabulary
        **{"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": 0 if whole.own_tokenizer else end},
    }
    shared = {
        "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "projection_dim": config["embed_dim"],
    }
    made = CLIPConfig(
        text_config={**of_text, **shared},
        vision_config={**of_vision, **shared},
        projection_dim=config["embed_dim"],
    )
    model = CLIPModel(made)
    model.load_state_dict(to_hugging_face(dict(whole.clip.state_dict())))
    return model


def siglip_of(whole: "Whole", config: Mapping[str, Any]) -> Any:
    """transformers' SigLIP with the weights of open_clip's, whose image tower is timm's.

    Args:
        config: open_clip's of the model.

    Raises:
        RuntimeError: the weights do not fit.
    """
    from transformers import SiglipConfig, SiglipModel

    from robustft.models.names import siglip_to_hugging_face

    clip: Any = whole.clip
    text, trunk = config["text_cfg"], clip.visual.trunk
    tanh = {False: "gelu", True: "gelu_pytorch_tanh"}
    of_vision = {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": trunk.blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": trunk.blocks[0].attn.num_heads,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "layer_norm_eps": trunk.norm.eps,
        "hidden_act": tanh["tanh" in str(trunk.blocks[0].mlp.act).lower()],
    }
    of_text = {
        "hidden_size": text.get("width", 512),
        "intermediate_size": int(text.get("width", 512) * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": text["vocab_size"],
        "projection_size": config["embed_dim"],
        "bos_token_id": None,
        "eos_token_id": 1,
        "layer_norm_eps": text.get("norm_kwargs", {}).get("eps", 1e-5),
        "hidden_act": tanh[text.get("act_kwargs", {}).get("approximate") == "tanh"],
    }
    model = SiglipModel(SiglipConfig(text_config=of_text, vision_config=of_vision))
    model.load_state_dict(siglip_to_hugging_face(dict(clip.state_dict())))
    return model


def processor_of(preprocess: "Preprocess") -> dict[str, Any]:
    """The settings of transformers' image processor; CLIP's for SigLIP too, since that is how the run saw images."""
    side, squash = preprocess.resized, preprocess.resize == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "size": {"height": side, "width": side} if squash else {"shortest_edge": side},
        "resample": FILTERS[preprocess.interpolation],
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "rescale_factor": 1 / 255,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    }


def write_tokenizer(whole: "Whole", folder: Path) -> None:
    """Write the files of a tokenizer: those of a hub, or those of transformers' CLIP, from what open_clip's knows."""
    from transformers import CLIPTokenizer

    from robustft.models.open_clip_private import HFTokenizer

    tokenizer = whole.tokenizer
    if whole.own_tokenizer:
        return  # there is none of transformers' that does the same
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(str(folder))
        return
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in tokenizer.encoder.items()}
    merges = [pair for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokenizer.context_length).save_pretrained(folder)


def read(folder: Path, preprocess: "Preprocess", backend: str = "pil") -> "Callable[[Sequence], Tensor]":
    """What turns images into logits, by transformers with its own image processor.

    Args:
        backend: pil, or torchvision, which is transformers' default, faster, and resizes differently.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoModel

    model: Any = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    head = load_file(folder / HEAD)

    def logits(images: Sequence) -> "Tensor":
        with torch.no_grad():
            features = model.get_image_features(**processor(list(images), return_tensors="pt"))
            features = getattr(features, "pooler_output", features)
            return torch.nn.functional.normalize(features, dim=-1) @ head["weight"].T + head["bias"]

    return logits
