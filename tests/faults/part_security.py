"""Files that want to run code, write elsewhere or put scripts into pages; who the app answers; where keys end up."""

import importlib.util
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.faults import on_files
from tests.faults.case import Case, Options
from tests.faults.part_resources import ended
from tests.faults.watched import Judge, Limits, watch_each
from tests.small import ROOT, small

LIMITS = Limits(30, 1024)
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
KEY = "5ec2e7" * 6 + "abcd"  # as long as W&B's


def run(options: Options) -> Iterator[Case]:
    os.environ["ROBUSTFT_CACHE"] = str(options.folder / "cache")
    whole = options.folder / "whole"
    on_files.lay_out(whole)
    warm = partial(on_files.warm, whole)
    pickles = list(lay_pickles(whole, options.folder / "pickles"))
    found = watch_each(pickles, LIMITS, options.folder / "unpickled", warm)
    yield found.case("pickles with a side effect, in every kind of file that is read")
    named = list(lay_names(whole, options.folder / "named"))
    yield watch_each(named, LIMITS, options.folder / "followed", warm).case("code named by a run's folder")
    yield _case("names that lead out of a folder", dict(leading_out(options.folder / "out")))
    yield _case("scripts in names that reach a page", dict(scripts(whole, options.folder / "pages")))
    yield _case("who the app answers", dict(answered()))
    yield keys(options.folder / "keys")
    yield vulnerabilities()


def _case(name: str, answers: dict[str, str | None], figure: str = "") -> Case:
    return Case(name, len(answers), tuple(f"{what}: {why}" for what, why in answers.items() if why), figure=figure)


# Pickles


class _Calls:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def payloads(mark: Path) -> dict[str, Any]:
    """Objects that leave a mark when they are unpickled."""
    code = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": _Calls(os.system, f"touch {mark}"),
        "exec": _Calls(exec, code),
        "open": _Calls(open, str(mark), "w"),
        "subprocess": _Calls(subprocess.Popen, ["touch", str(mark)]),
        "getattr": _Calls(getattr, _Calls(__import__, "os"), "system"),
        "rebuild": _Calls(eval, f"__import__('os').system('touch {mark}')"),
    }


def lay_pickles(whole: Path, folder: Path) -> Iterator[tuple[str, Judge]]:
    import torch

    folder.mkdir(parents=True)
    for name, payload in payloads(folder / "mark").items():
        for where, value in {
            "alone": payload,
            "beside weights": {"state_dict": {"visual.proj": torch.zeros(2)}, "callbacks": payload},
            "among weights": {"visual.proj": payload},
        }.items():
            for kind in ("plain.pt", "old.pt", "pickled module", "last.ckpt", "plain.safetensors"):
                path = folder / f"{name}-{where}-{kind}".replace(" ", "-")
                if kind in ("plain.pt", "last.ckpt"):
                    torch.save(value, path)
                else:
                    path.write_bytes(pickle.dumps(value, protocol=2))
                yield f"{name} {where} in {kind}", partial(_unpickled, path, kind, folder / "mark")
        path = folder / f"{name}-torchscript"
        with zipfile.ZipFile(whole / "weights/archive.pt") as old, zipfile.ZipFile(path, "w") as new:
            for part in old.namelist():
                new.writestr(part, pickle.dumps(payload, 2) if part.endswith("/data.pkl") else old.read(part))
        yield f"{name} in TorchScript", partial(_unpickled, path, "TorchScript", folder / "mark")


def _unpickled(path: Path, kind: str, mark: Path) -> str | None:
    said = on_files.judge(path.with_name(f"{path.name}-read"), kind, path.read_bytes())
    return "it was run" if mark.exists() else said


# Code that the folder of a run names

EVIL = """import os
from robustft.data.scenes.datamodule import ScenesData
open({mark!r}, "w").close()
class Data(ScenesData):
    pass
def call(*_, **__):
    pass
"""


