"""Towers beside the plain ones: run, masked and looked into, against second implementations written out here."""

import json
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import robustft
from robustft.common.errors import UserError
from robustft.counterfactual.cam import gradcam, relevance
from robustft.counterfactual.fill import replace_patches
from robustft.data.sets import Preprocess
from robustft.models import plain, timm_vit, zeroshot
from robustft.models.classifier import Architecture, Classifier, check_can, tower_of
from robustft.models.open_clip_private import build_tower, can_be_cut
from robustft.models.timm_vit import TimmTower
from robustft.models.weights import model_config, save_classifier
from robustft.models.zeroshot import _TextTower
from tests.small import ROOT

SIDE, PATCH, CLASSES = 32, 8, 5
POOLS = {"map": 0, "token": 1, "avg": 0, "registers": 5}  # tokens before the patches


def vit(pool: str) -> VisionTransformer:
    torch.manual_seed(3)
    options = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    more = {
        "map": {"global_pool": "map", "class_token": False},
        "token": {},
        "avg": {"global_pool": "avg", "class_token": False},
        "registers": {"reg_tokens": 4},
    }[pool]
    model = VisionTransformer(**options, **more)
    with torch.no_grad():  # as trained weights are: not all but equal
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def classifier(visual: nn.Module, features: int = 32) -> Classifier:
    torch.manual_seed(4)
    head = nn.Linear(features, CLASSES)
    return Classifier(visual, head, Architecture("some", {}, Preprocess(SIDE, (0.5,) * 3, (0.5,) * 3))).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 3, 1, 1])


@pytest.mark.parametrize("pool", POOLS)
def test_features_are_timms(pool, batch):
    original = vit(pool).eval()
    model = classifier(deepcopy(original))
    assert isinstance(model.tower, TimmTower) and model.tower.prefix == POOLS[pool] and model.grid == (4, 4)
    torch.testing.assert_close(model.encode(batch[0]), original(batch[0]), rtol=1e-5, atol=1e-5)
    assert set(model.visual.state_dict()) == set(original.state_dict())


