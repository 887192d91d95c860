"""The public types, as a user's code meets them. Checked by ``mypy --strict``, never run."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import Any

from typing_extensions import Self, assert_type

import valued

# -- client ----------------------------------------------------------------------------------------

client = valued.Client("TOKEN")
valued.Client()
valued.Client("TOKEN", "http://127.0.0.1:4567/events")
valued.Client(token="TOKEN", endpoint=None)
valued.Client(
    "TOKEN",
    executor=None,
    max_workers=5,
    max_queue=100,
    overflow="drop_oldest",
    timeout=5,
    retries=0,
    shutdown_timeout=0.5,
    idle_time=10,
    on_error=None,
)
valued.Client("TOKEN", colour="red")  # type: ignore[arg-type]  # no such option
valued.Client("TOKEN", overflow="explode")  # type: ignore[arg-type]
valued.Client("TOKEN", retries="many")  # type: ignore[arg-type]
valued.Client(5)  # type: ignore[arg-type]
valued.Client("TOKEN", None, 5)  # type: ignore[call-arg, arg-type]  # by name only

with valued.Client("TOKEN") as opened:
    assert_type(opened, valued.Client)


class Audited(valued.Client):
    """A subclass is what its own block gets."""


with Audited("TOKEN") as audited:
    assert_type(audited, Audited)


class User:
    def __init__(self, identity: int) -> None:
        self.id = identity

    def to_valued_data(self) -> Mapping[str, object]:
        return {"id": self.id}


user = User(1)

client.action("report.generated")
client.action("report.generated", {"user.id": 123})
client.action("report.generated", {("user", "id"): 123}, attributes={"format": "pdf"})
client.action("report.generated", MappingProxyType({"user": user}))
client.action("profile.updated", user=user, occured_at=datetime.datetime.now())
client.action("profile.updated", valued.scope)
client.action()  # type: ignore[call-arg]
client.action(7)  # type: ignore[arg-type]
client.page_view("https://example.com", {"user.id": 1})
client.pageview("https://example.com", user={"id": 1})
client.sync({"user": user})
client.sync_user(user)
client.sync_user({"id": 1}, name="Ada")
client.sync_customer(id=1, name="BBC Radio")
client.config(goals=[{"name": "First expense", "action_key": "k"}], signals=[])
client.config(
    valued.Config()
    .add_goal("First expense", action_key="k", min_count=5)
    .add_signal("Weekly", action_key="k", period="week")
)
assert_type(client.flush(), bool)
assert_type(client.flush(timeout=None), bool)
assert_type(client.close(0), bool)
client.flush("5")  # type: ignore[arg-type]

stats = client.stats()
assert_type(stats, valued.Stats)
assert_type(stats["accepted"], int)
assert_type(stats["disabled"] + stats["invalid"] + stats["anonymous"] + stats["refused"], int)
assert_type(stats["dropped_by_reason"], dict[str, int])
assert_type(stats["started"], "float | None")
stats["lost"]  # type: ignore[typeddict-item]

# -- transports ------------------------------------------------------------------------------------


class Backend:
    """The one of the documentation."""

    def __init__(self, token: str) -> None:
        self.connection = valued.Connection(token)

    def __call__(self, data: dict[str, Any]) -> int:
        assert_type(self.connection.headers, dict[str, str])
        return len(self.connection.endpoint)


class Posting:
    """Takes bytes."""

    def post(self, body: bytes, idempotency_key: str, timeout: float) -> None: ...

    def close(self) -> None: ...


class Widened:
    """Takes more than an event, under another name, and may be asked for more."""

    def __call__(self, event: Mapping[str, object], *, dry: bool = False) -> None: ...


class Narrowed:
    def __call__(self, data: list[int]) -> None: ...


def send(event: dict[str, Any]) -> None: ...


received: list[dict[str, Any]] = []
transports: list[valued.Transport] = [
    Backend("TOKEN"),
    Widened(),
    send,
    print,
    received.append,
    lambda event: event["category"],
    valued.Connection("TOKEN"),
]
valued.Client(Backend("TOKEN"))
valued.Client(print)
posting: list[valued.BytesTransport] = [Posting(), valued.Connection("TOKEN")]
valued.Client(Posting())
valued.connect(Posting())
valued.Scope(Posting())
valued.connect(send, retries=1)
valued.Scope(Widened(), {"user.id": 1})
valued.Client(Narrowed())  # type: ignore[arg-type]

# -- executors -------------------------------------------------------------------------------------


class OfTheUser:
    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        fn(*args)


class WithoutSubmit:
    def post(self, fn: Callable[..., Any]) -> None: ...


executors: list[valued.Executor] = [
    ThreadPoolExecutor(5),
    ProcessPoolExecutor(5),
    valued.ImmediateExecutor(),
    OfTheUser(),
]
valued.Client("TOKEN", executor=executors[0])
valued.Client("TOKEN", executor=ThreadPoolExecutor(5))
valued.Client("TOKEN", executor=lambda: ThreadPoolExecutor(5))
valued.Client("TOKEN", executor=OfTheUser)
valued.connect("TOKEN", executor=valued.ImmediateExecutor())
valued.set_executor(OfTheUser())
valued.set_executor(OfTheUser)
valued.set_executor(None)
valued.set_executor(WithoutSubmit())  # type: ignore[arg-type]
valued.Client("TOKEN", executor=5)  # type: ignore[arg-type]


def on_error(error: valued.DeliveryError, event: dict[str, Any]) -> None:
    assert_type(error.status, int | None)
    assert_type(error.retry_after, float | None)


valued.Client("TOKEN", on_error=on_error)
valued.Client("TOKEN", on_error=print)
valued.Client("TOKEN", on_error=send)  # type: ignore[arg-type]  # takes one argument

# -- converters ------------------------------------------------------------------------------------


class Location:
    country = "NZ"


@valued.register(Location)
def location_data(location: Location) -> dict[str, str]:
    return {"country": location.country}


assert_type(location_data(Location())["country"], str)  # it keeps its own type
assert_type(valued.register(User, lambda user: {"id": user.id})(user), dict[str, int])
valued.register(Location, location_data)
valued.register(User, location_data)  # type: ignore[arg-type]
valued.register("User", location_data)  # type: ignore[call-overload]
valued.normalize({"user.id": 1})
valued.validate({"category": "action", "key": "k", "user.id": 1})

# -- scope -----------------------------------------------------------------------------------------

scope = valued.Scope(client, {"user.id": 1}, team="a")
valued.Scope("TOKEN")
valued.Scope()
scope["user.id"] = 123
scope["user", "id"] = 123
scope["user", "location", "country"] = "NZ"
del scope["user.id"]
scope.user = user
scope.user_id = "u-1"
scope.customer = {"id": 12}
scope.customer_id = 12
assert_type("user.id" in scope, bool)
assert_type(scope.to_dict(), dict[str, Any])
scope.apply({"attributes.plan": "pro"}, team="b")
scope.reset()
with scope.nested({"customer.id": 12}) as nested:
    assert_type(nested, valued.Scope)
    nested.page_view("https://example.com")
scope.sync()
scope.sync_user(name="Ada")
scope[5]  # type: ignore[index]

# -- shared client ---------------------------------------------------------------------------------

assert_type(valued.connect(), valued.Client)
assert_type(valued.connect(client), valued.Client)
assert_type(valued.client(), valued.Client)
assert_type(valued.connected(), bool)
assert_type(valued.flush(1), bool)
assert_type(valued.disconnect(timeout=1), bool)
block: AbstractContextManager[valued.Scope] = valued.nested({"customer.id": 12}, user=user)
with valued.nested():
    valued.scope["user.id"] = 123
    valued.action("report.generated", {"attributes.format": "pdf"})
    valued.page_view("https://example.com")
    valued.pageview("https://example.com")
    valued.sync(user={"id": 1, "name": "Ada"})
    valued.sync_user(user)
    valued.sync_customer(id=1)
    valued.config(goals=[])

# -- errors ----------------------------------------------------------------------------------------


class Recording:
    """As an application handles them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exception, valued.ValidationError):
            assert_type(exception.problems, tuple[str, ...])
        if isinstance(exception, valued.SerializationError):
            assert_type(exception.path, str)
            assert_type(exception.reason, str)


