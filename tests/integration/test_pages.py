"""The inspector's pages over HTTP: what they show, whom, and what a hostile world does to them."""

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import urllib3
from knowing_store import BLOCK, make_knowing, make_store
from live import echo_teacher, live, wait_until
from PIL import Image
from processes import started
from served_pages import HOSTILE, HOSTILE_SYNSET, Browsed, make_hostile, pages, site_of

from distill.data.source import open_source
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.teacher_server.http.keys import ApiKeys, new_key
from distill.teacher_server.inspect import gallery, statistics
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.gallery import Gallery, GalleryFilter
from distill.teacher_server.inspect.inspection import open_inspection
from distill.teacher_server.pages.remote import RemoteTeacher
from distill.teacher_server.pages.rendering import write_overview

PAGES = ("/", "/tree", "/tree/n13866144", "/gallery", "/gallery?kind=missing", "/ask")


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory, figures: Path) -> LogitStore:
    return make_knowing(tmp_path_factory.mktemp("knowing") / "store", figures)


@pytest.fixture(scope="module")
def browsed(knowing: LogitStore, figures: Path) -> Iterator[Browsed]:
    with pages(site_of(knowing, figures)) as found:
        yield found


@pytest.fixture
def served(serving: Callable[..., Any], store: Path) -> Iterator[Browsed]:
    """The teacher server's own."""
    with serving(store) as (server, _):
        found = Browsed(f"http://{server.address}", {})
        wait_until(lambda: "Images × views" in found.text("/"), 60)
        yield found


# -- what they show -------------------------------------------------------------------------------


def test_teacher_server_has_the_same_pages(served: Browsed) -> None:
    for path in PAGES:
        reply = served.get(path)
        assert reply.status == 200, path
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        addresses = re.findall(r'(?:src|href|action)="([^"]*)"', reply.data.decode())
        assert addresses
        assert all(a.startswith(("/", "#main", "data:,")) for a in addresses), path
        assert not any(a.startswith("//") for a in addresses)
    for name, kind in (("style.css", "text/css"), ("chart.umd.min.js", "text/javascript")):
        assert served.get(f"/static/{name}").headers["content-type"].startswith(kind)
    assert served.get("/static/..%2froutes.py").status in (400, 404)


