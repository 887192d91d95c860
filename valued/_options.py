"""The options of a client, checked once, and the only reader of the environment."""

from __future__ import annotations

import enum
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args
from typing import Literal as _Literal

from valued._errors import ValidationError
from valued._secret import hide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    from valued._typing import Data, Executor, JSONObject, OnError

DEFAULT_ENDPOINT: Final = "https://ingest.valued.app/events"

#: What every wait of the system can take: `poll` counts milliseconds in 31 bits (24 days).
MOST_SECONDS: Final = 1_000_000

Overflow = _Literal["drop_newest", "drop_oldest", "block", "caller_runs"]
Durability = _Literal["process", "power"]
Invalid = _Literal["raise", "log"]
Anonymous = _Literal["raise", "drop"]

#: Bytes; two files of an outbox, below which it would drop what it is writing.
LEAST_SIZE: Final = 8 * 1024 * 1024


class Environment(enum.Enum):
    """Where the application runs, as far as it changes how events are sent."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"
    TEST = "test"


_NAMES: Final = {
    "test": Environment.TEST,
    "testing": Environment.TEST,
    "development": Environment.DEVELOPMENT,
    "dev": Environment.DEVELOPMENT,
}


def environment() -> Environment:
    """The environment: ``VALUED_ENV`` where it is set; else, whether this is a run of tests.

    No other variable counts: ``ENV=test`` stands on staging hosts, too.
    """
    name = os.environ.get("VALUED_ENV", "").strip().lower()
    if name:
        return _NAMES.get(name, Environment.PRODUCTION)
    return Environment.TEST if _is_test_run() else Environment.PRODUCTION


def _is_test_run() -> bool:
    # By the program and its arguments: applications import test runners, too.
    *folders, program = sys.argv[0].replace("\\", "/").split("/") if sys.argv else [""]
    if program == "__main__.py" and folders:  # python -m …
        program = folders[-1]
    if program.removesuffix(".exe") in ("pytest", "py.test", "unittest"):
        return True
    if program.endswith(" -m unittest"):  # so it calls itself
        return True
    if program == "-c":  # as xdist starts its workers
        return _EXECNET in sys.orig_argv
    return program in ("manage.py", "django-admin", "django") and sys.argv[1:2] == ["test"]


_EXECNET: Final = "import sys;exec(eval(sys.stdin.readline()))"


def threads_are_off() -> bool:
    """Whether this is a uWSGI that never lets a thread of Python's run.

    Its options don't tell: besides ``enable-threads`` others turn threads on, too, and from uWSGI
    2.0.27 on they always are.
    """
    return not getattr(sys.modules.get("uwsgi"), "has_threads", True)


def token_from_environment() -> str | None:
    """``VALUED_TOKEN``, None where it is not set."""
    return os.environ.get("VALUED_TOKEN")


def endpoint_from_environment() -> str | None:
    """``VALUED_ENDPOINT``, None where it is not set or empty."""
    return os.environ.get("VALUED_ENDPOINT") or None


def outbox_from_environment() -> str | None:
    """``VALUED_OUTBOX``, None where it is not set or empty."""
    return os.environ.get("VALUED_OUTBOX") or None


def recording_from_environment() -> tuple[str | None, bool]:
    """What `valued.testing` asks of programs that a test starts.

    ``VALUED_RECORD``: a directory to record events in. ``VALUED_BLOCK``: whether real endpoints are
    refused.
    """
    return os.environ.get("VALUED_RECORD") or None, os.environ.get("VALUED_BLOCK") == "1"


_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})


def switch_from_environment(variable: str, default: bool) -> bool:  # noqa: FBT001
    """Whether *variable* is on. Raises `ValidationError` where it says neither on nor off."""
    given = hide(os.environ.get(variable))  # no frame shows it: it may be a secret
    if given is None:
        return default
    said = given.strip().lower()
    if said not in _TRUE | _FALSE:
        raise ValidationError(f"{variable}: expected 1 or 0, and it says neither")
    return said in _TRUE


def _choice_from_environment(variable: str, names: tuple[str, ...]) -> str:
    """What *variable* says, the first of *names* where it is not set. Raises `ValidationError`."""
    said = hide(os.environ.get(variable, "")).strip().lower() or names[0]
    if said not in names:
        raise ValidationError(f"{variable}: expected {' or '.join(names)}, and it says neither")
    return str.__str__(said)


def ca_bundle_from_environment() -> str | None:
    """The file or directory of certificate authorities to trust, by the names `requests` reads."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None


