"""`robustft app`: what it says of images, against plain implementations; whom it answers; the page in a browser."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import open_dict
from PIL import Image

import robustft
from robustft.cli import compose
from robustft.cli.main import run_in
from robustft.common.errors import UserError
from robustft.counterfactual.cam import relevance
from robustft.data.own.reading import UnreadableImage, read_sent
from robustft.data.reading import FORMATS
from robustft.deploy import app, looking
from robustft.deploy.again import data_of, zeroshot_of
from robustft.deploy.looking import GONE, Looker
from robustft.deploy.neighbours import some_of, training_images
from robustft.deploy.server import HEADERS, LIMIT, is_here, names_of, server
from robustft.deploy.source import find
from robustft.models.tower import Tower
from tests.browser import Page, browsing
from tests.deploy.conftest import OWN
from tests.deploy.test_predict import mistakes, told
from tests.needs import browser
from tests.small import ROOT, do, small, work  # noqa: F401 (a fixture)

CPU = torch.device("cpu")
HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def masked(work: Path) -> Path:  # noqa: F811
    """A run that trains with object masks and single fill."""
    do(work / "masked", "model.pretrained=embedded", "trainer.max_steps=2")
    return work / "masked"


@contextmanager
def serving(looker: Looker, host: str = HOST) -> Iterator[int]:
    """The port of a server in this process."""
    with closing(app.listening(host, 0)) as place:
        served = server(looker, host)
        thread = threading.Thread(target=served.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        try:
            yield place.getsockname()[1]
        finally:
            served.should_exit = True
            thread.join(20)
            looker.stop()


@pytest.fixture(scope="module")
def port(masked: Path) -> Iterator[int]:
    with serving(Looker(find(masked), CPU, 50)) as number:
        yield number


def ask(
    port: int, method: str, where: str, body: Any = None, kind: str = "image/png", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, content (of JSON, what it holds) and headers of an answer."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
        sent = {"Content-Type": kind, **headers} if body is not None else headers
        connection.request(method, where, body, {name.replace("_", "-"): value for name, value in sent.items()})
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content, dict(answer.headers)


def finished(looker: Looker, content: bytes) -> dict[str, Any]:
    """The nearest training images, once they are there."""
    end = time.monotonic() + 60
    while not (found := looker.nearest(content))["ready"] and "note" not in found:
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


# -- what it says


def test_the_answers_are_those_of_predict(masked: Path, pictures: Path, port: int) -> None:
    model = robustft.load(masked)
    zeroshot = zeroshot_of(find(masked), model.class_names)
    for name in ("turned.png", "b.png", "grey.png"):
        status, said, _ = ask(port, "POST", "/answers", (pictures / name).read_bytes())
        assert status == 200 and list(said["answers"]) == ["zero-shot", "fine-tuned"]
        for title, one in {"zero-shot": zeroshot, "fine-tuned": model}.items():
            (expected,) = one.predict(pictures / name)
            assert [label for label, _, _ in said["answers"][title]] == [label for label, _ in expected]
            assert [p for _, p, _ in said["answers"][title]] == pytest.approx([p for _, p in expected], rel=1e-4)
            assert all(model.class_names[k] == label for label, _, k in said["answers"][title])
    _, said, _ = ask(port, "POST", "/answers", (pictures / "turned.png").read_bytes())
    assert said["size"] == [55, 90]  # upright, as a person sees it


def cells(image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """Views of the patches of an image, row by row."""
    rows, columns = (length // side for length in image.shape[1:])
    return [image[:, r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(rows) for c in range(columns)]


def test_masks_and_counterfactual_samples(masked: Path, pictures: Path) -> None:
    """Against patches that are put in one by one."""
    source, content = find(masked), (pictures / "b.png").read_bytes()
    looker, model = Looker(source, CPU, 50), robustft.load(masked)
    zeroshot = zeroshot_of(source, model.class_names)
    pixels = model.preprocess.pixels(read_sent(content))
    for target, draw in ((3, 0), (3, 7), (5, 0)):
        found = looker.look(content, target, draw)
        _, _, cam = relevance(model, model.normalise(pixels[None]), torch.tensor([target]))
        mask = cam[0] > 0.3
        by_title = {one["title"]: one for one in (*found["masks"], *found["fills"])}
        assert list(by_title) == ["object mask", "context mask", "no fill", "single fill", "multi fill"]
        assert [title for title, one in by_title.items() if one["used"]] == ["object mask", "single fill"]
        assert by_title["object mask"]["masked"] == pytest.approx(float(mask.float().mean()))
        assert 0 < by_title["object mask"]["masked"] < 1
        others = some_of(training_images(source, model, 50), 4, draw)
        x_cf = pixels.clone()
        both = (cells(image, model.patch_size) for image in (x_cf, others[0]))
        for there, ours, theirs in zip(mask, *both, strict=True):
            ours[:] = theirs if there else ours
        with torch.no_grad():
            features, expected = [], {}
            for name, one in (("zero-shot", zeroshot), ("fine-tuned", model)):
                encoded = one.encode(one.normalise(x_cf[None]))
                features.append(torch.nn.functional.normalize(encoded, dim=1)[0])
                p = (one.classify(encoded) / (one.temperature or 1)).softmax(1)[0].max(0)
                expected[name] = (one.class_names[p.indices], float(p.values))
        single = by_title["single fill"]
        assert {name: label for name, (label, _) in single["says"].items()} == {n: e[0] for n, e in expected.items()}
        assert [p for _, p in single["says"].values()] == pytest.approx([p for _, p in expected.values()], rel=1e-3)
        assert single["agreement"] == pytest.approx(float(features[0] @ features[1]), abs=1e-4)
        assert found["agreement"] != single["agreement"]
    same = [looker.look(content, 3, draw)["fills"][1]["picture"] for draw in (0, 0, 1)]
    assert same[0] == same[1] != same[2]
    assert looker.look(content, None, 0)["target"] == int(model(model.normalise(pixels[None])).argmax())


def test_a_run_without_masks_is_an_illustration(run: Path, masked: Path, pictures: Path) -> None:
    content = (pictures / "b.png").read_bytes()
    found = Looker(find(run), CPU, 50).look(content, 1, 0)
    assert found["illustration"] and not any(one["used"] for one in (*found["masks"], *found["fills"]))
    assert not Looker(find(masked), CPU, 50).look(content, 1, 0)["illustration"]


def test_the_nearest_training_images_are_encoded_once(masked: Path, pictures: Path, work: Path, monkeypatch) -> None:  # noqa: F811
    source, content = find(masked), (pictures / "b.png").read_bytes()
    looker, model = Looker(source, CPU, 30), robustft.load(masked)
    data = data_of(source)
    trained_on, kept = set(data.split[0].tolist()), training_images(source, model, 30).chosen.tolist()
    assert len(kept) == len(set(kept)) == 30 and set(kept) <= trained_on  # none of the hold-out
    found = finished(looker, content)
    assert (found["done"], found["of"], len(found["images"])) == (30, 30, looking.NEAREST)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.normalize(model.encode(model.normalise(pixels[None])), dim=1)[0]

    images = data.training_set()
    of_image = features(model.preprocess.pixels(read_sent(content)))
    cosines = {k: float(features(images[k][0]) @ of_image) for k in kept}
    best = sorted(kept, key=lambda k: -cosines[k])[: looking.NEAREST]
    assert [one["cosine"] for one in found["images"]] == pytest.approx([cosines[k] for k in best], abs=1e-4)
    assert [one["class"] for one in found["images"]] == [model.class_names[int(images.labels[k])] for k in best]
    assert list((work / "cache" / "nearest").glob("*.safetensors"))
    again = Looker(source, CPU, 30)
    calls: list[Any] = []
    monkeypatch.setattr(looking.Neighbours, "_make", lambda self: calls.append(self))
    assert finished(again, content)["images"] == found["images"] and not calls


def test_an_end_while_training_images_are_encoded(masked: Path, pictures: Path, work: Path, monkeypatch) -> None:  # noqa: F811
    looker = Looker(find(masked), CPU, 40)
    begun, go_on = threading.Event(), threading.Event()
    encode = Looker._encode

    def slow(self: Looker, pixels: torch.Tensor) -> torch.Tensor:
        begun.set()
        assert go_on.wait(30)
        return encode(self, pixels)

    monkeypatch.setattr(Looker, "_encode", slow)
    before = set((work / "cache" / "nearest").glob("*.safetensors"))
    assert not looker.progress()["ready"] and begun.wait(30)
    assert looker.answers((pictures / "b.png").read_bytes())["answers"]  # is answered meanwhile
    threading.Timer(0.2, go_on.set).start()
    looker.stop()
    assert not looker.progress()["ready"] and set((work / "cache" / "nearest").glob("*.safetensors")) == before


@pytest.mark.slow
def test_a_run_whose_data_are_gone(domains: Path, pictures: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The panels that need them are left out, and no answer names a path."""
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    root, content = tmp_path / "images", (pictures / "b.png").read_bytes()
    shutil.copytree(domains, root)
    settings = "model=tiny model.pretrained=null trainer=cpu trainer.max_epochs=1 logger=none"
    typed(tmp_path / "own", *f"{settings} trainer.enable_progress_bar=false {OWN.format(root=root)}".split())
    whole = Looker(find(tmp_path / "own"), CPU, 50)
    assert whole.look(content, 0, 0)["note"] is None and finished(whole, content)["ready"]
    shutil.rmtree(root)
    # Of a running server: the files have gone since.
    assert whole.look(content, 0, 0)["note"] == GONE
    capsys.readouterr()
    looker = Looker(find(tmp_path / "own"), CPU, 50)
    assert str(root) in capsys.readouterr().err  # on the terminal
    about, found = looker.about(), looker.look(content, 0, 0)
    assert about["models"] == ["fine-tuned"] and "zero-shot model cannot be made" in about["notes"][0]
    assert found["note"] == GONE and [one["title"] for one in found["fills"]] == ["no fill"]
    assert "agreement" not in found["fills"][0] and len(found["maps"]) == 1
    assert looker.nearest(content) == {"ready": False, "note": GONE}
    for said in (about, found, looker.answers(content), whole.look(content, 0, 0)):
        assert str(tmp_path) not in json.dumps(said)
    assert Looker(find(tmp_path / "own"), CPU, 0).nearest(content)["note"].endswith("(--nearest 0).")


