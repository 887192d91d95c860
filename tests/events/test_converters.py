"""The registry: which converter an object gets, and what each built-in one makes of it."""

from __future__ import annotations

import abc
import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import math
import numbers
import threading
import types
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

import valued
from tests.support.refusals import refusal

# -- what goes as it is ----------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, decimal.Decimal("0.10"))


class Level(enum.IntEnum):
    HIGH = 3


class Kind(str, enum.Enum):
    PLAN = "plan"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().upper()


class Amount(int):
    def __repr__(self) -> str:
        return "an amount"


class Ratio(float):
    def __repr__(self) -> str:
        return "a ratio"


class Point(typing.NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass
class Location:
    country: str
    region: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class User:
    id: int
    location: Location
    tags: set[str] = dataclasses.field(default_factory=set)


ZONE = datetime.timezone(datetime.timedelta(hours=12, minutes=45))
MOMENT = datetime.datetime(2024, 2, 29, 23, 59, 59, 5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Colour.PAIR, [1, "0.10"]),
        (Level.HIGH, 3),
        (Kind.PLAN, "plan"),
        (Access.READ | Access.WRITE, 3),
        (Loud("quiet"), "quiet"),
        (Amount(7), 7),
        (Ratio(0.5), 0.5),
        (Point(1, Level.HIGH), [1, 3]),
        (decimal.Decimal("1.10"), "1.10"),
        (decimal.Decimal("1E+3"), "1E+3"),
        (fractions.Fraction(1, 4), 0.25),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (MOMENT, "2024-02-29T23:59:59.000005"),
        (MOMENT.replace(tzinfo=ZONE), "2024-02-29T23:59:59.000005+12:45"),
        (MOMENT.date(), "2024-02-29"),
        (datetime.time(1, 2, 3), "01:02:03"),
        (datetime.time(1, 2, tzinfo=ZONE), "01:02:00+12:45"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (set(), []),
        ({None, (2,)} - {(2,)}, [None]),
        ({"b": 1, "a": 2}.keys(), ["a", "b"]),
        (range(3), [0, 1, 2]),
        (collections.deque([1, {"a.b": 2}]), [1, {"a": {"b": 2}}]),
        (collections.UserList([1]), [1]),
        (collections.UserDict({"a.b": 1}), {"a": {"b": 1}}),
        (collections.UserString("text"), "text"),
        (collections.OrderedDict({"a.b": 1}), {"a": {"b": 1}}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Location("NZ"), {"country": "NZ", "region": None}),
        (
            User(1, Location("NZ", "Otago"), {"b", "a"}),
            {"id": 1, "location": {"country": "NZ", "region": "Otago"}, "tags": ["a", "b"]},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_goes_as_plain_data(value: object, expected: object) -> None:
    plain = valued.normalize({"a": value})["a"]
    assert plain == expected
    assert type(plain) is type(expected)
    assert valued.normalize(value) == expected


def test_str_enum_goes_as_its_text() -> None:
    if not hasattr(enum, "StrEnum"):
        pytest.skip("enum.StrEnum came with Python 3.11")
    plan = enum.StrEnum("Plan", {"PRO": "pro"})
    assert valued.normalize({"a": plan.PRO, plan.PRO: 1}) == {"a": "pro", "pro": 1}
    assert type(valued.normalize(plan.PRO)) is str


@pytest.mark.parametrize(
    "value",
    [
        *map(decimal.Decimal, ("NaN", "sNaN", "Infinity", "-Infinity")),
        Ratio("nan"),
        fractions.Fraction(1, 2) * math.inf,
        {math.nan},
    ],
    ids=str,
)
def test_converted_number_is_checked_like_any_other(value: object) -> None:
    assert refusal({"a": value}).reason == "JSON has no NaN and no infinity: send None instead"


@pytest.mark.parametrize("value", [b"text", bytearray(b"text"), memoryview(b"text")])
def test_bytes_are_refused_with_what_to_do(value: object) -> None:
    error = refusal({"a": [value]})
    assert error.path == "a[0]"
    decoded = "bytes(value).decode()" if isinstance(value, memoryview) else "value.decode()"
    encoded = "base64.b64encode(value).decode()"
    assert error.reason == (
        f"{type(value).__name__} is not a string: send {decoded} if it contains text, "
        f"else {encoded}"
    )
    names = {"value": value, "base64": base64}
    assert valued.normalize([eval(decoded, names), eval(encoded, names)]) == ["text", "dGV4dA=="]


def test_dataclass_that_lacks_a_field_is_reported_with_its_cause() -> None:
    @dataclasses.dataclass
    class Late:
        name: str = dataclasses.field(init=False)

    error = refusal({"a": Late()})
    assert error.path == "a"
    assert isinstance(error.__cause__, AttributeError)


# -- the most specific class -----------------------------------------------------------------------


class Animal:
    pass


class Dog(Animal):
    pass


class Puppy(Dog):
    pass


def test_most_specific_class_by_mro_converts() -> None:
    valued.register(Animal, lambda _: "animal")
    valued.register(Dog, lambda _: "dog")
    assert valued.normalize([Animal(), Dog(), Puppy()]) == ["animal", "dog", "dog"]


def test_late_registration_counts_for_a_class_that_was_looked_up_before() -> None:
    valued.register(Animal, lambda _: "animal")
    assert valued.normalize(Puppy()) == "animal"
    valued.register(Puppy, lambda _: "puppy")
    assert valued.normalize(Puppy()) == "puppy"
    valued.register(Puppy, lambda _: "the latest counts")
    assert valued.normalize(Puppy()) == "the latest counts"


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    def area(self) -> float:
        return 1.0


def test_abstract_base_class_converts_its_subclasses_virtual_ones_included() -> None:
    valued.register(Shape, lambda shape: {"area": shape.area()})

    class Foreign:
        def area(self) -> float:
            return 2.0

    assert "no converter" in refusal(Foreign()).reason
    Shape.register(Foreign)  # after it was looked up
    assert valued.normalize([Square(), Foreign()]) == [{"area": 1.0}, {"area": 2.0}]


def test_virtual_subclass_of_a_collection_is_one() -> None:
    @Sequence.register
    class Pages:
        def __iter__(self) -> Iterator[int]:
            return iter([1, 2])

    assert valued.normalize(Pages()) == [1, 2]


class Product:
    pass


def test_two_converters_that_fit_equally_well_are_an_error_that_registration_settles() -> None:
    named = abc.ABCMeta("Named", (), {})
    priced = abc.ABCMeta("Priced", (), {})

    for cls in (named, priced):
        cls.register(Product)
        valued.register(cls, lambda _, cls=cls: cls.__name__)
    error = refusal({"a": Product()})
    assert error.path == "a"
    assert error.reason == (
        f"two converters fit {__name__}.Product equally well: give the class a to_valued_data() "
        f"method, or write: from {__name__} import Product; valued.register(Product, str)"
    )
    assert isinstance(error.__cause__, RuntimeError)
    valued.register(Product, lambda _: "settled")
    assert valued.normalize(Product()) == "settled"


class Numeric:
    """As numpy's scalars: no subclass of a built-in number, but registered as one."""

    def __init__(self, number: float) -> None:
        self._number = number

    def __float__(self) -> float:
        return float(self._number)

    def __int__(self) -> int:
        return int(self._number)


def test_scalar_of_a_numeric_library_goes_as_a_number() -> None:
    class Float32(Numeric):
        pass

    class Int64(Numeric):
        pass

    numbers.Real.register(Float32)
    numbers.Integral.register(Int64)
    plain = valued.normalize([Float32(0.5), Int64(3)])
    assert plain == [0.5, 3]
    assert [type(number) for number in plain] == [float, int]
    assert "JSON has no NaN" in refusal(Float32(math.inf)).reason


# -- to_valued_data --------------------------------------------------------------------------------


class Account:
    def to_valued_data(self) -> object:
        return {"kind": "method of the base"}


class Admin(Account):
    pass


def test_method_counts_at_the_place_in_the_mro_where_it_is_defined() -> None:
    assert valued.normalize(Admin()) == {"kind": "method of the base"}
    valued.register(Admin, lambda _: "registered for the subclass")
    assert valued.normalize(Admin()) == "registered for the subclass"
    assert valued.normalize(Account()) == {"kind": "method of the base"}


def test_method_of_a_subclass_beats_a_registration_of_its_base() -> None:
    class Guide(Dog):
        def to_valued_data(self) -> object:
            return "method"

    valued.register(Dog, lambda _: "registered")
    assert valued.normalize([Dog(), Guide()]) == ["registered", "method"]


def test_registration_beats_the_method_of_the_same_class() -> None:
    valued.register(Account, lambda _: "registered")
    assert valued.normalize([Account(), Admin()]) == ["registered", "registered"]


@pytest.mark.parametrize("base", [dict, list, str, int, Shape, Mapping, Sequence, enum.Enum])
def test_method_beats_what_its_class_inherits(base: type) -> None:
    valued.register(Shape, lambda _: "the base")
    stubs = {name: lambda *_: 0 for name in getattr(base, "__abstractmethods__", ())}
    if base is enum.Enum:

        class Own(enum.Enum):
            MEMBER = 1

            def to_valued_data(self) -> object:
                return "method"

        value: Any = Own.MEMBER
    else:
        namespace = {**stubs, "to_valued_data": lambda _: "method"}
        value = types.new_class("Own", (base,), exec_body=lambda ns: ns.update(namespace))()
    assert valued.normalize({"a": value}) == {"a": "method"}


def test_method_beats_an_abc_that_its_own_class_is_registered_with() -> None:
    reptile = abc.ABCMeta("Reptile", (), {})
    named = abc.ABCMeta("Named", (), {})

    class Snake:
        def to_valued_data(self) -> object:
            return "method"

    class Cobra(Snake):
        pass

    reptile.register(Snake)
    valued.register(reptile, lambda _: "reptile")
    assert valued.normalize([Snake(), Cobra()]) == ["method", "method"]
    named.register(Snake)
    valued.register(named, lambda _: "named")  # two that fit equally well, and the method
    assert valued.normalize([Snake(), Cobra()]) == ["method", "method"]


def test_abc_of_a_subclass_beats_the_method_of_its_base() -> None:
    special = abc.ABCMeta("Special", (), {})
    special.register(Admin)
    valued.register(special, lambda _: "special")
    assert valued.normalize([Account(), Admin()]) == [{"kind": "method of the base"}, "special"]


def test_attribute_of_that_name_that_is_no_method_does_not_count() -> None:
    class Confusing(dict):  # type: ignore[type-arg]
        to_valued_data = None

    assert valued.normalize(Confusing(a=1)) == {"a": 1}


def test_method_added_later_counts() -> None:
    class Patched:
        pass

    assert "no converter" in refusal(Patched()).reason
    Patched.to_valued_data = lambda _: "added"  # type: ignore[attr-defined]
    assert valued.normalize(Patched()) == "added"


def test_subclass_of_a_dataclass_may_have_a_converter_of_its_own() -> None:
    class Island(Location):
        pass

    valued.register(Island, lambda island: {"island": island.country})
    assert valued.normalize([Location("NZ"), Island("NZ")]) == [
        {"country": "NZ", "region": None},
        {"island": "NZ"},
    ]


def test_converter_for_object_is_for_what_has_no_other() -> None:
    valued.register(object, lambda value: type(value).__name__)
    assert valued.normalize([Animal(), 1j, Location("NZ"), Account(), {1}]) == [
        "Animal",
        "complex",
        {"country": "NZ", "region": None},
        {"kind": "method of the base"},
        [1],
    ]


# -- proxies ---------------------------------------------------------------------------------------


class Proxy:
    """As Werkzeug's `LocalProxy`, Django's `SimpleLazyObject`: answers for what it stands for."""

    def __init__(self, find: Callable[[], Any]) -> None:
        object.__setattr__(self, "_find", find)

    @property
    def __class__(self) -> Any:
        return type(self._find())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __str__(self) -> str:
        return str(self._find())

    def __int__(self) -> int:
        return int(self._find())

    def __float__(self) -> float:
        return float(self._find())

    def __bool__(self) -> bool:
        return bool(self._find())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._find())

    def __hash__(self) -> int:
        return hash(self._find())


@pytest.mark.parametrize(
    "value", [None, True, False, 3, 0.5, "text", {"a": 1}, [1, 2], "pro", {"user": {"id": 1}}]
)
def test_proxy_of_plain_data_goes_as_what_it_stands_for(value: Any) -> None:
    plain = valued.normalize({"a": Proxy(lambda: value)})["a"]
    assert plain == value
    assert valued.normalize({Proxy(lambda: "user.id"): 1}) == {"user": {"id": 1}}
    assert type(plain) is type(value)


def test_proxy_of_an_object_goes_as_that_object() -> None:
    valued.register(Dog, lambda dog: {"name": dog.name})
    dog = Dog()
    dog.name = "Rex"  # type: ignore[attr-defined]
    assert valued.normalize({"a": Proxy(lambda: dog)}) == {"a": {"name": "Rex"}}
    assert valued.normalize(Proxy(Account)) == {"kind": "method of the base"}
    assert valued.normalize(Proxy(lambda: Location("NZ"))) == {"country": "NZ", "region": None}
    assert f"no converter for {__name__}.Animal" in refusal(Proxy(Animal)).reason


def test_proxy_that_stands_for_nothing_now_is_reported_with_its_cause() -> None:
    def unbound() -> None:
        raise RuntimeError("working outside of a context")

    error = refusal({"user": Proxy(unbound)})
    assert error.path == "user"
    assert error.reason == (
        "the converter for Proxy raised RuntimeError: working outside of a context"
    )
    assert isinstance(error.__cause__, RuntimeError)


# -- what a converter may do -----------------------------------------------------------------------


def test_converter_may_return_objects_with_converters_of_their_own() -> None:
    valued.register(Animal, lambda _: Account())
    valued.register(Dog, lambda _: {"owner.account": Animal(), "tags": {Colour.RED}})
    assert valued.normalize({"dog": Dog()}) == {
        "dog": {"owner": {"account": {"kind": "method of the base"}}, "tags": ["red"]}
    }


def test_long_chain_of_converters_is_followed_and_an_endless_one_refused() -> None:
    class Step:
        def __init__(self, left: int) -> None:
            self.left = left

        def to_valued_data(self) -> object:
            return Step(self.left - 1) if self.left else "done"

    assert valued.normalize(Step(99)) == "done"
    error = refusal({"a": Step(100)})
    assert error.path == "a"
    assert error.reason == (
        f"100 converters in a row, from {Step.__qualname__} to {Step.__qualname__}, "
        "returned no data"
    )


def test_converter_that_returns_its_argument_is_refused() -> None:
    valued.register(Dog, lambda dog: dog)
    error = refusal({"dog": [Dog()]})
    assert error.path == "dog[0]"
    assert error.reason == (
        "the converter for Dog returned its own argument: return the data to send for it"
    )


def test_converter_that_raises_is_reported_with_its_exception_as_the_cause() -> None:
    failure = LookupError("no such owner")

    def convert(_: Dog) -> object:
        raise failure

    valued.register(Dog, convert)
    error = refusal({"dogs": [{"dog": Puppy()}]})
    assert str(error) == ("dogs[0].dog: the converter for Puppy raised LookupError: no such owner")
    assert error.__cause__ is failure


# -- register --------------------------------------------------------------------------------------


def test_register_returns_the_converter_as_a_call_and_as_a_decorator() -> None:
    def convert(_: object) -> object:
        return "converted"

    assert valued.register(Animal, convert) is convert

    @valued.register(Location)
    def location_data(location: Location) -> object:
        return {"country": location.country}

    assert location_data(Location("NZ")) == {"country": "NZ"}
    assert valued.normalize([Animal(), Location("NZ")]) == ["converted", {"country": "NZ"}]


@pytest.mark.parametrize(
    "cls",
    [Animal(), "Animal", list[int], 5],
    ids=lambda value: str(type(value)),
)
def test_register_refuses_what_is_no_class(cls: Any) -> None:
    kind = type(cls).__name__
    with pytest.raises(valued.ValidationError, match=rf"cls: expected a class, got {kind}"):
        valued.register(cls, str)
    with pytest.raises(valued.ValidationError, match="cls: expected a class"):
        valued.register(cls)


@pytest.mark.parametrize("cls", [str, int, float, bool, type(None), dict, list, tuple])
def test_register_refuses_a_class_that_json_has_a_form_for(cls: Any) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.register(cls, str)
    assert str(caught.value) == (
        f"cls: {cls.__name__} is sent as it is; register a class of your own in its place"
    )


@pytest.mark.parametrize("converter", ["text", 5, {"a": 1}])
def test_register_refuses_a_converter_that_can_not_be_called(converter: Any) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.register(Animal, converter)
    kind = type(converter).__name__
    assert str(caught.value) == f"converter: expected a function of one Animal, got {kind}"


def test_register_refuses_a_protocol_which_would_break_every_look_up() -> None:
    class Named(typing.Protocol):
        name: str

    with pytest.raises(valued.ValidationError, match="can't say what its subclasses are") as caught:
        valued.register(Named, str)
    assert isinstance(caught.value.__cause__, TypeError)
    assert valued.normalize({1}) == [1]


def test_registration_by_another_thread_during_a_look_up_is_missed_by_neither(
    in_thread: Any,
) -> None:
    inside, leave = threading.Event(), threading.Event()

    class Gates(abc.ABCMeta):
        """`functools` asks each registered class, in the midst of a look-up."""

        def __subclasscheck__(cls, other: type) -> bool:
            if other is Dog:
                inside.set()
                leave.wait(10)
            return False

    gate = Gates("Gate", (), {})
    valued.register(gate, lambda _: "gate")
    valued.register(Animal, lambda _: "animal")
    looked_up = in_thread(valued.normalize, Dog())
    assert inside.wait(10)
    valued.register(Dog, lambda _: "dog")
    leave.set()
    assert looked_up.result(10) in ("animal", "dog")  # it began before
    assert valued.normalize(Dog()) == "dog"


def test_registrations_of_many_threads_all_count(in_thread: Any) -> None:
    classes = [type(f"Class{number}", (), {}) for number in range(16)]
    together = threading.Barrier(len(classes))

    def convert(cls: type, _: object) -> object:
        return cls.__name__

    def register_and_use(cls: type) -> object:
        together.wait(10)
        valued.register(cls, functools.partial(convert, cls))
        return valued.normalize(cls())

    results = [in_thread(register_and_use, cls) for cls in classes]
    assert [result.result(10) for result in results] == [cls.__name__ for cls in classes]
    assert valued.normalize([cls() for cls in classes]) == [cls.__name__ for cls in classes]


def test_child_keeps_what_was_registered_before_the_fork(fork: Any) -> None:
    valued.register(Dog, lambda _: "dog")

    def child() -> None:
        assert valued.normalize(Dog()) == "dog"
        valued.register(Dog, lambda _: "the child's")
        assert valued.normalize(Dog()) == "the child's"

    assert fork(child).wait() == 0
    assert valued.normalize(Dog()) == "dog"