# A named tuple, as a dataclass would cost every import of the library a third more.
class Options(NamedTuple):
    """What ``Client`` and ``connect`` take by keyword; made by `of`, which checks it.

    It is the same in every process: a fork, and a child that is spawned, keep it.
    """

    #: Where deliveries run: an object with ``submit(fn, *args)``, or a factory of one, called
    #: anew, with the first event, in each process. Default: `valued.set_executor`'s, else a pool
    #: of 1 to ``max_workers`` threads; in the caller where the environment is ``test``.
    executor: Executor | Callable[[], Executor] | None = None
    #: Deliveries at the same time, at most (threads of the default pool, and connections).
    #: Default 10, 1 where the environment is ``development``. Ten that each wait 20 ms for their
    #: answer can deliver 500 events a second.
    max_workers: int | None = None
    #: Events accepted and not settled, at most. Default 10,000: half a minute of 300 events a
    #: second; at 500 bytes an event, 5 MB. (There is a bound of 64 MiB, too.)
    max_queue: int = 10_000
    #: What happens to an event that comes when the queue is full: ``"drop_newest"`` (default),
    #: ``"drop_oldest"``, ``"block"`` (the caller waits, ``timeout`` seconds at most, then the
    #: newest is dropped) or ``"caller_runs"`` (the caller delivers it).
    overflow: Overflow = "drop_newest"
    #: Seconds for one attempt to deliver, the answer included. Default 10. Connecting to an
    #: address, and a handshake of TLS, may each take as long before they are given up.
    timeout: float = 10.0
    #: Attempts after the first. Default 240: the pauses, random up to bounds that double from 0.5 s
    #: to 30 s, add up to an hour on average, which is also the age at which an event is given up.
    #: While the endpoint as a whole is down, one event probes, and its attempts count for all.
    retries: int = 240
    #: Seconds that the end of a process may wait for events not yet delivered. Default 5: half
    #: of the 10 s that supervisors commonly leave between SIGTERM and SIGKILL; 1 with an outbox,
    #: where they are not lost.
    shutdown_timeout: float | None = None
    #: Seconds that a thread of the default pool waits for work before it ends. Default 60: rarely
    #: in the way of an application that sends now and then, and a process that no longer sends is
    #: one without threads, which is a safe one to fork.
    idle_time: float = 60.0
    #: Called with a `DeliveryError` and the event (a dict) for each event that is given up.
    on_error: OnError | None = None
    #: A directory in which events outlive their process. Default ``VALUED_OUTBOX``; without one
    #: they wait in memory.
    outbox: str | PathLike[str] | None = None
    #: What an event outlives: ``"process"`` (default), or ``"power"``: the call then waits until
    #: the disk has it, some milliseconds.
    durability: Durability = "process"
    #: Seconds after which an event in the outbox is dropped. Default 604,800, a week: longer than
    #: an outage that nobody looks at, on a weekend with holidays.
    outbox_max_age: float = 604_800.0
    #: Bytes of the outbox, of all processes; past them the oldest events are dropped. Default
    #: 1,073,741,824 (1 GiB): two million events of 500 bytes.
    outbox_max_size: int = 1_073_741_824
    #: What every scope of the client starts from, as plain data.
    defaults: Data = None
    #: Whether each task of Celery's starts with the defaults of the client's scopes. Default
    #: ``VALUED_ISOLATE_TASKS``, else True.
    isolate_tasks: bool | None = None
    #: Whether events are sent. False: they are checked, counted as ``disabled``, and dropped; no
    #: token is needed. Default: False where ``VALUED_DISABLED`` is 1, else True.
    enabled: bool | None = None
    #: What becomes of an event that can't be sent: ``"raise"`` (default), or ``"log"``: it is
    #: counted and logged, and the call returns. Default ``VALUED_INVALID``.
    invalid: Invalid | None = None
    #: What becomes of an action, or a page view, without the ids it needs: ``"raise"`` (default),
    #: or ``"drop"``: it is counted, and the call returns. Default ``VALUED_ANONYMOUS``.
    anonymous: Anonymous | None = None
    #: Called with each event, a dict of its own, in the caller; what it returns is sent. None:
    #: nothing is. Where it raises, nothing is, either; that is logged.
    before_send: Callable[[JSONObject], JSONObject | None] | None = None

    def seconds_at_end(self) -> float:
        """How long the end of a process may wait."""
        if self.shutdown_timeout is not None:
            return self.shutdown_timeout
        return 5.0 if self.outbox is None else 1.0

    def problems(self) -> list[str]:
        """What keeps the options from being used."""
        problems = [
            *whole("max_workers", self.max_workers, least=1, optional=True),
            *whole("max_queue", self.max_queue, least=1),
            *whole("retries", self.retries, least=0),
            *seconds("timeout", self.timeout, zero=False),
            *seconds("shutdown_timeout", self.seconds_at_end(), zero=True),
            *seconds("idle_time", self.idle_time, zero=False),
            *seconds("outbox_max_age", self.outbox_max_age, zero=False),
            *whole("outbox_max_size", self.outbox_max_size, least=LEAST_SIZE),
        ]
        if self.outbox is not None and os.name == "nt":
            problems.append(
                "outbox: it needs Linux or macOS; leave it (and VALUED_OUTBOX) out, and events "
                "wait in memory"
            )
        if self.on_error is not None and not callable(self.on_error):
            problems.append(
                f"on_error: expected a function of (error, event), got {_kind(self.on_error)}"
            )
        problems += _not_one_of("overflow", self.overflow, get_args(Overflow))
        problems += _not_one_of("durability", self.durability, get_args(Durability))
        problems += _not_one_of("invalid", self.invalid, (*get_args(Invalid), None))
        problems += _not_one_of("anonymous", self.anonymous, (*get_args(Anonymous), None))
        for name in ("isolate_tasks", "enabled"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, bool)):
                problems.append(f"{name}: expected True, False or None, got {_kind(value)}")
        if self.before_send is not None and not callable(self.before_send):
            kind = _kind(self.before_send)
            problems.append(f"before_send: expected a function of one event, got {kind}")
        elif _is_async(self.before_send):
            problems.append("before_send: expected a function without async: it runs in the call")
        return problems + executor_problems(self.executor)

    @classmethod
    def of(cls, given: dict[str, Any], unknown: Iterable[str]) -> Options:
        """Options from keyword arguments, checked. Raises `ValidationError`.

        Of a name that is not one of them it says which one is close.
        """
        problems = [f"{name}: no such option; {_hint(name, cls._fields)}" for name in unknown]
        if problems:
            raise ValidationError(*problems)
        said: dict[str, Any] = {"outbox": outbox_path(given.get("outbox"))}
        for name, ask in _FROM_ENVIRONMENT.items():
            if given.get(name) is None:
                said[name] = ask()
        options = cls(**{**given, **said})
        problems = options.problems()
        if problems:
            raise ValidationError(*problems)
        return options


