"""Options that belong together, passed to a command as one value."""

from collections.abc import Callable, Sequence
from typing import Any

import click

Command = Callable[..., Any]


def option_group(
    into: str, options: Sequence[Callable[[Command], Command]], make: Callable[..., Any]
) -> Callable[[Command], Command]:
    """A decorator: those click options, and the command gets what `make` makes of them."""

    def decorate(command: Command) -> Command:
        def called(**given: Any) -> Any:
            values = {name: given.pop(name) for name in names}
            return command(**given, **{into: make(**values)})

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        params: list[click.Parameter] = getattr(command, "__click_params__", [])
        called.__click_params__ = list(params)  # type: ignore[attr-defined]
        before = len(params)
        for option in reversed(options):
            option(called)
        added = called.__click_params__[before:]  # type: ignore[attr-defined]
        names = [str(param.name) for param in added]
        return called

    return decorate
