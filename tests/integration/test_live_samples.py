"""Sample ids: answered from a store, computed and written through; and the client that asks."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import urllib3
from live import Live, echo_teacher, images, live, wait_until

from distill.data.images import read_image
from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.errors import (
    ConfigError,
    DataError,
    InUseError,
    StoreError,
    StoreMismatchError,
    TeacherRequestError,
    TeacherUnavailableError,
)
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.store.views.spool import Spool
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import SparseTargets, TargetSource
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.serve.decoding import Decoder
from distill.teacher_server.serve.samples import open_samples
from distill.teacher_server.teacher.teacher import Teacher
from distill.trainers.sources.store import StoreTargets
from distill.wire.client import TeacherClient

Serving = Callable[..., Any]


def same(one: SparseTargets, other: SparseTargets) -> None:
    for name in ("index", "prob", "confidence", "sq_norm", "valid"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=0, atol=0, msg=name
        )


def of_store(store: Path, tmp_path: Path) -> StoreTargets:
    return StoreTargets(LogitStore.open(store), Cache(tmp_path / "own-cache"))


# -- from a store ---------------------------------------------------------------------------------


def test_server_and_store_give_the_same_targets(
    serving: Serving, store: Path, tmp_path: Path, random: np.random.Generator
) -> None:
    stored = of_store(store, tmp_path)
    with serving(store, data=False) as (_, client):
        assert isinstance(client, TargetSource)
        assert isinstance(client, TrainingTargets)
        assert isinstance(stored, TrainingTargets)
        assert client.identity == stored.identity
        assert client.policy == stored.policy
        assert client.hierarchy.digest == stored.hierarchy.digest
        for view in (0, 1, 0):
            ids = stored.store.sample_ids[random.integers(0, 96, 40)]
            same(client.fetch(ids, view), stored.fetch(ids, view))


def test_announced_batches_are_the_same_and_asked_once(
    serving: Serving, store: Path, tmp_path: Path
) -> None:
    stored = of_store(store, tmp_path)
    ids = stored.store.sample_ids
    with serving(store, data=False) as (server, client):
        for start in range(0, 96, 16):
            client.announce(ids[start : start + 16], 1)
        for start in range(0, 96, 16):
            part = ids[start : start + 16]
            same(client.fetch(part, 1), stored.fetch(part, 1))
        asked = [e for e in server.named("request") if e["path"].endswith("infer")]
        assert len(asked) == 6


def test_batch_beyond_the_servers_cap_is_sent_in_parts(
    serving: Serving, store: Path, tmp_path: Path
) -> None:
    stored = of_store(store, tmp_path)
    with serving(store, data=False, max_images_per_request=10) as (server, client):
        same(client.fetch(stored.store.sample_ids, 0), stored.fetch(stored.store.sample_ids, 0))
        sizes = [e["images"] for e in server.named("request") if e["path"].endswith("infer")]
        assert sizes == [10] * 9 + [6]


def test_unknown_sample_or_view_is_a_data_error(serving: Serving, store: Path) -> None:
    ids = LogitStore.open(store).sample_ids
    with serving(store, data=False) as (_, client):
        with pytest.raises(DataError, match="1 of 2 samples have no answer"):
            client.fetch(np.array([[1, 2], ids[0]], np.uint64), 0)
        with pytest.raises(DataError, match=r"view 2 asked for, expected 0 to 1"):
            client.fetch(ids[:3], 2)


def test_damaged_store_is_503_and_says_so(serving: Serving, store: Path) -> None:
    ids = LogitStore.open(store).sample_ids
    chunk = store / "prob" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:99])
    with serving(store, data=False) as (_, client):
        client.client.deadline_s = 1.0
        with pytest.raises(TeacherUnavailableError, match="block 0"):
            [client.fetch(ids, view) for view in (0, 1)]


def test_store_of_another_teacher_or_data_set_is_refused(
    hierarchy: SemanticHierarchy, teacher: Teacher, store: Path, tmp_path: Path
) -> None:
    from distill.events import Journal

    options = PrecomputeOptions(policy=ViewPolicy())
    more: Any = {"cache": tmp_path, "journal": Journal()}
    with pytest.raises(StoreMismatchError, match="teacher"):
        open_samples(echo_teacher(hierarchy), options, store=str(store), source=None, **more)
    with pytest.raises(ConfigError, match="no store found; expected one, or --data"):
        open_samples(teacher, options, store=str(tmp_path / "none"), source=None, **more)


# -- computed and written through -----------------------------------------------------------------


def test_what_is_computed_is_kept_and_becomes_the_store_of_a_precompute(
    serving: Serving, store: Path, figures: Path, tmp_path: Path
) -> None:
    """Every sample in every view once, and the store is there, certificate included."""
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    expected = of_store(store, tmp_path)
    with serving(filled) as (server, client):
        order = np.random.default_rng(3).permutation(96)
        for view in (1, 0):
            for start in range(0, 96, 32):
                rows = order[start : start + 32]
                said = client.fetch(ids[rows], view)
                stored = expected.fetch(ids[rows], view)
                # Batches of other sizes may differ by a rounding of the last bit.
                torch.testing.assert_close(said.prob, stored.prob, rtol=0, atol=1.01 / 191)
                assert (said.index == stored.index).float().mean() > 0.999
        wait_until(lambda: not LogitStore.open(filled).pending_blocks(), 30)
        assert metric_sum(server, 'source="teacher"') == 192
        again = client.fetch(ids, 1)
        assert metric_sum(server, 'source="store"') == 96
    done = LogitStore.open(filled)
    certificate = done.require_complete()
    assert certificate["fidelity"]
    assert (
        certificate["replay"].keys() == LogitStore.open(store).require_complete()["replay"].keys()
    )
    assert not list((tmp_path / "cache").glob("*.spool"))
    rows = np.arange(16, 96)  # block 0 is computed once more, for its audit
    kept = of_store(filled, tmp_path).fetch(ids, 1)
    same(kept.select(torch.from_numpy(rows)), again.select(torch.from_numpy(rows)))


def metric_sum(server: Live, label: str) -> float:
    lines = server.service.metrics.text().decode().splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if ("images_total" in line or "elements_total" in line) and label in line
    )


def readiness(server: Live) -> tuple[int, str]:
    """Status, and what the server says of it."""
    reply = urllib3.request("GET", f"http://{server.address}/v2/health/ready", retries=False)
    return reply.status, reply.data.decode()


def test_half_filled_store_goes_on_with_another_server_and_with_precompute(
    serving: Serving,
    distill: Callable[..., Any],
    precompute_command: Callable[..., list[str]],
    figures: Path,
    tmp_path: Path,
) -> None:
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    with serving(filled) as (_, client):
        first = client.fetch(ids[:40], 0)
    assert LogitStore.open(filled).pending_blocks() == list(range(6))
    with serving(filled) as (server, client):
        same(client.fetch(ids[:40], 0), first)
        assert metric_sum(server, 'source="store"') == 40
        client.fetch(ids[16:48], 1)
        client.fetch(ids[40:48], 0)
        wait_until(lambda: LogitStore.open(filled).pending_blocks() == [0, 3, 4, 5])
    command = precompute_command(filled, "--views", 2, "--batch-size", 8)
    assert distill(*command).code == 0
    assert LogitStore.open(filled).require_complete()


def test_committed_blocks_of_an_unfinished_store_are_not_computed_again(
    serving: Serving, store: Path, figures: Path, tmp_path: Path
) -> None:
    ids = open_source(figures).ids
    expected = of_store(store, tmp_path).fetch(ids[:32], 1)
    LogitStore.open(store).revoke([2])
    with serving(store) as (server, client):
        same(client.fetch(ids[:32], 1), expected)
        assert metric_sum(server, 'source="store"') == 32
        client.fetch(ids[32:48], 1)
        assert metric_sum(server, 'source="teacher"') == 16


def test_unreadable_image_is_not_valid_and_is_kept_so(
    serving: Serving, figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, filled = open_source(figures), tmp_path / "filled"
    tar = next(figures.glob("train-*.tar"))
    sample = source.samples[20]
    whole = tar.read_bytes()
    try:
        broken = bytearray(whole)
        broken[sample.offset : sample.offset + 50] = bytes(50)
        tar.write_bytes(broken)
        with serving(filled, views=1) as (_, client):
            said = client.fetch(source.ids[16:32], 0)
            assert said.valid is not None
            assert said.valid.tolist() == [True] * 4 + [False] + [True] * 11
            wait_until(lambda: 1 not in LogitStore.open(filled).pending_blocks())
            again = client.fetch(source.ids[16:32], 0)
            same(said, again)
        (bad,) = LogitStore.open(filled).records()[1]["bad"]
        assert bad["key"] == sample.key
        assert bad["reason"].startswith("not an image")
    finally:
        tar.write_bytes(whole)


def test_images_that_are_away_are_not_written_as_bad(
    serving: Serving, figures: Path, tmp_path: Path
) -> None:
    source, filled = open_source(figures), tmp_path / "filled"
    tar = next(figures.glob("train-*.tar"))
    with serving(filled, views=1) as (server, client):
        tar.rename(tmp_path / "away.tar")
        try:
            said = client.fetch(source.ids, 0)
        finally:
            (tmp_path / "away.tar").rename(tar)
        assert said.valid is not None
        assert not said.valid.any()
        assert client.fetch(source.ids[:90], 0).valid.all()  # type: ignore[union-attr]
        assert metric_sum(server, 'source="store"') == 0


def test_a_folder_that_is_away_is_the_servers_trouble(
    serving: Serving, figures: Path, tmp_path: Path
) -> None:
    """Not the images': clients wait for it, readiness is off, and it is back by itself."""
    source, away = open_source(figures), tmp_path / "away"
    with serving(None, views=1) as (server, client):
        client.client.deadline_s = 2.0
        figures.rename(away)
        try:
            with pytest.raises(TeacherUnavailableError, match="is a disk still mounted there"):
                client.fetch(source.ids[:16], 0)
            ready, why = readiness(server)
            assert ready == 503
            assert "images cannot be read" in why
            assert "is a disk still mounted there?" in why
        finally:
            away.rename(figures)
        wait_until(lambda: readiness(server)[0] == 200)
        assert client.fetch(source.ids[:16], 0).valid.all()  # type: ignore[union-attr]
        assert metric_sum(server, 'status="NOT_NOW"') >= 16
        assert metric_sum(server, 'status="OK"') == 16
        assert server.named("images can be read again")


