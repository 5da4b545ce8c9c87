"""Raters' answers: kept durably, told apart, gone on with; pages that ask for them."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import urllib3
from knowing_store import make_knowing
from PIL import Image
from served_pages import Browsed, pages, site_of

from distill.curate.questions import Question, Rating, read_questions
from distill.curate.rating_file import RatingFile, open_ratings
from distill.curate.real_labels import NO, YES, read_raters
from distill.data.source import open_source
from distill.errors import DataError, InUseError
from distill.store.logit_store import LogitStore
from distill.teacher_server.http.keys import ApiKeys, new_key
from distill.teacher_server.pages.rating import RatingSite, rating_pages_of

FORM = {"content-type": "application/x-www-form-urlencoded"}
QUESTIONS = (
    ("a", "n1", "swan", 0),
    ("a", "n2", "goose", 0),
    ("b", "n1", "swan", 0),
    ("b", "n3", "<b>\u202educk</b>", 1),
)


@pytest.fixture
def proposed(tmp_path: Path, random: np.random.Generator) -> Path:
    """Images, questions about two of them, and others that need none."""
    folder = tmp_path / "proposed"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        (tmp_path / "data").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{name}.png")
    rows = [(key, label, name, part, "m") for key, label, name, part in QUESTIONS]
    _write(folder / "questions.csv", [("key", "label", "name", "question", "proposed_by"), *rows])
    _write(folder / "agreed.csv", [("key", "label", "name"), ("c", "n1", "swan")])
    return folder


@pytest.fixture
def site(proposed: Path) -> RatingSite:
    """Of those questions, with no answer yet."""
    ratings = proposed / "answers.csv"
    with open_ratings(ratings) as file:
        rating = Rating(read_questions(proposed / "questions.csv"), file, enough=2)
    source = open_source(proposed.parent / "data")
    rows = [[s.key for s in source.samples].index(q.key) for q in rating.questions]
    return RatingSite(rating=rating, source=source, rows=rows, examples={"n1": [2]})


def _write(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


# -- the file -------------------------------------------------------------------------------------


def test_answers_are_appended_and_the_last_of_a_rater_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.csv"
    with open_ratings(path) as file:
        file.add("ann", "x/1", {"n1": "no", "n2": "yes"})
        file.add("bob", "x/1", {"n1": "maybe"})
        file.add("ann", "x/1", {"n1": "yes"})
        assert file.answers("x/1", "n1") == {"ann": "yes", "bob": "maybe"}
        with pytest.raises(InUseError), open_ratings(path):
            pass
    assert path.read_text().splitlines()[0] == "rater,key,label,answer"
    assert len(path.read_text().splitlines()) == 5
    with open_ratings(path) as again:
        assert again.answers("x/1", "n1") == {"ann": "yes", "bob": "maybe"}
    answers = read_raters(path)
    said = zip(answers.questions, answers.raters, answers.answers, strict=True)
    assert {*said} == {(0, 0, YES), (1, 0, YES), (0, 1, 1)}
    assert NO not in answers.answers


def test_names_of_files_that_are_no_text_survive(tmp_path: Path) -> None:
    with open_ratings(tmp_path / "a.csv") as file:
        file.add("ann", 'odd,"\udcff\n', {"n1": "yes"})
    assert RatingFile(tmp_path / "a.csv").answers('odd,"\udcff\n', "n1") == {"ann": "yes"}


def test_a_torn_row_is_taken_away_and_said(tmp_path: Path) -> None:
    path, told = tmp_path / "a.csv", list[str]()
    path.write_text("rater,key,label,answer\nann,a,n1,yes\nbob,a,n")
    assert RatingFile(path).answers("a", "n1") == {"ann": "yes"}  # who only reads mends nothing
    assert path.read_text().endswith("bob,a,n")
    with open_ratings(path, told.append) as file:
        file.add("bob", "a", {"n1": "no"})
    assert "torn" in told[0]
    assert path.read_text() == "rater,key,label,answer\nann,a,n1,yes\nbob,a,n1,no\n"


@pytest.mark.parametrize(
    "content", ["key,label\n", "", "rater,key,label,answer\nann,a,n1,perhaps\n", "\0\xff\n"]
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match="expected the columns"), open_ratings(path):
        pass
    assert path.read_text() == content


def test_a_file_that_something_else_changes_takes_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with open_ratings(path) as file:
        file.add("ann", "a", {"n1": "yes"})
        with path.open("a") as other:
            other.write("bob,a,n1,no")  # and no end of the line, as an editor may leave it
        for change in (lambda: None, path.unlink):
            change()
            with pytest.raises(DataError, match="changed or removed by something else"):
                file.add("ann", "b", {"n1": "yes"})
        assert not path.exists()


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    with (
        open_ratings(tmp_path / "a.csv"),
        pytest.raises(InUseError),
        open_ratings(tmp_path / "link.csv"),
    ):
        pass
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no plain file"), open_ratings(tmp_path / "pipe"):
        pass


def test_an_answer_that_cannot_be_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    with open_ratings(path) as file:
        file.add("ann", "a", {"n1": "yes"})
        before = path.read_bytes()
        full = OSError(28, "No space left on device")
        monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space"):
            file.add("ann", "b", {"n1": "yes"})
        assert file.answers("b", "n1") == {}
    assert path.read_bytes() == before


def test_most_raters_decide_and_a_tie_decides_nothing(tmp_path: Path) -> None:
    with open_ratings(tmp_path / "a.csv") as file:
        for rater, answer in (("a", "yes"), ("b", "maybe"), ("c", "no")):
            file.add(rater, "x", {"n1": answer})
        assert file.verdict("x", "n1") is None
        file.add("c", "x", {"n1": "maybe"})
        assert file.verdict("x", "n1") == "yes"
        assert file.verdict("x", "n2") is None


# -- who is asked what ----------------------------------------------------------------------------


def test_questions_go_to_enough_raters_and_no_more(tmp_path: Path) -> None:
    questions = [Question("a", (("n1", "x"), ("n2", "y"))), Question("b", (("n1", "x"),))]
    with open_ratings(tmp_path / "a.csv") as file:
        rating = Rating(questions, file, enough=2)
        assert rating.next_for("ann") == rating.next_for("bob") == 0
        rating.answer(0, "ann", {"n1": "yes", "n2": "no"})
        assert rating.next_for("ann") == 1
        assert rating.last_of("ann", 1) == 0
        file.add("bob", "a", {"n1": "yes"})  # half an answer is none
        assert Rating(questions, file, enough=2).next_for("bob") == 0
        rating.answer(0, "bob", {"n1": "yes", "n2": "no"})
        assert rating.next_for("cid") == 1
        rating.answer(1, "ann", {"n1": "maybe"})
        assert rating.next_for("ann") is None
        assert rating.progress("ann") == (2, 1, 2)
        assert rating.progress("cid") == (0, 1, 2)


def test_questions_are_of_parts_of_an_image(proposed: Path, tmp_path: Path) -> None:
    questions = read_questions(proposed / "questions.csv")
    assert sorted((q.key, len(q.labels)) for q in questions) == [("a", 2), ("b", 1), ("b", 1)]
    many = "key,label,question\n" + "".join(f"a,n{i},0\n" for i in range(9))
    odd = ("", "key,label\na,b\n", "key,label,question\n", "key,label,question\na,,0\n", many)
    for content in odd:
        (tmp_path / "q.csv").write_text(content)
        with pytest.raises(DataError, match="expected"):
            read_questions(tmp_path / "q.csv")


# -- the pages ------------------------------------------------------------------------------------


def post(browsed: Browsed, path: str, fields: dict[str, str], **headers: str) -> Any:
    return urllib3.request(
        "POST",
        browsed.base + path,
        body=urlencode(fields),
        headers={**FORM, **browsed.headers, **headers},
        redirect=False,
        timeout=20,
    )


def test_a_rater_answers_all_questions(site: RatingSite, proposed: Path) -> None:
    with pages(site, router=rating_pages_of(site)) as browsed:
        assert "Your name" in browsed.text("/")
        for number, question in enumerate(site.rating.questions):
            page = browsed.text("/rate?rater=ann")
            assert f'name="number" value="{number}"' in page
            assert all(name in page for _, name in question.labels)
            row = site.rows[number]
            assert browsed.get(f"/image/{row}?large=1").headers["content-type"] == "image/jpeg"
            said = {f"answer{i}": "yes" for i in range(len(question.labels))}
            reply = post(browsed, "/rate", {"rater": "ann", "number": str(number), **said})
            assert reply.status == 303
            assert reply.headers["location"] == "/rate?rater=ann"
            assert len((proposed / "answers.csv").read_text().splitlines()) > number + 1
        assert "Done" in browsed.text("/rate?rater=ann")
        again = browsed.text("/rate?rater=ann&number=0")
        assert "checked" in again
        assert "checked" not in browsed.text("/rate?rater=bob")
    answers = read_raters(proposed / "answers.csv")
    assert len(answers.answers) == len(QUESTIONS)
    assert {*zip(answers.keys, answers.labels, strict=True)} == {(k, w) for k, w, *_ in QUESTIONS}


def test_hostile_requests_change_nothing(site: RatingSite, proposed: Path) -> None:
    before = (proposed / "answers.csv").read_bytes()
    one = {"rater": "ann", "number": "0", "answer0": "yes", "answer1": "yes"}
    with pages(site, router=rating_pages_of(site)) as browsed:
        for wrong in (
            {**one, "number": "99"},
            {**one, "number": "-1"},
            {**one, "number": "²"},
            {**one, "number": ""},
            {**one, "rater": ""},
            {**one, "rater": "a,b\nc"},
            {**one, "rater": "x" * 65},
            {**one, "answer0": "perhaps"},
            {key: one[key] for key in ("rater", "number")},
            {**one, "more": "x" * 5000},
            {f"f{i}": "x" for i in range(40)},
        ):
            reply = post(browsed, "/rate", wrong)
            assert reply.status in (400, 413), (wrong, reply.status)
            assert b"Internal error" not in reply.data
        assert post(browsed, "/rate", one, origin="http://elsewhere.example").status == 403
        for path in ("/rate?rater=", "/rate?rater=%3Cscript%3E", "/rate?rater=a&number=x"):
            assert browsed.get(path).status == 400
        for path in ("/rate?rater=a&number=99", "/image/99", "/sample/0", "/static/x"):
            assert browsed.get(path).status == 404
        assert "<b>" not in browsed.get("/rate?rater=ann&number=2").data.decode()
    assert (proposed / "answers.csv").read_bytes() == before


def test_raters_are_the_owners_of_their_keys(site: RatingSite, tmp_path: Path) -> None:
    headers = {
        name: {"authorization": f"Bearer {new_key(name, tmp_path / 'keys')}"}
        for name in ("ann", "bob")
    }
    keys = ApiKeys.read(tmp_path / "keys")
    with pages(site, keys, rating_pages_of(site)) as browsed:
        assert browsed.get("/").status == 401
        reply = browsed.get("/", **headers["bob"])
        assert (reply.status, reply.headers["location"]) == (303, "/rate?rater=bob")
        question = site.rating.questions[0]
        said = {f"answer{i}": "no" for i in range(len(question.labels))}
        forged = {"rater": "ann", "number": "0", **said}
        assert post(browsed, "/rate", forged, **headers["bob"]).status == 303
    label = question.labels[0][0]
    assert site.rating.ratings.answers(question.key, label) == {"bob": "no"}


def test_the_command_goes_on_after_a_kill(proposed: Path, tmp_path: Path) -> None:
    words = ["data", "real-labels", "rate", proposed, "--data", tmp_path / "data"]
    command = [sys.executable, "-m", "distill.cli.main", *map(str, words), "--port", "0"]

    @contextmanager
    def begun() -> Iterator[tuple["subprocess.Popen[str]", Browsed]]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:
            try:
                assert process.stderr
                while not (line := process.stderr.readline()).startswith("pages: "):
                    assert line, "it ended"
                yield process, Browsed(line.split()[1].rstrip("/"), {})
            finally:
                process.kill()

    with begun() as (process, browsed):
        page = browsed.text("/rate?rater=ann")
        said = {f"answer{i}": "maybe" for i in range(page.count("<fieldset>"))}
        assert post(browsed, "/rate", {"rater": "ann", "number": "0", **said}).status == 303
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    with begun() as (process, browsed):
        assert 'name="number" value="1"' in browsed.text("/rate?rater=ann")
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "0 of 3 questions have the answers of 5 raters\nnext: distill data" in told[0]


def test_errors_of_the_command_are_one_line(
    proposed: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    words = ("data", "real-labels", "rate", proposed, "--data", tmp_path / "data", "--port", 0)
    assert "found without keys" in fails(*words, "--host", "0.0.0.0")
    (proposed / "answers.csv").write_text("something else\n")
    assert "expected the columns" in fails(*words)
    (tmp_path / "data/a.png").unlink()
    assert "1 questions are about images that are not in" in fails(*words)
    (proposed / "questions.csv").write_text("key\n")
    assert "no question found" in fails(*words)
    (proposed / "questions.csv").unlink()
    assert "cannot be read as questions" in fails(*words)


# -- findings of an inspector ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory, figures: Path) -> LogitStore:
    return make_knowing(tmp_path_factory.mktemp("knowing") / "store", figures)


def test_findings_are_confirmed_and_listed(
    knowing: LogitStore, figures: Path, tmp_path: Path, distill: Callable[..., Any]
) -> None:
    path = tmp_path / "answers.csv"
    with open_ratings(path) as file:
        site = site_of(knowing, figures, ratings=file)
        assert site.store
        look = site.store.get()
        assert look
        inspection, pictures = look.inspection, look.pictures
        assert pictures
        missing = [int(row) for row in inspection.tags.missing.rows]
        assert len(missing) > 3
        with pages(site) as browsed:
            gallery = browsed.text("/gallery?kind=missing")
            assert gallery.count('action="/confirm"') == min(48, len(missing))
            for row, answer in zip(missing[:3], ("yes", "no", "maybe"), strict=True):
                proposal = inspection.proposal(row)
                assert proposal
                label = site.hierarchy.synsets[proposal.proposed]
                sample = "{:016x}{:016x}".format(*map(int, knowing.sample_ids[row]))
                fields = {"id": sample, "label": label, "answer": answer}
                back = f"/gallery?kind=missing#{sample}"
                reply = post(browsed, "/confirm", {**fields, "next": back})
                assert (reply.status, reply.headers["location"]) == (303, back)
                for wrong in ("//elsewhere.example/", "/gallery\r\nx: y", "https://x", ""):
                    assert post(browsed, "/confirm", {**fields, "next": wrong}).status == 400
                other = {**fields, "label": "n00000000", "next": back}
                assert post(browsed, "/confirm", other).status == 409
            assert post(browsed, "/confirm", {"id": "x"}).status == 400
            pressed = f'aria-pressed="true" aria-label="maybe, {_name(site, missing[2])}"'
            assert pressed in browsed.text("/gallery?kind=missing")
            assert (
                "attachment"
                in browsed.get("/gallery.csv?kind=missing").headers["content-disposition"]
            )
            rows = list(csv.DictReader(browsed.text("/gallery.csv?kind=missing").splitlines()))
            everything = browsed.text("/gallery.csv").splitlines()
    assert [row["key"] for row in rows] == [pictures.key(row) for row in missing]
    assert [row["confirmed"] for row in rows[:4]] == ["yes", "no", "", ""]
    assert len(everything) == 1 + len(inspection.labels)
    lists = {name: tmp_path / f"{name}.csv" for name in ("missing", "suspect", "cleaned")}
    words = [word for name, file_of in lists.items() for word in (f"--{name}", file_of)]
    ran = distill("inspect", knowing.location, "--data", figures, "--ratings", path, *words)
    assert ran.code == 0, ran.err
    keys = {
        name: [row["key"] for row in csv.DictReader(file_of.read_text().splitlines())]
        for name, file_of in lists.items()
    }
    assert keys["missing"] == [pictures.key(missing[0])]
    assert keys["suspect"] == []
    assert len(keys["cleaned"]) == len(inspection.labels)


def _name(site: Any, row: int) -> str:
    proposal = site.store.get().inspection.proposal(row)
    return str(site.tree.name(proposal.proposed))


def test_a_list_of_findings_is_none_to_train_on(
    knowing: LogitStore,
    figures: Path,
    tmp_path: Path,
    train: Callable[..., list[str]],
    distill: Callable[..., Any],
    fails: Callable[..., str],
) -> None:
    suspect = tmp_path / "suspect.csv"
    words = ("inspect", knowing.location, "--data", figures, "--suspect-above", 0.01)
    assert distill(*words, "--sure-above", 0, "--suspect", suspect).code == 0
    if len(suspect.read_text().splitlines()) == 1:
        _write(suspect, [*csv.reader(suspect.read_text().splitlines()), ("x", *"abcdefgh")])
    more = ("--samples", suspect, "--label-set", "plane-figures")
    assert "lists what is wrong with images" in fails(*train("run", *more))
    with pages(site_of(knowing, figures)) as browsed:
        listed = browsed.text("/gallery.csv?kind=missing")
    (tmp_path / "gallery.csv").write_text(listed)
    more = ("--samples", tmp_path / "gallery.csv", "--label-set", "plane-figures")
    assert "lists what is wrong with images" in fails(*train("run", *more))
    assert "expected the images whose keys" in fails(
        "inspect", knowing.location, "--ratings", suspect
    )
