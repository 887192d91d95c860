"""The options of a client, checked once; nearly all reading of the environment."""

from __future__ import annotations

import enum
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args
from typing import Literal as _Literal

from valued._errors import ValidationError, expected, kind_of
from valued._redaction import hide

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
    """The environment: ``VALUED_ENV`` if it is set; else, whether this is a test run.

    No other variable counts: staging hosts have ``ENV=test``, too.
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


def variable_name(name: str) -> str:
    """*name* of a variable as it is written in the environment: in lower case, or in upper case."""
    return name if name in os.environ else name.upper()


def ca_bundle_from_environment() -> tuple[str, str | None]:
    """The certificate authorities to trust: a variable that `requests` reads, and its path."""
    if path := os.environ.get("REQUESTS_CA_BUNDLE"):
        return "REQUESTS_CA_BUNDLE", path
    return "CURL_CA_BUNDLE", os.environ.get("CURL_CA_BUNDLE") or None


# A named tuple, as a dataclass would cost every import of the library a third more.
class Options(NamedTuple):
    """What ``Client`` and ``connect`` take by keyword, as `Client` describes it.

    Made by `of`, which checks it. Forked and spawned children keep it.
    """

    executor: Executor | Callable[[], Executor] | None = None
    max_workers: int | None = None
    max_queue: int = 10_000
    overflow: Overflow = "drop_newest"
    timeout: float = 10.0
    retries: int = 240
    shutdown_timeout: float | None = None
    idle_time: float = 60.0
    on_error: OnError | None = None
    outbox: str | PathLike[str] | None = None
    durability: Durability = "process"
    outbox_max_age: float = 604_800.0
    outbox_max_size: int = 1_073_741_824
    status: str | PathLike[str] | None = None
    defaults: Data = None
    isolate_tasks: bool | None = None
    enabled: bool | None = None
    invalid: Invalid | None = None
    anonymous: Anonymous | None = None
    before_send: Callable[[JSONObject], JSONObject | None] | None = None

    def seconds_at_end(self) -> float:
        """How long the end of a process may wait."""
        if self.shutdown_timeout is not None:
            return self.shutdown_timeout
        return 5.0 if self.outbox is None else 1.0

    @classmethod
    def of(cls, given: dict[str, Any], unknown: Iterable[str]) -> Options:
        """Options from keyword arguments, checked. Raises `ValidationError`.

        Of a name that is not one of them it says which one is close.
        """
        problems = [f"{name}: no such option; {_hint(name, cls._fields)}" for name in unknown]
        if problems:
            raise ValidationError(*problems)
        said = {name: ask() for name, ask in _FROM_ENVIRONMENT.items() if given.get(name) is None}
        paths = {
            "outbox": outbox_path(given.get("outbox")),
            "status": status_path(given.get("status")),
        }
        options = cls(**{**given, **said, **paths})
        for name, check in _CHECKS.items():
            value = getattr(options, name)
            if value is not None or cls._field_defaults[name] is not None:
                problems += check(name, value)
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
    """What a user who gave *name*, which isn't an option, may have meant."""
    import difflib  # for a mistake only

    if name.lower() in _FOREIGN:
        return _FOREIGN[name.lower()]
    close = difflib.get_close_matches(name.lower(), (*options, "token", "endpoint"), 1)
    return f"did you mean {close[0]}?" if close else f"the options are {', '.join(options)}"


def outbox_path(outbox: object) -> str | None:
    """The directory of the outbox; None: there is none."""
    return _directory("outbox", "VALUED_OUTBOX", outbox)


def status_path(status: object) -> str | None:
    """The directory for the stats of all processes; None: none is given."""
    return _directory("status", "VALUED_STATUS", status)


def _directory(name: str, variable: str, given: object) -> str | None:
    """The path of a directory, absolute, since a process may change its own."""
    given = (os.environ.get(variable) or None) if given is None else given
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)) or not isinstance(os.fspath(given), str):
        raise ValidationError(expected(name, "the path of a directory", given))
    if not os.fspath(given):
        raise ValidationError(f"{name}: it is empty; give the path of a directory, or None")
    path = os.path.abspath(os.fspath(given))
    try:
        writable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        writable = False
    if not writable:
        raise ValidationError(
            f"{name}: {path!a} has characters that no path can have; leave them out"
        )
    return path