def test_store_is_read_by_another_process_while_the_server_answers(
    serving: Callable[..., Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(statistics, "_read_block", lambda *block: read.append(block[3]))
    with serving(store) as (server, client):
        found = Browsed(f"http://{server.address}", {})
        assert "being read for the first time" in found.text("/")
        assert "reloads by itself" in found.text("/gallery", 503)
        assert client.client.infer_images(np.zeros((1, 32, 32, 3), np.uint8)).prob.sum() > 3
        wait_until(lambda: "96 × 2" in found.text("/"), 60)
        assert read == []
        assert (store.parent / "store.inspect").is_dir()


def test_server_without_a_store_shows_classes_and_asks(
    hierarchy: SemanticHierarchy, figures: Path
) -> None:
    with live(echo_teacher(hierarchy)) as server:
        found = Browsed(f"http://{server.address}", {})
        assert "Classes per hierarchy" in found.text("/")
        assert "polygon" in found.text("/tree")
        assert "There is no store here" in found.text("/gallery", 404)


def test_tree_counts_what_the_report_counts(
    browsed: Browsed, knowing: LogitStore, distill: Callable[..., Any]
) -> None:
    said = json.loads(distill("inspect", knowing.location, "--by-class", "--json").out)
    for row in said["by_class"]:
        page = browsed.text(f"/tree/{row['wnid']}")
        facts = re.findall(r"<dd>(?:<a [^>]*>)?([^<]*)", page)
        assert facts[:2] == [f"{row['images']:,}", f"{row['tagged_here']:,}"]
        assert facts[5:7] == [str(row["missing"]), str(row["suspect"])]
        if row["tag_prob"] is not None:
            assert facts[2] == f"{row['tag_prob']:.3f}"


def test_sample_shows_path_verdict_views_and_bars(
    browsed: Browsed, knowing: LogitStore, figures: Path
) -> None:
    inspection = open_inspection(knowing.location, rules=Rules())
    row = int(inspection.tags.missing.rows[0])
    sample = open_source(figures).samples[row]
    found = browsed.get(f"/sample?key={sample.key}")
    assert found.status == 303
    page = browsed.text(found.headers["location"])
    assert sample.key in page
    assert "the teacher would add" in page
    proposed = int(inspection.tags.missing.proposed[0])
    assert inspection.tree.name(proposed) in page
    assert page.count("<meter") >= 4 * 4
    one = browsed.text(found.headers["location"] + "?view=1")
    assert one != page
    for image in re.findall(r'src="(/image/[^"]*)"', page):
        reply = browsed.get(image)
        assert reply.headers["content-type"] == "image/jpeg"
        assert reply.data[:2] == b"\xff\xd8"


def test_student_stands_beside_the_teacher(
    knowing: LogitStore, figures: Path, hierarchy: SemanticHierarchy
) -> None:
    class Even:
        name = "a <student>"

        def probs(self, image: Image.Image) -> Any:
            assert image.size == (32, 32)
            return np.concatenate([np.full(n, 1 / n) for n in hierarchy.classes_per_hierarchy])

    key = open_source(figures).samples[5].key
    with pages(site_of(knowing, figures, student=Even())) as found:
        location = found.get(f"/sample?key={key}").headers["location"]
        page = found.get(location).data.decode()
    assert page.count("a &lt;student&gt;") == hierarchy.num_hierarchies
    assert "0.125" in page


# -- the gallery ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        GalleryFilter(),
        GalleryFilter(tag=0),
        GalleryFilter(kind="missing"),
        GalleryFilter(kind="suspect"),
        GalleryFilter(kind="missing", tag=12),
        GalleryFilter(hierarchy=1, confidence=(0.6, 1.0)),
        GalleryFilter(tag=0, hierarchy=2, confidence=(0.0, 0.8)),
    ],
)
def test_pages_of_the_gallery_are_all_that_is_wanted(
    knowing: LogitStore, wanted: GalleryFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "LOOKED_AT_ONCE", 7)
    monkeypatch.setattr(gallery, "MOST_LOOKED_AT", 20)
    inspection = open_inspection(knowing.location, rules=Rules())
    hierarchy, labels = inspection.hierarchy, inspection.labels
    expected = set(range(len(labels)))
    if wanted.kind != "all":
        expected = set(getattr(inspection.tags, wanted.kind).rows.tolist())
    if wanted.tag is not None:
        synset = hierarchy.synsets[wanted.tag]
        tags = [hierarchy.synsets[c] for c in labels]
        expected &= {
            row for row, tag in enumerate(tags) if synset in (tag, *hierarchy.ancestors(tag))
        }
    if wanted.hierarchy is not None:
        low, high = wanted.confidence
        images = inspection.beliefs.images(np.arange(len(labels)))
        confidence = images["confidence"][:, wanted.hierarchy] / 65535
        expected &= set(np.flatnonzero((confidence >= low) & (confidence <= high)).tolist())
    assert expected
    found: list[int] = []
    start: int | None = 0
    while start is not None:
        page = Gallery(inspection).page(wanted, start, images=5)
        assert len(page.rows) <= 5
        assert page.looked_at <= 20
        found += page.rows
        start = page.after
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_gallery_is_filtered_by_its_form(browsed: Browsed, knowing: LogitStore) -> None:
    inspection = open_inspection(knowing.location, rules=Rules())
    everything = browsed.text("/gallery")
    assert everything.count('<a href="/sample/') == 48
    assert 'rel="next"' in everything
    more = re.search(r'rel="next" href="([^"]*)"', everything)
    assert more
    assert browsed.text(more[1]).count('<a href="/sample/') == 48
    suspect = browsed.text("/gallery?kind=suspect")
    assert suspect.count("looks like") == len(inspection.tags.suspect) > 0
    assert "No image is like that" in browsed.text("/gallery?tag=heart&hierarchy=0&high=0.0")
    for wrong in ("kind=x", "hierarchy=9", "low=x", "high=2", "start=-1", "low=nan"):
        assert "expected" in browsed.text(f"/gallery?{wrong}", 400), wrong


