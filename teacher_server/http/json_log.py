"""Events of a server as JSON lines on standard error; their field `level` is that of the line."""

import logging
import sys
from typing import Any

import structlog

from distill.events import Event, Journal, without_secrets


def json_log() -> Journal:
    """A journal that writes JSON lines to standard error, uvicorn's warnings among them."""
    before: list[Any] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.add_log_level,
    ]
    structlog.configure(
        processors=[
            *before,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.handlers, uvicorn_log.propagate = [handler], False
    uvicorn_log.setLevel(logging.WARNING)

    def write(event: Event) -> None:
        fields = {name: _clean(value) for name, value in event.items() if name != "time"}
        level = fields.pop("level", "info")
        log.log(logging.getLevelNamesMapping()[level.upper()], fields.pop("event"), **fields)

    return Journal(write, lambda text: log.warning(without_secrets(text)))


def _clean(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value