def lay_names(whole: Path, folder: Path) -> Iterator[tuple[str, Judge]]:
    """Folders of runs beside a module that leaves a mark when it is imported."""
    config = json.loads((whole / "run/results.json").read_text())["config"]
    model, data = config["model"], config["data"]
    tokenizer = {"_target_": "evil.call"}
    mark = str(folder / "mark")
    writes = {"_target_": "robustft.common.files.write", "path": mark, "text": ""}
    for name, changes in {
        "data": {"data": {**data, "_target_": "evil.Data"}},
        "data of the standard library": {"data": {**data, "_target_": "os.system"}},
        "something in data": {"data": {**data, "root": {"_target_": "evil.call"}}},
        "the tokenizer": {"model": {**model, "tokenizer": tokenizer}},
        "a function of ours as the tokenizer": {"model": {**model, "tokenizer": writes}},
        "the backbone": {"model": {**model, "backbone": {"_target_": "evil.call"}}},
        "a reference to a secret": {"model": {**model, "pretrained": "${oc.env:WANDB_API_KEY}"}},
    }.items():
        for kind in ("results.json", "config.yaml"):
            yield f"{name} in {kind}", partial(_followed, whole, folder, kind, config | changes)
    for line in (
        "data._target_=evil.Data",
        "method._target_=evil.call",
        "model.tokenizer={_target_:evil.call}",
        "hydra.callbacks.x={_target_:evil.call}",
        "hydra.job.env_set.LD_PRELOAD=x",
        "hydra.job_logging.handlers.x={}",
    ):
        yield f"{line} in overrides.yaml", partial(_gone_on_with, whole, folder, line)


def _beside(folder: Path) -> Path:
    """The mark of a module that lies where the folder of a run says that its code lies."""
    (folder / "conf").mkdir(parents=True, exist_ok=True)
    (folder / "evil.py").write_text(EVIL.format(mark=str(folder / "mark")))
    (folder / "mark").unlink(missing_ok=True)
    sys.modules.pop("evil", None)
    return folder / "mark"


def _followed(whole: Path, folder: Path, kind: str, config: dict[str, Any]) -> str | None:
    mark = _beside(folder)
    record = json.loads((whole / "run/results.json").read_text()) | {"config": config}
    content = json.dumps(record if kind == "results.json" else config).encode()
    place = folder / "read" / kind
    on_files.judge(place, "config.yaml", (whole / "run/config.yaml").read_bytes())  # lays the folder out
    run = place / "config.yaml"
    (run / "config_dir.txt").write_text(str(folder / "conf"))
    (run / kind).write_bytes(content)
    said = on_files.configured(run) or on_files.refused(lambda: _zeroshot(run))
    (run / kind).unlink()
    return "it was imported" if mark.exists() or "evil" in sys.modules else said


def _zeroshot(run: Path) -> None:
    from robustft.deploy.again import zeroshot_of
    from robustft.deploy.source import Source

    source = Source(run / "model.safetensors")
    zeroshot_of(source, source.class_names)


def _gone_on_with(whole: Path, folder: Path, line: str) -> str | None:
    mark = _beside(folder)
    lines = [*json.loads(json.dumps(_typed(whole))), line]
    said = on_files.judge(folder / "resumed", "overrides.yaml", json.dumps(lines).encode())
    if mark.exists() or "evil" in sys.modules:
        return "it was imported"
    from robustft.cli import plan
    from robustft.common.errors import UserError

    try:
        plan.make_plan([f"resume={folder / 'resumed' / 'overrides.yaml'}"])
    except UserError:
        return said
    return "it is followed"


def _typed(whole: Path) -> list[str]:
    import yaml

    return list(yaml.safe_load((whole / "run/overrides.yaml").read_text()))


# Names


