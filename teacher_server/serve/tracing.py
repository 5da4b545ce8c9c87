"""OpenTelemetry traces: a span for each request, and one in it for the teacher's answer.

They are sent where OTEL_EXPORTER_OTLP_ENDPOINT says, as OpenTelemetry's other variables say.
Where it is not set, nothing is imported and nothing is done.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from distill.errors import optional

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span(Protocol):
    """What is known of a request."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Add to it."""
        ...


class _NoSpan:
    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        pass


NO_SPAN = _NoSpan()


class Tracing:
    """The traces of one process, sent by a thread of its own.

    Raises:
        ConfigError: an endpoint is named, but OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
        if not named or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return
        with optional("otel", named):
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "distill")})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("distill")
        self._extract, self._server = propagate.extract, trace.SpanKind.SERVER

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
        """A span of a request; headers: may name the trace that it belongs to."""
        if self._tracer is None:
            return nullcontext(NO_SPAN)
        context = self._extract(headers)
        return self._span(name, context=context, kind=self._server)

    def part(self, name: str) -> AbstractContextManager[Span]:
        """A span in that of the request."""
        return nullcontext(NO_SPAN) if self._tracer is None else self._span(name)

    def _span(self, name: str, **more: Any) -> AbstractContextManager[Span]:
        span: AbstractContextManager[Span] = self._tracer.start_as_current_span(name, **more)
        return span

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()