def timeout_seconds(timeout: object) -> float | None:
    """*timeout* if it is one (seconds, or None for no bound). Raises `ValidationError`."""
    problems = [] if timeout is None else seconds("timeout", timeout, zero=True)
    if problems:
        raise ValidationError(*problems)
    return timeout  # type: ignore[return-value]  # what `seconds` lets pass is a number


# -- checks: each returns what keeps *value* from being the option *name* --------------------------


def whole(name: str, value: object, *, least: int) -> list[str]:
    """A whole number of at least *least*."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    shown = _shown(value) if isinstance(value, int) else kind_of(value)
    return [f"{name}: expected a whole number of at least {least}, got {shown}"]


def seconds(name: str, value: object, *, zero: bool) -> list[str]:
    """Seconds; *zero*: whether none are some, too."""
    bound = "0 or more" if zero else "more than 0"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return [expected(name, f"seconds ({bound}) as a number", value)]
    if value > MOST_SECONDS:
        bound += f" and at most {MOST_SECONDS:,}"
    elif value > 0 or (zero and value == 0):
        return []
    return [f"{name}: expected seconds, {bound}, got {_shown(value)}"]


def _shown(value: float) -> object:
    # Not an int that is itself longer than a log line.
    return kind_of(value) if isinstance(value, int) and abs(value) > 10**15 else value


def _one_of(name: str, value: object, *, literal: Any) -> list[str]:
    names = get_args(literal)
    return [] if value in names else [expected(name, " or ".join(map(repr, names)), value)]


def _switch(name: str, value: object) -> list[str]:
    return [] if isinstance(value, bool) else [expected(name, "True, False or None", value)]


def _function(name: str, value: object, *, of: str, runs: str) -> list[str]:
    if not callable(value):
        return [expected(name, f"a function of {of}", value)]
    if is_async(value):
        return [f"{name}: expected a function without async: it runs {runs}"]
    return []


def is_async(function: object) -> bool:
    """Whether a call of *function* only makes a coroutine."""
    import inspect  # only if one is given

    called = getattr(function, "__call__", None)  # noqa: B004  (that of an object's class)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def executor_problems(executor: object, name: str = "executor") -> list[str]:
    """An executor, or a function that makes one."""
    if executor is None or callable(getattr(executor, "submit", None)) or callable(executor):
        return []
    problem = (
        f"{name}: {kind_of(executor)} has no submit(fn, *args); give an executor, or a function "
        "that makes one, such as lambda: ThreadPoolExecutor(5)"
    )
    return [problem]


def _outbox(name: str, _value: object) -> list[str]:
    fix = "leave it (and VALUED_OUTBOX) out, and events wait in memory"
    return [f"{name}: it needs Linux or macOS; {fix}"] if os.name == "nt" else []


#: An option whose default is None may be None, too.
_CHECKS: Final[dict[str, Callable[[str, Any], list[str]]]] = {
    "executor": lambda name, value: executor_problems(value, name),
    "max_workers": partial(whole, least=1),
    "max_queue": partial(whole, least=1),
    "overflow": partial(_one_of, literal=Overflow),
    "timeout": partial(seconds, zero=False),
    "retries": partial(whole, least=0),
    "shutdown_timeout": partial(seconds, zero=True),
    "idle_time": partial(seconds, zero=False),
    "on_error": partial(_function, of="(error, event)", runs="on a thread"),
    "outbox": _outbox,
    "durability": partial(_one_of, literal=Durability),
    "outbox_max_age": partial(seconds, zero=False),
    "outbox_max_size": partial(whole, least=LEAST_SIZE),
    "isolate_tasks": _switch,
    "enabled": _switch,
    "invalid": partial(_one_of, literal=Invalid),
    "anonymous": partial(_one_of, literal=Anonymous),
    "before_send": partial(_function, of="one event", runs="in the call"),
}
