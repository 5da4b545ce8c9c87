"""The pages as a person uses them: a real Chromium, a keyboard, a phone's width, axe's rules."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from knowing_store import make_knowing
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from served_pages import HOSTILE, Browsed, make_hostile, pages, site_of

from distill.curate.questions import Question, Rating
from distill.curate.rating_file import RatingFile, open_ratings
from distill.data.source import open_source
from distill.store.logit_store import LogitStore
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import open_inspection
from distill.teacher_server.pages.rating import RatingSite, rating_pages_of
from distill.teacher_server.pages.rendering import write_overview

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        assert "CI" not in os.environ, "CI must have a chromium"
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A new window; at its end nothing may have gone wrong or elsewhere."""
    told: list[str] = []
    asked: list[str] = []
    opened = []

    def hear(message: ConsoleMessage) -> None:
        if "Failed to load resource" not in message.text:  # a page of an error has that status
            told.append(message.text)

    def make(url: str, *, width: int = 1280, scheme: Any = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", hear)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        return page

    yield make
    for context in opened:
        context.close()
    assert told == []
    assert all(re.match(r"http://127\.0\.0\.1:|data:|file:", url) for url in asked), asked


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory, figures: Path) -> LogitStore:
    return make_knowing(tmp_path_factory.mktemp("knowing") / "store", figures)


@pytest.fixture
def found(serving: Callable[..., Any], store: Path, figures: Path) -> Iterator[Browsed]:
    """A teacher server with a store, images, and a student beside."""
    with serving(store) as (server, _):
        yield Browsed(f"http://{server.address}", {})


@pytest.fixture(scope="module")
def browsed(knowing: LogitStore, figures: Path) -> Iterator[Browsed]:
    with pages(site_of(knowing, figures)) as found:
        yield found


def is_accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


def fits(page: Page) -> None:
    """Nothing sticks out sideways."""
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(width) <= 0, page.url


