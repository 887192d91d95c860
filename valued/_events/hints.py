"""Suggests what to write for a value without a converter: code that works when it is pasted.

Imported only when there is such an error. Names of classes and attributes are looked up without
running their code: an attribute of an ORM's object may be a query.
"""

from __future__ import annotations

import contextlib
import keyword
import sys
from typing import Any, Final

from valued._events.faults import full_name_of, qualname_of

_DUMP: Final = 'value.model_dump(mode="json")'


def for_value(value: object, cls: type) -> str:
    """The error for *value*, of a class without a converter, somewhere within an event."""
    start = f"no converter for {full_name_of(cls)}: "
    if _has(cls, "model_dump"):  # pydantic
        return start + _either(
            _DUMP, registration(cls, f"lambda it: {_DUMP.replace('value', 'it')}")
        )
    if _has(cls, "__attrs_attrs__"):
        code = registration(cls, "attrs.asdict")
        return start + _either("attrs.asdict(value)", code and f"import attrs; {code}")
    if _is_django(cls) or _has(cls, "__mapper__"):
        name = _id_of(value, cls) or "id"
        return start + _either(
            f"value.{name}", registration(cls, f'lambda it: {{"id": it.{name}}}')
        )
    if _has(cls, "__next__"):
        return f"{start}it can be read only once: send list(value)"
    return start + by_method_or(registration(cls, _converter(cls)))


def _converter(cls: type) -> str:
    # `object` prints an address.
    own = {name for base in cls.__mro__ if base is not object for name in vars(base)}
    return "str" if own & {"__str__", "__repr__"} else "lambda it: type(it).__name__"


def for_party(party: str, value: object, cls: type) -> str:
    """The error for *value* as the user or the customer. It suggests to send the id only."""
    what = (
        "a dataclass, all of whose fields would be sent"
        if _has(cls, "__dataclass_fields__")
        else "not a mapping, and has no converter"
    )
    start = f"{full_name_of(cls)} is {what}: "
    name = _id_of(value, cls, f"{party}_id")
    if name is None:
        return f'{start}send a mapping with its id, such as {{"id": 1}}'
    code = registration(cls, f'lambda {party}: {{"id": {party}.{name}}}')
    return f"{start}say what is sent: " + (
        by_method_or(code) if code else f'send {{"id": value.{name}}}'
    )


def registration(cls: type, converter: str) -> str:
    """The code that registers *converter* for *cls*; empty if the class can't be imported."""
    if cls in (object, type):
        return ""  # everything is one
    module, path = type.__dict__["__module__"].__get__(cls), qualname_of(cls).split(".")
    names = [*module.split("."), *path] if type(module) is str else []
    if not names or not all(map(_is_name, names)):
        return ""
    found: Any = sys.modules.get(module)
    for name in path:
        found = getattr(found, "__dict__", {}).get(name)
    if found is not cls:
        return ""
    call = f"valued.register({'.'.join(path)}, {converter})"
    at_hand = module in ("__main__", "builtins")
    return call if at_hand else f"from {module} import {path[0]}; {call}"


def by_method_or(code: str) -> str:
    other = f"write: {code}" if code else "send a plain value, such as str(value)"
    return f"give the class a to_valued_data() method, or {other}"


def _either(expression: str, code: str) -> str:
    return f"send {expression}, or write: {code}" if code else f"send {expression}"


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


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