def leading_out(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Names in data and in files that are no names of files."""
    from robustft.cli import naming, run_folder
    from robustft.data.own.table import TableImages
    from robustft.data.sets import Preprocess

    folder.mkdir()
    preprocess = Preprocess(64, (0, 0, 0), (1, 1, 1))
    for name in ("../../out", "/tmp/out", "..", "a/../../b", "a\\..\\b", ".hidden", "x" * 300, "two\nlines"):
        rows = [f"{split}-{c}.png,{c},{split}" for split in ("train", "s") for c in ("cat", "dog")]
        quoted = json.dumps(name) if "\n" not in name else f'"{name}"'
        text = "path,label,split\n" + "\n".join(rows).replace(",s", f",{quoted}") + "\n"
        for row in rows:
            (folder / row.split(",")[0]).write_bytes(b"")
        (folder / "t.csv").write_text(text)

        def look(name: str = name) -> None:
            data = TableImages(
                path=str(folder / "t.csv"), preprocess=preprocess, seed=0, batch_size=1, eval_batch_size=1
            )
            raise AssertionError(f"it may be a set: {list(data.found.shifts)}")

        try:
            yield f"a set called {name!r:.30}", on_files.refused(look)
        except AssertionError as error:
            yield f"a set called {name!r:.30}", str(error)
        made = naming.slug(name)
        yield f"a folder for {name!r:.30}", f"{made!r}" if "/" in made or made in ("", ".", "..") else None
    outside = folder / "precious"
    for number in ("../../precious", "*", "", ".."):
        outside.mkdir(exist_ok=True)
        (outside / "kept").write_text("")
        run = folder / "a" / "run"
        (run / "wandb").mkdir(parents=True, exist_ok=True)
        (run / "wandb_id.txt").write_text(number)
        run_folder._forget_wandb(run)
        yield f"a W&B id {number!r}", None if (outside / "kept").exists() else "a folder elsewhere is gone"


class _Page(HTMLParser):
    """What a page holds that could run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        self.found += [tag] if tag in ("iframe", "object", "embed", "base", "form", "meta-refresh") else []
        self.found += [f"{tag} {name}={value}" for name, value in attrs if (value or "").startswith("javascript:")]
        self.found += [f"img {value}" for name, value in attrs if tag == "img" and name == "src" and value == "x"]


def scripts(whole: Path, folder: Path) -> Iterator[tuple[str, str | None]]:
    """Pages made of names with a script in them: no element comes of it."""
    from robustft.data.check_page import write_page
    from robustft.data.inspection import Looked
    from robustft.report.__main__ import main

    folder.mkdir()
    record = json.loads((whole / "run/results.json").read_text())
    (folder / "results.json").write_text(json.dumps(record))
    clean = _report(folder, main)
    for place in ("name", "method", "model", "id", "ood", "label", "marker", "config", "settings", "metrics", "recipe"):
        spoiled = json.loads(json.dumps(record))
        match place:
            case "id":
                spoiled["id"]["name"] = spoiled["zeroshot"]["id"]["name"] = SCRIPT
            case "ood":
                for block in (spoiled, spoiled["zeroshot"]):
                    block["ood"] = {f"{SCRIPT}{name}": score for name, score in block["ood"].items()}
            case "label":
                spoiled["display"]["label"] = SCRIPT
            case "marker":
                spoiled["display"]["marker"] = {"colour": f'"{SCRIPT}', "shape": f'"{SCRIPT}'}
            case "config" | "settings":
                spoiled[place] = {**spoiled[place], f"k{SCRIPT}": SCRIPT}
            case "metrics":
                spoiled["metrics"] = {
                    name: {**told, "label": SCRIPT, "unit": SCRIPT} for name, told in spoiled["metrics"].items()
                }
            case "recipe":
                spoiled["protocol"]["recipe"] = SCRIPT
            case _:
                spoiled[place] = SCRIPT
        (folder / "results.json").write_text(json.dumps(spoiled))
        page = _report(folder, main)
        more = page.found != clean.found or page.scripts != clean.scripts
        wrong = f"{page.found}, {page.scripts} scripts" if more else None
        yield f"{place} on the page of reports", f"{wrong}" if wrong else None
    found = {"classes": 1, "images": 1, "path": SCRIPT, "official": None, "formats": {}, "skew": None}
    looked = Looked(
        {SCRIPT: {**found, "damaged": {SCRIPT: SCRIPT}, "odd": {SCRIPT: SCRIPT}, "error": SCRIPT}}, {SCRIPT: [SCRIPT]}
    )
    page = _Page()
    page.feed(write_page(folder / "check.html", looked).read_text())
    yield "files and sets on the page of check=data", str(page.found or page.scripts or "") or None
    for script in (*ROOT.glob("robustft/deploy/assets/*.js"), *ROOT.glob("robustft/report/assets/*.js")):
        text = script.read_text()
        wild = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        yield f"{script.parent.parent.name}/{script.name} writes text, no HTML", str(wild) if wild else None


def _report(folder: Path, main: Callable[..., int]) -> _Page:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(folder / "results.json"), "--html", str(folder / "page.html")]) == 0
    page = _Page()
    page.feed((folder / "page.html").read_text())
    return page


