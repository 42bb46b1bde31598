"""The interactive page: one HTML file with its data, pictures, style and script inside, which opens offline.

`assets/page.html` is the frame; the style and the scripts beside it are put into it, and the data as one JSON
object (`payload`).
"""

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from robustft.common.configs import flatten
from robustft.common.files import write
from robustft.common.wording import counted
from robustft.evaluation.summary import set_label
from robustft.report.groups import Group, curves, panel_title
from robustft.report.runs import Record, Run, retention_tasks
from robustft.report.table import repeated_note

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data.js", "marks.js", "scatter.js", "sections.js", "controls.js")
PICTURES = 6_000_000  # bytes for all galleries together; base64 adds a third
TRAITS = {f"method.{trait}" for trait in ("trains", "masks", "needs", "uses")}  # of the code: nobody sets them
WIDTHS = (1600, 1100, 800, 560, 400, 280)  # of the pictures; the first that fits all of them is taken


def write_page(path: Path, panels: Sequence[Sequence[Group]]) -> Path:
    """Write the page about the groups of each panel to `path` and return it."""
    data = payload(panels)
    count = sum(not run["reference"] for run in data["runs"])
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = (ASSETS / "page.html").read_text("utf-8")
    parts = {
        "%TITLE%": html.escape(f"Robust fine-tuning: {counted(count, 'run')}"),
        "%CSS%": (ASSETS / "page.css").read_text("utf-8"),
        "%JS%": "\n".join((ASSETS / name).read_text("utf-8") for name in SCRIPTS),
        "%DATA%": text,
    }
    for mark, content in parts.items():
        page = page.replace(mark, content)
    write(path, page)
    return path


