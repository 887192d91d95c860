"""Weak references that can be listed at any moment, even while other threads add some.

`weakref.WeakSet` can't do that: its iteration is Python code, and if another thread adds an element
meanwhile, it raises a `RuntimeError`. Here each operation is a single operation of a dict, and so
it is atomic. There is no lock that a thread could hold while another one forks.
"""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

T = TypeVar("T")


class WeakList(Generic[T]):
    """Lists objects without keeping them alive. Any thread may call anything."""

    __slots__ = ("__weakref__", "_references")

    def __init__(self) -> None:
        self._references: dict[weakref.ref[T], None] = {}

    def add(self, element: T) -> None:
        """Add *element*, by a weak reference; once, however often this is called."""
        self._references[weakref.ref(element, self._references.pop)] = None

    def living(self) -> list[T]:
        """The elements that are alive, as a new list."""
        found = [reference() for reference in list(self._references)]
        return [element for element in found if element is not None]
