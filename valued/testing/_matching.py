"""The events that a test sees, the search for some of them, and the messages of failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, overload

from valued._errors import ValidationError, ValuedError
from valued._events.serializer import normalize, parts_of

if TYPE_CHECKING:
    from typing_extensions import Self

Event: TypeAlias = Mapping[str, Any]

#: The key of an action, the URL of a page view, or what the event must contain.
Wanted: TypeAlias = str | Mapping[str, Any] | None

#: Seconds between two looks at what other processes write: there is no notification.
LOOK_INTERVAL: Final = 0.01

#: How much a failure shows: events, and characters of one value.
SHOWN_EVENTS: Final = 20
SHOWN_CHARACTERS: Final = 60

#: Fields left out of the line of an event: they are in it already, or don't help.
_UNSAID: Final = {"category", "key", "occured_at", "attributes.source.url"}


class Line(NamedTuple):
    """An event, and the process that recorded it; None if that isn't known."""

    pid: int | None
    event: dict[str, Any]


class Source(Protocol):
    """Where events come from. Any thread may call."""

    def read(self) -> list[Line]:
        """All of them, decoded for this call."""

    def clear(self) -> None:
        """Forget them."""

    def nothing(self) -> str:
        """The message of a failure if there are no events."""


class Events(Sequence[dict[str, Any]]):
    """The events recorded so far, as they would be sent: a sequence of dicts, in their order.

    >>> events.actions
    ['report.generated']
    >>> events.one("report.generated", user={"id": 123})["attributes"]
    {'format': 'pdf'}

    It is live: each use looks again at what all threads and processes have recorded by then. It
    equals a list of the same events. Any thread may use it, and a forked child, too.

    In `Events.one`, `Events.all` and `Events.none`, *key* is the key of an action or the URL of a
    page view. *data* and *expected* are what the event must have; it may have more, in nested
    mappings, too. Keys and values are what the client takes: dotted keys (``{"user.id": 1}``),
    dates, objects that it converts. True is not 1. None stands for a missing field. These methods
    raise `valued.ValidationError` or `valued.SerializationError` for keys and values that the
    client would refuse.
    """

    __module__ = "valued.testing"  # where users find it

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def actions(self) -> list[str]:
        """The keys of the actions, in their order."""
        return [event["key"] for event in self if event["category"] == "action"]

    @property
    def page_views(self) -> list[str]:
        """The URLs of the page views, in their order."""
        return [name_of(event) for event in self if event["category"] == "pageview"]

    @property
    def syncs(self) -> list[dict[str, Any]]:
        """The events that sync a user or a customer."""
        return [event for event in self if event["category"] == "sync"]

    @property
    def pids(self) -> set[int]:
        """The ids of the processes that recorded them, a set of ints."""
        return {line.pid for line in self._source.read() if line.pid is not None}

    def one(
        self, key: Wanted = None, data: Mapping[str, Any] | None = None, /, **expected: Any
    ) -> dict[str, Any]:
        """The only event that matches. Raises `AssertionError` if none does, or several do."""
        __tracebackhide__ = True  # pytest shows the line of the test
        events, pattern = list(self), Pattern(key, data, expected)
        found = [event for event in events if pattern.matches(event)]
        if len(found) == 1:
            return found[0]
        if found:
            raise AssertionError(f"{len(found)} events match {pattern}, not one\n{listing(events)}")
        raise AssertionError(
            f"no event matches {pattern}\n{pattern.nearest(events)}{self._listing(events)}"
        )

    def all(
        self, key: Wanted = None, data: Mapping[str, Any] | None = None, /, **expected: Any
    ) -> list[dict[str, Any]]:
        """A list of the events that match, in their order; it may be empty."""
        pattern = Pattern(key, data, expected)
        return [event for event in self if pattern.matches(event)]

    def none(
        self, key: Wanted = None, data: Mapping[str, Any] | None = None, /, **expected: Any
    ) -> None:
        """Raise `AssertionError` if an event matches; without arguments, any event does."""
        __tracebackhide__ = True
        found = self.all(key, data, **expected)
        if found:
            pattern = Pattern(key, data, expected)
            raise AssertionError(
                f"expected no event that matches {pattern}, got {len(found)}\n{listing(found)}"
            )

    def wait(self, count: int, timeout: float = 5.0) -> Self:
        """Wait until there are *count* events, or more; returns itself.

        *timeout*: seconds (default 5). Raises `AssertionError` if there are fewer by then.
        """
        __tracebackhide__ = True
        looks = round(timeout / LOOK_INTERVAL)  # counted, since a test may have stopped the clock
        while len(self) < count:
            if looks <= 0:
                events = list(self)
                raise AssertionError(
                    f"{counted(events)} in {timeout} s, expected {count}\n{self._listing(events)}"
                )
            looks -= 1
            threading.Event().wait(LOOK_INTERVAL)  # `time.sleep` may be replaced, too
        return self

    def clear(self) -> None:
        """Forget the events so far."""
        self._source.clear()

    def __len__(self) -> int:
        return len(self._source.read())

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return [line.event for line in self._source.read()][index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([line.event for line in self._source.read()])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Events, list, tuple)):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        events = list(self)
        return f"<{'; '.join([counted(events), *described(events)])}>"

    def _listing(self, events: Sequence[Event]) -> str:
        return listing(events) if events else self._source.nothing()