def typed(folder: Path, *settings: str) -> None:
    """One run in this process, with these settings alone."""
    cfg = compose.compose_first(compose.parse(list(settings)))
    with open_dict(cfg):
        cfg.pop("hydra")
    run_in(cfg, folder, list(settings))


def test_a_model_without_patches_and_one_alone(masked: Path, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    content = (pictures / "b.png").read_bytes()
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((masked / "model.safetensors").read_bytes())
    looker = Looker(find(alone), CPU, 50)
    assert looker.about()["models"] == ["fine-tuned"] and len(looker.about()["notes"]) == 2  # raw probabilities, too
    assert looker.about()["about"] == "tiny, 16 classes."
    assert looker.look(content, 0, 0)["illustration"]

    def blind(source: Any) -> Any:
        model = robustft.load(source.file)
        vars(model)["_tower"] = (Tower(model.visual),)  # nothing is known of it but that it has features
        return model

    monkeypatch.setattr(looking, "load", blind)
    looker = Looker(find(masked), CPU, 50)
    assert not looker.about()["maps"] and "no patches" in looker.about()["notes"][-1]
    assert set(looker.look(content, None, 0)) == {"target", "seen"}
    assert looker.answers(content)["answers"]["fine-tuned"] and finished(looker, content)["images"]


def test_a_run_that_trained_nothing(work: Path, pictures: Path) -> None:  # noqa: F811
    typed(work / "untrained", *small("method=zeroshot", "model.pretrained=embedded"))
    looker = Looker(find(work / "untrained"), CPU, 50)
    assert looker.about()["models"] == ["zero-shot"] and "trained nothing" in looker.about()["notes"][0]
    assert list(looker.answers((pictures / "b.png").read_bytes())["answers"]) == ["zero-shot"]


# -- what it takes, and from whom


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 90, 30)).save(stream, kind, **options)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"just text", "not an image"),
        (b"<!doctype html><p>Not found", "not an image but a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image but XML or SVG"),
        (encoded("PNG")[:60], "truncated"),
        (encoded("JPEG")[:-200], "truncated"),
        (EPS, "not an image"),  # Pillow would hand it to Ghostscript
    ],
    ids=["empty", "text", "page", "svg", "png", "jpeg", "eps"],
)
def test_broken_images(port: int, content: bytes, why: str) -> None:
    for where in ("/answers", "/look"):
        status, said, _ = ask(port, "POST", where, content)
        assert status == 422 and why.lower() in said["error"].lower() and "\n" not in said["error"], said