def built_in(error: valued.ValidationError) -> ValueError:
    return error


errors: list[type[valued.ValuedError]] = [
    valued.ValidationError,
    valued.SerializationError,
    valued.NotConnectedError,
    valued.DeliveryError,
    valued.PicklingError,
]

# -- units of work ---------------------------------------------------------------------------------

unit: valued.Isolated = scope.isolated({"user.id": 1}, lazy={"user": lambda: user}, team="a")
with unit as inside:
    assert_type(inside, valued.Scope)
with valued.isolated(lambda: {"user.id": 1}), unit.entered() as again:
    assert_type(again, valued.Scope)
assert_type(unit.run(len, "abc"), int)
with ThreadPoolExecutor() as threads:
    threads.submit(unit.run, scope.action, "report.printed")
valued.Client("TOKEN", defaults={"attributes.env": "prod"}, isolate_tasks=False)
assert_type(valued.flush_all(), bool)
assert_type(valued.flush_all(timeout=5), bool)
valued.flush_all(None)


# -- control and tests -----------------------------------------------------------------------------


def before_send(event: dict[str, Any]) -> dict[str, Any] | None:
    return event if event["category"] == "action" else None


valued.Client("TOKEN", enabled=True, invalid="raise", anonymous="raise", before_send=before_send)
valued.Client(enabled=False, invalid="log", anonymous="drop", before_send=None)
valued.Client("TOKEN", invalid="ignore")  # type: ignore[arg-type]

scope.attributes["plan"] = "pro"
scope.attributes = {"plan": "pro"}

with valued.testing.recorded() as events:
    assert_type(events.actions, list[str])
with valued.testing.service() as service:
    service.fail(503, times=2)
    assert_type(service.url, str)
