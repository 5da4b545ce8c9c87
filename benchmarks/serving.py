"""What does the teacher server cost beyond the teacher, and what does it do when there is too much?

    python benchmarks/serving.py [--quick] [--shared ../shared] [--device cuda] [--soak SECONDS]
        [--environments FOLDER]

Transport: a null model behind this server, by HTTP and gRPC, with one lane and two, and, in the
same run, behind LitServe, MLServer and Ray Serve (`benchmarks/null_engine.py`; those that have an
environment litserve, mlserver or rayserve in FOLDER, made by `python -m venv` and by
`pip install` of litserve numpy python-multipart; of mlserver 'uvloop<0.22'; of 'ray[serve]' numpy),
one client,
224-pixel images as uint8 and as JPEG. Throughput: a
trained ResNet-18-D at 64 pixels (on a GPU also tresnet_l at 224 with random weights) bare, through
the queue alone, and over HTTP as uint8 and as JPEG. Load: p99 at 80% of that capacity; goodput,
refusals and memory at twice and at ten times of it. Student: images/s without a teacher, and with
this server answering from a store.

The server has the first half of --cpus, the clients have the other. About six minutes on four
cores; --quick takes shorter looks. --soak sends a mix of good and bad requests for that long, and
attacks it (`benchmarks/attack.py`) while a student trains with its answers; it watches memory,
permits and the student's images/s. Prints a log in Markdown, and as its last line one JSON object.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
import urllib3
from numpy.typing import NDArray
from PIL import Image
from whole_path import processor

from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.models.card import ModelInput
from distill.models.devices import pick_device
from distill.store.format.manifest import TeacherIdentity
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.front.server import Address, make_server, run
from distill.teacher_server.serve.admission import Budgets
from distill.teacher_server.serve.lane import devices_of
from distill.teacher_server.serve.queue import InferJob
from distill.teacher_server.serve.service import ServeOptions, Service
from distill.teacher_server.teacher.batch_size import measure, random_pixels, warm_up
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.teacher import Member, Teacher
from distill.wire.messages import SERVICE, message

INFER = "/v2/models/teacher/infer"
HERE = Path(__file__).resolve().parent
SIDE = 224


class NullMember(Member):
    """Says nothing, at once."""

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(len(pixels), 29)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpus", help="as 0,1,2,3; all by default")
    parser.add_argument("--environments", type=Path, default=Path("environments"))
    parser.add_argument("--soak", type=float, default=0.0, help="seconds")
    parser.add_argument("--null-server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--grpc-port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lanes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.null_server:
        _serve_null(options.null_server, options.grpc_port, options.lanes)
        return
    cpus = sorted(
        {int(cpu) for cpu in options.cpus.split(",")} if options.cpus else os.sched_getaffinity(0)
    )
    half = max(1, len(cpus) // 2)
    servers, clients = cpus[:half], cpus[half:] or cpus
    seconds = 3.0 if options.quick else 10.0
    print("# The live teacher server\n")
    print(
        f"Command: `python benchmarks/serving.py{' --quick' if options.quick else ''}`, "
        f"{time.strftime('%Y-%m-%d')}, {processor()}, server on processors {servers}, clients on "
        f"{clients}; Python {platform.python_version()}, "
        + ", ".join(f"{n} {_version(n)}" for n in ("torch", "uvicorn", "fastapi", "grpcio"))
        + "\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(Path(scratch), options.environments, servers, clients)
        device = pick_device(options.device)
        choices = _choices(options.shared, on_gpu=device.type == "cuda")
        data = options.shared / "data"
        figures: dict[str, Any] = {}
        if options.soak:
            figures["soak"] = bench.soak(choices[0], options.soak)
            if data.is_dir():
                figures["attacked"] = bench.attacked(data, options.soak)
        else:
            figures["transport"] = bench.transport(seconds)
            figures["teachers"] = [bench.teacher(choice, device, seconds) for choice in choices]
            if data.is_dir():
                figures["student"] = bench.student(data, options.quick)
    print(json.dumps(figures))


class _Bench:
    """One machine, one run. scratch: for requests and logs; environments: of other engines."""

    def __init__(
        self, scratch: Path, environments: Path, servers: Sequence[int], clients: Sequence[int]
    ) -> None:
        self.scratch, self.environments = scratch, environments
        self.servers, self.clients = servers, clients

    # -- transport --------------------------------------------------------------------------------

    def transport(self, seconds: float) -> dict[str, Any]:
        print("## Transport and dispatch: null model, one client, 224-pixel images\n")
        print("| server | images a request | p50 ms | p99 ms | p50 ms an image |")
        print("| --- | ---: | ---: | ---: | ---: |", flush=True)
        figures: dict[str, Any] = {}

        def say(name: str, count: int, took: Sequence[float]) -> None:
            ordered = sorted(took[len(took) // 10 :])
            p50, p99 = 1000 * _at(ordered, 0.5), 1000 * _at(ordered, 0.99)
            figures[f"{name} {count}"] = {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}
            print(f"| {name} | {count} | {p50:.2f} | {p99:.2f} | {p50 / count:.3f} |", flush=True)

        def asked(port: int, request: bytes) -> list[float]:
            seen = self.load(port, request, seconds=seconds, clients=1)
            took = [took for status, took, _ in seen if status == 200]
            assert took, f"no request was answered: {_statuses(seen)}"
            return took

        own = [sys.executable, str(HERE / "serving.py")]
        pixels = {count: np.zeros((count, SIDE, SIDE, 3), np.uint8) for count in (1, 64)}
        for lanes in (1, 2):
            port, grpc_port = _free_port(), _free_port()
            words = ["--null-server", str(port), "--grpc-port", str(grpc_port)]
            with self.process([*own, *words, "--lanes", str(lanes)]):
                _wait_for(port, "/v2/health/ready")
                kind = f"distill, {lanes} lane{'s'[: lanes - 1]}"
                for count, images in pixels.items():
                    raw = images.tobytes()
                    request = _binary("image", "UINT8", images.shape, raw, ["confidence"])
                    say(f"{kind}, HTTP, uint8", count, asked(port, request))
                    say(f"{kind}, gRPC, uint8", count, self.spoken(grpc_port, images, seconds))
                    jpegs = _jpegs(count, (SIDE, SIDE))
                    request = _binary("jpeg", "BYTES", [count], jpegs, ["confidence"])
                    say(f"{kind}, HTTP, JPEG", count, asked(port, request))
        for engine, path in (
            ("litserve", "/health"),
            ("rayserve", "/-/healthz"),
            ("mlserver", "/v2/health/ready"),
        ):
            python = self.environments / engine / "bin/python"
            if not python.exists():
                continue
            port, grpc_port = _free_port(), _free_port()
            script = str(HERE / "null_engine.py")
            with self.process([str(python), script, engine, str(port), str(grpc_port)]):
                _wait_for(port, path)
                for count, images in pixels.items():
                    if engine == "mlserver":
                        took = self.spoken(grpc_port, images, seconds)
                        say(f"{engine}, gRPC, uint8", count, took)
                        continue
                    raw = images.tobytes()
                    request = _form(raw) if engine == "litserve" else _raw(raw)
                    say(f"{engine}, HTTP, uint8", count, asked(port, request))
        print()
        return figures

    def spoken(self, port: int, images: NDArray[np.uint8], seconds: float) -> list[float]:
        """Seconds of each request over gRPC, one after the other, on the clients' processors."""
        request = message("ModelInferRequest")(
            model_name="teacher",
            inputs=[{"name": "image", "datatype": "UINT8", "shape": images.shape}],
            outputs=[{"name": "confidence"}],
            raw_input_contents=[images.tobytes()],
        )
        took: list[float] = []
        with self.pinned(self.clients), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            infer = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelInferResponse").FromString,
            )
            ends = time.monotonic() + seconds
            while (began := time.monotonic()) < ends:
                infer(request)
                took.append(time.monotonic() - began)
        return took

    # -- a teacher --------------------------------------------------------------------------------

    def teacher(self, choice: "_Choice", device: torch.device, seconds: float) -> dict[str, Any]:
        size, batch_size = choice.size, choice.batch_size
        print(f"## {choice.name}\n")
        figures: dict[str, Any] = {"teacher": choice.name}
        bare = [self.bare(choice, device)]
        queued = self.queued(choice, device, seconds)
        random = np.random.default_rng(0)
        images = random.integers(0, 255, (batch_size, *size, 3), np.uint8)
        uint8 = _binary("image", "UINT8", images.shape, images.tobytes())
        jpeg = _binary("jpeg", "BYTES", [batch_size], _jpegs(batch_size, size))
        with self.served(choice, device) as port:
            over = {
                name: _rate(self.load(port, request, seconds=seconds, clients=4), batch_size)
                for name, request in (("uint8", uint8), ("JPEG", jpeg))
            }
            bare.append(self.bare(choice, device))
            rate = statistics.mean(bare)
            print("| images/s | bare forward before | and after | ratio |")
            print("| --- | ---: | ---: | ---: |")
            for name, found in {"queue alone": queued, **over}.items():
                figures[name] = {"images_per_s": round(found, 1), "ratio": round(found / rate, 3)}
                ratio = f"{found / rate:.3f}"
                print(f"| {name}: {found:.1f} | {bare[0]:.1f} | {bare[1]:.1f} | {ratio} |")
            print(flush=True)
            figures["bare_images_per_s"] = [round(each, 1) for each in bare]
            small = images[:4]
            request = _binary("image", "UINT8", small.shape, small.tobytes())
            capacity = _rate(self.load(port, request, seconds=seconds, clients=16), 4)
            figures["load"] = self.overload(port, request, capacity, seconds)
        return figures

    def overload(
        self, port: int, request: bytes, capacity: float, seconds: float
    ) -> list[dict[str, Any]]:
        """Requests of four images at a share of the capacity that closed clients reached."""
        print(
            f"Requests of 4 images, open loop; capacity {capacity:.1f} images/s. Goodput is "
            "answered images/s of that.\n"
        )
        print("| load | goodput | 200 p50 ms | 200 p99 ms | 429 | 429 p99 ms | 5xx | MiB grown |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
        rows = []
        before = _resident_mib(self.running.pid)
        for factor in (0.8, 2.0, 10.0):
            seen = self.load(port, request, seconds=seconds, rate=factor * capacity / 4)
            good = sorted(s for status, s, _ in seen if status == 200)
            refused = sorted(s for status, s, _ in seen if status == 429)
            row = {
                "load": factor,
                "goodput": round(_rate(seen, 4) / capacity, 3),
                "p50_ms": round(1000 * _at(good, 0.5), 1),
                "p99_ms": round(1000 * _at(good, 0.99), 1),
                "refused": len(refused),
                "refused_p99_ms": round(1000 * _at(refused, 0.99), 1),
                "failed": sum(status not in (200, 429) for status, *_ in seen),
                "grown_mib": round(_resident_mib(self.running.pid) - before, 1),
            }
            rows.append(row)
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
        after = self.load(port, request, seconds=2.0, clients=1)
        calm = 1000 * _at(sorted(s for _, s, _ in after), 0.5)
        print(f"\nRight after it, one client alone: p50 {calm:.1f} ms, {_statuses(after)}\n")
        return rows

    def bare(self, choice: "_Choice", device: torch.device) -> float:
        """Images/s of the forward pass and nothing else, on the server's processors."""
        with self.pinned(self.servers):
            teacher = choice.load(device)
            spec = EncodingSpec.named("standard", teacher.hierarchy.classes_per_hierarchy)
            with Forward(teacher, spec, batch_size=choice.batch_size) as forward:
                pixels = random_pixels(teacher, choice.batch_size)
                warm_up(forward, pixels)
                rates = [measure(forward, pixels) for _ in range(5)]
        return max(rates)

    def queued(self, choice: "_Choice", device: torch.device, seconds: float) -> float:
        """Images/s by the queue and the lanes, from images that lie in memory."""
        with self.pinned(self.servers):
            service = _service(choice, device)
            service.start()
            pixels = np.zeros((choice.batch_size, *choice.size, 3), np.uint8)
            done, ends = [0], time.monotonic() + seconds

            def client() -> None:
                while time.monotonic() < ends:
                    work = InferJob((pixels,))
                    service.queue.put(work)
                    work.answer.result()
                    done[0] += len(pixels)

            began = time.monotonic()
            threads = [threading.Thread(target=client) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rate = done[0] / (time.monotonic() - began)
            service.close()
        return rate

    # -- a student --------------------------------------------------------------------------------

    def commands(
        self, data: Path, limit: Sequence[object], port: int
    ) -> tuple[list[object], list[object]]:
        """A store is made; the commands that train a student and that serve the store."""
        images, out = data / "tiny-imagenet-h", self.scratch
        weights = data / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
        teacher: list[object] = ["--teacher", "resnet18d", "--weights", weights]
        teacher += ["--label-set", images / "label_set.json", "--device", "cpu"]
        distill: list[object] = [sys.executable, "-m", "distill.cli.main"]
        words = [*distill, "precompute", *teacher, "--data", images, *limit]
        words += ["--store", out / "store", "--workers", len(self.servers)]
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
        train = [*distill, "pretrain", "--student", "test_resnet", "--init", "random"]
        train += ["--data", images, *limit]
        train += ["--epochs", 2, "--batch-size", 128, "--image-size", 64, "--device", "cpu"]
        train += ["--workers", len(self.clients), "--json", "--cache", out / "cache"]
        serve = [*distill, "serve", *teacher, "--store", out / "store", "--port", port]
        return train, [*serve, "--cache", out / "served"]

    def student(self, data: Path, quick: bool) -> dict[str, float]:
        """Images/s of `distill pretrain`: alone, and with answers from a server with a store."""
        out, port = self.scratch, _free_port()
        train, serve = self.commands(data, ["--limit", "2000" if quick else "10000"], port)
        label_set = ["--label-set", data / "tiny-imagenet-h/label_set.json"]
        figures = {"alone": self.trained([*train, *label_set, "--out", out / "alone"])}
        figures["store"] = self.trained([*train, "--targets", out / "store", "--out", out / "kd"])
        with self.process([str(word) for word in serve]):
            _wait_for(port, "/v2/health/ready")
            url = f"http://127.0.0.1:{port}"
            figures["server"] = self.trained([*train, "--targets", url, "--out", out / "live"])
        ratio = figures["ratio"] = figures["server"] / figures["alone"]
        print("## A student (test_resnet at 64 pixels, two epochs)\n")
        print("| images/s alone | with a store | with a server that has the store | ratio |")
        print("| ---: | ---: | ---: | ---: |")
        print(
            f"| {figures['alone']:.0f} | {figures['store']:.0f} | {figures['server']:.0f} | "
            f"{ratio:.3f} |\n",
            flush=True,
        )
        return {name: round(value, 1) for name, value in figures.items()} | {
            "ratio": round(ratio, 3)
        }

    def trained(self, words: Sequence[object]) -> float:
        pinned = ["taskset", "-c", ",".join(map(str, self.clients))]
        ran = subprocess.run(
            [*pinned, *map(str, words)], check=True, capture_output=True, text=True
        )
        return float(json.loads(ran.stdout)["images_per_s"])

    # -- soak -------------------------------------------------------------------------------------

    def soak(self, choice: "_Choice", seconds: float) -> dict[str, Any]:
        """A mix of good and bad requests; memory at a tenth of the time, and at its end."""
        random = np.random.default_rng(0)
        images = random.integers(0, 255, (8, *choice.size, 3), np.uint8)
        uint8 = _body("image", "UINT8", images.shape, images.tobytes())
        jpegs = _jpegs(8, choice.size)
        kinds = [
            uint8,
            _body("jpeg", "BYTES", [8], jpegs),
            _body("jpeg", "BYTES", [8], jpegs[:-9]),
            (uint8[0][:-5], uint8[1]),
            (b"{", None),
        ]
        counts: dict[int, int] = {}
        with self.served(choice, torch.device("cpu")) as port:
            pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=8, retries=False)
            ends = time.monotonic() + seconds
            resident: list[float] = []

            def client(seed: int) -> None:
                choose = np.random.default_rng(seed)
                while time.monotonic() < ends:
                    body, head = kinds[choose.integers(len(kinds))]
                    headers = {"inference-header-content-length": str(head)} if head else {}
                    status = pool.request("POST", INFER, body=body, headers=headers).status
                    counts[status] = counts.get(status, 0) + 1

            with ThreadPoolExecutor(8) as threads:
                asking = [threads.submit(client, seed) for seed in range(8)]
                while time.monotonic() < ends:
                    time.sleep(seconds / 10)
                    resident.append(round(_resident_mib(self.running.pid), 1))
                for each in asking:
                    each.result()
            metrics = pool.request("GET", "/metrics").data.decode()
        left = {
            name: float(line.split()[-1])
            for line in metrics.splitlines()
            for name in ("teacher_queue_images", "teacher_inflight_bytes")
            if line.startswith(name + " ")
        }
        print(f"## Soak of {seconds:.0f} s, 8 clients\n\nReplies by status: {counts}")
        print(f"MiB resident at each tenth: {resident}; left in flight: {left}\n")
        return {"statuses": counts, "resident_mib": resident, "left": left}

    def attacked(self, data: Path, seconds: float) -> dict[str, Any]:
        """A student trains with a server's answers, first alone, then while it is attacked."""
        out, port = self.scratch, _free_port()
        train, serve = self.commands(data, ["--limit", "4000"], port)
        serve += ["--grpc-port", grpc_port := _free_port()]
        train += ["--targets", f"http://127.0.0.1:{port}"]
        alone: list[float] = []
        beside: list[float] = []
        resident: list[float] = []
        with self.process([str(word) for word in serve]):
            _wait_for(port, "/v2/health/ready")
            for i in range(3):
                alone.append(self.trained([*train, "--out", out / f"alone-{i}"]))
            resident.append(round(_resident_mib(self.running.pid), 1))
            ends = time.monotonic() + seconds
            with self.pinned(self.servers):
                words = [sys.executable, HERE / "attack.py", port, seconds, 100, grpc_port]
                attack = subprocess.Popen(
                    [str(word) for word in words], stdout=subprocess.PIPE, text=True
                )
            while time.monotonic() < ends:
                beside.append(self.trained([*train, "--out", out / f"beside-{len(beside)}"]))
                resident.append(round(_resident_mib(self.running.pid), 1))
            counts = json.loads(attack.communicate()[0])
        ratio = statistics.median(beside) / statistics.median(alone)
        print(f"## A student beside {sum(counts.values())} attacks in {seconds:.0f} s\n")
        print(f"images/s alone {alone}, attacked {beside}: ratio {ratio:.3f}")
        print(f"MiB resident, before and after each run: {resident}; attacks: {counts}\n")
        return {"ratio": round(ratio, 3), "resident_mib": resident, "attacks": counts}

    # -- processes --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def served(self, choice: "_Choice", device: torch.device) -> Iterator[int]:
        port = _free_port()
        words = [sys.executable, "-m", "distill.cli.main", "serve", "--port", port, *choice.words]
        words += ["--max-batch-size", choice.batch_size, "--device", device.type]
        words += ["--max-inflight-images", 8 * choice.batch_size]
        with self.process([str(word) for word in words]):
            _wait_for(port, "/v2/health/ready")
            yield port

    @contextlib.contextmanager
    def process(self, words: Sequence[str]) -> Iterator[None]:
        """Runs on the server's processors until the block ends."""
        with (self.scratch / "log").open("a") as log, self.pinned(self.servers):
            self.running = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGTERM)
            try:
                self.running.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.running.pid, signal.SIGKILL)
                self.running.wait()

    @contextlib.contextmanager
    def pinned(self, cpus: Sequence[int]) -> Iterator[None]:
        before, threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(len(cpus))
        yield
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)

    def load(
        self, port: int, request: bytes, *, seconds: float, clients: int = 0, rate: float = 0.0
    ) -> list[list[float]]:
        """What `benchmarks/load.py` saw, on the clients' processors."""
        path, job = self.scratch / "request", self.scratch / "job.json"
        path.write_bytes(request)
        asked = {"port": port, "request": str(path), "seconds": seconds}
        job.write_text(json.dumps({**asked, "clients": clients, "rate": rate}))
        with self.pinned(self.clients):
            words = [sys.executable, str(HERE / "load.py"), str(job)]
            ran = subprocess.run(words, check=True, capture_output=True, text=True)
        seen: list[list[float]] = json.loads(ran.stdout)
        return seen