def test_a_bomb_and_a_phone_s_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        read_sent(encoded("PNG"))
    monkeypatch.undo()
    monkeypatch.setattr("robustft.data.own.reading._with_heif", lambda: False)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # whatever it is called
    with pytest.raises(UnreadableImage, match="HEIC needs pillow-heif"):
        read_sent(heic)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("HEIF", "MPO")])
def test_the_formats_that_are_taken(kind: str) -> None:
    image = read_sent(encoded(kind))
    assert image.mode == "RGB" and image.size == (40, 30)


def test_who_is_answered(port: int, pictures: Path) -> None:
    content = (pictures / "b.png").read_bytes()
    for host in (f"{HOST}:{port}", f"localhost:{port}", "LOCALHOST", "[::1]:80", "192.168.1.9"):
        assert ask(port, "GET", "/about", Host=host)[0] == 200, host
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "evil@localhost",
    ):
        assert ask(port, "GET", "/about", Host=host)[0] == 421, host
    assert ask(port, "POST", "/answers", content, Origin=f"http://{HOST}:{port}")[0] == 200
    for origin in ("http://evil.example", "null", f"http://{HOST}:{port + 1}"):
        assert ask(port, "POST", "/answers", content, Origin=origin)[0] == 403, origin
    # What a form or a script of another page may send without asking first.
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        assert ask(port, "POST", "/answers", content, kind)[0] == 415, kind
    assert ask(port, "POST", "/answers", content, "application/octet-stream")[0] == 200
    names = names_of("0.0.0.0")
    assert is_here("10.0.0.7:8000", names) and not is_here("evil.example", names) and is_here("localhost", names)
    assert len(names_of(HOST)) == 2


