"""`distill.open`: the same targets in whatever process asks for them."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import distill
from distill.data.source import open_source
from distill.errors import ConfigError, DataError, StoreMismatchError
from distill.store.logit_store import LogitStore
from distill.store.places.objects import open_objects
from distill.targets.tensors import SparseTargets

QUIET: Any = {"say": lambda line: None}
TIMEOUT_S = 60


@pytest.fixture
def targets(store: Path, figures: Path, tmp_path: Path) -> distill.Targets:
    return distill.open(store, data=figures, cache=tmp_path / "cache", **QUIET)


def loader(targets: distill.Targets, **more: Any) -> DataLoader[Any]:
    return DataLoader(
        targets.dataset(),
        batch_size=24,
        sampler=targets.sampler(seed=3),
        collate_fn=targets.collate,
        timeout=TIMEOUT_S if more.get("num_workers") else 0,
        **more,
    )


def epochs(targets: distill.Targets, batches: DataLoader[Any], count: int = 3) -> list[Any]:
    """All batches of the first epochs."""
    found = []
    for epoch in range(count):
        batches.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        found += list(batches)
    return found


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("pixels", "label", "row", "view"):
            assert torch.equal(one[name], other[name]), name
        for name in ("index", "prob", "confidence", "sq_norm", "valid"):
            assert torch.equal(getattr(one["targets"], name), getattr(other["targets"], name)), name


def test_batches_hold_what_the_store_says_of_the_views(
    targets: distill.Targets, store: Path, figures: Path
) -> None:
    opened, source = LogitStore.open(store), open_source(figures)
    batches = epochs(targets, loader(targets))
    assert {int(view) for batch in batches for view in batch["view"]} == {0, 1}
    assert sorted(torch.cat([b["row"] for b in batches[: len(batches) // 3]]).tolist()) == list(
        range(len(source))
    )
    commits, manifest = opened.block_commits(), opened.manifest
    for batch in batches:
        for i, (row, view) in enumerate(
            zip(batch["row"].tolist(), batch["view"].tolist(), strict=True)
        ):
            block, place = divmod(row, manifest.block_rows)
            codes = opened.read_codes(block, view, commits[block]).select(np.array([place]))
            said = manifest.coding.dequantise(codes)
            assert np.array_equal(batch["targets"].prob[i], said.prob[0])
            assert np.array_equal(batch["targets"].index[i], said.index[0])
    assert batches[0]["pixels"].dtype == torch.uint8
    assert batches[0]["pixels"].shape[1:] == (3, *targets.input_size)


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("fork", "resident"),
        ("fork", "streamed"),
        ("forkserver", "resident"),
        pytest.param("forkserver", "streamed", marks=pytest.mark.slow),
        pytest.param("spawn", "resident", marks=pytest.mark.slow),
        pytest.param("spawn", "streamed", marks=pytest.mark.slow),
    ],
)
def test_loaders_by_every_method_give_the_same_batches(
    method: str, read: Any, store: Path, figures: Path, tmp_path: Path, targets: distill.Targets
) -> None:
    expected = epochs(targets, loader(targets))
    other = distill.open(store, data=figures, cache=tmp_path / "cache", read=read, **QUIET)
    batches = loader(
        other,
        num_workers=2 if method == "fork" else 1,
        multiprocessing_context=method,
        persistent_workers=method != "fork",
    )
    found = epochs(other, batches)
    assert {len(each["row"]) for each in found} == {len(each["row"]) for each in expected}
    if read == "streamed":  # its order is another
        rows = [torch.cat([each["row"] for each in part]).tolist() for part in (found, expected)]
        assert sorted(rows[0]) == sorted(rows[1])
        for each in found:
            targets.set_epoch(int(each["view"][0]))
            again = targets.collate([targets.dataset()[int(row)] for row in each["row"]])
            assert_same([each], [again])
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("read", ["resident", "streamed"])
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_store_in_a_bucket_is_read_by_processes_of_a_loader(
    bucket: str,
    method: str,
    read: Any,
    targets: distill.Targets,
    store: Path,
    figures: Path,
    tmp_path: Path,
) -> None:
    """The threads of the client that this process has used are dead in a forked one."""
    local = open_objects(store)
    contents = [(key, local.read(key) or b"") for key in local.keys("")]
    open_objects(f"{bucket}/store").write_all(contents)
    cache = tmp_path / "other cache"
    remote = distill.open(f"{bucket}/store", data=figures, cache=cache, read=read, **QUIET)
    batches = loader(remote, num_workers=2, multiprocessing_context=method)
    for batch in epochs(remote, batches, 2):
        assert torch.equal(targets.fetch(batch["row"], batch["view"]).prob, batch["targets"].prob)


DDP_SCRIPT = """
import sys, torch, distill
torch.distributed.init_process_group("gloo")
targets = distill.open(sys.argv[1], data=sys.argv[2], cache=sys.argv[3])
loader = torch.utils.data.DataLoader(
    targets.dataset(), 24, sampler=targets.sampler(seed=3), collate_fn=targets.collate,
    num_workers=1, timeout=60,
)
loader.sampler.set_epoch(1)
batches = [(batch["row"], batch["view"], batch["targets"].prob) for batch in loader]
torch.save(batches, f"{sys.argv[4]}/{torch.distributed.get_rank()}.pt")
"""


@pytest.mark.slow
def test_ranks_take_turns_in_one_order(
    targets: distill.Targets, store: Path, figures: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop.py").write_text(DDP_SCRIPT)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [tmp_path / "loop.py", store, figures, tmp_path / "cache", tmp_path]
    subprocess.run([sys.executable, *map(str, words)], check=True, timeout=4 * TIMEOUT_S)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    rows = [torch.cat([batch[0] for batch in part]) for part in parts]
    targets.set_epoch(1)
    whole = torch.tensor(list(targets.sampler(seed=3)))
    assert torch.equal(torch.stack(rows, 1).flatten()[: len(whole)], whole)
    for part in parts:
        for some, views, prob in part:
            assert torch.equal(targets.fetch(some, views).prob, prob)


def test_a_pickle_opens_the_same_store_and_no_other(
    targets: distill.Targets, store: Path, tmp_path: Path
) -> None:
    pickled = pickle.dumps(targets)
    again = pickle.loads(pickled)
    assert torch.equal(again.fetch([3], 1).prob, targets.fetch([3], 1).prob)
    store.rename(tmp_path / "elsewhere")
    with pytest.raises(distill.DistillError, match="no store there"):
        pickle.loads(pickled)


def test_importing_distill_imports_nothing_heavy() -> None:
    script = (
        "import sys, distill; heavy = {'torch', 'numpy', 'zarr', 'click'} & {*sys.modules}; "
        "print(heavy, sorted(distill.__all__) == dir(distill))"
    )
    told = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert told.split() == ["set()", "True"]
    assert all(getattr(distill, name) for name in distill.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        distill.nothing  # noqa: B018


def test_rows_keys_and_ids_of_one_view_or_one_each(targets: distill.Targets) -> None:
    rows = torch.tensor([5, 0, 17])
    keys = [targets.source.samples[int(row)].key for row in rows]
    of_rows = targets.fetch(rows, 1)
    for same in (keys, targets.source.ids[rows.numpy()], rows.tolist()):
        assert torch.equal(targets.fetch(same, 1).prob, of_rows.prob)
    mixed = targets.fetch(rows, torch.tensor([0, 1, 0]))
    assert isinstance(mixed, SparseTargets)
    first = targets.fetch(rows)
    assert torch.equal(mixed.prob[1], of_rows.prob[1])
    assert torch.equal(mixed.prob[[0, 2]], first.prob[[0, 2]])
    with pytest.raises(DataError, match="row 999 found"):
        targets.fetch([999])
    with pytest.raises(DataError, match="expected rows"):
        targets.fetch([0.5])
    with pytest.raises(distill.DistillError, match="view 2 asked for, expected 0 to 1"):
        targets.fetch([0], 2)
    with pytest.raises(DataError, match="are not in the store"):
        targets.fetch(["nothing of that name"])


def test_the_criterion_is_the_loss_of_pretrain(targets: distill.Targets) -> None:
    batch = next(iter(loader(targets)))
    logits = torch.randn(24, 29, generator=torch.Generator().manual_seed(0), requires_grad=True)
    criterion = targets.criterion(label_smoothing=0.1)
    loss = criterion(logits, batch)
    labels = distill.semantic_softmax_loss(
        logits=logits, labels=batch["label"], hierarchy=targets.hierarchy, label_smoothing=0.1
    )
    kd = distill.semantic_kd_loss(
        student_logits=logits,
        targets=batch["targets"],
        labels=batch["label"],
        hierarchy=targets.hierarchy,
    )
    assert torch.equal(loss.labels, labels)
    assert torch.equal(loss.kd, kd)
    assert torch.equal(loss.total, labels + 100 * kd)
    loss.total.backward()
    assert logits.grad is not None
    alone = targets.criterion(scheme="single-label", kd_weight=0, label_smoothing=0)(logits, batch)
    known = batch["label"] >= 0
    plain = F.cross_entropy(logits[known], batch["label"][known], reduction="sum") / 24
    torch.testing.assert_close(alone.total, plain)
    with pytest.raises(ConfigError, match="kd_weight -1"):
        targets.criterion(kd_weight=-1)


def test_a_transform_may_only_normalise(targets: distill.Targets) -> None:
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    dataset = targets.dataset(40, lambda view: view.float() / 255 - mean)
    assert dataset[3]["pixels"].shape == (3, 40, 40)
    assert dataset[3]["targets"].prob.shape[0] == 1
    for wrong, found in (
        (lambda view: view[:, 4:], "for a view of"),
        (lambda view: view.roll(1, 2), "moves pixels"),
        (lambda view: view.flip(-1) if torch.rand(()) < 0.5 else view, "is random"),
        (lambda view: F.avg_pool2d(view.float(), 3, 1, 0).mean(), "expected a tensor"),
    ):
        with pytest.raises(ConfigError, match=found):
            targets.dataset(transform=wrong)


def test_images_that_cannot_be_read_are_left_out_counted_and_bounded(
    copied_figures: Path, store: Path, tmp_path: Path
) -> None:
    shared: Any = {"data": copied_figures, "cache": tmp_path / "cache", **QUIET}
    before = distill.open(store, **shared, max_bad_fraction=0.1)
    row = 60  # no replay proof is of it
    sample = before.source.samples[row]
    with Path(sample.path).open("r+b") as tar:
        tar.seek(sample.offset)
        tar.write(b"\0" * sample.size)
    for workers in (0, 2):
        targets = distill.open(store, **shared, max_bad_fraction=0.1)
        batches = list(loader(targets, num_workers=workers))
        assert sum(len(batch["row"]) for batch in batches) == len(targets) - 1
        assert all(len(batch["targets"].prob) == len(batch["row"]) for batch in batches)
        assert targets.unreadable == [sample.key]
        with pytest.raises(DataError, match="cannot be read"):
            targets.dataset()[row]
    strict = distill.open(store, **shared, max_bad_fraction=0.0)
    with pytest.raises(DataError, match=r"1 of \d+ images cannot be read"):
        list(loader(strict))


@pytest.fixture
def copied_figures(figures: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(figures, tmp_path / "copy"))


def test_other_images_and_other_views_are_refused(
    targets: distill.Targets, store: Path, figures: Path
) -> None:
    with pytest.raises(StoreMismatchError, match="lacks"):
        distill.open(store, data=figures, split="val", **QUIET)
    with pytest.raises(ConfigError, match="expected the same; leave views out"):
        distill.open(store, data=figures, views=distill.ViewPolicy(cutout=0.1), **QUIET)


def test_a_teacher_in_this_process_answers_with_the_loss(
    teacher_weights: Path, figures: Path
) -> None:
    targets = distill.open(
        "timm:test_vit",
        data=figures,
        label_set="plane-figures",
        teacher_weights=teacher_weights,
        **QUIET,
    )
    criterion = targets.criterion()
    losses = []
    for workers in (0, 2):
        batches = loader(targets, num_workers=workers)
        batch = next(iter(batches))
        losses.append(criterion(torch.zeros(24, 29), batch))
    assert torch.equal(losses[0].kd, losses[1].kd)
    assert losses[0].kd > 0


def test_a_live_server_answers_processes_of_a_loader(
    serving: Callable[..., Any], store: Path, figures: Path, targets: distill.Targets
) -> None:
    expected = epochs(targets, loader(targets), 2)
    with serving(store) as (server, _):
        live = distill.open(f"http://{server.address}", data=figures, **QUIET)
        found = epochs(live, loader(live, num_workers=2), 2)
    assert_same(found, expected)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Nothing here may take long: what waits for a dead thread waits for ever."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 4 * TIMEOUT_S
