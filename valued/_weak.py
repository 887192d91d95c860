"""Weak references that can be listed at any moment, whatever other threads add meanwhile.

`weakref.WeakSet` can't: its iteration is Python code, and an element that another thread adds
during it is a `RuntimeError`. Here each operation is a single one of a dict, and so atomic; there
is no lock that a thread could hold while another one forks.
"""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

T = TypeVar("T")


class WeakList(Generic[T]):
    """Holds objects for as long as somebody else does. Any thread may call anything."""

    __slots__ = ("__weakref__", "_references")

    def __init__(self) -> None:
        self._references: dict[weakref.ref[T], None] = {}

    def add(self, element: T) -> None:
        """Hold *element*, weakly; once, however often it is added."""
        self._references[weakref.ref(element, self._references.pop)] = None

    def living(self) -> list[T]:
        """Those that are alive, as a list of its own."""
        found = [reference() for reference in list(self._references)]
        return [element for element in found if element is not None]
