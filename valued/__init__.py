"""The Python client for Valued (valued.app): records what users do, and sends it in the background.

>>> import valued
>>> valued.connect("TOKEN")  # or set VALUED_TOKEN
>>> valued.action("report.generated", {"user.id": 123})

``connect`` makes a client for the whole program. The functions of this module use it: ``action``,
``page_view``, ``sync_user``, ``flush`` … ``isolated`` gives each request or task data of its own.
``Client`` is for programs that pass a client around, ``Scope`` for data that several events share.

A call checks the event, copies it and returns. Bad input raises a ``ValuedError``; trouble in
delivery is logged on the logger ``valued``, counted in ``stats``, and raises nothing. Clients work
in forked processes: there is nothing to call after a fork.

PYTEST_DONT_REWRITE (for pytest, which warns if a package with a plugin was imported before it.)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from valued._client import Client
from valued._errors import (
    DeliveryError,
    NotConnectedError,
    PicklingError,
    SerializationError,
    ValidationError,
    ValuedError,
)
from valued._events.categories import Config, validate
from valued._events.converters import register
from valued._events.serializer import normalize
from valued._scope import Isolated, Scope
from valued._shared import (
    action,
    client,
    config,
    connect,
    connected,
    disconnect,
    flush,
    flush_all,
    isolated,
    nested,
    page_view,
    pageview,
    scope,
    sync,
    sync_customer,
    sync_user,
)
from valued._typing import BytesTransport, Executor, Stats, Transport
from valued._version import __version__

if _TYPE_CHECKING:
    from valued import testing as testing
    from valued._delivery.executors import ImmediateExecutor, set_executor
    from valued._http.connection import Connection
    from valued._outbox.inspect import Outbox, Owned, Rejected
    from valued._process.signals import flush_on_signals
    from valued._status.inspect import ApplicationStats, Metric, ProcessStats, Status

__all__ = [
    "ApplicationStats",
    "BytesTransport",
    "Client",
    "Config",
    "Connection",
    "DeliveryError",
    "Executor",
    "ImmediateExecutor",
    "Isolated",
    "Metric",
    "NotConnectedError",
    "Outbox",
    "Owned",
    "PicklingError",
    "ProcessStats",
    "Rejected",
    "Scope",
    "SerializationError",
    "Stats",
    "Status",
    "Transport",
    "ValidationError",
    "ValuedError",
    "__version__",
    "action",
    "client",
    "config",
    "connect",
    "connected",
    "disconnect",
    "flush",
    "flush_all",
    "flush_on_signals",
    "isolated",
    "nested",
    "normalize",
    "page_view",
    "pageview",
    "register",
    "scope",
    "set_executor",
    "sync",
    "sync_customer",
    "sync_user",
    "validate",
]

#: What is imported when it is first used. `Connection` imports `requests`, which takes longer than
#: all the rest; a client imports it, too.
_LATE = {
    "ApplicationStats": "_status.inspect",
    "Connection": "_http.connection",
    "ImmediateExecutor": "_delivery.executors",
    "Metric": "_status.inspect",
    "Outbox": "_outbox.inspect",
    "Owned": "_outbox.inspect",
    "ProcessStats": "_status.inspect",
    "Rejected": "_outbox.inspect",
    "Status": "_status.inspect",
    "flush_on_signals": "_process.signals",
    "set_executor": "_delivery.executors",
}


def _named(value: object) -> object:
    """*value* as tracebacks, documentation and pickles name it: as it is typed."""
    if callable(value) and hasattr(value, "__module__"):
        value.__module__ = "valued"
    return value


for _name in __all__:
    _named(globals().get(_name))


def __getattr__(name: str) -> object:
    if name not in _LATE and name != "testing":
        raise AttributeError(f"module 'valued' has no attribute {name!r}")
    import importlib

    if name == "testing":
        return importlib.import_module("valued.testing")
    value = _named(getattr(importlib.import_module(f"valued.{_LATE[name]}"), name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
