"""A value that can't be sent: what is wrong, where in the data, and what to write instead.

Values, keys, classes and exceptions belong to the application: their methods may raise, lie, or
return strings of their own classes, and an attribute of an ORM's object may be a query. The
functions here ask them without running that code where Python allows it.

What an error suggests for a class without a converter is code that works when it is pasted.
"""

from __future__ import annotations

import contextlib
import keyword
import sys
from typing import Any, Final

from valued._errors import SerializationError, name_of, shown

#: The deepest nesting of containers; far beyond any real event, far below Python's own limit.
MAX_DEPTH: Final = 100
#: How many characters errors show of a path or a message.
SHOWN_LONG: Final = 1_000


class BadValue(Exception):
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
        path = "".join(part for part, _ in reversed(self.steps)).lstrip(".")
        if len(path) > SHOWN_LONG:
            path = f"{path[:SHOWN_LONG]}…"
        error = SerializationError(path, self.reason, self.summary)
        error.__cause__ = self.__cause__
        return error


class TooDeep(BadValue):
    """Nesting beyond the bound: often a container that contains itself."""

    def __init__(self) -> None:
        super().__init__(f"nesting deeper than {MAX_DEPTH}")

    def error(self) -> SerializationError:
        """The error, whose path ends where a circle closes, or is cut."""
        seen: set[int] = set()
        for position, (_, container) in enumerate(reversed(self.steps)):
            if id(container) in seen:
                kind = name_of(type(container))
                circle = BadValue(f"circular: this {kind} contains itself; send its id instead")
                circle.steps = self.steps[len(self.steps) - position :]
                return circle.error()
            seen.add(id(container))
        if len(self.steps) > 4:
            self.steps = [("…", None), *self.steps[-4:]]
        return super().error()


def as_bad_value(error: Exception, what: str = "reading it") -> BadValue:
    """*error*, of any class; *what* raised it."""
    if issubclass(type(error), BadValue):  # its `__class__` may raise
        return error  # type: ignore[return-value]
    summary = f"{what} raised {name_of(type(error))}"
    bad = BadValue(f"{summary}: {message_of(error)}", summary)
    bad.__cause__ = error
    return bad


# -- questions to objects that may raise -----------------------------------------------------------


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


# -- what to write for a class without a converter -------------------------------------------------


def without_converter(value: object, cls: type) -> str:
    """The error for *value*, of a class without a converter, somewhere within an event."""
    return f"no converter for {full_name_of(cls)}: {_advice(value, cls)}"


def _advice(value: object, cls: type) -> str:
    if _has(cls, "model_dump"):  # pydantic
        dump = 'model_dump(mode="json")'
        return _send_or(f"value.{dump}", registration(cls, f"lambda it: it.{dump}"))
    if _has(cls, "__attrs_attrs__"):
        code = registration(cls, "attrs.asdict")
        return _send_or("attrs.asdict(value)", code and f"import attrs; {code}")
    if _is_django(cls) or _has(cls, "__mapper__"):
        name = _id_of(value, cls) or "id"
        return _send_or(f"value.{name}", registration(cls, f'lambda it: {{"id": it.{name}}}'))
    if _has(cls, "__next__"):
        return "it can be read only once: send list(value)"
    # `object` prints an address.
    own = {name for base in cls.__mro__ if base is not object for name in vars(base)}
    converter = "str" if own & {"__str__", "__repr__"} else "lambda it: type(it).__name__"
    return by_method_or(registration(cls, converter))


def without_selection(party: str, value: object, cls: type) -> str:
    """The error for *value* as the user or the customer. It suggests to send the id only."""
    what = (
        "a dataclass, all of whose fields would be sent"
        if _has(cls, "__dataclass_fields__")
        else "not a mapping, and has no converter"
    )
    name = _id_of(value, cls, f"{party}_id")
    if name is None:
        advice = 'send a mapping with its id, such as {"id": 1}'
    else:
        code = registration(cls, f'lambda {party}: {{"id": {party}.{name}}}')
        send = by_method_or(code) if code else f'send {{"id": value.{name}}}'
        advice = f"say what is sent: {send}"
    return f"{full_name_of(cls)} is {what}: {advice}"


def registration(cls: type, converter: str) -> str:
    """The code that registers *converter* for *cls*; empty if the class can't be imported."""
    if cls in (object, type):
        return ""  # everything is one
    module, path = type.__dict__["__module__"].__get__(cls), qualname_of(cls).split(".")
    names = [*module.split("."), *path] if type(module) is str else [""]
    if not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        return ""
    found: Any = sys.modules.get(module)
    for name in path:
        found = getattr(found, "__dict__", {}).get(name)
    if found is not cls:
        return ""
    call = f"valued.register({'.'.join(path)}, {converter})"
    at_hand = module in ("__main__", "builtins")
    return call if at_hand else f"from {module} import {path[0]}; {call}"


def _send_or(expression: str, code: str) -> str:
    return f"send {expression}, or write: {code}" if code else f"send {expression}"


def by_method_or(code: str) -> str:
    other = f"write: {code}" if code else "send a plain value, such as str(value)"
    return f"give the class a to_valued_data() method, or {other}"


def _has(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__)


def _is_django(cls: type) -> bool:
    return _has(cls, "_meta") and _has(cls, "pk")


def _id_of(value: object, cls: type, *more: str) -> str | None:
    """The attribute that holds the id; None if none looks like it."""
    if _is_django(cls):
        return "pk"  # whatever the field is called
    mapper: Any = getattr(cls, "__mapper__", None)
    with contextlib.suppress(Exception):  # a class that only looks like a model of SQLAlchemy
        return str(mapper.get_property_by_column(mapper.primary_key[0]).key)
    names = {
        name for base in cls.__mro__ for name, found in vars(base).items() if not callable(found)
    }
    for described in ("__dataclass_fields__", "__pydantic_fields__"):
        names.update(getattr(cls, described, ()))
    names.update(field.name for field in getattr(cls, "__attrs_attrs__", ()))
    with contextlib.suppress(AttributeError):  # it has slots
        names.update(object.__getattribute__(value, "__dict__"))
    likely = ("id", "pk", "uuid", *more, f"{qualname_of(cls).rpartition('.')[2].lower()}_id")
    return next((name for name in likely if name in names), None)
