"""The model card of an exported model: what it is, what it was trained and compared on, and how to load it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip

from robustft import __version__
from robustft.common.files import write
from robustft.common.wording import counted
from robustft.deploy.again import data_of
from robustft.deploy.formats import READ
from robustft.deploy.source import Source
from robustft.evaluation.results import average
from robustft.evaluation.summary import metric_heading, metric_value, percent, set_label

if TYPE_CHECKING:
    from robustft.deploy.export import Parts

PAPER = "https://arxiv.org/abs/2303.03052"
MOST = 60  # class names that are written out
# By open_clip's tags: the licence that those who made the weights have put on them, and where they say so.
LICENCES = {
    "openai": ("mit", "https://github.com/openai/CLIP"),
    "laion": ("mit", "https://huggingface.co/laion"),
    "datacomp": ("mit", "https://huggingface.co/laion"),
    "metaclip": ("cc-by-nc-4.0", "https://huggingface.co/facebook"),
    "webli": ("apache-2.0", "https://huggingface.co/timm"),
    "embedded": ("apache-2.0", "they come with robustft"),
}
OF_DATA = "source target path train val shifts sets holdout val_share shots correlation".split()
# Of the settings of a run, what a reader of a card asks for.
RECIPE = (
    "method.name mask.kind mask.threshold mask.rate mask.cam fill.kind beta alpha temperature optimizer.lr"
    " optimizer.weight_decay optimizer.warmup schedule.name augment.kind data.batch_size trainer.max_epochs"
    " trainer.max_steps seed"
).split()


def write_card(parts: "Parts", form: Any, folder: Path, name: str, difference: float, images: int) -> None:
    """Write README.md, as the Hugging Face hub shows it.

    Args:
        form: the module of the format.
        name: what the folder will be called.
        difference: largest one of the logits on that many ``images``.
    """
    write(folder / "README.md", "\n".join(_lines(parts, form, name, difference, images)).rstrip() + "\n")


def _lines(parts: "Parts", form: Any, name: str, difference: float, images: int) -> Iterator[str]:
    source, model, results = parts.source, parts.model, parts.source.results
    settings: Mapping[str, Any] = source.config or {}
    licence, said = licence_of(parts)
    kind = form.__name__.rpartition(".as_")[2]
    towers = parts.whole is not None
    yield "---"
    yield f"license: {licence}"
    yield f"library_name: {'pytorch' if kind == 'pt2' else kind}"
    yield f"pipeline_tag: {'zero-shot-image-classification' if towers else 'image-classification'}"
    yield from ("tags:", *(f"- {tag}" for tag in ("clip", "robust-fine-tuning", "robustft", kind)), "---", "")
    yield f"# {name}"
    yield ""
    method = results["display"]["label"] if results and "display" in results else None
    how = f"by robustft {__version__}" + (f" ({method})" if method else "")
    yield (
        f"{source.architecture}, fine-tuned for {counted(len(model.class_names), 'class', 'classes')} {how}. [The"
        f" paper]({PAPER})."
    )
    yield ""
    yield from ("## How to use it", "")
    seen, squash = model.preprocess, model.preprocess.resize == "squash"
    side = seen.resized
    yield form.LOAD.format(
        folder=name,
        read=READ,
        size=seen.size,
        filter=seen.interpolation.upper(),
        edges=f"[{side}, {side}]" if squash else f"[{side}]",
        sides=f"[{side}, {side}]" if squash else f"[{side} * side // min(image.size) for side in image.size]",
        temperature=""
        if model.temperature is None
        else 'Logits divided by `head["temperature"]` give calibrated probabilities. ',
        text=text_note(parts),
    )
    yield ""
    yield (
        f"What is loaded gives the run's logits: the largest difference on {counted(images, 'image')} is"
        f" {difference:.1e}."
    )
    shape = "squashed to a square" if squash else "resized by their shorter side"
    yield f"Images are {shape} and cropped at the centre, upright (turned as their EXIF data say) and on white."
    yield "Files of 16 bits or floating point a channel are scaled to 8 bits first, which the code above leaves out."
    yield ""
    yield from ("## Classes and prompts", "")
    listed = ", ".join(model.class_names[:MOST])
    yield f"{listed}{f', … ({len(model.class_names)} in `classes.json`)' if len(model.class_names) > MOST else ''}"
    yield ""
    if prompts := prompts_of(source):
        shown = "; ".join(f"`{prompt}`" for prompt in prompts[:8])
        yield f"Prompts of the zero-shot head: {shown}{f'; … ({len(prompts)} in all)' if len(prompts) > 8 else ''}"
        yield ""
    yield from ("## Data and recipe", "", "| | |", "|---|---|")
    yield from (f"| `{key}` | {value} |" for key, value in recipe(settings))
    yield ""
    if results is not None:
        yield from results_lines(results)
    yield from ("## Licence", "", said)
    yield "What the data allow is for those to say who made them."
    yield ""
    yield from ("## Citation", "")
    yield f"Xiao et al.: Masked Images Are Counterfactual Samples for Robust Fine-tuning, CVPR 2023, {PAPER}."


def text_note(parts: "Parts") -> str:
    """What is to be known of the text tower and its tokenizer."""
    whole = parts.whole
    if whole is None:
        return ""
    came = (
        "The text tower was trained with the image tower."
        if whole.trained
        else "The text tower is drawn at random: it knows no words, and the class head does not come from it."
        if whole.weights is None
        else f"The text tower is that of the weights `{Path(whole.weights).name}`, unchanged."
    )
    own = " Its tokenizer is robustft's: `robustft.models.tiny.tokenizer()`." if whole.own_tokenizer else ""
    return came + own


def licence_of(parts: "Parts") -> tuple[str, str]:
    """The licence of the weights that the run started from, as the hub calls it, and a sentence about it."""
    model = (parts.source.config or {}).get("model", {})
    weights = parts.whole.weights if parts.whole is not None else model.get("pretrained", "unknown")
    if weights is None:
        return "apache-2.0", "The run started from random weights: no licence of others' weights applies."
    if weights == "timm":
        import timm

        config = timm.get_pretrained_cfg(parts.source.architecture)
        name = getattr(config, "license", None)
        return name or "other", f"The weights that the run started from are timm's: {name or 'see their page'}."
    tags = ("embedded", *open_clip.list_pretrained_tags_by_model(parts.source.architecture))
    for start, (name, where) in LICENCES.items():
        if weights in tags and weights.startswith(start):
            return name, f"The weights that the run started from (`{weights}`) are under {name} ({where})."
    return "other", f"The run started from `{Path(str(weights)).name}`: its licence is that of those weights."


def prompts_of(source: Source) -> Sequence[str]:
    """The templates that the zero-shot head was made with, as results tell them, else as the data does."""
    told = ((source.results or {}).get("protocol") or {}).get("templates")
    if told is not None:
        return [told] if isinstance(told, str) else list(told)
    if (source.config or {}).get("model", {}).get("pretrained") is None:
        return []  # no text was encoded
    templates = data_of(source).templates
    return list(dict.fromkeys(t if isinstance(t, str) else t("{}") for t in templates))


def recipe(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings that say what the model was trained on and how; what does not apply is left out."""
    data = settings.get("data", {})
    yield "data", str(data.get("_target_", "")).rpartition(".")[2]
    yield from ((f"data.{key}", _said(data[key])) for key in OF_DATA if data.get(key) not in (None, {}))
    yield "model", f"{settings.get('model', {}).get('architecture')}, {settings.get('model', {}).get('pretrained')}"
    for key in RECIPE:
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, "none", -1):
            yield key, str(value)


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(one)}" for key, one in value.items() if one is not None) or "all, as found"
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)  # no paths of one's own machine


