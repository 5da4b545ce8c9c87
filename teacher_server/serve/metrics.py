"""Prometheus metrics; one registry per server, so that a process may hold several."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All names of ours begin with `teacher_`; `process_` and `python_gc_` are the usual ones."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.build = Info("teacher_build", "Versions, and which teacher.", registry=registry)
        self.requests = Counter(
            "teacher_requests", "Requests answered.", ["route", "code"], registry=registry
        )
        self.images = Counter(
            "teacher_images", "Images answered, by source.", ["source"], registry=registry
        )
        self.elements = Counter(
            "teacher_elements", "Elements of requests, by status.", ["status"], registry=registry
        )
        self.rejected = Counter(
            "teacher_rejected", "Requests refused.", ["reason"], registry=registry
        )
        self.cancelled = Counter(
            "teacher_cancelled", "Requests whose client disconnected.", registry=registry
        )
        self.queue_images = Gauge(
            "teacher_queue_images", "Images waiting for a batch.", registry=registry
        )
        self.inflight_bytes = Gauge(
            "teacher_inflight_bytes", "Bytes of bodies in flight.", registry=registry
        )
        self.ready = Gauge("teacher_ready", "1 while the server is ready.", registry=registry)
        self.batch_size = Histogram(
            "teacher_batch_size", "Images in a batch.", buckets=BATCHES, registry=registry
        )
        self.queue = self._seconds("queue", "Time from queueing to batching.")
        self.decode = self._seconds("decode", "Decoding and resizing the images of a request.")
        self.forward = self._seconds("forward", "Forward pass of a batch, copies included.")
        self.request = self._seconds("request", "A request, from its head to its reply.")

        self.last_request = Gauge(
            "teacher_last_request_timestamp_seconds",
            "When an inference request was answered last, since 1970.",
            registry=registry,
        )

    def answered(self, seconds: float) -> None:
        """An inference request."""
        self.request.observe(seconds)
        self.last_request.set_to_current_time()

    def value(self, name: str) -> float:
        """A metric without labels."""
        return self.registry.get_sample_value(name) or 0.0

    def total(self, name: str) -> float:
        """A metric with labels, over all of them."""
        samples = (each for metric in self.registry.collect() for each in metric.samples)
        return sum(each.value for each in samples if each.name == name)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(f"teacher_{name}_seconds", text, buckets=SECONDS, registry=self.registry)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
