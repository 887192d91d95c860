"""Objects whose methods raise, lie or never end, and values that are made of them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from hypothesis import strategies as st

import valued


class Nasty(Exception):
    """Of the application; nothing can be asked of it."""

    def __str__(self) -> str:
        raise Nasty

    __repr__ = __str__

    def __format__(self, _spec: str) -> str:
        raise Nasty


class Twisted(str):
    """A text all of whose methods raise."""

    __slots__ = ()

    def _raise(self, *_: object, **__: object) -> Any:
        raise Nasty

    __str__ = __repr__ = __format__ = __len__ = __iter__ = __contains__ = __getitem__ = _raise
    __eq__ = __ne__ = __lt__ = __gt__ = __add__ = __mod__ = split = partition = join = _raise
    isprintable = encode = endswith = startswith = count = strip = _raise
    __hash__ = str.__hash__


class Worded(Exception):
    """Its text is a subclass of `str` that raises."""

    def __str__(self) -> str:
        return Twisted("secret")


def raising(*_: object, **__: object) -> Any:
    raise Nasty


def hash_of_one(_: object) -> int:
    return 1


def endless(*_: object) -> Iterator[Any]:
    return itertools.repeat(1)


def made(base: type | tuple[type, ...] = (), /, **members: Any) -> Any:
    """A new class with these *members*."""
    bases = base if isinstance(base, tuple) else (base,)
    return type("Hostile", bases, members)


def of(function: Callable[[], Any]) -> Any:
    """An object whose converter is *function*."""
    return made(to_valued_data=lambda _: function())()


class Meta(type):
    """A class that raises whatever it is asked."""

    def _raise(cls, *_: object) -> Any:
        raise Nasty

    __name__ = property(_raise)  # type: ignore[assignment]
    __module__ = property(_raise)  # type: ignore[assignment]
    __getattr__ = __repr__ = __str__ = __subclasscheck__ = __instancecheck__ = _raise


class Liar(type):
    """A class that says it is `str`."""

    def __eq__(cls, other: object) -> bool:
        return True

    def __hash__(cls) -> int:
        return hash(str)


class Unhashable(type):
    def __hash__(cls) -> int:
        raise Nasty


class Bad(enum.Enum):
    NUMBER = float("nan")
    ITSELF = object()
    TUPLE = (Nasty(),)


class Worse(enum.Enum):
    TEXT = Twisted("a.b")


class Raising(enum.Enum):
    MEMBER = 1

    @property
    def value(self) -> Any:
        raise Nasty


@dataclasses.dataclass
class Fields:
    content: Any = None

    def __getattribute__(self, name: str) -> Any:
        if name == "content":
            raise Nasty
        return super().__getattribute__(name)


def _circle() -> Any:
    items: list[Any] = []
    items.append({"a": items})
    return items


def _repeated(make: Callable[[Any], Any], levels: int) -> Any:
    """Small, and of 2 ** *levels* leaves."""
    value: Any = 1
    for _ in range(levels):
        value = make(value)
    return value


def _deep() -> Any:
    value: Any = 1
    for _ in range(300_000):
        value = [value]
    return value


def _class_property(answer: Callable[[Any], Any]) -> Any:
    return made(__class__=property(answer))()


def _lines(error: type[BaseException]) -> Any:
    def convert() -> Any:
        raise error("secret\nsecret")

    return of(convert)


#: By name, functions that make a new value that is wrong in some way, or only strange.
VALUES: dict[str, Callable[[], Any]] = {
    "object": object,
    "exception without text": lambda: of(raising),
    "exception with a text that raises": lambda: of(lambda: (_ for _ in ()).throw(Worded())),
    "exception of two lines": lambda: _lines(ValueError),
    "stop iteration": lambda: _lines(StopIteration),
    "recursion": lambda: of(lambda: _lines(RecursionError).to_valued_data()),
    "memory": lambda: _lines(MemoryError),
    "our own error": lambda: of(lambda: valued.normalize({"secret": float("nan")})),
    "returns itself": lambda: made(to_valued_data=lambda self: self)(),
    "returns its like": lambda: made(to_valued_data=lambda self: type(self)())(),
    "returns what raises": lambda: of(lambda: [of(raising)]),
    "converter is no method": lambda: made(to_valued_data=5)(),
    "class raises": lambda: _class_property(raising),
    "class is no class": lambda: _class_property(lambda _: "str"),
    "class is a lie": lambda: _class_property(lambda _: str),
    "class is dict": lambda: _class_property(lambda _: dict),
    "getattr raises": lambda: made(__getattribute__=raising)(),
    "metaclass raises": lambda: Meta("Hostile", (), {})(),
    "metaclass lies": lambda: Liar("Hostile", (), {})(),
    "metaclass is not hashable": lambda: Unhashable("Hostile", (), {})(),
    "module is no text": lambda: made(__module__=[Nasty()])(),
    "class itself": lambda: Meta("Hostile", (), {}),
    "items raise": lambda: made(dict, items=raising)(a=1),
    "items are no pairs": lambda: made(dict, items=lambda _: [1, 2])(),
    "items are no iterator": lambda: made(dict, items=lambda _: 5)(),
    "items are endless": lambda: made(dict, items=lambda _: zip(itertools.count(), endless()))(),
    "items hold no keys": lambda: made(dict, items=lambda _: [(made(__hash__=raising)(), 1)])(),
    "dict of lies": lambda: made(dict, __len__=raising, __iter__=raising, keys=raising)(a=1),
    "mapping raises": lambda: made(
        Mapping, __getitem__=raising, __iter__=lambda _: iter("ab"), __len__=lambda _: 2
    )(),
    "mapping is endless": lambda: made(
        Mapping, __getitem__=lambda *_: 1, __iter__=lambda _: itertools.count(), __len__=raising
    )(),
    "list is endless": lambda: made(list, __iter__=endless)(),
    "list raises": lambda: made(list, __iter__=raising, __len__=raising)([1]),
    "tuple is endless": lambda: made(tuple, __iter__=endless)(),
    "sequence lies": lambda: made(Sequence, __getitem__=lambda *_: 1, __len__=lambda _: 10**30)(),
    "set is endless": lambda: made(Set, __contains__=raising, __iter__=endless, __len__=raising)(),
    "set without order": lambda: {1, "a", None},
    "set of what raises": lambda: {
        made(int, __lt__=raising, __gt__=raising, __hash__=hash_of_one)(1),
        2,
    },
    "set of unknown": lambda: {object(), object()},
    "generator": lambda: (number for number in range(3)),
    "iterator": lambda: itertools.count(),
    "int that raises": lambda: made(int, __int__=raising, __lt__=raising, __repr__=raising)(3),
    "int that is none": lambda: made(int, __int__=lambda _: "secret")(3),
    "int of many digits": lambda: 10**5_000,
    "own int of many digits": lambda: made(int)(10**5_000),
    "float that raises": lambda: made(float, __float__=raising, __repr__=raising)(0.5),
    "nan": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "signalling nan": lambda: decimal.Decimal("sNaN123"),
    "decimal": lambda: made(decimal.Decimal, is_finite=raising, __str__=raising)("1.5"),
    "text": lambda: Twisted("secret"),
    "surrogate": lambda: "\ud800",
    "bytes": lambda: b"secret",
    "view": lambda: memoryview(b"secret"),
    "complex": lambda: 1j,
    "enum of nan": lambda: Bad.NUMBER,
    "enum of an object": lambda: Bad.ITSELF,
    "enum of a text": lambda: Worse.TEXT,
    "enum of a tuple": lambda: Bad.TUPLE,
    "enum that raises": lambda: Raising.MEMBER,
    "moment of no text": lambda: made(datetime.date, isoformat=lambda _: 5)(2024, 2, 29),
    "moment of a twisted text": lambda: made(
        datetime.datetime, isoformat=lambda _: Twisted("2024-02-29")
    )(2024, 2, 29),
    "moment raises": lambda: made(datetime.time, isoformat=raising)(1),
    "duration raises": lambda: made(datetime.timedelta, nanoseconds=property(raising))(1),
    "dataclass raises": Fields,
    "dataclass lies": lambda: made(__dataclass_fields__=5)(),
    "chain": lambda: collections.ChainMap({"a": 1}, made(dict, __iter__=raising)()),
    "circle": _circle,
    "depth": _deep,
    "many of lists": lambda: _repeated(lambda value: [value, value], 90),
    "many of dicts": lambda: _repeated(lambda value: {"a": value, "b": value}, 90),
    "many of tuples": lambda: _repeated(lambda value: (value, value), 90),
    "many of empty lists": lambda: _repeated(lambda value: [value, value, []], 90),
    "many of converters": lambda: _repeated(lambda value: of(lambda: [value, value]), 60),
    "many in two": lambda: [[0] * 2_000] * 2_000,
    "slots": lambda: made(__slots__=("a",))(),
    "model of nothing": lambda: made(__mapper__=5)(),
    "attrs of nothing": lambda: made(__attrs_attrs__=5)(),
}

#: The same for keys; those that hash at all.
KEYS: dict[str, Callable[[], Any]] = {
    "unknown": object,
    "none": lambda: None,
    "empty": lambda: "",
    "dots": lambda: "a..b",
    "twisted": lambda: Twisted("a.b"),
    "twisted and empty": lambda: Twisted("a..b"),
    "surrogate": lambda: "\udfff",
    "lines": lambda: "a\nb\x1b[0m",
    "long": lambda: "k" * 3_000_000,
    "a million parts": lambda: ".".join("a" * 1_000_000),
    "a million empty parts": lambda: "." * 1_000_000,
    "a million elements": lambda: ("a",) * 1_000_000,
    "many of tuples": lambda: made(tuple, __hash__=lambda _: 1, __eq__=object.__eq__)(
        [_repeated(lambda value: (value, value), 60)]
    ),
    "endless": lambda: made(tuple, __iter__=endless, __hash__=lambda _: 1)(),
    "in itself": lambda: made(tuple, __iter__=lambda self: iter([self]), __hash__=lambda _: 1)(),
    "raises": lambda: made(tuple, __iter__=raising)(),
    "str raises": lambda: made(__str__=raising, __repr__=raising)(),
    "class raises": lambda: _class_property(raising),
    "class is a lie": lambda: made(__class__=property(lambda _: str), __str__=raising)(),
    "text of a twisted text": lambda: made(
        __class__=property(lambda _: str), __str__=lambda _: Twisted("a.b")
    )(),
    "int raises": lambda: made(int, __int__=raising, __repr__=raising)(3),
    "int of many digits": lambda: 10**5_000,
    "enum of nan": lambda: Bad.NUMBER,
    "enum of a text": lambda: Worse.TEXT,
    "metaclass raises": lambda: Meta("Hostile", (), {})(),
    "metaclass lies": lambda: Liar("Hostile", (), {})(),
    "nan": lambda: float("nan"),
    "bytes": lambda: b"secret",
}

#: Those that take a second or so: they are read up to the bound.
SLOW = {name for name in VALUES if "many" in name or "endless" in name or name == "depth"} | {
    "sequence lies", "a million elements", "int of many digits",
}  # fmt: skip

Maker = Callable[[], Any]


def values(names: list[str]) -> st.SearchStrategy[Maker]:
    """Makers of values of any shape with some of *names* within: hypothesis itself asks none."""
    plain: list[Any] = [None, True, 1, 0.5, "text", "", -7, 2**70]
    leaves = st.sampled_from([*[VALUES[name] for name in names], *map(_constant, plain)])
    fields = ["a", "b", "user", "user.id", "a.b", "attributes", ("a", "b"), ("user", 5)]
    keys = st.sampled_from([*KEYS.values(), *map(_constant, fields * 4)])

    def larger(inner: st.SearchStrategy[Maker]) -> st.SearchStrategy[Maker]:
        lists = st.lists(inner, max_size=4)
        pairs = st.lists(st.tuples(keys, inner), max_size=4)
        shapes = [list, tuple, collections.deque, _own_list]
        return (
            st.tuples(st.sampled_from(shapes), lists).map(
                lambda drawn: lambda: drawn[0]([make() for make in drawn[1]])
            )
            | pairs.map(lambda drawn: lambda: _mapping(drawn))
            | pairs.map(lambda drawn: lambda: collections.ChainMap(_mapping(drawn)))
            | inner.map(lambda make: lambda: of(make))
        )

    return st.recursive(leaves, larger, max_leaves=8)


def _constant(value: Any) -> Maker:
    return lambda: value


def _own_list(items: list[Any]) -> Any:
    return made(list, __len__=raising)(items)


def _mapping(pairs: list[tuple[Maker, Maker]]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in pairs:
        with contextlib.suppress(Nasty):  # two keys of one hash are compared
            made[key()] = value()
    return made


def check(value: object) -> str:
    """That `normalize` refuses *value* by an error of ours, or makes plain data; what it did."""
    started = time.monotonic()
    refused: valued.ValuedError | None = None
    plain: Any = None
    try:
        plain = valued.normalize(value)
    except valued.ValuedError as error:
        refused = error
    assert time.monotonic() - started < 20
    if refused is None:
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        return "accepted"
    assert "secret" not in getattr(refused, "summary", "")
    assert str(refused).isprintable()
    assert len(str(refused)) < 5_000
    return "refused"


def seed() -> int:
    """A new seed, which is printed: a failure can be repeated by it."""
    chosen = random.SystemRandom().randrange(2**32)
    print(f"seed {chosen}")
    return chosen