# -- what is not there ----------------------------------------------------------------------------


def test_unknown_names_and_samples_are_told(browsed: Browsed) -> None:
    assert "did you mean" in browsed.text("/class?word=polygonn", 404)
    assert browsed.get("/class?word=polygon").headers["location"] == "/tree/n13866144"
    assert "holds no sample" in browsed.text("/sample?key=nobody", 404)
    assert "holds no sample" in browsed.text("/sample/" + "0" * 32, 404)
    assert browsed.get("/sample/xyz").status == 400
    assert browsed.get("/nowhere").status == 404
    assert "There is no live teacher here" in browsed.text("/ask", 404)


def test_ambiguous_name_offers_its_synsets(tmp_path: Path, figures: Path) -> None:
    hierarchy = SemanticHierarchy.bundled("plane-figures")
    names = ["corner" if i in (3, 5) else name for i, name in enumerate(hierarchy.names)]
    twice = SemanticHierarchy.from_json(
        {
            **hierarchy.to_json(),
            "classes": [
                [synset, names[i], parent]
                for i, (synset, _, parent) in enumerate(hierarchy.to_json()["classes"])
            ],
        }
    )
    true = {sample.key: str(sample.label) for sample in open_source(figures).samples}
    store = make_store(tmp_path / "store", figures, twice, true)
    with pages(site_of(store, figures)) as found:
        said = found.text("/gallery?tag=corner", 404)
    assert all(twice.synsets[i] in said for i in (3, 5))


def test_incomplete_store_without_images_shows_what_there_is(tmp_path: Path, figures: Path) -> None:
    hierarchy = SemanticHierarchy.bundled("plane-figures")
    source = open_source(figures)
    true = {sample.key: str(sample.label) for sample in source.samples}
    store = make_store(tmp_path / "store", figures, hierarchy, true, blocks=[0, 3])
    (Path(store.location) / "prob" / "c.3.0.0").write_bytes(b"nothing")
    with pages(site_of(store, None)) as found:
        page = found.text("/")
        assert "4 of 6 blocks are not computed yet" in page
        assert "1 of 6 blocks are damaged (3)" in page
        assert "no images to show" in found.text("/gallery")
        for row, said in ((BLOCK, "is not computed yet"), (3 * BLOCK, "block 3 of view 0")):
            location = found.get(f"/sample?key={source.samples[row].key}").headers["location"]
            assert said in found.text(location)
        assert "no images" in found.text(f"/image/{location.split('/')[-1]}", 404)


def test_broken_image_is_told_in_its_place(
    knowing: LogitStore, figures: Path, tmp_path: Path
) -> None:
    site = site_of(knowing, figures)
    assert site.store
    look = site.store.get()
    assert look
    assert look.pictures
    tar = tmp_path / "train-000000.tar"
    tar.write_bytes(b"\0" * (figures / "train-000000.tar").stat().st_size)
    samples = look.pictures.source.samples
    object.__setattr__(samples, "places", (str(tar),))
    with pages(site) as found:
        location = found.get(f"/sample?key={samples[0].key}").headers["location"]
        assert found.get(location).status == 200
        assert "not an image" in found.text(f"/image/{location.split('/')[-1]}", 404)


# -- a hostile world ------------------------------------------------------------------------------


def test_hostile_names_are_text(tmp_path: Path) -> None:
    store, data = make_hostile(tmp_path)
    with pages(site_of(store, data)) as found:
        overview = found.get("/").data.decode()
        samples = re.findall(r'href="(/sample/[0-9a-f]{32})"', found.get("/gallery").data.decode())
        assert len(samples) == len(HOSTILE)
        paths = ["/tree", "/gallery", *samples, *(f"/tree/n{i:08d}" for i in range(len(HOSTILE)))]
        for path in paths:
            page = found.get(path).data.decode()
            assert "<script>alert" not in page
            assert "<img src=x" not in page
            assert ">49" not in page
            assert page.count("<script") == 0
        below = set(re.findall(r'href="(/tree/[^"]+)"', found.get("/tree").data.decode()))
        assert len(below) == len(HOSTILE) - 1
        assert any(quote(HOSTILE_SYNSET, safe="") in link for link in below)
        assert all(found.get(link).status == 200 for link in below)
        moved = found.get(f"/class?word={quote(HOSTILE_SYNSET, safe='')}").headers["location"]
        assert moved in below
        assert overview.count("<script") == 3
    write_overview(tmp_path / "page.html", open_inspection(store.location, rules=Rules()))
    alone = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in alone
    assert not re.search(r'(src|href)="(?!#main|data:,)', alone)


