"""Prometheus metrics; one registry per server, so that a process may hold several."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All names begin with `teacher_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
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

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(f"teacher_{name}_seconds", text, buckets=SECONDS, registry=self.registry)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
