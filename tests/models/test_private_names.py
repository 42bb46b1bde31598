"""Every name of open_clip and timm that is no part of their public interface: still there, still what it was.

If one of these fails after an update, the file to mend is robustft/models/open_clip_private.py or timm_private.py.
"""

import ast
import inspect
import re
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Attention, Block
from torch import nn

from robustft.models import open_clip_private, timm_private
from robustft.models.open_clip_private import build_tower, can_be_cut, embed, pool, text_features
from tests.counterfactual.test_towers import POOLS, vit
from tests.small import ROOT

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
END = 49
FAMILIES: dict[str, tuple[dict[str, Any], bool, bool]] = {  # text config, whether it stands apart, whether it is cut
    "CLIP": ({}, False, True),
    "a text tower that stands apart": ({}, True, True),
    "pools at a token of its own": ({"pool_type": "eos", "eos_id": END}, True, False),
    "CoCa": ({"embed_cls": True}, True, False),
    "CLIPA": ({"pool_type": "last"}, False, False),
    "SigLIP": ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, True, False),
}


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def clip_of(family: str) -> Any:
    config, apart, _ = FAMILIES[family]
    torch.manual_seed(7)
    kind = CustomTextCLIP if apart else open_clip.CLIP
    clip = kind(16, CLIPVisionCfg(**VIT), CLIPTextCfg(**{**TEXT, **config})).eval()
    with torch.no_grad():  # as initialised, texts are all but equal
        for weight in clip.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return clip


def prompts() -> torch.Tensor:
    torch.manual_seed(8)
    tokens = torch.zeros(3, 12, dtype=torch.int64)
    for row, length in zip(tokens, (4, 6, 5), strict=True):
        row[:length] = torch.randint(1, 48, (length,))
        row[length - 1] = END
    return tokens


def test_open_clips_vision_transformer() -> None:
    assert parameters(open_clip.model._build_vision_tower)[:3] == ["embed_dim", "vision_cfg", "quick_gelu"]
    tower: Any = build_tower({"embed_dim": 16, "vision_cfg": VIT, "quick_gelu": True}).eval()
    assert isinstance(tower, open_clip_private.VisionTransformer)
    assert (tower.grid_size, tower.patch_size, tower.pool_type, tower.attn_pool) == ((4, 4), (8, 8), "tok", None)
    assert tower.transformer.grad_checkpointing is False and tower.output_dim == 16
    x = torch.randn(2, 3, 32, 32)
    tokens = embed(tower, x)
    assert tokens.shape == (2, 17, 32)
    for block in tower.transformer.resblocks:
        assert isinstance(block, open_clip_private.ResidualAttentionBlock)
        assert isinstance(block.attn, nn.MultiheadAttention) and block.attn.batch_first
        assert isinstance(block.mlp.gelu, open_clip_private.QuickGELU)
        assert parameters(block.forward) == ["q_x", "k_x", "v_x", "attn_mask"]
        seen = block.ln_1(tokens)
        half = tokens + block.ls_1(block.attn(seen, seen, seen)[0])
        expected = half + block.ls_2(block.mlp(block.ln_2(half)))
        tokens = block(tokens)
        torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(pool(tower, tokens) @ tower.proj, tower(x))


