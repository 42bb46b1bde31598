"""Names of CLIP's weights: those of others, turned into open_clip's."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustft.common.errors import UserError

State = dict[str, Tensor]

# Of DDP, of torch.compile, of Lightning modules and FLYP's encoder, of wise-ft's classifier.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "image_encoder.")
_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer.", "ln_final.")

# Hugging Face's names (transformers.CLIPModel), part by part.
_TOWERS = {"vision_model.": "visual.", "text_model.": ""}
_PARTS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.": "conv1.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.": "token_embedding.",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_QUERY = re.compile(r"(?P<block>.*)\.self_attn\.q_proj\.(?P<kind>weight|bias)")


def unwrapped(name: str) -> str:
    """Take from a name what wrappers of a model have put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def to_open_clip(state: State, path: Path) -> State:
    """Return weights under open_clip's names.

    Raises:
        UserError: they are those of an image tower alone.
    """
    if any(name.startswith(tuple(_TOWERS)) for name in state):
        state = _from_hugging_face(state, path)
    bare = "class_embedding" in state and "conv1.weight" in state
    text = [name for name in state if "token_embedding" in name]
    if bare or (not text and any(name.startswith("visual.") for name in state)):
        raise UserError(
            f"{path} holds an image tower alone; the zero-shot head is made by the text tower. Give the weights of the"
            " whole CLIP."
        )
    return state


def with_text_of(state: State, own: Iterable[str]) -> State:
    """Return weights with the text tower where a model has it: open_clip keeps it below ``text.`` in some of them."""
    apart = any(name.startswith("text.") for name in own)
    if apart and "text_projection" in state:
        return {f"text.{name}" if name.startswith(_TEXT) else name: value for name, value in state.items()}
    return state if apart else {name.removeprefix("text."): value for name, value in state.items()}


def _from_hugging_face(state: State, path: Path) -> State:
    """Return the weights of a ``transformers.CLIPModel``: queries, keys and values become one matrix."""
    made: State = {}
    for name, value in state.items():
        if name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:
            continue
        if query := _QUERY.fullmatch(name):
            kinds = [f"{query['block']}.self_attn.{part}_proj.{query['kind']}" for part in "qkv"]
            missing = [kind for kind in kinds if kind not in state]
            if missing:
                raise UserError(f"{path} is not whole: {missing[0]} is missing.")
            made[_renamed(f"{query['block']}.attn.in_proj_{query['kind']}")] = torch.cat([state[k] for k in kinds])
        elif name == "visual_projection.weight":
            made["visual.proj"] = value.T.contiguous()
        elif name == "text_projection.weight":
            made["text_projection"] = value.T.contiguous()
        else:
            made[_renamed(name)] = value
    return made


def _renamed(name: str) -> str:
    for tower, ours in _TOWERS.items():
        if name.startswith(tower):
            name = ours + name.removeprefix(tower)
    for theirs, ours in _PARTS.items():
        name = name.replace(theirs, ours)
    return name


_CLIP = {ours: theirs for theirs, ours in _PARTS.items()}


def to_hugging_face(state: State) -> State:
    """Return the weights of an open_clip CLIP of plain transformers under the names of a ``transformers.CLIPModel``."""
    made: State = {}
    for name, value in state.items():
        if name == "logit_scale":
            made[name] = value
        elif name in ("visual.proj", "text_projection"):
            tower = "visual" if name == "visual.proj" else "text"
            made[f"{tower}_projection.weight"] = value.T.contiguous()
        else:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            found = _apart(_replaced(name.removeprefix("visual."), _CLIP), value)
            made |= {f"{tower}.{key}": part for key, part in found.items()}
    return made


# transformers' names of a SigLIP, part by part; open_clip's has timm's image tower and a text tower below ``text.``.
_SIGLIP_VISION = {
    "trunk.patch_embed.proj.": "embeddings.patch_embedding.",
    "trunk.attn_pool.latent": "head.probe",
    "trunk.attn_pool.proj.": "head.attention.out_proj.",
    "trunk.attn_pool.norm.": "head.layernorm.",
    "trunk.attn_pool.mlp.": "head.mlp.",
    "trunk.blocks.": "encoder.layers.",
    "trunk.norm.": "post_layernorm.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.out_proj.",
}
_SIGLIP_TEXT = {**{ours: theirs for theirs, ours in _PARTS.items()}, "text_projection.": "head."}


def siglip_to_hugging_face(state: State) -> State:
    """Return the weights of an open_clip SigLIP under the names of a ``transformers.SiglipModel``."""
    made: State = {}
    for name, value in state.items():
        tower, _, inner = name.partition(".")
        if name in ("logit_scale", "logit_bias"):
            made[name] = value.reshape(1)
        elif tower == "text":
            made |= {f"text_model.{key}": part for key, part in _apart(_replaced(inner, _SIGLIP_TEXT), value).items()}
        elif inner == "trunk.pos_embed":
            made["vision_model.embeddings.position_embedding.weight"] = value[0]
        elif inner.startswith(("trunk.attn_pool.q.", "trunk.attn_pool.kv.")):
            kind = inner.rpartition(".")[2]
            both = [state[f"visual.trunk.attn_pool.{part}.{kind}"] for part in ("q", "kv")]
            made[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(both)
        else:
            found = _apart(_replaced(inner, _SIGLIP_VISION), value)
            made |= {f"vision_model.{key}": part for key, part in found.items()}
    return made


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name.startswith(ours) or (ours.startswith(".") and ours in name):
            name = name.replace(ours, theirs, 1)
    return name


_JOINED = re.compile(r"(?P<block>.*)\.attn\.(in_proj_|qkv\.)(?P<kind>weight|bias)")


def _apart(name: str, value: Tensor) -> State:
    """Queries, keys and values that are one matrix, each by itself; anything else as it is."""
    if not (joined := _JOINED.fullmatch(name)):
        return {name: value}
    parts = zip("qkv", value.chunk(3), strict=True)
    return {f"{joined['block']}.self_attn.{part}_proj.{joined['kind']}": rows.clone() for part, rows in parts}