class Pattern:
    """The events that have this key or URL, and contain these values."""

    def __init__(self, key: Wanted, data: Event | None, expected: Event) -> None:
        if key is not None and not isinstance(key, Mapping):
            key = normalize(key)
        if isinstance(key, Mapping) and data is None:
            key, data = None, key
        if not (key is None or isinstance(key, str)):
            raise ValidationError(f"key: expected a key or a URL, got {type(key).__name__}")
        if not (data is None or isinstance(data, Mapping)):
            data = normalize(data)
        if not (data is None or isinstance(data, Mapping)):
            raise ValidationError(f"data: expected a mapping, got {type(data).__name__}")
        self._key = key
        # A list, since two dotted names may begin with the same part.
        named = [*({} if data is None else data).items(), *expected.items()]
        self._fields = [(parts_of(name), value) for name, value in named]

    def matches(self, event: Event) -> bool:
        """Whether *event* is one of them."""
        return not self._differences(event)

    def nearest(self, events: Sequence[Event]) -> str:
        """The lines that show the event that differs least, and how it differs."""
        if not events:
            return ""
        import difflib  # for a failure only

        def distance(number: int) -> tuple[float, int]:
            name, key = name_of(events[number]), self._key
            alike = 0.0 if key is None else difflib.SequenceMatcher(None, key, name).ratio()
            return -alike, len(self._differences(events[number]))

        number = min(range(len(events)), key=distance)
        lines = [f"    {line}\n" for line in self._differences(events[number])]
        return "".join([f"the nearest is number {number}:\n", *lines])

    def __str__(self) -> str:
        parts = [] if self._key is None else [repr(self._key)]
        parts += [f"{'.'.join(name)}={_shown(value)}" for name, value in self._fields]
        return ", ".join(parts) or "anything"

    def _differences(self, event: Event) -> list[str]:
        found = [
            line for name, value in self._fields for line in _differences_at(event, name, value, "")
        ]
        if self._key is not None and name_of(event) != self._key:
            what = "url" if event["category"] == "pageview" else "key"
            found.insert(0, f"{what}: expected {self._key!r}, got {name_of(event)!r}")
        return found


def name_of(event: Event) -> str:
    """The key of an action, the URL of a page view; else the category."""
    category: str = event["category"]
    if category == "action":
        return str(event["key"])
    return str(event["attributes"]["source"]["url"]) if category == "pageview" else category


def listing(events: Sequence[Event]) -> str:
    """The events, one line each."""
    lines = [f"    {number}: {line}" for number, line in enumerate(described(events))]
    if len(events) > SHOWN_EVENTS:
        lines.append(f"    … and {len(events) - SHOWN_EVENTS} more")
    return "\n".join(["recorded:", *lines])


def described(events: Sequence[Event]) -> Iterator[str]:
    """The first events, one line each."""
    for event in events[:SHOWN_EVENTS]:
        names = dict.fromkeys([event["category"], name_of(event)])
        yield " ".join([*names, *_fields(event, "")])


def counted(events: Sequence[object]) -> str:
    """How many there are."""
    return "1 event" if len(events) == 1 else f"{len(events)} events"


def _differences_at(data: object, name: Sequence[str], wanted: object, path: str) -> Iterator[str]:
    """How the value at *name* in *data* differs from *wanted*."""
    for part in name:
        data = data.get(part) if isinstance(data, dict) else None
    yield from _differences_of(data, wanted, f"{path}{'.'.join(name)}")


def _differences_of(actual: object, wanted: object, path: str) -> Iterator[str]:
    if not isinstance(wanted, Mapping):
        wanted = _plain(wanted)
    if isinstance(wanted, Mapping) and (actual is None or isinstance(actual, dict)):
        for name, value in wanted.items():
            yield from _differences_at(actual, parts_of(name), value, f"{path}.")
    elif not _equal(actual, wanted):
        yield f"{path}: expected {_shown(wanted)}, got {_shown(actual)}"


def _equal(actual: object, wanted: object) -> bool:
    """Whether they are the same data. For JSON true and 1 differ, at any depth; not for Python."""
    wanted = _plain(wanted)
    if isinstance(actual, list) and isinstance(wanted, (list, tuple)):
        return len(actual) == len(wanted) and all(map(_equal, actual, wanted))
    if isinstance(actual, dict) and isinstance(wanted, Mapping):
        return actual.keys() == wanted.keys() and all(
            _equal(actual[key], wanted[key]) for key in actual
        )
    if isinstance(wanted, (int, float)) and isinstance(actual, bool) != isinstance(wanted, bool):
        return False
    return bool(actual == wanted)


def _plain(wanted: object) -> Any:
    """*wanted* as the client would convert it: a UUID, a date, a user."""
    try:
        return normalize(wanted)
    except ValuedError:
        return wanted  # it has its own `__eq__`, as `mock.ANY` has, or contains such an object


def _fields(data: Event, path: str) -> Iterator[str]:
    for name, value in data.items():
        where = f"{path}{name}"
        if isinstance(value, dict) and value:
            yield from _fields(value, f"{where}.")
        elif where not in _UNSAID:
            yield f"{where}={_shown(value)}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
