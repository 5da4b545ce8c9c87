"""Takes the screenshots of docs/inspect.md and docs/data.md from what `make demo` left.

    make demo && .venv/bin/python docs/screenshots.py [--demo demo-out]

Needs a chromium on the PATH. Serves the demo's teacher with its store, images and a student; then
the questions to raters that its students propose.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
Opener = Callable[..., Page]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    demo = parser.parse_args().demo
    chromium = shutil.which("chromium")
    if chromium is None or not (demo / "store.zarr").is_dir():
        sys.exit("expected a chromium on the PATH, and what `make demo` leaves; run it first")
    words: list[object] = ["serve", "--teacher", "test_resnet", "--label-set", "plane-figures"]
    words += ["--weights", demo / "teacher" / "student.safetensors", "--device", "cpu"]
    words += ["--data", demo / "figures", "--store", demo / "store.zarr", "--view-policy", "plain"]
    words += ["--student", demo / "with-kd", "--port", 0]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as questions:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with _served(*words) as base:
            _shoot_pages(_opener(browser.new_page, base))
        real_labels, figures = ("data", "real-labels"), ("--data", demo / "figures")
        propose: list[object] = [*real_labels, "propose", demo / "with-kd", demo / "without-kd"]
        subprocess.run(_distill(*propose, *figures, "--out", questions), check=True)
        with _served(*real_labels, "rate", questions, *figures, "--port", 0) as base:
            _shoot_rating(_opener(browser.new_page, base))
        browser.close()


def _distill(*words: object) -> list[str]:
    return [sys.executable, "-m", "distill.cli.main", *map(str, words)]


@contextmanager
def _served(*words: object) -> Iterator[str]:
    """The address of a command's pages, as soon as it is ready."""
    with subprocess.Popen(_distill(*words), stderr=subprocess.PIPE, text=True) as server:
        try:
            yield _address(server)
        finally:
            server.terminate()


def _address(server: "subprocess.Popen[str]") -> str:
    assert server.stderr
    for line in server.stderr:
        if line.startswith("pages: "):
            return line.split()[1].rstrip("/")
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "ready":
            return f"http://127.0.0.1:{event['port']}"
    sys.exit("the server did not start")


def _opener(new_page: Callable[..., Page], base: str) -> Opener:
    def opened(path: str, *, width: int = 1180, dark: bool = False) -> Page:
        page = new_page(
            viewport={"width": width, "height": 820}, color_scheme="dark" if dark else "light"
        )
        page.goto(base + path)
        return page

    return opened


def _shoot_rating(opened: Opener) -> None:
    page = opened("/")
    page.get_by_label("Your name").fill("anna")
    page.keyboard.press("Enter")
    page.wait_for_load_state("networkidle")
    _save(page, "rating", whole=False)


def _shoot_pages(opened: Opener) -> None:
    page = opened("/")
    page.get_by_text("Images × views").wait_for(timeout=60_000)  # the store is read
    _save(page, "inspect-overview")
    _save(opened("/", width=390, dark=True), "inspect-overview-phone-dark")
    _save(opened("/tree/n13866144"), "inspect-tree")
    page = opened("/gallery?kind=missing&tag=quadrilateral")
    page.wait_for_load_state("networkidle")
    _save(page, "inspect-gallery", whole=False)
    page.locator(".tiles a").first.click()
    page.wait_for_load_state("networkidle")
    source = page.locator(".views img").first.get_attribute("src") or ""
    _save(page, "inspect-sample")
    image = page.request.get(urljoin(page.url, source)).body()
    page = opened("/ask")
    page.get_by_label("Image").set_input_files(
        {"name": "figure.jpg", "mimeType": "image/jpeg", "buffer": image}
    )
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("Teacher predictions").wait_for()
    _save(page, "inspect-ask")


def _save(page: Page, name: str, *, whole: bool = True) -> None:
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=IMAGES / f"{name}.png", full_page=whole)
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