#: What counts where an option is not given, or None.
_FROM_ENVIRONMENT: Final[dict[str, Callable[[], object]]] = {
    "isolate_tasks": lambda: switch_from_environment("VALUED_ISOLATE_TASKS", default=True),
    "enabled": lambda: not switch_from_environment("VALUED_DISABLED", default=False),
    "invalid": lambda: _choice_from_environment("VALUED_INVALID", get_args(Invalid)),
    "anonymous": lambda: _choice_from_environment("VALUED_ANONYMOUS", get_args(Anonymous)),
}

#: What other clients call theirs.
_FOREIGN: Final = {
    **dict.fromkeys(
        ("api_key", "apikey", "api_token", "key", "secret", "write_key", "project_api_key"),
        "the token is the first argument, as in valued.Client('TOKEN')",
    ),
    **dict.fromkeys(
        ("host", "url", "base_url", "api_host"),
        "the endpoint, a whole URL, is the second argument, as in "
        "valued.Client('TOKEN', 'http://127.0.0.1:4567/events')",
    ),
    "debug": "write logging.getLogger('valued').setLevel('DEBUG')",
    "disabled": "write enabled=False",
    "sync_mode": "write executor=valued.ImmediateExecutor()",
}


def _hint(name: str, options: tuple[str, ...]) -> str:
    """What who gave the option *name*, which there is not, may have meant."""
    import difflib  # for a mistake only

    if name.lower() in _FOREIGN:
        return _FOREIGN[name.lower()]
    close = difflib.get_close_matches(name.lower(), (*options, "token", "endpoint"), 1)
    return f"did you mean {close[0]}?" if close else f"the options are {', '.join(options)}"


