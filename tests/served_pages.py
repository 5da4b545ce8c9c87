"""The inspector's pages at an address, over stores that tests can compute again."""

import html
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from fastapi import APIRouter
from knowing_store import make_store
from live import wait_until
from PIL import Image

from distill.data.source import open_source
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.teacher_server.front.server import Address
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import open_inspection
from distill.teacher_server.inspect.tag_lists import ListedImages
from distill.teacher_server.pages.routes import pages_of
from distill.teacher_server.pages.server import pages_server
from distill.teacher_server.pages.site import Lazy, Site, StoreSnapshot


@dataclass
class Browsed:
    """Pages at an address."""

    base: str
    headers: dict[str, str]

    def get(self, path: str, **more: Any) -> Any:
        return urllib3.request(
            "GET", self.base + path, headers={**self.headers, **more}, redirect=False, timeout=20
        )

    def text(self, path: str, status: int = 200) -> str:
        reply = self.get(path)
        assert reply.status == status, reply.data
        return html.unescape(reply.data.decode())


@contextmanager
def pages(
    site: Any, keys: ApiKeys | None = None, router: APIRouter | None = None
) -> Iterator[Browsed]:
    """As `distill inspect --serve` serves them."""
    listener = Address(port=0).bound()
    server = pages_server(site, router or pages_of(site), keys, Address())
    server.config.lifespan = "off"
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Browsed(f"http://127.0.0.1:{listener.getsockname()[1]}", {})
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def site_of(store: LogitStore, data: Path | None, **more: Any) -> Site:
    inspection = open_inspection(store.location, rules=Rules())
    pictures = ListedImages.of(inspection, open_source(data)) if data else None
    look = StoreSnapshot(inspection, pictures, "" if data else "no images to show")
    store_of = Lazy(lambda: look, value=look)
    return Site(hierarchy=inspection.hierarchy, teacher="knowing", store=store_of, **more)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}{% raw %}",
    "';alert(1);//",
    "\udcff\udcfe",
    "\u202egnp.exe\u2028",
    "javascript:alert(1)",
)


HOSTILE_SYNSET = "n/../x?y=1&z#<i>"


def make_hostile(folder: Path) -> tuple[LogitStore, Path]:
    """Files and classes whose names mean harm."""
    synsets = [f"n{i:08d}" for i in range(len(HOSTILE))]
    hierarchy = SemanticHierarchy.from_chains(
        [*synsets, HOSTILE_SYNSET],
        {synsets[-1]: [synsets[0]], synsets[1]: [HOSTILE_SYNSET]},
        names=dict(
            zip(synsets, (name.replace("\udcff\udcfe", "?") for name in HOSTILE), strict=True)
        ),
        drop_deepest=False,
    )
    true = {}
    for i, name in enumerate(HOSTILE):
        place = folder / "data" / synsets[i]
        place.mkdir(parents=True)
        key = f"{synsets[i]}/{name.replace('/', '_')}"
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(folder / "data" / f"{key}.png")
        true[key] = synsets[i]
    store = make_store(folder / "store", folder / "data", hierarchy, true)
    return store, folder / "data"