class _Choice:
    """A teacher, as a name and as options of `distill serve`."""

    def __init__(
        self, name: str, member: MemberChoice, label_set: str, side: int, batch_size: int
    ) -> None:
        self.name, self.member, self.label_set = name, member, label_set
        self.size, self.batch_size = (side, side), batch_size

    @property
    def words(self) -> list[object]:
        weights = ["--weights", self.member.weights] if self.member.weights else []
        random = ["--random-weights"] if self.member.random_weights else []
        return ["--teacher", self.member.name, *weights, *random, "--label-set", self.label_set]

    def load(self, device: torch.device) -> Teacher:
        return load_teacher([self.member], resolve(self.label_set), device=device)


def _choices(shared: Path, *, on_gpu: bool) -> list[_Choice]:
    data = shared / "data"
    weights = data / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
    trained = weights.exists()
    small = _Choice(
        f"resnet18d, 64 pixels, {'440' if trained else '29'} classes",
        MemberChoice(
            name="resnet18d",
            weights=weights if trained else None,
            random_weights=not trained,
            input_size=None if trained else 64,
        ),
        str(data / "tiny-imagenet-h/label_set.json") if trained else "plane-figures",
        64,
        256 if on_gpu else 32,
    )
    large = _Choice(
        "tresnet_l, 224 pixels, 11,221 classes",
        MemberChoice(name="tresnet_l", random_weights=True),
        "imagenet21k-p-fall11",
        224,
        128,
    )
    return [small, large] if on_gpu else [small]