def _is_async(function: object) -> bool:
    if function is None:
        return False
    import inspect  # for who gives one

    return inspect.iscoroutinefunction(function)


def _not_one_of(name: str, value: object, names: tuple[str | None, ...]) -> list[str]:
    if value in names:
        return []
    expected = " or ".join(repr(it) for it in names if it is not None)
    return [f"{name}: expected {expected}, got {_kind(value)}"]


def outbox_path(outbox: object) -> str | None:
    """The directory, absolute, since a process may change its own."""
    given = outbox_from_environment() if outbox is None else outbox
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)) or not isinstance(os.fspath(given), str):
        raise ValidationError(f"outbox: expected the path of a directory, got {_kind(given)}")
    if not os.fspath(given):
        raise ValidationError("outbox: it is empty; give the path of a directory, or None")
    path = os.path.abspath(os.fspath(given))
    try:
        writable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        writable = False
    if not writable:
        raise ValidationError(
            f"outbox: {path!a} has characters that no path can have; leave them out"
        )
    return path


def executor_problems(executor: object) -> list[str]:
    """What keeps *executor* from being one."""
    if executor is None or callable(getattr(executor, "submit", None)) or callable(executor):
        return []
    problem = (
        f"executor: {_kind(executor)} has no submit(fn, *args); give an executor, or a function "
        "that makes one, such as lambda: ThreadPoolExecutor(5)"
    )
    return [problem]


def timeout_seconds(timeout: object) -> float | None:
    """*timeout* if it is one (seconds, or None for no bound). Raises `ValidationError`."""
    problems = [] if timeout is None else seconds("timeout", timeout, zero=True)
    if problems:
        raise ValidationError(*problems)
    return timeout  # type: ignore[return-value]  # what `_seconds` lets pass is a number


def _kind(value: object) -> str:
    return type(value).__name__


def whole(name: str, value: object, *, least: int, optional: bool = False) -> list[str]:
    """What keeps *value* from being a whole number of at least *least*."""
    if optional and value is None:
        return []
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    shown = _shown(value) if isinstance(value, int) else _kind(value)
    return [f"{name}: expected a whole number of at least {least}, got {shown}"]


def seconds(name: str, value: object, *, zero: bool) -> list[str]:
    """What keeps *value* from being seconds; *zero*: whether none are some, too."""
    bound = "0 or more" if zero else "more than 0"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return [f"{name}: expected seconds ({bound}) as a number, got {_kind(value)}"]
    if value > MOST_SECONDS:
        bound += f" and at most {MOST_SECONDS:,}"
    elif value > 0 or (zero and value == 0):
        return []
    return [f"{name}: expected seconds, {bound}, got {_shown(value)}"]


def _shown(value: float) -> object:
    # Not an int that is itself longer than a log line.
    return _kind(value) if isinstance(value, int) and abs(value) > MOST_SECONDS else value