def test_a_student_does_not_go_on_without_answers(
    serving: Serving,
    train: Callable[..., list[str]],
    distill: Callable[..., Any],
    figures: Path,
    tmp_path: Path,
) -> None:
    """Few are counted, in the epoch's line and in run.json; many are an error."""
    source = open_source(figures)
    tar = next(figures.glob("train-*.tar"))
    copy = Path(shutil.copytree(figures, tmp_path / "copy"))
    whole = tar.read_bytes()
    try:
        for bad, fraction, code in ((1, 0.05, 0), (12, 0.05, 2)):
            broken = bytearray(whole)
            for row in range(40, 40 + bad):
                broken[source.samples[row].offset : source.samples[row].offset + 50] = bytes(50)
            tar.write_bytes(broken)
            with serving(None, views=1) as (server, _):
                words = ("--targets", f"http://{server.address}", "--epochs", 1)
                words += ("--max-bad-fraction", fraction)
                out = f"run-{bad}"
                ran = distill(*train(out, *words, data=copy))
            assert ran.code == code, ran.err
            if code:
                assert "no answer for" in ran.err
                assert "repair the data, or raise --max-bad-fraction" in ran.err
            else:
                assert "(1 images without an answer of the teacher)" in ran.out + ran.err
                history = json.loads((tmp_path / out / "run.json").read_text())["history"]
                assert history[0]["untaught"] == 1
    finally:
        tar.write_bytes(whole)


