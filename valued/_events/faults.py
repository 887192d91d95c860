"""What is wrong with a value, and where in the data; and questions to objects that may raise.

Values, keys, classes and exceptions belong to the application: their methods may raise, lie, or
return strings of their own classes. The functions here ask them without running that code where
Python allows it, and return strings that are safe in one line of a log.
"""

from __future__ import annotations

from typing import Final

from valued._errors import SerializationError

#: The deepest nesting of containers; far beyond any real event, far below Python's own limit.
MAX_DEPTH: Final = 100
#: How many characters errors show of a name, a key or a string, and of a path or a message.
SHOWN: Final = 200
SHOWN_LONG: Final = 1_000


def shown(text: str, length: int = SHOWN) -> str:
    """*text* for one log line: at most *length* characters, unprintable ones escaped."""
    if len(text) > length:
        text = f"{text[:length]}…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def text_of(value: object) -> str:
    """The content of a string, whose class may override ``__str__``, or of a proxy of one."""
    # `str()` returns what `__str__` returns, which may be an instance of a subclass again.
    return str.__str__(value if issubclass(type(value), str) else str(value))


def is_class(value: object) -> bool:
    # By its type: up to 3.10, list[int] claims to be a class; an object may claim it, too.
    return issubclass(type(value), type)


def class_of(value: object) -> type:
    """The class that *value* claims in ``__class__``, as proxies (Django's, Werkzeug's) do."""
    cls = value.__class__
    return cls if is_class(cls) else type(value)


def is_a(value: object, cls: type | tuple[type, ...]) -> bool:
    """`isinstance` for objects of the application, which may raise in it."""
    try:
        return isinstance(value, cls)
    except Exception:  # noqa: BLE001 - its own
        return False


def name_of(cls: type) -> str:
    """Its ``__name__``, even if its metaclass overrides that."""
    return shown(text_of(type.__dict__["__name__"].__get__(cls)))


def qualname_of(cls: type) -> str:
    return shown(text_of(type.__dict__["__qualname__"].__get__(cls)))


def full_name_of(cls: type) -> str:
    module = type.__dict__["__module__"].__get__(cls)
    return f"{shown(module)}.{qualname_of(cls)}" if type(module) is str else qualname_of(cls)


def message_of(error: Exception) -> str:
    """The message of *error*, on one line."""
    try:
        return shown(text_of(error), SHOWN_LONG)
    except Exception:  # noqa: BLE001 - the error's own
        return "its message can't be read"


class Fault(Exception):
    """What is wrong with a value, and where; the path is collected on the way out.

    *reason*: without a value, or anything derived from one, except the message of an exception of
    the application. *summary*: the reason without that.
    """

    def __init__(self, reason: str, summary: str = "") -> None:
        self.reason = reason
        self.summary = summary or reason
        self.steps: list[tuple[str, object]] = []  # innermost first: path part, its container

    def within(self, part: str, container: object) -> None:
        self.steps.append((part, container))

    def error(self) -> SerializationError:
        """The error for the caller. An exception of the application is its cause."""
        return self._error(self.steps[::-1], self.reason, self.summary)

    def _error(
        self, steps: list[tuple[str, object]], reason: str, summary: str
    ) -> SerializationError:
        path = "".join(part for part, _ in steps).lstrip(".")
        if len(path) > SHOWN_LONG:
            path = f"{path[:SHOWN_LONG]}…"
        error = SerializationError(path, reason, summary)
        error.__cause__ = self.__cause__
        return error


class TooDeep(Fault):
    """Nesting beyond the bound: often a container that contains itself."""

    def __init__(self) -> None:
        super().__init__(f"nesting deeper than {MAX_DEPTH}")

    def error(self) -> SerializationError:
        """The error, whose path ends where a circle closes, or is cut."""
        steps = self.steps[::-1]
        seen: set[int] = set()
        for position, (_, container) in enumerate(steps):
            if id(container) in seen:
                kind = name_of(type(container))
                reason = f"circular: this {kind} contains itself; send its id instead"
                return self._error(steps[:position], reason, reason)
            seen.add(id(container))
        if len(steps) > 4:
            steps = [*steps[:4], ("…", None)]
        return self._error(steps, self.reason, self.summary)


def as_fault(error: Exception, what: str = "reading it") -> Fault:
    """*error*, of any class, as a fault; *what* raised it."""
    if issubclass(type(error), Fault):  # its `__class__` may raise
        return error  # type: ignore[return-value]
    summary = f"{what} raised {name_of(type(error))}"
    fault = Fault(f"{summary}: {message_of(error)}", summary)
    fault.__cause__ = error
    return fault
