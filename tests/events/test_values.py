"""What common classes are sent as, and that each hint of an error is code that works."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import json
import pathlib
import re
import sys
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest

import valued
from tests.events.test_converters import Proxy
from tests.support.processes import run
from tests.support.refusals import refusal


def pasted(error: valued.SerializationError) -> None:
    """Run the code that *error* tells to write, where only `valued` is imported."""
    code = str(error).rpartition("write: ")[2]
    exec(f"import valued\n{code}", {})


def proposed(error: valued.SerializationError, value: object, *modules: str) -> Any:
    """What the expression is that *error* tells to send."""
    match = re.search(r"send (.*?)(, or |, such as (.*)|$)", error.reason)
    assert match is not None
    code = match[3] or match[1]
    return eval(code, {"value": value, **{name: sys.modules[name] for name in modules}})


def printed(program: str) -> Any:
    """What a program prints, as data. What it imports stays away from this process."""
    done = run("-W", "error", "-c", f"import json, valued\n{program}", timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# -- Python's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (pathlib.PurePosixPath("/srv/ü.txt"), "/srv/ü.txt"),
        (pathlib.PureWindowsPath("C:/a"), "C:\\a"),
        (pathlib.Path("a") / "b", str(pathlib.Path("a/b"))),
        (ipaddress.ip_address("192.0.2.1"), "192.0.2.1"),
        (ipaddress.ip_address("2001:db8::1"), "2001:db8::1"),
        (ipaddress.ip_network("192.0.2.0/24"), "192.0.2.0/24"),
        (ipaddress.ip_network("2001:db8::/32"), "2001:db8::/32"),
        (ipaddress.ip_interface("192.0.2.1/24"), "192.0.2.1/24"),
        (ipaddress.ip_interface("2001:db8::1/32"), "2001:db8::1/32"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_paths_and_addresses_go_as_their_text(value: object, expected: str) -> None:
    plain = valued.normalize({"a": [value]})["a"][0]
    assert plain == expected
    assert type(plain) is str


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        ({}, "PT0S"),
        ({"days": 1}, "P1D"),
        ({"hours": -1}, "-PT1H"),
        ({"days": 1, "hours": 2, "seconds": 3.5}, "P1DT2H3.5S"),
        ({"minutes": 90}, "PT1H30M"),
        ({"microseconds": 1}, "PT0.000001S"),
        ({"microseconds": -1}, "-PT0.000001S"),
        ({"days": -1, "microseconds": 1}, "-PT23H59M59.999999S"),
        ({"weeks": 2, "minutes": 1}, "P14DT1M"),
        ({"days": 999_999_999}, "P999999999D"),
        ({"days": -999_999_999}, "-P999999999D"),
        ({"seconds": 10}, "PT10S"),
    ],
)
def test_duration_goes_as_iso_8601_to_the_microsecond(duration: Any, text: str) -> None:
    assert valued.normalize(datetime.timedelta(**duration)) == text


def test_import_brings_in_no_class_that_it_knows_by_name() -> None:
    loaded = printed("import sys; print(json.dumps(sorted(sys.modules)))")
    names = {"decimal", "ipaddress", "numpy", "pandas", "pathlib", "uuid"}
    bare = run("-c", "import json, sys; print(json.dumps(sorted(sys.modules)))").stdout
    requests = run("-c", "import requests, json, sys; print(json.dumps(sorted(sys.modules)))")
    others = {*json.loads(bare), *json.loads(requests.stdout)}
    assert names & set(loaded) - others == set()


# -- other libraries -------------------------------------------------------------------------------


def test_scalars_of_numpy_go_as_pythons_own() -> None:
    pytest.importorskip("numpy")
    program = """
