"""Values that belong to one process: threads, connections, whatever a fork leaves dead behind."""

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class per_process(Generic[Value]):
    """A `cached_property` that a forked child makes anew, and that a pickle leaves out."""

    def __init__(self, make: Callable[[Any], Value]) -> None:
        self._make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "per_process[Value]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object, owner: type) -> "Value | per_process[Value]":
        if instance is None:
            return self
        held = instance.__dict__.get(self._name)
        if held is None or held.process != os.getpid():
            held = _Held(os.getpid(), self._make(instance))
            instance.__dict__[self._name] = held
        value: Value = held.value
        return value

    # Without it the instance's dictionary would win, and give the holder away.
    def __set__(self, instance: Any, value: Value) -> None:
        raise AttributeError(f"{self._name} is made, not set")


class _Held:
    def __init__(self, process: int, value: Any) -> None:
        self.process, self.value = process, value

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> None:
    """What a pickle has in its place."""