def test_open_clips_resnet() -> None:
    tower: Any = build_tower({"embed_dim": 16, "vision_cfg": RESNET}).eval()
    assert isinstance(tower, open_clip_private.ModifiedResNet)
    seen = []
    tower.layer4.register_forward_hook(lambda *args: seen.append(args[-1]))
    features = tower(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(tower.attnpool(seen[0]), features)


def test_open_clips_adapter_of_timm() -> None:
    vision = {"timm_model_name": "test_vit3", "timm_model_pretrained": True, "timm_pool": "map", "timm_proj": "none"}
    tower: Any = build_tower({"embed_dim": 96, "vision_cfg": {**vision, "image_size": 160}}).eval()  # fetches nothing
    assert isinstance(tower, open_clip_private.TimmModel) and timm_private.is_plain(tower.trunk)
    x = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(tower.head(tower.trunk(x)), tower(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_cut_and_whole(family: str) -> None:
    """Where a tower may be cut the features are those of whole prompts; where it may not, cutting gives others."""
    clip, tokens = clip_of(family), prompts()
    assert can_be_cut(clip) == FAMILIES[family][-1]
    with torch.no_grad():
        whole = F.normalize(clip.encode_text(tokens), dim=-1)
        torch.testing.assert_close(text_features(clip, tokens, 12), whole, rtol=1e-5, atol=1e-6)
        assert (whole[0] - whole[1]).abs().max() > 1e-2
        if family in ("CLIP", "a text tower that stands apart", "pools at a token of its own"):  # the last: not needed
            torch.testing.assert_close(text_features(clip, tokens, 6), whole, rtol=1e-4, atol=1e-5)
        elif family == "SigLIP":
            assert (cut_without_mask(clip, tokens) - whole).abs().max() > 1e-2
        elif family == "CLIPA":
            assert (text_features(clip, tokens, 6) - whole).abs().max() > 1e-2


def cut_without_mask(clip: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What cutting would make of a tower without a causal mask."""
    short = {"text.positional_embedding": clip.text.positional_embedding[:6]}
    return torch.func.functional_call(clip, short, (None, tokens[:, :6]))[1]


@pytest.mark.parametrize("kind", POOLS)
def test_timms_vision_transformer(kind: str) -> None:
    trunk: Any = vit(kind).eval()
    assert timm_private.is_plain(trunk) and trunk.grad_checkpointing is False
    assert (trunk.patch_embed.grid_size, trunk.patch_embed.patch_size) == ((4, 4), (8, 8))
    x = torch.randn(2, 3, 32, 32)
    tokens = timm_private.embed(trunk, x)
    assert tokens.shape[1] == 16 + trunk.num_prefix_tokens == 16 + POOLS[kind]
    tokens = trunk.norm_pre(tokens)
    for block in trunk.blocks:
        assert type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None
        for name in ("qkv", "proj", "proj_drop", "norm", "q_norm", "k_norm", "num_heads"):
            assert hasattr(block.attn, name), name
        tokens = block(tokens)
    torch.testing.assert_close(trunk.forward_head(trunk.norm(tokens)), trunk(x))
    if kind == "map":
        names = ("q", "kv", "q_norm", "k_norm", "proj", "proj_drop", "norm", "mlp", "latent", "latent_len", "pool")
        assert type(trunk.attn_pool) is AttentionPoolLatent and all(hasattr(trunk.attn_pool, name) for name in names)
        assert trunk.attn_pool.pos_embed is None
    if kind == "avg":
        pooled = trunk.norm(tokens).mean(1)
        torch.testing.assert_close(trunk.head(trunk.head_drop(trunk.fc_norm(pooled))), trunk(x))


@pytest.mark.parametrize(
    "name", ["vit_base_r50_s16_224", "vit_relpos_medium_patch16_cls_224", "eva02_tiny_patch14_224"]
)
def test_what_only_looks_like_timms_vision_transformer(name: str) -> None:
    with torch.device("meta"):
        assert not timm_private.is_plain(timm.create_model(name, num_classes=0))


def test_nowhere_else() -> None:
    """No other file imports open_clip's and timm's modules, or calls what they begin with an underscore."""
    for path in (ROOT / "robustft").rglob("*.py"):
        if path.name in ("open_clip_private.py", "timm_private.py"):
            continue
        tree = ast.parse(path.read_text())
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        public = {"open_clip.zero_shot_metadata", "timm.data"}
        assert not [m for m in modules if re.match(r"(open_clip|timm)\.", m) and m not in public], path
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not called & {"_embeds", "_pool", "_pos_embed", "_build_vision_tower"}, path


def test_versions_are_bounded() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package in ("open_clip_torch", "timm", "torchvision"):
        assert re.search(rf'"{package}>=[\d.]+,<[\d.]+"', text), package