def test_too_many_bad_images_are_not_committed(
    serving: Serving, figures: Path, tmp_path: Path
) -> None:
    source, filled = open_source(figures), tmp_path / "filled"
    tar = next(figures.glob("train-*.tar"))
    whole = tar.read_bytes()
    try:
        broken = bytearray(whole)
        for row in range(16, 28):
            broken[source.samples[row].offset : source.samples[row].offset + 50] = bytes(50)
        tar.write_bytes(broken)
        with serving(filled, views=1) as (server, client):
            client.fetch(source.ids[16:32], 0)
            wait_until(lambda: bool(server.named("block not written")))
            assert "12 of 96 images are bad" in server.named("block not written")[0]["text"]
            assert 1 in LogitStore.open(filled).pending_blocks()
    finally:
        tar.write_bytes(whole)


def test_block_that_could_not_be_written_is_tried_again(
    serving: Serving, figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher_server.serve.write_through.TRY_AGAIN_S", 0.1)
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    write = LogitStore.write_codes
    with serving(filled, views=1) as (server, client):
        monkeypatch.setattr(LogitStore, "write_codes", broken_disk)
        client.fetch(ids[16:32], 0)
        wait_until(lambda: bool(server.named("block not written")))
        monkeypatch.setattr(LogitStore, "write_codes", write)
        wait_until(lambda: 1 not in LogitStore.open(filled).pending_blocks())


def test_samples_are_answered_while_the_store_is_away(
    serving: Serving, store: Path, figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are computed, and become blocks once the store is back."""
    monkeypatch.setattr("distill.store.views.spool.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr("distill.teacher_server.serve.write_through.TRY_AGAIN_S", 0.1)
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    away = tmp_path / "away"
    with serving(filled, views=1) as (server, client):
        client.fetch(ids[:4], 0)
        filled.rename(away)
        one = client.fetch(ids[:32], 0)
        assert one.valid.all()
        threading.Event().wait(0.5)  # a reply does not wait for the spool
        assert client.fetch(ids[:32], 0).valid.all()
        assert metric_sum(server, 'source="teacher"') == 32  # kept in the spool meanwhile
        wait_until(lambda: bool(server.named("block not written")))
        assert len(server.named("store cannot be read")) == 1
        away.rename(filled)
        wait_until(lambda: 1 not in LogitStore.open(filled).pending_blocks())
        client.fetch(ids[64:65], 0)
        assert server.named("store can be read")
    LogitStore.open(store).revoke([2])
    with serving(store) as (server, client):
        same(client.fetch(ids[:4], 0), client.fetch(ids[:4], 0))
        store.rename(away)
        assert client.fetch(ids[60:70], 1).valid.all()
        away.rename(store)


def test_server_without_images_waits_for_its_store(
    serving: Serving, store: Path, figures: Path, tmp_path: Path
) -> None:
    ids = open_source(figures).ids
    LogitStore.open(store).revoke([2])
    with serving(store, data=False) as (_, client):
        client.client.deadline_s = 1.0
        store.rename(tmp_path / "away")
        with pytest.raises(TeacherUnavailableError, match="no store there"):
            client.fetch(ids[:4], 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory that is full at once."""
    folder = tmp_path / "cache"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_spool_answers_and_keeps_nothing(
    serving: Serving, store: Path, figures: Path, small_disk: Path, tmp_path: Path
) -> None:
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    with serving(filled) as (server, client):
        assert server.named("little room")
        first = client.fetch(ids, 0)
        assert first.valid.all()
        wait_until(lambda: bool(server.named("not written through")))
        again = client.fetch(ids, 0)
        torch.testing.assert_close(again.prob, first.prob, rtol=0, atol=1.01 / 191)
        assert 96 < metric_sum(server, 'source="teacher"') < 192  # some were kept
    LogitStore.open(store).revoke([2])
    with serving(store) as (server, client):  # committed blocks have no room either
        for view in (0, 1):
            assert client.fetch(ids[:32], view).valid.all()
        assert metric_sum(server, 'source="store"') == 64


def broken_disk(*given: Any) -> None:
    raise OSError(5, "Input/output error")


def test_short_write_is_no_record(
    serving: Serving, figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    with serving(filled) as (_, client):
        client.fetch(ids[:4], 0)
    opened = Spool(LogitStore.open(filled), tmp_path / "cache")
    codes, _ = opened.read(np.arange(1), np.zeros(1, np.int64))
    calls = []

    def full(number: int, content: Any, offset: int) -> int:
        calls.append(len(content))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return pwrite(number, bytes(content)[:20], offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="No space left"):
        opened.write(np.array([50]), np.array([1]), codes)
    monkeypatch.undo()
    _, here = opened.read(np.array([50]), np.array([1]))
    assert not here.any()
    opened.close()


def test_server_without_images_sees_blocks_that_come_later(
    serving: Serving,
    store: Path,
    figures: Path,
    distill: Callable[..., Any],
    precompute_command: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distill.store.views.spool.LOOK_AGAIN_S", 0.0)
    ids = open_source(figures).ids
    LogitStore.open(store).revoke([2])
    with serving(store, data=False) as (_, client):
        with pytest.raises(DataError, match="no such answer"):
            client.fetch(ids[32:40], 0)
        assert distill(*precompute_command(store, "--views", 2)).code == 0
        assert client.fetch(ids[32:40], 0).valid.all()  # type: ignore[union-attr]


def test_server_of_other_views_is_refused_by_a_client_that_goes_on(
    serving: Serving, teacher: Teacher, store: Path, figures: Path
) -> None:
    ids = open_source(figures).ids
    with serving(store, data=False) as (server, client):
        port = server.port
        client.fetch(ids[:4], 0)
        digest = client.client._digest
    with serving(None, port=port) as (_, other):
        other.client._digest = digest
        with pytest.raises(TeacherRequestError, match="412"):
            other.fetch(ids[:4], 0)


def test_data_alone_computes_every_time(serving: Serving, figures: Path) -> None:
    ids = open_source(figures).ids
    with serving(None) as (server, client):
        assert client.view(7) == 7
        one = client.fetch(ids[:10], 5)
        same(one, client.fetch(ids[:10], 5))
        assert metric_sum(server, 'source="teacher"') == 20
        assert client.replay_proofs() is not None


def test_dense_answers_of_samples_are_computed(
    serving: Serving, store: Path, figures: Path
) -> None:
    import urllib3

    ids = open_source(figures).ids[:4]
    given = {
        "name": "sample_id",
        "datatype": "UINT64",
        "shape": [4, 2],
        "data": ids.ravel().tolist(),
    }
    wanted = [{"name": "probs", "parameters": {"binary_data": True}}]
    for data, status in ((True, 200), (False, 400)):
        with serving(store, data=data) as (server, _):
            reply = urllib3.request(
                "POST",
                f"http://{server.address}/v2/models/teacher/infer",
                json={"inputs": [given], "outputs": wanted},
            )
            assert reply.status == status, reply.data
    assert "a store keeps none" in json.loads(reply.data)["error"]


def test_second_server_on_the_same_spool_is_refused(
    serving: Serving, figures: Path, tmp_path: Path
) -> None:
    with serving(tmp_path / "filled"), pytest.raises(InUseError, match="writes here"):
        Spool(LogitStore.open(tmp_path / "filled"), tmp_path / "cache")


def test_torn_record_of_a_spool_is_not_there(
    serving: Serving, figures: Path, tmp_path: Path
) -> None:
    ids, filled = open_source(figures).ids, tmp_path / "filled"
    with serving(filled) as (_, client):
        client.fetch(ids[:8], 0)
    (spool,) = (tmp_path / "cache").glob("*.spool")
    content = bytearray(spool.read_bytes())
    content[10] ^= 1
    spool.write_bytes(content)
    opened = Spool(LogitStore.open(filled), tmp_path / "cache")
    _, here = opened.read(np.arange(10), np.zeros(10, np.int64))
    assert here.tolist() == [False] + [True] * 7 + [False] * 2
    opened.close()


# -- by pixels ------------------------------------------------------------------------------------


def test_server_without_samples_is_sent_pixels(
    serving: Serving, store: Path, figures: Path, tmp_path: Path
) -> None:
    from distill.data.loader import in_batches, load_views

    source, expected = open_source(figures), of_store(store, tmp_path)
    (batch,) = load_views(
        source, ViewPolicy(), [(32, 32)], in_batches(range(24), (1,), 24), workers=0
    )
    with serving(None, data=False) as (_, client):
        assert client.sizes == ((32, 32),)
        assert client.policy is None
        said = client.fetch(source.ids[:24], 1, [batch.pixels[0][:, 0]])
        stored = expected.fetch(source.ids[:24], 1)
        torch.testing.assert_close(said.prob, stored.prob, rtol=0, atol=1.01 / 191)
        with pytest.raises(ValueError, match="pass pixels"):
            client.fetch(source.ids[:24], 1)


def test_client_asks_for_jpegs_and_images(serving: Serving, random: np.random.Generator) -> None:
    import io

    from PIL import Image

    pixels = images(2, random, (40, 40))
    files = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "JPEG")
        files.append(file.getvalue())
    with serving(None, data=False) as (_, client):
        assert client.client.infer_images(pixels).prob.shape[0] == 2
        said = client.client.infer_jpegs([*files, b"nonsense"])
        assert said.valid is not None
        assert said.valid.tolist() == [True, True, False]


# -- a client that is patient, but not for ever ---------------------------------------------------


def test_client_waits_for_a_server_that_starts_later(teacher: Teacher) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found: list[TeacherClient] = []
    thread = threading.Thread(
        target=lambda: found.append(TeacherClient(f"http://127.0.0.1:{port}", deadline_s=20))
    )
    thread.start()
    wait_until(lambda: thread.is_alive())
    with live(teacher, port=port):
        thread.join(20)
        assert found
        found[0].close()


def test_client_without_a_server_gives_up_in_time(tmp_path: Path) -> None:
    with pytest.raises(TeacherUnavailableError, match="no answer within 1 s"):
        TeacherClient("http://127.0.0.1:9", deadline_s=0.6)
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        TeacherClient("127.0.0.1:9")


def test_client_refuses_another_teacher(serving: Serving) -> None:
    with serving(None, data=False) as (server, _), pytest.raises(TeacherRequestError, match="412"):
        TeacherClient(f"http://{server.address}", fingerprint="another")


def test_client_retries_while_the_server_is_full(
    serving: Serving, random: np.random.Generator
) -> None:
    with serving(None, data=False) as (server, client):
        pixels = images(2, random, (32, 32))
        budget = server.service.admission
        with budget.admit("other", 0) as permit:
            permit.reserve("images", budget.budgets.images - 1)
            said: list[SparseTargets] = []
            asking = threading.Thread(
                target=lambda: said.append(client.client.infer_images(pixels))
            )
            asking.start()
            wait_until(lambda: any(e["status"] == 429 for e in server.named("request")))
        asking.join(20)
        assert len(said) == 1


def test_client_reports_what_is_no_teacher_server() -> None:
    import http.server

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(TeacherRequestError, match="not JSON, expected a teacher server"):
            TeacherClient(f"http://127.0.0.1:{other.server_port}", deadline_s=2)
        other.shutdown()


def test_student_of_another_size_sends_pixels_of_the_teachers(
    serving: Serving, distill: Callable[..., Any], figures: Path, tmp_path: Path
) -> None:
    """With and without images on the server it learns the same, but for roundings of the views."""
    train = [
        "pretrain",
        "--student",
        "test_vit",
        "--init",
        "random",
        "--data",
        figures,
        "--image-size",
        64,
    ]
    train += ["--device", "cpu", "--workers", 0, "--batch-size", 16, "--epochs", 1, "--lr", 0.003]
    losses = []
    for data in (True, False):
        with serving(None, data=data) as (server, _):
            out = tmp_path / f"run-{data}"
            ran = distill(*train, "--targets", f"http://{server.address}", "--out", out)
            assert ran.code == 0, ran.err
            asked = [e["images"] for e in server.named("request") if e["path"].endswith("infer")]
            assert asked == [64, 32] + [16] * 6  # first, how hard the teacher pulls
        losses.append(json.loads((out / "run.json").read_text())["history"][0])
    assert losses[0]["kd_loss"] > 0
    for name in ("kd_loss", "label_loss"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=0.01)


def test_who_decodes_for_long_is_named(figures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer: the request has its deadline, the log has the image."""
    source, said, answers = open_source(figures).limited(3), list[str](), threading.Event()
    monkeypatch.setattr("distill.teacher_server.serve.decoding.SAY_EVERY_S", 0.05)

    def hanging(sample: Any) -> Any:
        answers.wait(10)
        return read_image(sample)

    def tell(line: str) -> None:
        said.append(line)
        answers.set()

    monkeypatch.setattr("distill.teacher_server.serve.decoding.read_image", hanging)
    decoder = Decoder([(32, 32)], threads=1, max_pixels=10**6, say=tell)
    rows, views = np.arange(3), np.zeros(3, np.int64)
    decoded = asyncio.run(decoder.samples(source, ViewPolicy(), rows, views, lambda: False))
    decoder.close()
    assert len(decoded.pixels[0]) == 3
    assert said[0].startswith("decoding takes 0 s: images, ")
    assert source.samples[0].path in said[0]
