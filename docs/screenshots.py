"""Takes the screenshots of docs/inspect.md from what `make demo` left.

    make demo && .venv/bin/python docs/screenshots.py [--demo demo-out]

Needs a chromium on the PATH. Serves the demo's teacher with its store, images and a student.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"


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
    command = [sys.executable, "-m", "distill.cli.main", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            base = f"http://127.0.0.1:{_port(server)}"
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                _shoot(browser.new_page, base)
                browser.close()
        finally:
            server.terminate()


def _port(server: "subprocess.Popen[str]") -> int:
    """Of a server, as soon as it is ready."""
    assert server.stderr
    for line in server.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "ready":
            return int(event["port"])
    sys.exit("the server did not start")


def _shoot(new_page: object, base: str) -> None:
    def opened(path: str, *, width: int = 1180, dark: bool = False) -> Page:
        page: Page = new_page(  # type: ignore[operator]
            viewport={"width": width, "height": 820}, color_scheme="dark" if dark else "light"
        )
        page.goto(base + path)
        return page

    page = opened("/")
    page.get_by_text("Images × views").wait_for(timeout=60_000)  # the store is read
    _save(page, "overview")
    _save(opened("/", width=390, dark=True), "overview-phone-dark")
    _save(opened("/tree/n13866144"), "tree")
    page = opened("/gallery?kind=missing&tag=quadrilateral")
    page.wait_for_load_state("networkidle")
    _save(page, "gallery", whole=False)
    page.locator(".tiles a").first.click()
    page.wait_for_load_state("networkidle")
    source = page.locator(".views img").first.get_attribute("src") or ""
    _save(page, "sample")
    image = page.request.get(base + source).body()
    page = opened("/ask")
    page.get_by_label("Image").set_input_files(
        {"name": "figure.jpg", "mimeType": "image/jpeg", "buffer": image}
    )
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("Teacher predictions").wait_for()
    _save(page, "ask")


def _save(page: Page, name: str, *, whole: bool = True) -> None:
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=IMAGES / f"inspect-{name}.png", full_page=whole)
    print(IMAGES / f"inspect-{name}.png")


if __name__ == "__main__":
    main()
