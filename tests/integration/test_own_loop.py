"""`distill.open`: the same targets in whatever process asks for them."""

import copy
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

import distill
from distill.data.source import open_source
from distill.errors import ConfigError, DataError, StoreMismatchError
from distill.store.logit_store import LogitStore
from distill.store.places.objects import open_objects
from distill.targets.tensors import SparseTargets
from distill.trainers.models.trained import open_trained

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
    assert isinstance(of_rows, SparseTargets)
    for same in (keys, np.array(keys), targets.source.ids[rows.numpy()], rows.tolist()):
        assert torch.equal(targets.fetch(same, 1).prob, of_rows.prob)  # type: ignore[union-attr]
    mixed, first = targets.fetch(rows, torch.tensor([0, 1, 0])), targets.fetch(rows)
    assert isinstance(mixed, SparseTargets)
    assert isinstance(first, SparseTargets)
    assert torch.equal(mixed.prob[1], of_rows.prob[1])
    assert torch.equal(mixed.prob[[0, 2]], first.prob[[0, 2]])
    assert len(targets.fetch([]).confidence) == 0
    key = keys[0]
    for images, message in (
        ([999], "row 999 found"),
        ([-1], "row -1 found"),
        ([0.5], "expected rows"),
        ([True], "expected rows"),
        ([[1, 2, 3, 4]], "expected rows"),
        ([key, 3], "expected rows"),
        (key, "expected rows"),
        (["nothing of that name"], "has no image 'nothing of that name'"),
    ):
        with pytest.raises(DataError, match=message):
            targets.fetch(images)
    for views in (
        [0, 1],
        [0, 1, 0, 1],
        [[0], [1], [0]],
        0.5,
        [0.0, 1.0, 0.0],
        "0",
        [None] * 3,
        True,
    ):
        with pytest.raises(DataError, match="expected a whole number, or one for each image"):
            targets.fetch(rows, views)
    with pytest.raises(distill.DistillError, match="view 2 asked for, expected 0 to 1"):
        targets.fetch([0], 2)
    with pytest.raises(DataError, match="pixels of shapes"):
        targets.fetch([0], 0, [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])