def plainly(model: VisionTransformer, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Features, and every attention matrix of the blocks and of the pooling head; ``keep``: of tokens, hides others."""
    tokens = model.patch_embed(x)
    prefix = [part for part in (model.cls_token, model.reg_token) if part is not None]
    positions = model.pos_embed
    if prefix and positions.shape[1] == tokens.shape[1] + len(prefix):  # class token alone
        tokens = torch.cat([model.cls_token.expand(len(x), -1, -1), tokens], 1) + positions
    elif prefix:
        tokens = torch.cat([*(part.expand(len(x), -1, -1) for part in prefix), tokens], 1) + positions
    else:
        tokens = tokens + positions
    maps = []

    def weights(q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None, :], -torch.inf)
        p = scores.softmax(-1)
        p.retain_grad()
        maps.append(p)
        return p

    heads = model.blocks[0].attn.num_heads
    tokens = model.norm_pre(tokens)
    for block in model.blocks:
        qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        out = weights(qkv[0], qkv[1]) @ qkv[2]
        tokens = tokens + block.ls1(block.attn.proj(out.transpose(1, 2).flatten(2)))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    tokens = model.norm(tokens)
    if model.global_pool == "map":
        pool = model.attn_pool
        q = pool.q(pool.latent.expand(len(x), -1, -1)).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        k, v = pool.kv(tokens).unflatten(-1, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = pool.proj((weights(q, k) @ v).transpose(1, 2).flatten(2))
        features = (out + pool.mlp(pool.norm(out)))[:, 0]
    elif model.global_pool == "avg":
        there = torch.ones(tokens.shape[:2]) if keep is None else keep.float()
        features = model.fc_norm((tokens * there[..., None]).sum(1) / there.sum(1, keepdim=True))
    else:
        features = model.fc_norm(tokens[:, 0])
    return features, maps


@pytest.mark.parametrize("pool", POOLS)
def test_relevance_from_whole_attention_matrices(pool, batch):
    """Chefer et al., eqs. 5-7, as they are written: all matrices, their gradients, and the product R."""
    x, y = batch
    model = classifier(vit(pool))
    _, _, cam = relevance(model, x, y)
    twin = vit(pool)
    features, maps = plainly(twin, x)
    model.classify(features).gather(1, y[:, None]).sum().backward()
    layers = [(p.grad * p).relu().mean(1) for p in maps]
    pooled = layers.pop() if pool == "map" else None
    tokens = layers[0].shape[-1]
    r = torch.eye(tokens).expand(len(x), -1, -1)
    for a in layers:
        r = r + a @ r
    prefix = POOLS[pool]
    if pool == "map":
        row = (pooled @ r)[:, 0]
    elif pool == "avg":
        row = r.mean(1)
    else:
        row = r[:, 0]
    row = row[:, prefix:]
    expected = row / row.amax(1, keepdim=True)
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-4)
    assert cam.std() > (0.001 if pool == "avg" else 0.05)  # it says something


@pytest.mark.parametrize("pool", POOLS)
def test_masked_patches_are_attended_by_nobody(pool, batch):
    """In no layer and by no pooling head; and what is left out of the sequence is as good as masked."""
    x, prefix = batch[0], POOLS[pool]
    model = classifier(vit(pool))
    masked = torch.zeros(4, 16, dtype=torch.bool)
    for row, chosen in zip(masked, ([0, 5, 9], [1, 2, 3], [15, 4, 8], [7, 6, 10]), strict=True):
        row[chosen] = True
    there = F.pad(~masked, (prefix, 0), value=True)
    expected, _ = plainly(vit(pool), x, there)
    features = model.encode(x, masked=masked)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert (features - model.encode(x)).abs().max() > 1e-2
    kept = (~masked).nonzero()[:, 1].view(4, -1)
    torch.testing.assert_close(model.encode(x, kept=kept), features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_an_image_of_which_everything_is_masked_has_features(pool, batch):
    """With a class token those of that token alone; without one the image keeps its patches. Others are as ever."""
    x = batch[0]
    model = classifier(vit(pool))
    masked = torch.zeros(4, 16, dtype=torch.bool)
    masked[0], masked[1, 3] = True, True
    features = model.encode(x, masked=masked)
    assert features.isfinite().all()
    whole = model.encode(x)
    assert torch.allclose(features[0], whole[0], atol=1e-5) == (pool in ("map", "avg"))
    torch.testing.assert_close(features[2:], whole[2:], rtol=1e-4, atol=1e-5)
    assert (features[1] - whole[1]).abs().max() > 1e-3


def test_activation_checkpointing_hides_them_too(batch):
    x, y = batch
    masked = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    gradients = []
    for enable in (False, True):
        model = classifier(vit("map")).train()
        model.tower.set_grad_checkpointing(enable)
        F.cross_entropy(model.classify(model.encode(x, masked=masked)), y).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_an_image_that_patches_do_not_cover_keeps_its_rest():
    """SO400M's 384 px in patches of 14: 27 of them, and 6 px that are in none."""
    images = torch.arange(2 * 3 * 11 * 11.0).view(2, 3, 11, 11)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    source = torch.tensor([[1] * 4, [0] * 4])
    filled = replace_patches(images, mask, source, patch_size=5)
    expected = images.clone()
    for image, row in enumerate(mask.tolist()):
        for patch in (k for k, chosen in enumerate(row) if chosen):
            top, left = 5 * (patch // 2), 5 * (patch % 2)
            expected[image, :, top : top + 5, left : left + 5] = images[1 - image, :, top : top + 5, left : left + 5]
    assert torch.equal(filled, expected)


def resnet() -> nn.Module:
    torch.manual_seed(6)
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8}
    return build_tower({"embed_dim": 16, "vision_cfg": vision})


def test_gradcam_of_a_grid(batch):
    visual = resnet().eval()
    head = nn.Linear(16, CLASSES)
    model = Classifier(visual, head, Architecture("rn", {}, Preprocess(64, (0.5,) * 3, (0.5,) * 3))).eval()
    assert model.grid == (2, 2) and model.patch_size == 32
    x, y = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), batch[1]
    _, _, cam = gradcam(model, x, y)
    kept = []
    hook = visual.layer4.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), kept.append(out))[1])
    logits = model(x)
    hook.remove()
    logits.gather(1, y[:, None]).sum().backward()
    (a,) = kept
    expected = (a * a.grad.sum((2, 3), keepdim=True)).sum(1).relu().flatten(1)
    torch.testing.assert_close(cam, expected / (expected.amax(1, keepdim=True) + 1e-8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("object", "relevance", "single"), "no attention that a relevance map"),
        (("random", None, "none"), "no sequence of patches"),
    ],
)
def test_what_a_tower_cannot_do_is_one_line(asked, expected):
    model = Classifier(resnet(), nn.Linear(16, 5), Architecture("rn", {}, Preprocess(64, (0.5,) * 3, (0.5,) * 3)))
    check_can(model, "object", "gradcam", "multi")
    check_can(model, "none", None, "none")
    with pytest.raises(UserError, match=f"rn .ModifiedResNet. has {expected}.*It can do: mask=none"):
        check_can(model, *asked)