def _service(choice: _Choice, device: torch.device) -> Service:
    teacher = choice.load(device)
    lanes = devices_of([] if device.type == "cuda" else ["cpu"])
    spec = EncodingSpec.named("standard", teacher.hierarchy.classes_per_hierarchy)
    return Service([teacher] * len(lanes), _options(spec, choice.batch_size))


def _options(spec: EncodingSpec, batch_size: int) -> ServeOptions:
    budgets = Budgets(images=4096, bytes=2**30, requests=256)
    return ServeOptions(encoding=spec, max_batch_size=batch_size, budgets=budgets)


def _serve_null(port: int, grpc_port: int, lanes: int) -> None:
    torch.set_num_threads(1)
    hierarchy = SemanticHierarchy.bundled("plane-figures")
    identity = TeacherIdentity(
        name="null", fingerprint="0" * 64, input_size=(SIDE, SIDE), precision="float32"
    )
    member = NullMember(
        name="null",
        model=torch.nn.Identity(),
        input=ModelInput(size=(SIDE, SIDE)),
        head=None,
        precision="float32",
        fingerprint="0" * 64,
    )
    teacher = Teacher(
        members=(member,), hierarchy=hierarchy, device=torch.device("cpu"), identity=identity
    )
    spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    service = Service([teacher] * lanes, _options(spec, 64))
    address = Address(port=port)
    server = make_server(service, None, address)
    run(server, service, address.bound(), 5.0, Address(port=grpc_port))