def results_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The results as tables: top-1 of each set, further metrics, retention, calibration."""
    yield from ("## Results", "")
    blocks = {"this model": results}
    if results["zeroshot"] is not None and results["method"] != "zeroshot":
        blocks = {"zero-shot": results["zeroshot"], **blocks}
    sets = list(results["ood"])
    yield f"| top-1, % | ID {set_label(results['id']['name'])} | OOD avg |{''.join(f' {set_label(s)} |' for s in sets)}"
    yield "|---|---:|---:|" + "---:|" * len(sets)
    for label, block in blocks.items():
        values = [block["id"]["top1"], block["ood_avg"], *(block["ood"].get(s, {}).get("top1") for s in sets)]
        yield f"| {label} |" + "".join(f" {'–' if value is None else percent(value)} |" for value in values)
    counts = [f"{set_label(name)} {score['n']:,}" for name, score in _scores(results)]
    yield from ("", f"Images: {', '.join(counts)}.")
    if results["partial"]:
        yield "The evaluation was cut short: not comparable with full ones."
    if metrics := results.get("metrics"):
        yield from ("", "| | " + " | ".join(f"ID, {label} | OOD, {label}" for label in blocks) + " |")
        yield "|---|" + "---:|---:|" * len(blocks)
        for name, told in metrics.items():
            pairs = [value for block in blocks.values() for value in (block["id"].get(name), average(block, name))]
            yield f"| {metric_heading(told)} | " + " | ".join(metric_value(v, told["unit"]) for v in pairs) + " |"
    yield ""
    if retention := results.get("retention"):
        yield from ("What it still knows, of tasks that fine-tuning never asked for:", "")
        asked = any(score["top1_own_text"] is not None for score in retention.values())
        own = {"top1_own_text": "its own text"} if asked else {}
        columns = {"zeroshot_top1": "zero-shot", "top1": "this model", **own}
        yield "| task |" + "".join(f" {label}, % |" for label in columns.values()) + " images |"
        yield "|---|" + "---:|" * (len(columns) + 1)
        for name, score in retention.items():
            cells = ("–" if score[key] is None else percent(score[key]) for key in columns)
            yield f"| {name} |" + "".join(f" {cell} |" for cell in cells) + f" {score['n']:,} |"
        yield ""
    else:
        yield from ("What it still knows of other tasks (retention) was not measured.", "")


def _scores(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(results["id"]["name"], results["id"]), *results["ood"].items()]