def payload(panels: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """Everything the script shows. Runs, groups and pictures are referred to by their index."""
    groups = [group for members in panels for group in members]
    runs = [(number, run) for number, group in enumerate(groups) for run in group.runs]
    images, galleries = pictures([run for _, run in runs])
    configs = [_config(run) for _, run in runs]
    shared = common(configs)
    entries = [
        {**_entry(run, groups[number]), "index": k, "group": number, "gallery": gallery}
        | {"config": {key: value for key, value in config.items() if key not in shared}}
        for k, ((number, run), config, gallery) in enumerate(zip(runs, configs, galleries, strict=True))
    ]
    members = [[k for k, (owner, _) in enumerate(runs) if owner == number] for number in range(len(groups))]
    place = {id(group): number for number, group in enumerate(groups)}
    return {
        "about": _about(panels, runs),
        "runs": entries,
        "groups": [{"label": g.label, "runs": m} for g, m in zip(groups, members, strict=True)],
        "panels": [_panel(members_, place, members) for members_ in panels],
        "curves": [
            {"dial": curve.dial, "name": curve.name, "groups": [place[id(group)] for group in curve.groups]}
            for curve in curves(groups)
        ],
        "config": shared,
        "images": images,
    }


def _about(panels: Sequence[Sequence[Group]], runs: Sequence[tuple[int, Run]]) -> str:
    titles = ", ".join(map(panel_title, panels))
    partial = sum(run.record["partial"] and run.record["method"] != "zeroshot" for _, run in runs)
    remark = f" {partial} runs are partial evaluations." if partial else ""
    if note := repeated_note([group for groups in panels for group in groups]):
        remark += f" {note}"
    return f"{titles}. Top-1 accuracy on the ID set and under shift. {date.today():%d %B %Y}.{remark}"


def _panel(groups: Sequence[Group], place: dict[int, int], members: list[list[int]]) -> dict[str, Any]:
    _, id_name = groups[0].runs[0].panel
    numbers = [place[id(group)] for group in groups]
    sets = dict.fromkeys(name for group in groups for run in group.runs for name in run.record["ood"])
    return {
        "title": panel_title(groups),
        "id_label": set_label(id_name),
        "sets": [[name, set_label(name)] for name in sets],
        "metrics": _metrics(groups),
        "groups": numbers,
        "runs": [k for number in numbers for k in members[number]],
    }


def _metrics(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """(key, name, unit) of retention, and of every further metric on the ID set and on average over the shifts."""
    known: dict[str, Any] = {}
    for group in groups:
        for run in group.runs:
            known |= run.record.get("metrics") or {}
    places = (("id", "ID"), ("ood_avg", "OOD avg"))
    tasks = retention_tasks(run for group in groups for run in group.runs)
    retention = [("retention", "Retention, change to zero-shot", "%")] if tasks else []
    retention += [(f"retention.{name}", f"Retention, {name}", "%") for name in tasks]
    return retention + [
        (f"{place}.{name}", f"{where}, {told['label']}", told["unit"])
        for name, told in known.items()
        for place, where in places
    ]


def _entry(run: Run, group: Group) -> dict[str, Any]:
    record, mask = run.record, run.record["mask"] or {}
    kind = mask.get("kind") if mask.get("kind") != "none" else None
    told = {"label": group.label.split(" (")[0]} if group.published else run.display
    system = told["label"] if kind is None else told["label"].removesuffix(f"{kind} mask, {_fill(record)}").strip(", ")
    return {
        **{key: record[key] for key in ("name", "method", "beta", "alpha", "temperature", "seed")},
        "system": system or "masked",
        "look": run.display["marker"] if not group.published else None,
        "mask": kind,
        "fill": record["fill"] if kind else None,
        "threshold": mask.get("threshold") if kind in ("object", "context") else None,
        "rate": mask.get("rate") if kind == "random" else None,
        "reference": group.reference,  # no run, but what runs are compared with
        "single": group.published,
        **{metric: run.value(metric) for metric in ("id", "ood_avg", "holdout")},
        "ood": {name: score["top1"] for name, score in record["ood"].items()},
        "more": {
            key: found
            for name in record.get("metrics") or {}
            for place in ("id", "ood_avg")
            if (found := run.value(key := f"{place}.{name}")) is not None
        }
        | {
            key: found
            for key in ("retention", *(f"retention.{name}" for name in record.get("retention") or {}))
            if (found := run.value(key)) is not None
        },
    }


def _fill(record: Record) -> str:
    return f"{'no' if record['fill'] == 'none' else record['fill']}-fill"


def _config(run: Run) -> dict[str, Any]:
    """The run's settings, and what its results file tells where there are none."""
    record = run.record
    fields = {key: record[key] for key in ("method", "fill", "beta", "alpha", "temperature", "seed")}
    settings = {
        key: json.dumps(value) if isinstance(value, list | dict) else value
        for key, value in flatten(record["config"])
        if key not in TRAITS
    }
    return settings or {key: value for key, value in fields.items() if value is not None}


def common(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all configs share: kept once, so that 500 runs stay a small page."""
    first, *others = configs
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}


def pictures(runs: Sequence[Run]) -> tuple[list[str], list[list[tuple[str, int]]]]:
    """Data URLs of the runs' galleries (`gallery/*.png` beside results.json), and per run (title, picture).

    Equal files are kept once. All get one width at which they fit into `PICTURES`; what does not fit at the
    smallest is left out, last runs first.
    """
    found: dict[bytes, int] = {}
    galleries: list[list[tuple[str, int]]] = []
    for run in runs:
        own = run.record["method"] != "published" and run.record["seed"] is not None
        files = sorted((run.path.parent / "gallery").glob("*.png"), key=_set_order(run)) if own else []
        read = [(file, file.read_bytes()) for file in files if is_picture(file)]
        galleries.append([(_title(file), found.setdefault(content, len(found))) for file, content in read])
    sources = list(found)
    sample = sources[:: max(len(sources) // 8, 1)]
    expected = {
        width: sum(len(shrink(source, width)) for source in sample) * len(sources) / max(len(sample), 1)
        for width in WIDTHS
    }
    width = next((width for width, size in expected.items() if size < 0.9 * PICTURES), WIDTHS[-1])
    urls: list[str] = []
    room = PICTURES
    for source in sources:
        image = shrink(source, width)
        room -= len(image)
        if room < 0:
            break
        urls.append(f"data:image/webp;base64,{base64.b64encode(image).decode()}")
    return urls, [[(title, k) for title, k in gallery if k < len(urls)] for gallery in galleries]


def _set_order(run: Run) -> Callable[[Path], tuple[int, str]]:
    """Sorts files named after evaluation sets in the sets' order: the longest set name found in it decides."""
    names = [run.record["id"]["name"], *run.record["ood"]]

    def place(file: Path) -> tuple[int, str]:
        found = [(len(name), k) for k, name in enumerate(names) if name in file.stem]
        return (max(found)[1] if found else len(names)), file.stem

    return place


def is_picture(file: Path) -> bool:
    """Whether a file is one that can be shown: a gallery may come from elsewhere, or be damaged."""
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
    except Exception:  # noqa: BLE001 -- Pillow raises a dozen kinds for damaged files
        return False
    return True


def shrink(source: bytes, width: int) -> bytes:
    """A PNG as WebP of at most `width` pixels across."""
    from PIL import Image

    with Image.open(io.BytesIO(source), formats=["PNG"]) as image:
        picture = image.convert("RGB")
    picture.thumbnail((width, 8 * width))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80, method=2)
    return out.getvalue()


def _title(file: Path) -> str:
    """`scenes_r.png` as "R", `after_scenes_r.png` as "after scenes r"."""
    named = set_label(file.stem)
    return named if named != file.stem else file.stem.replace("_", " ").replace("-", " ")
