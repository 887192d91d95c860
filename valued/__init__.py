"""The Python client for Valued (valued.app): events of product usage, sent in the background.

>>> import valued
>>> client = valued.Client("TOKEN")
>>> client.action("report.generated", {"user.id": 123})
"""

from valued._client import Client
from valued._connection import Connection
from valued._converters import register
from valued._directory import Outbox, Owned, Rejected
from valued._errors import (
    DeliveryError,
    NotConnectedError,
    PicklingError,
    SerializationError,
    ValidationError,
    ValuedError,
)
from valued._events import Config, validate
from valued._executors import ImmediateExecutor, set_executor
from valued._scope import Isolated, Scope
from valued._serializer import normalize
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
from valued._signals import flush_on_signals
from valued._typing import Executor, Stats, Transport
from valued._version import __version__

__all__ = [
    "Client",
    "Config",
    "Connection",
    "DeliveryError",
    "Executor",
    "ImmediateExecutor",
    "Isolated",
    "NotConnectedError",
    "Outbox",
    "Owned",
    "PicklingError",
    "Rejected",
    "Scope",
    "SerializationError",
    "Stats",
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

# Tracebacks, documentation and pickles name what the user typed, whatever file it lives in.
for _name in __all__:
    if hasattr(globals()[_name], "__module__") and callable(globals()[_name]):
        globals()[_name].__module__ = "valued"