def test_pages_need_the_key_that_the_server_needs(
    knowing: LogitStore, figures: Path, tmp_path: Path
) -> None:
    key = new_key("ann", tmp_path / "keys")
    with pages(site_of(knowing, figures), ApiKeys.read(tmp_path / "keys")) as found:
        for path in ("/", "/gallery", "/static/style.css", "/image/" + "0" * 32):
            refused = found.get(path)
            assert refused.status == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
        found.headers = urllib3.make_headers(basic_auth=f"me:{key}")
        assert found.get("/").status == 200


def test_passwords_open_pages_alone(hierarchy: SemanticHierarchy, tmp_path: Path) -> None:
    key = new_key("ann", tmp_path / "keys")
    with live(echo_teacher(hierarchy), keys=ApiKeys.read(tmp_path / "keys")) as server:
        found = Browsed(f"http://{server.address}", urllib3.make_headers(basic_auth=f"me:{key}"))
        assert found.get("/").status == 200
        assert found.get("/v2").status == 401  # a browser would send it for any site that asks


def test_pages_without_keys_are_for_this_machine(browsed: Browsed) -> None:
    assert browsed.get("/", host="evil.example").status == 401
    assert browsed.get("/", host="localhost").status == 200


# -- asking ---------------------------------------------------------------------------------------


def upload(
    found: Browsed, content: bytes, name: str = "image", file: str = "x.png", **headers: str
) -> Any:
    body, kind = urllib3.encode_multipart_formdata({name: (file, content, "image/png")})
    return urllib3.request(
        "POST",
        found.base + "/ask",
        body=body,
        headers={"content-type": kind, **headers},
        timeout=20,
        redirect=False,
        retries=False,
    )


def picture(figures: Path) -> bytes:
    sample = open_source(figures).samples[0]
    with Path(sample.path).open("rb") as file:
        file.seek(sample.offset)
        return file.read(sample.size)


def test_uploaded_image_is_answered(
    serving: Callable[..., Any], figures: Path, hierarchy: SemanticHierarchy
) -> None:
    content = picture(figures)
    with serving(data=False) as (server, client):
        found = Browsed(f"http://{server.address}", {})
        direct = client.client.infer_jpegs([content])
        page = upload(found, content).data.decode()
        first = hierarchy.slices[0]
        top = hierarchy.class_order[first][int(direct.index[0, 0])]
        said = re.findall(r'<a href="/tree/(n\d+)">', page.split("Teacher predictions")[1])
        assert said[0] == hierarchy.synsets[top]
        assert "data:image/jpeg;base64," in page
        for status, reply in (
            (400, upload(found, b"no image")),
            (400, upload(found, b"")),
            (400, upload(found, content, name="other")),
        ):
            assert reply.status == status, reply.data
            assert b"That did not work" in reply.data
        for fields in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}):
            reply = upload(found, content, **fields)
            assert (reply.status, b"another site" in reply.data) == (403, True)
        plain = urllib3.request("POST", found.base + "/ask", body=b"x", timeout=20)
        assert plain.status == 400
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
            head = f"POST /ask HTTP/1.1\r\nhost: localhost\r\ncontent-length: {2**31}\r\n\r\n"
            line.sendall(head.encode())
            assert line.recv(1000).startswith(b"HTTP/1.1 413")
        assert server.service.admission.idle


def test_upload_that_stalls_gives_its_room_back(serving: Callable[..., Any]) -> None:
    head = "POST /ask HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"
    head += "content-type: multipart/form-data; boundary=x\r\n\r\n--x"
    with serving(data=False, deadline_s=0.5) as (server, _):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
            line.sendall(head.encode())
            wait_until(lambda: server.service.admission.in_flight["bytes"] == 1000)
            assert line.recv(1000).startswith(b"HTTP/1.1 504")
        wait_until(lambda: server.service.admission.idle)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
            line.sendall(head.encode())
            wait_until(lambda: server.service.admission.in_flight["bytes"] == 1000)
        wait_until(lambda: server.service.admission.idle)
        wait_until(lambda: [e["status"] for e in server.named("request")][-2:] == [504, 499])
        assert not server.named("error")