def colours_of(page: Page, canvas: str) -> int:
    """How many a canvas has."""
    script = """id => {
      const canvas = document.getElementById(id);
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return int(page.evaluate(script, canvas))


def test_walk_down_the_tree(show: Callable[..., Page], browsed: Browsed) -> None:
    page = show(browsed.base + "/")
    page.get_by_role("link", name="Classes").click()
    for name in ("polygon", "quadrilateral", "parallelogram", "rectangle", "square"):
        page.get_by_role("table").get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text(name)
    expect(page.get_by_text("This class has no children.")).to_be_visible()
    page.get_by_role("navigation", name="Path").get_by_role("link", name="polygon").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("polygon")
    page.get_by_label("Class by name or synset").fill("heart")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("heart")


def test_filter_the_gallery_and_open_a_sample(show: Callable[..., Page], browsed: Browsed) -> None:
    page = show(browsed.base + "/gallery")
    tiles = page.get_by_role("main").get_by_role("listitem")
    expect(tiles).to_have_count(48)
    page.get_by_role("link", name="More").click()
    expect(tiles).to_have_count(48)
    page.goto(browsed.base + "/gallery")
    page.get_by_label("Show").select_option("missing tags")
    page.get_by_label("Tagged as, or below").fill("polygon")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("kind=missing"))
    expect(page.get_by_label("Tagged as, or below")).to_have_value("polygon")
    expect(tiles.first).to_contain_text("lacks")
    for tile in tiles.all():
        expect(tile).to_contain_text("lacks")
    expect(tiles.first.get_by_role("img")).to_have_js_property("naturalWidth", 32)
    tiles.first.get_by_role("link").click()
    expect(page.get_by_text("the teacher would add")).to_be_visible()
    for image in page.get_by_role("img").all():
        expect(image).to_have_js_property("naturalWidth", 32)
    first = page.get_by_role("meter").first
    assert 0 < float(first.get_attribute("value") or 0) <= 1
    page.get_by_role("link", name="view 1", exact=True).click()
    expect(page.get_by_role("link", name="view 1", exact=True)).to_have_attribute(
        "aria-current", "true"
    )


def test_upload_an_image(show: Callable[..., Page], found: Browsed, figures: Path) -> None:
    sample = open_source(figures).samples[0]
    content = Path(sample.path).read_bytes()[sample.offset : sample.offset + sample.size]
    page = show(found.base + "/ask")
    page.get_by_label("Image").set_input_files(
        {"name": "<b>.jpg", "mimeType": "image/jpeg", "buffer": content}
    )
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("heading", name="Teacher predictions")).to_be_visible()
    shown = page.get_by_role("img", name="The image you sent")
    expect(shown).to_have_js_property("naturalWidth", 32)
    expect(page.get_by_role("heading", level=3)).to_have_count(4)
    is_accessible(page)
    page.get_by_label("Image").set_input_files(
        {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
    )
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("not an image")


def test_charts_are_drawn_and_follow_the_choice(
    show: Callable[..., Page], browsed: Browsed
) -> None:
    page = show(browsed.base + "/")
    drawn = "id => document.getElementById(id).toDataURL()"
    for name in ("confidence", "classes", "histogram", "agreement"):
        assert colours_of(page, name) > 3
    before = page.evaluate(drawn, "histogram")
    page.get_by_label("Hierarchy", exact=True).select_option("3")
    assert page.evaluate(drawn, "histogram") != before
    light = page.evaluate(drawn, "classes")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"was => ({drawn})('classes') !== was", arg=light)


def test_overview_is_one_file_that_draws_itself(
    show: Callable[..., Page], knowing: LogitStore, distill: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "overview.html"
    assert distill("inspect", knowing.location, "--html", file).code == 0
    page = show(file.as_uri())
    assert colours_of(page, "confidence") > 3
    expect(page.get_by_role("table")).to_be_visible()
    is_accessible(page)


def test_everything_is_reached_by_keyboard(show: Callable[..., Page], browsed: Browsed) -> None:
    page = show(browsed.base + "/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name=re.compile("images")).first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Gallery")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 120)"))
    for control in page.locator("main a, main input, main select, main button").all():
        assert control.evaluate("it => it.outerHTML.slice(0, 120)") in reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_pages_are_accessible_and_fit(
    show: Callable[..., Page],
    browsed: Browsed,
    figures: Path,
    width: int,
    scheme: str,
) -> None:
    key = open_source(figures).samples[0].key
    paths = ("/", "/tree", "/tree/n13866144", "/gallery?kind=suspect", f"/sample?key={key}")
    page = show(browsed.base + "/gallery?tag=nobody", width=width, scheme=scheme)
    for path in (None, *paths):
        if path:
            page.goto(browsed.base + path)
        fits(page)
        is_accessible(page)


def test_hostile_names_do_nothing(show: Callable[..., Page], tmp_path: Path) -> None:
    store, data = make_hostile(tmp_path)
    with pages(site_of(store, data)) as found:
        page = show(found.base + "/gallery")
        assert page.get_by_role("main").get_by_role("listitem").count() == len(HOSTILE)
        links = [a.get_attribute("href") for a in page.locator(".tiles a").all()]
        for link in links:
            page.goto(f"{found.base}{link}")
            assert page.locator("main script, main img[src=x]").count() == 0
        page.goto(found.base + "/tree")
        assert page.get_by_role("table").get_by_role("link").count() == len(HOSTILE) - 1
    write_overview(tmp_path / "o.html", open_inspection(store.location, rules=Rules()))
    page = show((tmp_path / "o.html").as_uri())
    assert page.locator("main script").count() == 0


def test_a_rater_needs_nothing_but_the_keyboard(
    show: Callable[..., Page], figures: Path, tmp_path: Path
) -> None:
    source = open_source(figures)
    keys = [sample.key for sample in source.samples[:3]]
    questions = [Question(key, (("a", "swan"), ("b", "goose"))) for key in keys]
    with open_ratings(tmp_path / "answers.csv") as file:
        rating = Rating(questions, file, enough=2)
        site = RatingSite(
            rating=rating, source=source, rows=[0, 1, 2], examples={"a": [1, 2, 3], "b": [4]}
        )
        with pages(site, router=rating_pages_of(site)) as browsed:
            page = show(browsed.base + "/")
            is_accessible(page)
            page.keyboard.type("ann")
            page.keyboard.press("Enter")
            page.wait_for_url("**/rate?rater=ann")
            is_accessible(page)
            for answers in ("yn", "my"):
                number = page.locator("input[name=number]").input_value()
                for key in answers:
                    page.keyboard.press(key)
                page.keyboard.press("Enter")
                page.wait_for_function(
                    "before => document.querySelector('input[name=number]').value != before",
                    arg=number,
                )
            page.keyboard.press("b")
            page.wait_for_url("**number=1")
            assert page.locator("input:checked").evaluate_all("all => all.map(x => x.value)") == [
                "maybe",
                "yes",
            ]
            page.keyboard.press("n")
            page.keyboard.press("Tab")  # past the label that keeps its answer
            page.keyboard.press("Enter")
            page.wait_for_url("**/rate?rater=ann")
            # As a browser without scripts has it: Tab, arrows and Space.
            page.keyboard.press("Space")
            page.keyboard.press("Tab")
            page.keyboard.press("Space")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            expect(page.get_by_role("heading", level=1)).to_have_text("Done")
            phone = show(browsed.base + "/rate?rater=ann&number=0", width=360, scheme="dark")
            fits(phone)
            is_accessible(phone)
    said = RatingFile(tmp_path / "answers.csv")
    found = [[said.answers(key, label)["ann"] for label in "ab"] for key in keys]
    assert found == [["yes", "no"], ["no", "yes"], ["yes", "maybe"]]


def test_a_finding_is_confirmed_in_the_gallery(
    show: Callable[..., Page], knowing: LogitStore, figures: Path, tmp_path: Path
) -> None:
    with (
        open_ratings(tmp_path / "answers.csv") as file,
        pages(site_of(knowing, figures, ratings=file)) as browsed,
    ):
        page = show(browsed.base + "/gallery?kind=missing")
        page.get_by_role("button", name="yes").first.click()
        expect(page.get_by_role("button", name="yes", pressed=True)).to_have_count(1)
        is_accessible(page)
        page.get_by_role("listitem").first.get_by_role("link").click()
        page.get_by_role("button", name="no").click()
        expect(page.get_by_role("button", name="no", pressed=True)).to_have_count(1)
        is_accessible(page)
        page.goto(browsed.base + "/gallery?kind=missing")
        with page.expect_download() as download:
            page.get_by_role("link", name="All of them as CSV").click()
        assert download.value.suggested_filename == "missing-any.csv"
    rows = (tmp_path / "answers.csv").read_text().splitlines()
    assert [row.rpartition(",")[2] for row in rows[1:]] == ["yes", "no"]