def _body(
    name: str, datatype: str, shape: Sequence[int], raw: bytes, outputs: Sequence[str] = ()
) -> tuple[bytes, int]:
    described = {"name": name, "datatype": datatype, "shape": list(shape)}
    head: dict[str, Any] = {
        "parameters": {"binary_data_output": True},
        "inputs": [{**described, "parameters": {"binary_data_size": len(raw)}}],
    }
    if outputs:
        head["outputs"] = [{"name": output} for output in outputs]
    text = json.dumps(head).encode()
    return text + raw, len(text)


def _binary(*given: Any) -> bytes:
    body, head = _body(*given)
    lines = f"Inference-Header-Content-Length: {head}\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lines}".encode() + body


def _form(raw: bytes) -> bytes:
    """The leanest that LitServe reads: a file of a form."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + raw + b"\r\n--x--\r\n"
    )
    lines = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{lines}".encode() + body


def _raw(raw: bytes) -> bytes:
    """A body and no more."""
    lines = f"Content-Length: {len(raw)}\r\n\r\n"
    return f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{lines}".encode() + raw


def _jpegs(count: int, size: tuple[int, int]) -> bytes:
    """Files of smooth noise: about the bytes of photographs."""
    random, parts = np.random.default_rng(0), []
    for _ in range(count):
        coarse = random.integers(0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(size[::-1]).save(file, "JPEG", quality=90)
        parts += [len(file.getvalue()).to_bytes(4, "little"), file.getvalue()]
    return b"".join(parts)


def _rate(seen: list[list[float]], images: int) -> float:
    """Answered images per second, from the first answer to the last request's begin."""
    good = [(began, began + seconds) for status, seconds, began in seen if status == 200]
    if not good:
        return 0.0
    ends = sorted(end for _, end in good)
    middle = ends[len(ends) // 10 : -max(1, len(ends) // 10)]
    return images * (len(middle) - 1) / (middle[-1] - middle[0]) if len(middle) > 1 else 0.0


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _statuses(seen: list[list[float]]) -> str:
    found = sorted({int(status) for status, *_ in seen})
    return ", ".join(f"{sum(s == f for s, *_ in seen)} × {f}" for f in found)


def _resident_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if "VmRSS" in line).split()[1]) / 1024


def _free_port() -> int:
    listener = Address(port=0).bound()
    port = int(listener.getsockname()[1])
    listener.close()
    return port


def _wait_for(port: int, path: str) -> None:
    for _ in range(1200):
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            url = f"http://127.0.0.1:{port}{path}"
            if urllib3.request("GET", url, retries=False, timeout=2).status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers on port {port}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