def test_threads_that_fetch_at_once_get_their_own_rows(
    targets: distill.Targets,
    store: Path,
    figures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of more blocks than the window holds, which replace each other."""
    monkeypatch.setattr("distill.trainers.sources.store.STREAM_WINDOW_BLOCKS", 1)
    other = distill.open(store, data=figures, cache=tmp_path / "cache", read="streamed", **QUIET)
    expected = [targets.fetch(range(len(targets)), view) for view in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def ask(seed: int) -> bool:
        random = np.random.default_rng(seed)
        rows, view = random.integers(0, len(targets), 8), int(random.integers(2))
        return torch.equal(other.fetch(rows, view).prob, expected[view].prob[rows])  # type: ignore[union-attr]

    try:
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(ask, range(200)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("copied", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy])
def test_workers_of_a_copy_see_its_epoch(
    copied: Callable[[distill.Targets], distill.Targets], targets: distill.Targets
) -> None:
    other = copied(targets)
    batches = loader(other, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    views = [
        {int(v) for batch in part for v in batch["view"]} for part in per_epoch(other, batches)
    ]
    assert views == [{0}, {1}, {0}]


def per_epoch(targets: distill.Targets, batches: DataLoader[Any]) -> Iterator[list[Any]]:
    for epoch in range(3):
        targets.set_epoch(epoch)
        yield list(batches)


def test_samples_that_were_mixed_keep_their_answers(targets: distill.Targets) -> None:
    """Whoever collates in a way of his own, or lets torch do it."""
    samples = targets.dataset().__getitems__([4, 5, 6, 7])
    samples.reverse()
    samples[0] = targets.dataset()[9]
    del samples[2]
    for batch in (targets.collate(samples), default_collate(list(samples))):
        assert batch["row"].tolist() == [9, 6, 4]
        assert torch.equal(batch["targets"].prob, targets.fetch([9, 6, 4]).prob)  # type: ignore[union-attr]
        assert targets.criterion()(torch.zeros(3, 29), batch).kd > 0
    for row in (-1, len(targets), 10**9):
        with pytest.raises(IndexError, match="expected 0 to"):
            targets.dataset()[row]


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
    assert torch.equal(loss.total, labels + criterion.kd_weight * kd)
    mixture, opposite = criterion(logits, batch, share=0.75), criterion(logits.flip(0), batch)
    torch.testing.assert_close(mixture.total, 0.75 * loss.total + 0.25 * opposite.total)
    with pytest.raises(ValueError, match="share 2 found, expected 0 to 1"):
        criterion(logits, batch, share=2)
    loss.total.backward()
    assert logits.grad is not None
    alone = targets.criterion(scheme="single-label", kd_weight=0, label_smoothing=0)(logits, batch)
    known = batch["label"] >= 0
    plain = F.cross_entropy(logits[known], batch["label"][known], reduction="sum") / 24
    torch.testing.assert_close(alone.total, plain)
    for wrong, message in (({"kd_weight": -1}, "kd_weight -1"),):
        with pytest.raises(ConfigError, match=message):
            targets.criterion(**wrong)  # type: ignore[arg-type]
    for other, message in (
        ({**batch, "identity": ["another"]}, "a batch of another found"),
        ({"label": batch["label"]}, "expected what the dataset of these targets gives"),
    ):
        with pytest.raises(ValueError, match=message):
            criterion(logits, other)
    with pytest.raises(ValueError, match=r"logits of \(24, 30\) found, expected a tensor of"):
        criterion(torch.zeros(24, 30), batch)


def test_a_student_is_saved_as_what_it_is(targets: distill.Targets, tmp_path: Path) -> None:
    criterion = targets.criterion()
    state = timm.create_model("test_resnet", num_classes=29).state_dict()
    about: Any = {"student": "test_resnet", "size": 32}
    path = tmp_path / "run" / "student.safetensors"
    for wrong, message in (
        ({"state": {}}, "92 tensors missing"),
        ({"state": timm.create_model("test_resnet", num_classes=10).state_dict()}, "10"),
        ({"state": timm.create_model("test_vit", num_classes=29).state_dict()}, "tensors missing"),
        ({"student": "test_resnett"}, "did you mean test_resnet"),
        ({"path": tmp_path / "student.pt"}, r"expected a \.safetensors file"),
    ):
        with pytest.raises(ConfigError, match=message):
            criterion.save(**{"state": state, "path": path, **about, **wrong})
    assert not path.parent.exists()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    criterion.save(wrapped, path, **about)
    assert open_trained(str(path.parent)).scheme == "semantic"


def test_a_transform_may_only_normalise(targets: distill.Targets) -> None:
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    dataset = targets.dataset(40, lambda view: view.float() / 255 - mean)
    assert dataset[3]["pixels"].shape == (3, 40, 40)
    assert dataset[3]["targets"].prob.shape[0] == 1
    targets.dataset(
        transform=v2.Compose([v2.ToDtype(torch.float32), v2.Normalize([1] * 3, [2] * 3)])
    )
    calls = iter(range(10**6))
    for wrong, found in (
        (lambda view: view[:, 4:], "for a view of"),
        (lambda view: view[None], "for a view of"),
        (lambda view: view.roll(1, 2), "moves"),
        (lambda view: view.flip(-1), "moves"),
        (v2.Compose([v2.Resize(40), v2.CenterCrop(32)]), "moves"),
        (v2.GaussianBlur(5, 1.0), "mixes"),
        (lambda view: view - view.float().mean(), "mixes"),
        (torch.zeros_like, "hides"),
        (v2.RandomErasing(p=0.1), "other values each time|moves, mixes or hides"),
        (lambda view: view.roll(int(next(calls) > 40), 2), "other values each time"),
        (lambda view: view / 0.0, "gives NaN or Inf"),
        (lambda view: view.float().mean(), "expected a tensor"),
    ):
        with pytest.raises(ConfigError, match=found):
            targets.dataset(transform=wrong)


# Run without the type checks of these tests, as users would.
WRONG = """
import sys, torch, distill
quiet = {"say": lambda line: None}
store, data, cache = sys.argv[1:]
targets = distill.open(store, data=data, cache=cache, **quiet)
dataset, criterion = targets.dataset(), targets.criterion()
batch = targets.collate([dataset[0], dataset[1]])
logits, state = torch.zeros(2, 29), {}
about = {"path": cache + "/student.safetensors", "student": "test_resnet", "size": 32}
opened = {"data": data, "cache": cache, **quiet}
for line in sys.stdin:
    call, _, expected = line.strip().partition(" ## ")
    try:
        eval(call)
    except (distill.DistillError, ValueError) as error:
        assert expected in str(error), (call, str(error))
        assert chr(10) not in str(error), call
    else:
        raise AssertionError(call)
"""
CALLS = """
distill.open(store, views={"cutout": 0.1}, **opened) ## expected a ViewPolicy
distill.open(store, read="x", **opened) ## expected auto, resident or streamed
distill.open(store, max_bad_fraction="1", **opened) ## expected a share from 0 to 1
distill.open(store, cache_gib="1", **opened) ## cache_gib '1' found
distill.open(3, **opened) ## targets 3 found
distill.open(store, data=7, **quiet) ## data 7 found
targets.criterion(kd_weight="x") ## kd_weight 'x' found, expected a number
targets.criterion(kd_weight=None) ## kd_weight None found, expected a number
targets.criterion(label_smoothing="a") ## label_smoothing 'a' found
targets.criterion(scheme="x") ## scheme 'x' found, expected single-label
targets.criterion(divergence="x") ## divergence 'x' found, expected mse, kl
targets.criterion(hierarchy_weights="Paper") ## hierarchy_weights 'Paper' found, expected paper
targets.criterion(multi_label_loss="x") ## multi_label_loss 'x' found
targets.dataset("40") ## size '40' found, expected pixels a side
targets.dataset((48,)) ## size (48,) found, expected pixels a side
targets.dataset(0) ## size 0 found, expected pixels a side
targets.dataset(True) ## size True found, expected pixels a side
targets.dataset(40.5) ## size 40.5 found, expected pixels a side
targets.dataset(transform=lambda view: view.convert("L")) ## transform cannot take a view
targets.set_epoch(1.7) ## epoch 1.7 found, expected a whole number
targets.set_epoch("3") ## epoch '3' found, expected a whole number
targets.sampler(seed=-1) ## seed -1 found
targets.fetch([0, 1], None and 0 or "0") ## expected a whole number, or one for each image
targets.fetch([0, 1], [None] * 2) ## expected a whole number, or one for each image
targets.fetch([0], 0, torch.zeros(1)) ## pixels of shapes
criterion(logits, batch["label"]) ## Tensor found as a batch
criterion((logits,), batch) ## logits of tuple found
criterion(logits[0], batch) ## logits of (29,) found, expected a tensor of (2, 29)
criterion.save(logits, **about) ## Tensor found as state, expected model.state_dict()
criterion.save(state, **{**about, "size": (48,)}) ## size (48,) found
criterion.save(state, **about, mean=0.5) ## expected three numbers
"""


def test_wrong_arguments_are_one_line(store: Path, figures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRONG, *map(str, (store, figures, tmp_path / "cache"))]
    told = subprocess.run(
        command, input=CALLS.strip(), capture_output=True, text=True, timeout=2 * TIMEOUT_S
    )
    assert told.returncode == 0, told.stderr


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
    for wrong, message in (
        ({"views": distill.ViewPolicy(cutout=0.1)}, "expected the same; leave views out"),
        ({"max_bad_fraction": float("nan")}, "expected a share from 0 to 1"),
        ({"label_set": "nonsense"}, "without timm:NAME"),
        ({"device": "cpu"}, "without timm:NAME"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill.open(store, data=figures, **wrong, **QUIET)  # type: ignore[arg-type]


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