def test_what_is_taken(port: int, pictures: Path, masked: Path) -> None:
    content = (pictures / "b.png").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in masked.rglob("*")}
    line = f"larger than {LIMIT // 2**20} MB, the most that is taken"
    with closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:  # said, but not sent
        connection.putrequest("POST", "/answers")
        for name, value in {"Content-Type": "image/png", "Content-Length": str(LIMIT + 1)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413 and json.loads(answer.read()) == {"error": line}

    def parts() -> Iterator[bytes]:  # without saying how much it will be
        for _ in range(LIMIT // 2**20):
            yield bytes(2**20)
        yield b"and one more"

    status, said, _ = ask(port, "POST", "/answers", parts())
    assert (status, said) == (413, {"error": line})
    for where in ("/look?class=16", "/look?class=x", "/look?draw=-1", "/look?class=9999999999"):
        assert ask(port, "POST", where, content)[0] == 422, where
    for method, where, expected in (
        ("GET", "/answers", 405), ("PUT", "/look", 405), ("POST", "/", 405), ("OPTIONS", "/answers", 405),
        ("GET", "/../config.yaml", 404), ("GET", "/%2e%2e/model.safetensors", 404), ("GET", "/assets", 404),
    ):  # fmt: skip
        assert ask(port, method, where)[0] == expected, where
    for where in ("/", "/app.js", "/about", "/nothing"):
        assert {name.lower(): value for name, value in ask(port, "GET", where)[2].items()}.items() >= HEADERS.items()
    assert {path: path.stat().st_mtime_ns for path in masked.rglob("*")} == before


def test_a_fault_of_the_program_names_no_path(masked: Path, pictures: Path, monkeypatch, capsys) -> None:
    looker = Looker(find(masked), CPU, 0)

    def fails(content: bytes) -> None:
        raise UserError("/home/ana/secret: is gone")

    monkeypatch.setattr(looker, "answers", fails)
    with serving(looker) as number:
        status, said, _ = ask(number, "POST", "/answers", b"x")
    assert status == 500 and said == {"error": "it could not be done: the terminal says why"}
    assert "secret" in capsys.readouterr().err


# -- the command


def test_mistakes_get_one_line_before_torch_is_imported(run: Path, pictures: Path, tmp_path: Path) -> None:
    known = {name: ([typed[0]], words) for name, (typed, words) in mistakes(run, pictures, tmp_path).items()}
    known = {name: one for name, one in known.items() if one[0] not in ([str(run)], ["alone"])}  # runs that are shown
    with closing(app.listening(HOST, 0)) as taken:
        number = taken.getsockname()[1]
        known |= {
            "a port in use": ([str(run), "--port", str(number)], f"--port={number}: taken by another program"),
            "no port": ([str(run), "--port", "65536"], "--port=65536: expected a number from 0 to 65535"),
            "no host": ([str(run), "--host", "no such host"], "--host=no such host: no address or name of this"),
            "another's": ([str(run), "--host", "192.0.2.1"], "--host=192.0.2.1: not an address of this machine"),
            "nearest": ([str(run), "--nearest", "-1"], "--nearest=-1: expected a whole number, 0 or more"),
        }
        said = told("app", [typed for typed, _ in known.values()], tmp_path)
    assert len(known) == 11 and len(said) == len(known), said
    for (name, (_, words)), message in zip(known.items(), said, strict=True):
        assert words in message and len(message) < 400, f"{name}: {message}"


def test_a_missing_extra(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(app, "PACKAGES", ("starlette", "no_such_package"))
    assert app.main([str(run)]) == 1
    assert capsys.readouterr().err == 'error: robustft app needs no_such_package: pip install "robustft[app]"\n'


@pytest.mark.slow
@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_the_command(masked: Path, work: Path, host: str | None) -> None:  # noqa: F811
    line = [sys.executable, "-m", "robustft", "app", str(masked), "--port", "0", "--device", "cpu"]
    line += ["--host", host] if host else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        line, env=environment, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        said = process.stdout.readline()
        assert (found := re.fullmatch(r"http://([^:]+):(\d+)  \(Ctrl-C ends it\)\n", said)), process.stderr.read()
        assert ask(int(found[2]), "GET", "/about")[1]["limit"] == LIMIT
        if host is None:
            assert found[1] == HOST
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
    warned = "everybody who can reach this machine can use it: there is no password\n"
    assert process.stderr.read() == (warned if host else "")


# -- the page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def settled(page: Page) -> None:
    """Until everything about the chosen image is there."""
    page.until("!document.querySelector('main').hidden && !document.querySelector('main [aria-busy=true]')")
    page.until("!document.querySelector('#strip [disabled]')")


def texts(page: Page, selector: str) -> list[str]:
    return page.does(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.innerText.trim())")


@browser
def test_images_are_dropped_chosen_and_pasted(page: Page, port: int, masked: Path, pictures: Path) -> None:
    page.requests.clear()
    page.faults.clear()
    page.open(f"http://{HOST}:{port}")
    model, dropped = robustft.load(masked), [pictures / "b.png", pictures / "turned.png"]
    page.drop(dropped)
    settled(page)
    expected = [answer[0][0] for answer in model.predict(dropped, top=1)]
    assert [text.split("\n")[0] for text in texts(page, "#strip button")] == expected
    (listed,) = model.predict(dropped[0])
    assert texts(page, "#lists .fine-tuned li span:first-child") == [name for name, _ in listed]
    shares = [float(text.removesuffix(" %")) for text in texts(page, "#lists .fine-tuned li span:last-child")]
    assert shares == pytest.approx([100 * p for _, p in listed], abs=0.051)
    assert texts(page, "#whole figcaption") == ["b.png\n60 × 50 pixels"]
    assert texts(page, "#maps figcaption") == ["what the models see", "zero-shot", "fine-tuned"]
    assert [text.split("\n")[0] for text in texts(page, "#samples figcaption")] == [
        "object mask", "context mask", "no fill", "single fill", "multi fill"
    ]  # fmt: skip
    assert [text.split("\n")[0] for text in texts(page, "#samples .used")] == ["object mask", "single fill"]
    assert len(texts(page, "#nearest figure")) == looking.NEAREST and "among 48" in texts(page, "#nearest .hint")[0]

    page.choose_files("#files", [pictures / "grey.png"])
    page.until("document.querySelector('#whole figcaption').innerText.startsWith('grey.png')")
    settled(page)
    page.does("""(async () => {
      const pixels = new OffscreenCanvas(30, 20);
      pixels.getContext("2d").fillRect(5, 5, 9, 9);
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([await pixels.convertToBlob()], "image.png", { type: "image/png" }));
      dispatchEvent(Object.assign(new ClipboardEvent("paste", { clipboardData })));
    })()""")
    page.until("document.querySelector('#whole figcaption').innerText.includes('30 × 20')")
    settled(page)
    assert len(texts(page, "#strip button")) == 4
    page.does("document.querySelectorAll('#strip button')[1].click()")
    page.until("document.querySelector('#whole figcaption').innerText.startsWith('turned.png\\n55 × 90')")
    settled(page)
    assert page.faults == []
    outside = [url for url in page.requests if not url.startswith((f"http://{HOST}:{port}/", "data:", "blob:"))]
    assert outside == [] and any(url.endswith("/nearest") for url in page.requests)


@browser
def test_another_class_and_other_patches(page: Page, port: int, pictures: Path) -> None:
    page.open(f"http://{HOST}:{port}")
    page.choose_files("#files", [pictures / "b.png"])
    settled(page)

    def shown(section: str) -> list[str]:
        return page.does(f"[...document.querySelectorAll('#{section} img')].map((image) => image.src)")

    maps, samples = shown("maps"), shown("samples")
    second = texts(page, "#lists .fine-tuned li span:first-child")[1]
    page.does("document.querySelectorAll('#lists .fine-tuned button')[1].click()")
    page.until("document.querySelector('#maps .tiles').getAttribute('aria-busy') === 'true'")
    settled(page)
    assert page.does("document.getElementById('class').selectedOptions[0].text") == second
    assert f"map (relevance) for {second}" in texts(page, "#samples .hint")[0]
    assert shown("maps")[0] == maps[0] and shown("maps")[1:] != maps[1:] and shown("samples") != samples
    maps, samples = shown("maps"), shown("samples")
    page.does("document.getElementById('again').focus()")
    page.press("Enter", 13, "\r")
    page.until("document.querySelector('#maps .tiles').getAttribute('aria-busy') === 'true'")
    settled(page)
    assert shown("maps") == maps and shown("samples")[:3] == samples[:3] and shown("samples")[3:] != samples[3:]


@browser
def test_what_cannot_be_shown_is_said(page: Page, port: int, pictures: Path, tmp_path: Path, masked: Path) -> None:
    (tmp_path / "notes.png").write_text("text")
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "large.tif").open("wb") as file:
        file.truncate(LIMIT + 1)
    page.open(f"http://{HOST}:{port}")
    page.choose_files("#files", [tmp_path / "notes.png", tmp_path / "large.tif", pictures / "b.png"])
    settled(page)
    large = "large.tif: larger than 32 MB, the most that is taken"
    assert texts(page, "#problems li") == [large, "notes.png: not an image"]
    assert texts(page, "#whole figcaption")[0].startswith("b.png") and len(texts(page, "#strip button")) == 1
    page.drop([tmp_path])  # a folder
    page.until("document.querySelector('#problems').innerText.includes('a folder?')")
    page.choose_files("#files", [tmp_path / "empty.jpg"])
    page.until("document.querySelector('#problems').innerText === 'empty.jpg: the file is empty'")
    with serving(Looker(find(masked), CPU, 0)) as other:
        page.open(f"http://{HOST}:{other}")
    page.choose_files("#files", [pictures / "b.png"])
    page.until("document.querySelector('#problems').innerText.includes('Is robustft app still running?')")


@browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read(page: Page, port: int, pictures: Path, dark: bool) -> None:
    """Contrast of all text (WCAG AA), names of controls, texts of pictures, one level of headings after another."""
    page.open(f"http://{HOST}:{port}", dark=dark)
    page.choose_files("#files", [pictures / "b.png", pictures / "grey.png"])
    settled(page)
    seen = page.does("""(() => {
      const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const light = (colour) => colour.slice(0, 3)
        .reduce((sum, c, k) => sum + [0.2126, 0.7152, 0.0722][k] * linear(c / 255), 0);
      const behind = (node) => {
        for (; node; node = node.parentElement) {
          const colour = numbers(getComputedStyle(node).backgroundColor);
          if (colour[3] !== 0) return colour;
        }
      };
      const contrast = (node) => {
        const [a, b] = [light(numbers(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => x - y);
        return (b + 0.05) / (a + 0.05);
      };
      const all = [...document.querySelectorAll("body *")].filter((node) => node.offsetParent
        && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
      const pale = all.filter((node) => contrast(node) < 4.5).map((node) => node.outerHTML.slice(0, 90));
      const controls = [...document.querySelectorAll("button, input, select")].filter((node) => node.offsetParent);
      const nameless = controls.filter((node) => !(node.labels?.[0]?.innerText || node.innerText || node.title).trim());
      return { texts: all.length, pale, controls: controls.length, nameless: nameless.map((node) => node.outerHTML),
        pictures: [...document.images].filter((image) => !image.alt).length,
        broken: [...document.images].filter((image) => !image.naturalWidth).length,
        heads: [...document.querySelectorAll("h1, h2, h3")].map((node) => node.tagName).join(" "),
        paper: getComputedStyle(document.body).backgroundColor };
    })()""")
    assert seen["texts"] > 60 and seen["pale"] == []
    assert seen["controls"] > 12 and seen["nameless"] == [] and seen["pictures"] == seen["broken"] == 0
    assert seen["heads"] == "H1 H2 H3 H3 H2 H2 H2"
    assert seen["paper"] == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")


@browser
def test_on_a_phone(page: Page, port: int, pictures: Path) -> None:
    page.open(f"http://{HOST}:{port}", (390, 844))
    page.choose_files("#files", [pictures / "b.png", pictures / "turned.png", *[pictures / "grey.png"] * 4])
    settled(page)
    assert page.does("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.does("Math.min(...[...document.querySelectorAll('#samples img')].map((i) => i.width))") > 120
    controls = "[...document.querySelectorAll('main button, main select')].filter((node) => node.offsetParent)"
    assert page.does(f"Math.min(...{controls}.map((node) => node.offsetHeight))") >= 24  # WCAG's least target


@browser
def test_the_page_of_a_model_that_has_less(page: Page, masked: Path, pictures: Path, tmp_path: Path) -> None:
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((masked / "model.safetensors").read_bytes())
    with serving(Looker(find(alone), CPU, 50)) as number:
        page.open(f"http://{HOST}:{number}")
        page.choose_files("#files", [pictures / "b.png"])
        settled(page)
        assert texts(page, "#lists h3") == ["fine-tuned"] and texts(page, "#maps figcaption")[1:] == ["fine-tuned"]
        assert "This run trains without: an illustration." in texts(page, "#samples .hint")[0]
        assert texts(page, "#nearest .hint") == [GONE] and not texts(page, "#nearest figure")
        assert page.does("document.getElementById('again').hidden")
