"""What a precompute would do, without doing it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.data.source import ImageSource, label_indices
from distill.teacher_server.precompute.options import PrecomputeOptions, Share
from distill.teacher_server.precompute.run import manifest_for, open_matching, rows_of
from distill.teacher_server.teacher.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """models: each with the input and the head it has. blocks, images: of this share, to compute.

    blocks_done, blocks_all: of the store; a new one has none done.
    """

    store: str
    new: bool
    models: tuple[str, ...]
    teacher_fingerprint: str
    device: str
    precision: str
    hierarchy: str
    images_all: int
    labelled: int
    views: tuple[int, ...]
    view_policy: dict[str, Any]
    entries: tuple[int, ...]
    batch_size: int | None
    blocks_all: int
    blocks_done: int
    blocks: int
    images: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        policy = ", ".join(f"{name} {value}" for name, value in self.view_policy.items())
        first, last = self.views[0], self.views[-1]
        state = "new" if self.new else f"{self.blocks_done} of {self.blocks_all} blocks are there"
        return [
            f"store: {self.store} ({state})",
            *(f"teacher: {model}" for model in self.models),
            f"on {self.device} in {self.precision}, batches of "
            f"{self.batch_size or 'a size that is measured'}; fingerprint "
            f"{self.teacher_fingerprint[:12]}; hierarchy {self.hierarchy}",
            f"data: {self.images_all} images, {self.labelled} with a label",
            f"views: {first} to {last}, {policy}",
            f"encoding: {' '.join(map(str, self.entries))} entries",
            f"to compute: {self.blocks} of {self.blocks_all} blocks, {self.images} images in "
            f"{len(self.views)} views; nothing was written",
        ]


def dry_run(
    *,
    source: ImageSource,
    teacher: Teacher,
    path: str | Path,
    options: PrecomputeOptions,
    share: Share,
) -> DryRun:
    """Look at everything that a precompute looks at before it begins.

    Raises:
        StoreMismatchError: the store there is of another teacher, hierarchy, dataset or views.
        DataError: a label lies outside the label set.
    """
    labels = label_indices(source, teacher.hierarchy)
    manifest = manifest_for(source, labels, teacher, options)
    store, pending = open_matching(path, manifest, source, labels), list(range(manifest.num_blocks))
    if store:
        manifest, pending = store.manifest, store.pending_blocks()
    shard_blocks = share.of(pending)
    return DryRun(
        store=str(path),
        new=store is None,
        models=tuple(_described(teacher)),
        teacher_fingerprint=teacher.identity.fingerprint,
        device=str(teacher.device),
        precision=teacher.identity.precision,
        hierarchy=teacher.hierarchy.name,
        images_all=len(source),
        labelled=int((labels >= 0).sum()),
        views=manifest.views.drawn,
        view_policy=dict(manifest.views.policy),
        entries=manifest.encoding.entries,
        batch_size=options.batch_size,
        blocks_all=manifest.num_blocks,
        blocks_done=manifest.num_blocks - len(pending),
        blocks=len(shard_blocks),
        images=rows_of(manifest, shard_blocks),
    )


def _described(teacher: Teacher) -> list[str]:
    described = []
    for member in teacher.members:
        height, width = member.input.size
        head = str(member.head) if member.head else "semantic head"
        described.append(f"{member.name}, {height}×{width} pixels, {head}")
    return described