import numpy as np
values = [
    np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), np.uint8(3), np.bool_(True),
    np.str_("text"), np.datetime64("2024-02-29"), np.datetime64("2024-02-29T10:00:00.5", "ms"),
    np.datetime64("2024-02-29T10:00:00.000000005", "ns"), np.timedelta64(-1, "h"),
    np.timedelta64(1_500_000_001, "ns"),
]
print(json.dumps([valued.normalize({"a": value})["a"] for value in values]))
"""
    assert printed(program) == [
        0.5, 0.5, 0.5, 3, 3, True, "text", "2024-02-29", "2024-02-29T10:00:00.500000",
        "2024-02-29T10:00:00.000000005", "-PT1H", "PT1.500000001S",
    ]  # fmt: skip


#: For programs: the reason of a refusal, and what the expression in it makes.
_REFUSED = """
import re
def refused(value):
    try:
        valued.normalize({"a": [value]})
    except valued.SerializationError as error:
        assert error.path == "a[0]", error
        assert error.summary == str(error)
        code = re.search("send (.*?)( instead|$)", error.reason)[1]
        return [error.reason, valued.normalize(eval(code, {"value": value}))]
    return "accepted"
"""


def test_what_numpy_has_no_json_for_is_refused_with_a_hint_that_works() -> None:
    pytest.importorskip("numpy")
    program = f"""{_REFUSED}
import numpy as np
values = [
    np.float64("nan"), np.float32("inf"), np.datetime64("NaT", "s"), np.timedelta64("NaT", "s"),
    np.timedelta64(5, "Y"), np.array([1, 2]), np.array([[0.5], [1.5]]), np.array(5),
]
print(json.dumps([refused(value) for value in values]))
"""
    number = "JSON has no NaN and no infinity: send None instead"
    array = "an array is sent as a list: send value.tolist()"
    assert printed(program) == [
        [number, None],
        [number, None],
        ["NaT is not a time: send None instead", None],
        ["NaT is not a duration: send None instead", None],
        ["this numpy.timedelta64 has a unit unknown to timedelta: send str(value)", "5 years"],
        [array, [1, 2]],
        [array, [[0.5], [1.5]]],
        [array, 5],
    ]


def test_moments_of_pandas_go_and_what_is_missing_is_refused_with_a_hint_that_works() -> None:
    pytest.importorskip("pandas")
    program = f"""{_REFUSED}
import pandas as pd
good = [
    pd.Timestamp("2024-02-29T10:00:00+01:00"), pd.Timestamp(5, unit="ns"),
    pd.Timedelta(days=-1, hours=2, nanoseconds=5), pd.Timedelta(hours=1),
]
bad = [
    pd.NaT, pd.NA, pd.Series([1, 2]), pd.DataFrame({{"a": [1, 2]}}),
]
print(json.dumps([valued.normalize(good), [refused(value) for value in bad]]))
"""
    good, bad = printed(program)
    assert good == [
        "2024-02-29T10:00:00+01:00",
        "1970-01-01T00:00:00.000000005",
        "-PT21H59M59.999999995S",
        "PT1H",
    ]
    assert bad == [
        ["NaT is not a time: send None instead", None],
        ["JSON has no NA: send None instead", None],
        ["a Series is sent as a list: send value.tolist()", [1, 2]],
        ["a DataFrame is sent as a list: send value.to_dict('records')", [{"a": 1}, {"a": 2}]],
    ]


def test_lazy_translation_goes_as_its_text_and_is_a_key() -> None:
    pytest.importorskip("django")
    program = """
from django.conf import settings
settings.configure(USE_I18N=False)
from django.utils.functional import lazystr
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy
name = gettext_lazy("plan")
data = {name: name, ("a", gettext_lazy("b.c")): [format_lazy("{}!", name)], lazystr(5): 1}
print(json.dumps(valued.normalize(data)))
"""
    assert printed(program) == {"plan": "plan", "a": {"b": {"c": ["plan!"]}}, "5": 1}


def test_lazy_translation_of_babel_goes_as_its_text_and_is_a_key() -> None:
    pytest.importorskip("flask_babel")
    program = """
