"""Registries: every room lists its methods once, and everything else reads them here."""

import inspect
from collections.abc import Callable
from typing import Generic, TypeVar

from offramp.errors import OfframpError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind, added by decorator (``@register_exit("lph")``)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its object under ``name``."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise OfframpError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry, or raise `OfframpError` with close matches."""
        if name not in self._entries:
            raise OfframpError(suggest(self.kind, name, self._entries))
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def describe(self, name: str) -> str:
        """First line of the entry's docstring."""
        return (inspect.getdoc(self.get(name)) or "").split("\n")[0]
