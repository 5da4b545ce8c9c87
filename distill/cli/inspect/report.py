"""What `distill inspect` prints: tables for people, JSON and CSV for scripts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.cli.output import fidelity_line, size_line, state_line, truth_lines
from distill.data.sample_ids import sample_ids
from distill.data.truth import read_truth
from distill.files import csv_text
from distill.teacher_server.inspect.agreement import agreement_of_store
from distill.teacher_server.inspect.dense_rows import HierarchyAnswer, dense, in_words
from distill.teacher_server.inspect.inspection import Inspection
from distill.teacher_server.inspect.overview import QUANTILES, HierarchyFigures
from distill.teacher_server.inspect.subtrees import SubtreeFigures
from distill.teacher_server.inspect.tag_lists import ListedImages, score_missing, score_suspect

WIDTH = 118  # of tables that go into a file

Cell = str | float | int | None


class Report:
    """Gathers what was asked for, then prints it once."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self.figures: list[HierarchyFigures] = inspection.overview
        summary = inspection.summary
        self._json: dict[str, Any] = {**summary.to_json(), "gaps": inspection.gaps}
        self._before: list[str] = [state_line(summary), *inspection.gaps]
        self._after: list[str] = []
        self._table: tuple[list[str], list[list[Cell]]] = ([], [])

    # -- what is asked for ------------------------------------------------------------------------

    def overview(self) -> None:
        """Figures per hierarchy, and how many tags are missing or suspect."""
        summary, tags = self.inspection.summary, self.inspection.tags
        agreement = agreement_of_store(self.inspection.store)
        self._json["agreement"] = agreement.to_json() if agreement else None
        self._json["quantiles"] = QUANTILES
        self._json["per_hierarchy"] = [asdict(row) for row in self.figures]
        self._json["tags"] = {
            "judged": tags.judged,
            "missing": len(tags.missing),
            "suspect": len(tags.suspect),
            **asdict(self.inspection.rules),
        }
        self._before.append(
            "confidence P_k of the teacher alone and its quantiles; images tagged there; entries "
            "kept, their mass, classes that an answer spreads over; views that agree"
        )
        names = ["hierarchy", "classes", "mean", *(f"{q:.0%}" for q in QUANTILES), "tagged"]
        names += ["kept", "mass", "spread", "same top", "|ΔP|"]
        self._table = names, [_of_hierarchy(row) for row in self.figures]
        self._after += [
            f"tags: {tags.judged} judged, {len(tags.missing)} images lack one, {len(tags.suspect)} "
            "are suspect (--data and --missing, --suspect write them)",
            *([f"tags: doubtful, {self.inspection.doubt}"] if self.inspection.doubt else []),
            *(agreement.lines() if agreement else []),
            fidelity_line(summary),
            size_line(summary),
        ]

    def by_class(self) -> None:
        """Every class."""
        subtrees = self.inspection.subtrees
        self._classes([subtrees.of(int(c)) for c in self.inspection.tree.order], "by_class")

    def by_subtree(self, word: str) -> None:
        """A class and its children.

        Raises:
            HierarchyError: no class has that name, or several have.
        """
        tree, subtrees = self.inspection.tree, self.inspection.subtrees
        c = tree.named(word)
        self._before.append(" > ".join(map(tree.name, tree.path(c))))
        self._classes([subtrees.of(each) for each in (c, *tree.children[c])], "by_subtree")

    def _classes(self, rows: Sequence[SubtreeFigures], name: str) -> None:
        self._json[name] = [asdict(row) for row in rows]
        self._before.append(
            "images tagged in the subtree, with the class itself; p of the class and share of "
            "images where it is the teacher's first choice; P_k; missing and suspect tags"
        )
        names = ["synset", "name", "hierarchy", "classes", "images", "own", "p", "agreed", "P_k"]
        self._table = [*names, "missing", "suspect"], [_of_class(row) for row in rows]

    def sample(self, key: str) -> None:
        """One image."""
        inspection = self.inspection
        row = inspection.row_of(sample_ids([key]), key)
        answers, tag = inspection.answers(row), int(inspection.labels[row])
        manifest, hierarchy = inspection.store.manifest, inspection.hierarchy
        if not answers.valid.any():
            self._after.append(f"{key}: its image could not be read when the store was computed")
            self._json["sample"] = {"key": key, "row": row, "answers": None}
            return
        probs = dense(answers, manifest.slots, hierarchy.classes_per_hierarchy)
        confidence = answers.confidence[answers.valid].mean(0)
        predictions = in_words(probs, hierarchy, tag=tag, confidence=confidence)
        wnid = hierarchy.synsets[tag] if tag >= 0 else None
        self._json["sample"] = {
            "key": key,
            "row": row,
            "tag": wnid,
            "answers": [asdict(each) for each in predictions],
        }
        name = f"{wnid} {inspection.tree.name(tag)}" if wnid else "none"
        self._before.append(
            f"{key}: tag {name}; means over {len(answers)} views, * is the tag's path"
        )
        names = ["hierarchy", "P_k", "synset", "name", "p", "tag"]
        self._table = names, [line for each in predictions for line in _of_answer(each)]

    def against_truth(self, pictures: ListedImages, truth: Path) -> None:
        """How right the lists are."""
        known = read_truth(truth, pictures.source, self.inspection.hierarchy)
        scores = score_missing([pictures], known), score_suspect([pictures], known)
        self._json["against_truth"] = dict(zip(("missing", "suspect"), scores, strict=True))
        self._after += truth_lines(*scores)

    def files(self, kind: str, paths: Sequence[Path]) -> None:
        """What was written."""
        self._json.setdefault("files", {})[kind] = [str(path) for path in paths]
        self._after.append(f"{kind}: {', '.join(map(str, paths))}")

    def cleaned(self, path: Path, kept: int, filled: int, left_out: int) -> None:
        """The list for training."""
        self._json["cleaned"] = {"images": kept, "filled_in": filled, "left_out": left_out}
        self._json.setdefault("files", {})["cleaned"] = [str(path)]
        self._after.append(
            f"cleaned: {path}, {kept} images, tags filled in on {filled}, {left_out} images out; "
            f"distill pretrain --samples {path}"
        )

    # -- printing ---------------------------------------------------------------------------------

    def show(self, form: Literal["text", "json", "csv"]) -> None:
        """On standard output."""
        if form == "json":
            click.echo(json.dumps(self._json))
        elif form == "csv":
            names, rows = self._table
            click.echo(csv_text([names, *rows]), nl=False)
        else:
            self._print()

    def _print(self) -> None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDTH)
        for line in self._before:
            console.print(Text(line), soft_wrap=True)
        names, rows = self._table
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(names):
            words = any(isinstance(row[i], str) for row in rows)
            table.add_column(name, justify="left" if words else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_shown(cell)) for cell in row))
        if rows:
            console.print(table)
        for line in self._after:
            console.print(Text(line), soft_wrap=True)


def _of_hierarchy(row: HierarchyFigures) -> list[Cell]:
    return [
        *(row.hierarchy, row.classes, row.confidence_mean, *row.confidence_quantiles),
        *(row.labelled, row.kept_entries, row.kept_mass, row.effective_classes),
        *(row.same_top, row.confidence_change),
    ]


def _of_class(row: SubtreeFigures) -> list[Cell]:
    return [
        *(row.wnid, row.name, row.hierarchy, row.classes, row.images, row.tagged_here),
        *(row.tag_prob, row.agreed, row.confidence, row.missing, row.suspect),
    ]


def _of_answer(each: HierarchyAnswer) -> list[list[Cell]]:
    return [
        [
            "" if i else str(each.hierarchy),
            "" if i or each.confidence is None else f"{each.confidence:.3f}",
            *(c.wnid, c.name, f"{c.prob:.3f}", "*" if c.tagged else ""),
        ]
        for i, c in enumerate(each.classes)
    ]


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