import flask, flask_babel
from babel.support import LazyProxy
app = flask.Flask("app")
flask_babel.Babel(app)
name, other = flask_babel.lazy_gettext("plan"), LazyProxy(lambda: "other")
with app.test_request_context():
    print(json.dumps(valued.normalize({name: [name], "a": other})))
"""
    assert printed(program) == {"plan": ["plan"], "a": "other"}


# -- hints -----------------------------------------------------------------------------------------


class Place:
    def __str__(self) -> str:
        return "a place"

    class Inner:
        def __str__(self) -> str:
            return "an inner place"


@pytest.mark.parametrize("value", [Place(), Place.Inner(), 1j], ids=lambda v: type(v).__name__)
def test_hint_for_an_unknown_class_is_code_that_registers_it(value: object) -> None:
    error = refusal({"attributes": {"place": value}})
    pasted(error)
    assert valued.normalize({"attributes": {"place": value}}) == {
        "attributes": {"place": str(value)}
    }


def test_hint_names_the_full_import_of_a_nested_class() -> None:
    assert refusal(Place.Inner()).reason == (
        f"no converter for {__name__}.Place.Inner: give the class a to_valued_data() method, or "
        f"write: from {__name__} import Place; valued.register(Place.Inner, str)"
    )


def test_hint_works_in_the_program_itself() -> None:
    program = """
class Place:
    def __str__(self): return "a place"
try:
    valued.normalize(Place())
except valued.SerializationError as error:
    assert "from" not in str(error), error
    exec(str(error).rpartition("write: ")[2])
print(json.dumps(valued.normalize(Place())))
"""
    assert printed(program) == "a place"


def local() -> object:
    class Local:
        def __str__(self) -> str:
            return "a local"

    return Local()


def renamed(module: object, name: str) -> object:
    return type(name, (), {"__module__": module, "__str__": lambda _: "renamed"})()


@pytest.mark.parametrize(
    "value",
    [
        local(),
        renamed(__name__, "Elsewhere"),
        renamed("my-script", "Place"),
        renamed("never_imported", "Place"),
        renamed(None, "Place"),
        renamed(__name__, "Place"),
        print,
    ],
    ids=lambda it: f"{type(it).__module__}.{type(it).__qualname__}",
)
def test_hint_for_a_class_that_no_import_gets_is_what_to_send(value: object) -> None:
    error = refusal({"a": value})
    assert "register" not in error.reason
    assert error.reason.endswith(
        "give the class a to_valued_data() method, or send a plain value, such as str(value)"
    )
    assert valued.normalize({"a": proposed(error, value)}) == {"a": str(value)}


def test_iterator_is_refused_with_what_to_send() -> None:
    value = map(str, [1, 2])
    assert valued.normalize(proposed(refusal(value), value)) == ["1", "2"]
    value = (number for number in range(2))  # type: ignore[assignment]
    assert valued.normalize(proposed(refusal(value), value)) == [0, 1]


try:
    import pydantic
except ImportError:
    pydantic = None  # type: ignore[assignment]
else:

    class Order(pydantic.BaseModel):
        id: int
        when: datetime.date = datetime.date(2024, 2, 29)


try:
    import attrs
except ImportError:
    attrs = None  # type: ignore[assignment]
else:

    @attrs.define
    class Parcel:
        id: int
        weight: float = 0.5

    @attrs.define(slots=False)
    class Box:
        box_id: int


try:
    import sqlalchemy
    from sqlalchemy import orm
except ImportError:
    sqlalchemy = None  # type: ignore[assignment]
else:

    class Base(orm.DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = "rows"
        number: orm.Mapped[int] = orm.mapped_column("nr", primary_key=True)
        password_hash: orm.Mapped[str]


def library_objects() -> list[Any]:
    """Objects of classes that can be imported, and of some that can't, with what is sent."""
    found: list[Any] = []
    if pydantic is not None:

        class Model(pydantic.BaseModel):
            id: int

        found += [(Order(id=1), {"id": 1, "when": "2024-02-29"}), (Model(id=1), {"id": 1})]
    if attrs is not None:

        @attrs.define
        class Local:
            id: int

        found += [(Parcel(1), {"id": 1, "weight": 0.5}), (Local(1), {"id": 1})]
    if sqlalchemy is not None:
        found.append((Row(number=7, password_hash="secret"), 7))
    return found


