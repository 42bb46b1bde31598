"""The page of `check=data`: the table, and pictures of what is odd; one HTML file that needs nothing else."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

from robustft.common.files import write
from robustft.data.inspection import Looked, remarks, shown_pairs
from robustft.data.own.reading import read_sent, read_upright

SIDE = 128  # pixels of a thumbnail
MOST = 24  # pictures of each kind
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1f23}
table{border-collapse:collapse}th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.pictures{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;width:17rem;font-size:12px;overflow-wrap:anywhere}img{max-height:8rem;margin-right:.3rem}
.bad{color:#a40000}@media (prefers-color-scheme:dark){body{background:#16181b;color:#e4e6e8}.bad{color:#ff8c82}
th,td{border-color:#444}}"""


def write_page(path: Path, looked: Looked) -> Path:
    """Write what was found as a page; returns its path."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{found['classes']:,}</td><td>{found['images']:,}</td>"
        f"<td>{len(found['damaged']):,}</td><td>{len(found['odd']):,}</td>"
        f"<td>{'–' if found['skew'] is None else format(found['skew'], '.3g')}</td>"
        f'<td class="bad">{html.escape(found["error"] or "")}</td></tr>'
        for name, found in looked.sets.items()
    )
    heads = ("set", "classes", "images", "damaged", "odd", "largest : smallest class", "")
    parts = [
        "<h1>Data</h1><table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + f"</tr>{rows}</table>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in remarks(looked)) + "</ul>",
        *_section("Images that two sets share", _pairs(looked)),
        *_section("Odd images", _odd(looked)),
        *_section("Damaged files", _damaged(looked)),
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>Data</title><style>{STYLE}</style>'
    write(path, head + "\n".join(parts) + "\n")
    return path


def _section(title: str, figures: Iterable[str]) -> list[str]:
    shown = "".join(figures)
    return [f'<h2>{title}</h2><div class="pictures">{shown}</div>'] if shown else []


def _pairs(looked: Looked) -> Iterable[str]:
    for later, path, earlier, like, distance in shown_pairs(looked, MOST):
        what = "the same file" if distance is None else f"{distance} of 64 bits differ"
        text = f"{later}: {path}<br>{earlier}: {like}<br>{what}"
        pictures = _picture(looked, later, path) + _picture(looked, earlier, like)
        yield f"<figure>{pictures}<figcaption>{_escaped(text)}</figcaption></figure>"


def _odd(looked: Looked) -> Iterable[str]:
    for name, found in looked.sets.items():
        for path, what in list(found["odd"].items())[:MOST]:
            text = f"{name}: {path}<br>{what}"
            yield f"<figure>{_picture(looked, name, path)}<figcaption>{_escaped(text)}</figcaption></figure>"


def _damaged(looked: Looked) -> Iterable[str]:
    for name, found in looked.sets.items():
        for path, why in found["damaged"].items():
            yield f"<figure><figcaption>{_escaped(f'{name}: {path}<br>{why}')}</figcaption></figure>"


def _escaped(text: str) -> str:
    """Lines of text as HTML; `<br>` between them stays."""
    return "<br>".join(html.escape(line) for line in text.split("<br>"))


def _picture(looked: Looked, name: str, path: str) -> str:
    """A thumbnail of an image of a part."""
    try:
        image = read_sent(looked.read[name](path)) if name in looked.read else read_upright(path)
    except Exception:  # noqa: BLE001 -- it could be read a moment ago; the page goes without
        return ""
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
