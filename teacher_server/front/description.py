"""What the server says of itself and its model, whoever asks by whatever protocol."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from numpy.typing import NDArray

from distill.errors import DISTRIBUTION
from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.inspect.dense_rows import in_words
from distill.teacher_server.serve.inputs import INPUTS
from distill.teacher_server.serve.metrics import Metrics
from distill.teacher_server.serve.queue import BatchTiming
from distill.teacher_server.serve.service import Service
from distill.wire.refusal import Refused

MODEL, VERSION, PLATFORM = "teacher", "1", "pytorch_timm"

SERVER_METADATA = {
    "name": "distill",
    "version": version(DISTRIBUTION),
    "extensions": ["binary_tensor_data", "model_configuration", "statistics"],
}


def require_known(model: str, model_version: str) -> None:
    """Raises Refused with 404 for any model but the one there is; its version may be empty."""
    if (model, model_version or VERSION) != (MODEL, VERSION):
        raise Refused(
            404,
            f"model {model[:40]!r}, version {model_version[:40]!r}: no such model, expected "
            f"{MODEL!r}, version {VERSION!r}",
            "model",
        )


def model_metadata(service: Service) -> dict[str, Any]:
    """Inputs, outputs, and whose answers these are."""
    hierarchy = service.hierarchy
    return {
        "name": MODEL,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor(name, *about) for name, about in INPUTS.items()],
        "outputs": [_tensor(name, *about) for name, about in service.outputs.items()],
        "parameters": {
            "teacher": asdict(service.teacher.identity),
            "sizes": [list(size) for size in service.teacher.sizes],
            "hierarchy": {
                "name": hierarchy.name,
                "digest": hierarchy.digest,
                "classes_per_hierarchy": list(hierarchy.classes_per_hierarchy),
            },
            **service.answers_about,
            "digest": service.answers_digest,
            "max_images_per_request": service.options.max_images_per_request,
            "max_body_bytes": service.options.max_body_bytes,
        },
    }


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def model_config(service: Service) -> dict[str, Any]:
    """The same as Triton's model configuration, which its tools ask for.

    Of the inputs one is needed; who knows no alternatives is told that it is `image`.
    """
    return {
        "name": MODEL,
        "platform": PLATFORM,
        "backend": "",
        "max_batch_size": 0,  # the first axis is one of the shape
        "input": [
            {**_configured(name, *about), "optional": name != "image"}
            for name, about in INPUTS.items()
        ],
        "output": [_configured(name, *about) for name, about in service.outputs.items()],
    }


def _configured(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    kind = "STRING" if datatype == "BYTES" else datatype
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": shape}


def model_statistics(metrics: Metrics) -> dict[str, Any]:
    """What was asked since the start, as Triton counts it: times are sums in nanoseconds.

    compute_input is decoding, compute_infer the forward pass of batches, copies included. Counts
    are those of requests, all the same: Triton's tools insist on it.
    """
    parts = {
        "success": "request",
        "queue": "queue",
        "compute_input": "decode",
        "compute_infer": "forward",
    }
    requests = int(metrics.value("teacher_request_seconds_count"))
    durations = {
        name: {"count": requests, "ns": int(1e9 * metrics.value(f"teacher_{part}_seconds_sum"))}
        for name, part in parts.items()
    }
    statistics = {
        "name": MODEL,
        "version": VERSION,
        "last_inference": int(1000 * metrics.value("teacher_last_request_timestamp_seconds")),
        "inference_count": int(metrics.total("teacher_images_total")),
        "execution_count": int(metrics.value("teacher_forward_seconds_count")),
        "inference_stats": {
            **durations,
            "fail": {"count": int(metrics.total("teacher_rejected_total")), "ns": 0},
            "compute_output": {"count": requests, "ns": 0},
        },
    }
    return {"model_stats": [statistics]}


def named(
    hierarchy: SemanticHierarchy, probs: NDArray[Any], confidence: NDArray[Any], top: int
) -> list[dict[str, Any]]:
    """One image's answer for people: the likeliest classes of each hierarchy, the surest first.

    probs: [ΣN_k]. confidence: [K].
    """
    answers = [
        {
            "hierarchy": answer.hierarchy,
            "confidence": round(float(confidence[answer.hierarchy]), 4),
            "classes": [
                {
                    "synset": each.wnid,
                    "name": hierarchy.names[hierarchy.index(each.wnid)],
                    "prob": round(each.prob, 4),
                }
                for each in answer.classes
            ],
        }
        for answer in in_words(probs, hierarchy, tag=-1, shown=top)
    ]
    return sorted(answers, key=lambda answer: -answer["confidence"])


def timing_headers(timing: BatchTiming | None) -> dict[str, str]:
    """How long a request's batch took."""
    if timing is None:
        return {}
    return {
        "x-queue-ms": f"{1000 * timing.queue_s:.2f}",
        "x-infer-ms": f"{1000 * timing.infer_s:.2f}",
        "x-batch-size": str(timing.batch_size),
    }