@pytest.mark.parametrize(
    ("value", "expected"), library_objects(), ids=lambda value: type(value).__name__
)
def test_hints_for_an_object_of_a_common_library_work(value: Any, expected: Any) -> None:
    error = refusal({"a": value})
    modules = ("attrs",) if "attrs" in str(error) else ()
    assert valued.normalize(proposed(error, value, *modules)) == expected
    assert "secret" not in str(error)
    assert ("register" in error.reason) is ("<locals>" not in type(value).__qualname__)
    if "register" in error.reason:
        pasted(error)
        plain = valued.normalize({"a": value, "user": value})
        expected = expected if isinstance(expected, dict) else {"id": expected}
        assert plain == {"a": expected, "user": expected}


def test_hints_for_a_model_of_django_propose_its_primary_key() -> None:
    pytest.importorskip("django")
    program = """
import django, sys
from django.conf import settings
settings.configure()
django.setup()
from django.db import models
from django.utils.functional import SimpleLazyObject
class Member(models.Model):
    email = models.TextField(primary_key=True)
    password_hash = models.TextField()
    class Meta:
        app_label = "shop"
value = Member(email="ada", password_hash="secret")
entries = dict(valued._events.converters._registered)
plain = []
for data in ({"a": value}, {"user": value}, {"user": SimpleLazyObject(lambda: value)}):
    try:
        valued.normalize(data)
    except valued.SerializationError as error:
        plain.append("dump" in str(error) or "password" in str(error))
        exec(str(error).rpartition("write: ")[2])
        plain.append(valued.normalize(data))
    valued._events.converters._registered.clear()
    valued._events.converters._registered.update(entries)
    valued._events.converters._version = object()
print(json.dumps(plain))
"""
    assert printed(program) == [
        *(False, {"a": {"id": "ada"}}),
        *(False, {"user": {"id": "ada"}}),
        *(False, {"user": {"id": "ada"}}),
    ]


# -- users and customers ---------------------------------------------------------------------------


@dataclasses.dataclass
class Person:
    id: int
    password_hash: str = "secret"


@dataclasses.dataclass
class Account:
    uuid: str = "u-1"

    class Holder:
        """No dataclass; its id is in each object alone."""

        def __init__(self) -> None:
            self.customer_id = 5
            self.secret = "secret"

        def id(self) -> int:
            raise AssertionError


class Unnamed:
    __slots__ = ("secret",)


class Slotted:
    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id = 5


def party_objects() -> list[tuple[object, object]]:
    found: list[tuple[object, object]] = [
        (Person(5), 5),
        (Account(), "u-1"),
        (Account.Holder(), 5),
        (Slotted(), 5),
        (Proxy(lambda: Person(5)), 5),
        (SimpleNamespace(id=5), 5),
    ]
    if pydantic is not None:
        found.append((Order(id=5), 5))
    if attrs is not None:
        found += [(Parcel(5), 5), (Box(5), 5)]
    if sqlalchemy is not None:
        found.append((Row(number=5, password_hash="secret"), 5))
    return found