# The app


def answered() -> Iterator[tuple[str, str | None]]:
    import asyncio
    from contextlib import closing

    from robustft.deploy.app import HOST, listening
    from robustft.deploy.server import application

    with closing(listening(HOST, 0)) as place:
        address, port = place.getsockname()[:2]
        yield "it listens on this machine's own address", None if address == "127.0.0.1" else address
        for other in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "::1"}:
            with socket.socket(socket.AF_INET6 if ":" in str(other) else socket.AF_INET) as client:
                client.settimeout(2)
                reached = client.connect_ex((str(other), port)) == 0 and not str(other).startswith("127.")
            yield "nobody reaches it from elsewhere", f"it answers at {other}" if reached else None

    class Nothing:
        def about(self) -> dict[str, Any]:
            return {}

    app: Any = application(Nothing(), HOST)  # type: ignore[arg-type]

    def status(**headers: str) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        told = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": "/about", "query_string": b"", "headers": told}
        asyncio.run(app({**scope, "raw_path": b"/about", "root_path": "", "scheme": "http"}, receive, send))
        return sent[0]["status"]

    for host, expected in {
        "127.0.0.1:8000": 200,
        "localhost:8000": 200,
        "[::1]:8000": 200,
        "evil.example": 421,
        "127.0.0.1.evil.example": 421,
        "localhost.evil.example:8000": 421,
        "": 421,
        "evil@localhost": 421,
    }.items():
        found = status(host=host)
        yield f"Host: {host}", None if found == expected else f"status {found}"
    for origin, expected in {"http://evil.example": 403, "null": 403, "http://localhost:8000": 200}.items():
        found = status(host="localhost:8000", origin=origin)
        yield f"Origin: {origin}", None if found == expected else f"status {found}"


# Keys


def keys(folder: Path) -> Case:
    """Runs with a W&B key, offline and with a server; the key is in no file that they leave."""
    from tests.wandb_server import Server

    folder.mkdir()
    lost = []
    server = Server()
    for mode, settings in {"offline": ["logger=wandb"], "online": ["logger=wandb"], "csv": ["logger=csv"]}.items():
        place = folder / mode
        place.mkdir()
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ROBUSTFT_CACHE": str(folder / "cache"),
            "HOME": str(place), "WANDB_API_KEY": KEY, "WANDB_MODE": "offline" if mode == "offline" else "online",
            "WANDB_BASE_URL": server.url, "WANDB_ERROR_REPORTING": "false",
        }  # fmt: skip
        typed = small("method=finetune", "trainer.max_steps=2", *settings, f"hydra.run.dir={place / 'run'}")
        line = [sys.executable, str(ROOT / "run.py"), *(one for one in typed if one != "logger=none" or settings == [])]
        done = ended(line, place, environment)
        if done.returncode:
            lost.append(f"{mode}: status {done.returncode}: {done.stderr[-200:]}")
        if KEY in done.stdout + done.stderr:
            lost.append(f"{mode}: it is printed")
        holds = [path for path in place.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
        lost += [f"{mode}: {path.relative_to(place)}" for path in holds]
    server.die()
    return Case("a W&B key in what runs leave", 3, tuple(lost))


def vulnerabilities() -> Case:
    """Known ones in what is installed, as pip-audit tells them."""
    name = "known vulnerabilities in the pinned versions"
    if importlib.util.find_spec("pip_audit") is None:
        return Case(name, 0, figure="not looked for: pip-audit is not installed")
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return Case(name, 0, figure="not looked for: the database of advisories was not reached")
    asked = [one for one in told if "vulns" in one]
    lost = [f"{one['name']} {one['version']}: {vuln['id']}" for one in asked for vuln in one["vulns"]]
    if not asked:
        return Case(name, 0, figure="not looked for: the database of advisories knows none of the packages")
    return Case(name, len(asked), tuple(lost), figure=f"{len(told) - len(asked)} packages are not in the database")