def test_huge_pictures_are_refused_before_they_are_decoded(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("L", (5000, 5000)).save(tmp_path / "huge.png")
    with serving(data=False, max_image_pixels=1_000_000) as (server, _):
        reply = upload(
            Browsed(f"http://{server.address}", {}), (tmp_path / "huge.png").read_bytes()
        )
        assert reply.status == 400
        assert b"too many pixels" in reply.data


def test_pages_ask_a_server_elsewhere(
    serving: Callable[..., Any], knowing: LogitStore, figures: Path, hierarchy: SemanticHierarchy
) -> None:
    with serving(data=False) as (_, client):
        site = site_of(knowing, figures, live=RemoteTeacher(client.client, hierarchy))
        with pages(site) as found:
            assert "Teacher predictions" in upload(found, picture(figures)).data.decode()
    with pages(site) as found:
        site.live.client.deadline_s = 0.2  # type: ignore[union-attr]
        assert upload(found, picture(figures)).status == 503


# -- the command ----------------------------------------------------------------------------------


def test_command_serves_until_it_is_interrupted(knowing: LogitStore, figures: Path) -> None:
    words = ["inspect", knowing.location, "--data", str(figures), "--serve", "--port", "0"]
    process = started(words)
    assert process.stderr
    line = ""
    while not line.startswith("pages: "):
        line = process.stderr.readline()
        assert line
    base = line.split()[1].rstrip("/")
    ends = time.monotonic() + 20
    while urllib3.request("GET", base + "/", retries=50).status != 200:
        assert time.monotonic() < ends
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "Traceback" not in said[1]


@pytest.fixture
def reading(store: Path, teacher_weights: Path, tmp_path: Path) -> Any:
    """A server as a process, which reads its store in a child for a first page."""
    words = ["serve", "--teacher", "test_vit", "--weights", teacher_weights, "--device", "cpu"]
    words += ["--label-set", "plane-figures", "--store", store, "--port", 0]
    process = started([str(word) for word in [*words, "--cache", tmp_path / "cache"]])
    assert process.stderr
    event: dict[str, Any] = {}
    while event.get("event") != "ready":
        line = process.stderr.readline()
        assert line
        event = json.loads(line) if line.startswith("{") else {}
    base = f"http://127.0.0.1:{event['port']}"
    assert b"being read" in urllib3.request("GET", base + "/").data
    wait_until(lambda: bool(children_of(process.pid)))
    return process


def test_server_ends_in_time_while_it_reads_a_store(reading: Any) -> None:
    child = children_of(reading.pid)
    reading.send_signal(signal.SIGTERM)
    said = reading.communicate(timeout=40)
    assert reading.returncode == 0, said
    assert "Traceback" not in said[1]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in child))


def test_reading_ends_with_a_server_that_is_killed(reading: Any) -> None:
    child = children_of(reading.pid)
    reading.kill()
    reading.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in child), 30)


def children_of(pid: int) -> list[int]:
    """Whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(each) for task in tasks for each in task.read_text().split()]


def test_command_tells_what_is_wrong_in_a_line(
    fails: Callable[..., str],
    knowing: LogitStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = ("inspect", knowing.location, "--serve", "--port", 0)
    assert "--serve found with --html" in fails(*serve, "--html", tmp_path / "x")
    assert "--ask found without --serve" in fails("inspect", knowing.location, "--ask", "http://x")
    assert "found without keys" in fails(*serve, "--host", "0.0.0.0")
    assert "no weights found, expected one of student.safetensors" in fails(
        *serve, "--student", tmp_path
    )
    monkeypatch.setattr("distill.cli.inspect.pages.PATIENCE_S", 0.5)
    assert "http://127.0.0.1:9" in fails(*serve, "--ask", "http://127.0.0.1:9", code=75)