@pytest.mark.parametrize(
    ("value", "identity"), party_objects(), ids=lambda value: type(value).__name__
)
def test_object_as_the_customer_needs_a_converter_and_the_hint_proposes_its_id(
    value: object, identity: object
) -> None:
    expected = {"customer": {"id": identity}}
    error = refusal({"customer": value})
    assert error.path == "customer"
    assert f"{value.__class__.__module__}.{value.__class__.__qualname__}" in error.reason
    assert "dump" not in str(error)
    assert "asdict" not in str(error)
    assert "secret" not in str(error)
    for data in (
        {("customer",): value},
        {(("customer",),): value},
        UserDict(customer=value),
        {"customer.id": 1, "customer": value},
        Wrapper({"customer": value}),
        {"customer": Wrapper(value)},
    ):
        assert refusal(data).reason == error.reason
    pasted(error)
    assert valued.normalize({"customer": value}) == expected


class Wrapper:
    def __init__(self, content: object) -> None:
        self._content = content

    def to_valued_data(self) -> object:
        return self._content


def test_converter_that_returns_a_dataclass_for_a_user_sends_nothing_of_it() -> None:
    error = refusal({"user": Wrapper(Wrapper(Person(1)))})
    assert error.path == "user"
    assert f"{__name__}.Person is a dataclass, all of whose fields would be sent" in error.reason
    assert valued.normalize({"a": Wrapper(Person(1))}) == {
        "a": {"id": 1, "password_hash": "secret"}
    }


def test_local_class_as_the_user_gets_a_hint_that_works() -> None:
    @dataclasses.dataclass
    class Local:
        user_id: int

    error = refusal({"user": Local(1)})
    assert error.reason.endswith('say what is sent: send {"id": value.user_id}')
    assert valued.normalize({"user": proposed(error, Local(1))}) == {"user": {"id": 1}}


@pytest.mark.parametrize("value", [Unnamed(), 1j, Person, print])
def test_object_without_an_id_as_the_user_is_refused_for_a_mapping(value: object) -> None:
    error = refusal({"user": value})
    assert error.reason.endswith('send a mapping with its id, such as {"id": 1}')
    assert valued.normalize({"user": proposed(error, value)}) == {"user": {"id": 1}}


def test_dataclass_elsewhere_goes_with_its_fields() -> None:
    person, fields = Person(1), {"id": 1, "password_hash": "secret"}
    for data, expected in [
        ({"attributes": {"user": person}}, {"attributes": {"user": fields}}),
        ({"user": {"profile": person}}, {"user": {"profile": fields}}),
        ({"user.profile": person}, {"user": {"profile": fields}}),
        ({("user", "customer"): person}, {"user": {"customer": fields}}),
        ({"team": person}, {"team": fields}),
        ([{"user": person}], [{"user": fields}]),
        (person, fields),
    ]:
        assert valued.normalize(data) == expected


class Described(Person):
    def to_valued_data(self) -> object:
        return {"id": self.id}


def test_dataclass_with_a_converter_of_its_own_is_a_user() -> None:
    assert valued.normalize({"user": Described(1)}) == {"user": {"id": 1}}
    valued.register(Person, lambda person: {"id": person.id, "kind": "registered"})
    assert valued.normalize({"user": Person(1)}) == {"user": {"id": 1, "kind": "registered"}}


def test_object_that_can_not_be_asked_is_refused_with_what_it_raised() -> None:
    def unbound() -> object:
        raise RuntimeError("working outside of a context")

    assert "RuntimeError" in refusal({"user": Proxy(unbound)}).reason


@pytest.mark.parametrize("described", [{"__mapper__": 5}, {"__attrs_attrs__": 5}])
def test_dataclass_that_is_not_what_it_looks_like_is_refused_as_a_party_all_the_same(
    described: dict[str, Any],
) -> None:
    value = type("Odd", (Person,), described)(1)
    assert refusal({"user": value}).path == "user"


def test_scope_refuses_a_dataclass_as_its_user(recorder: valued.Client) -> None:
    scope = valued.Scope(recorder, {"user": {"id": 1}})
    with pytest.raises(valued.SerializationError, match=r"^user: .*Person is a dataclass"):
        scope.user = Person(2)
    assert scope.user == {"id": 1}