def text_clip(kind: str) -> nn.Module:
    """A CLIP whose text tower is of that kind, with random weights."""
    torch.manual_seed(7)
    vision = CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    if kind == "causal":
        return open_clip.CLIP(16, vision, CLIPTextCfg(**text)).eval()
    if kind == "causal, apart":
        return CustomTextCLIP(16, vision, CLIPTextCfg(**text)).eval()
    return CustomTextCLIP(16, vision, CLIPTextCfg(**text, no_causal_mask=True, pool_type="last")).eval()


@pytest.mark.parametrize("kind", ["causal", "causal, apart", "as SigLIP's"])
def test_prompts_are_cut_only_where_that_changes_nothing(kind):
    clip = text_clip(kind)
    tokens = torch.zeros(3, 12, dtype=torch.int64)
    for row, length in zip(tokens, (4, 6, 5), strict=True):
        row[:length] = torch.randint(1, 48, (length,))
        row[length - 1] = 49  # end of text
    tower = _TextTower(clip)
    with torch.no_grad():
        ours = tower.encode_text(tokens, normalize=True)
        whole = F.normalize(clip.encode_text(tokens), dim=-1)
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)
        assert can_be_cut(clip) == (kind != "as SigLIP's")
        if not can_be_cut(clip):  # what cutting would have given
            short = tokens[:, :6]
            clip.text.positional_embedding = nn.Parameter(clip.text.positional_embedding[:6])
            cut = F.normalize(clip.encode_text(short), dim=-1)
            assert (cut * whole).sum(1).max() < 0.99


def test_the_logit_bias_is_kept_in_the_head(monkeypatch):
    clip = text_clip("as SigLIP's")
    clip.logit_bias = nn.Parameter(torch.tensor(-10.0))
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    }
    monkeypatch.setattr(zeroshot, "create_clip", lambda *_: clip)
    monkeypatch.setattr(zeroshot, "model_config", lambda _: config)
    model = zeroshot.zeroshot_classifier("ViT-B-32", None, ["one", "two"], ["a {}"])
    assert model.head.bias.tolist() == [-10.0, -10.0]


def test_the_table_of_families_is_true():
    """docs/models.md, for the first example of each row."""
    text = (ROOT / "docs" / "models.md").read_text("utf-8").split("refused in one line before")[1]
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.strip().splitlines() if line.startswith("|")]
    assert len(rows) == 5
    for row in rows:
        name = row[1].split(",")[0]
        timms = name.startswith("vit_")
        config = None if timms else model_config(name)
        visual = timm_vit.build(name, None, 0) if timms else build_tower(config)
        can = tower_of(visual, 224).can()
        assert dict(zip(head[2:-1], row[2:-1], strict=True)) == {
            what: "yes" if what in can else "no" for what in head[2:-1]
        }, name
        assert row[-1] == ("no" if timms else "yes")
        assert timms or plain.is_plain_config(config) == plain.is_plain(visual)


@pytest.mark.slow
def test_a_config_tells_whether_a_tower_is_plain():
    """Without building it: of all models of open_clip whose image tower is not too large to build."""
    seen = set()
    for name in open_clip.list_models():
        config = model_config(name)
        if config["vision_cfg"].get("width", 0) > 800 or "timm_model_name" in config["vision_cfg"]:
            continue
        assert plain.is_plain_config(config) == plain.is_plain(build_tower(config)), name
        seen.add(plain.is_plain_config(config))
    assert seen == {True, False}


class Net(nn.Module):
    """A backbone of one's own."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features, self.width = width, width
        self.preprocess = Preprocess(SIDE, (0.5,) * 3, (0.5,) * 3)
        self.conv = nn.Conv2d(3, width, PATCH, PATCH)

    def describe(self) -> dict[str, int]:
        return {"width": self.width}

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


def test_a_backbone_of_ones_own_is_rebuilt_by_whoever_has_its_class(tmp_path: Path, batch):
    model = zeroshot.zeroshot_classifier("net", None, ["one", "two"], ["a {}"], backbone=lambda: Net(9))
    save_classifier(tmp_path / "model.safetensors", model, ["one", "two"])
    with pytest.raises(UserError, match="backbone that is no part of robustft .net.: give its class"):
        robustft.load(tmp_path / "model.safetensors")
    again = robustft.load(tmp_path / "model.safetensors", backbone=Net)
    assert torch.equal(again(batch[0]), model(batch[0])) and again.visual.width == 9
    text = (tmp_path / "model.safetensors").read_bytes()[:4000].decode(errors="ignore")
    assert "Net" not in text and json.dumps({"width": 9})[1:-1] in text.replace("\\", "")
    with pytest.raises(UserError, match="has no 'features'"):
        zeroshot.zeroshot_classifier("net", None, ["one"], ["a {}"], backbone=lambda: nn.Linear(1, 1))
