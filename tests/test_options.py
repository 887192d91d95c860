"""The options: their checks and defaults, what reads the environment, what the docs say of them."""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest

import valued
from tests.support.processes import run
from valued import _options
from valued._delivery.executors import DEFAULT_WORKERS
from valued._options import Environment, Options, Overflow, environment

#: What frameworks and deployments set, which is no business of ours.
OTHERS = ["DJANGO_ENV", "FLASK_ENV", "APP_ENV", "ENVIRONMENT", "ENV"]


def problems(**given: Any) -> tuple[str, ...]:
    with pytest.raises(valued.ValidationError) as caught:
        valued.Client("test-token", **given)
    return caught.value.problems


class Executor:
    def submit(self, fn: Any, /, *args: Any) -> None:
        fn(*args)


# -- values ----------------------------------------------------------------------------------------


def test_defaults_are_what_a_web_worker_can_run_with() -> None:
    assert Options()._asdict() == {
        "executor": None,
        "max_workers": None,
        "max_queue": 10_000,
        "overflow": "drop_newest",
        "timeout": 10.0,
        "retries": 240,
        "shutdown_timeout": None,
        "idle_time": 60.0,
        "on_error": None,
        "outbox": None,
        "durability": "process",
        "outbox_max_age": 604_800.0,
        "outbox_max_size": 1_073_741_824,
        "status": None,
        "defaults": None,
        "isolate_tasks": None,
        "enabled": None,
        "invalid": None,
        "anonymous": None,
        "before_send": None,
    }


def named(value: object) -> str:
    """The same in each process: xdist compares."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))[:60]


@pytest.mark.parametrize(
    "given",
    [
        {"max_workers": 1},
        {"max_queue": 1, "retries": 0, "timeout": 0.001, "shutdown_timeout": 0},
        {"timeout": 1, "shutdown_timeout": 0.0, "idle_time": 1},
        *({"overflow": overflow} for overflow in get_args(Overflow)),
        {"executor": Executor()},
        {"executor": Executor},
        {"executor": lambda: ThreadPoolExecutor(5)},
        {"on_error": print},
        {"enabled": True},
        {"invalid": "log"},
        {"anonymous": "drop"},
        {"before_send": lambda event: event},
    ],
    ids=named,
)
def test_good_value_is_kept_as_it_is(given: dict[str, Any]) -> None:
    options = Options(**given)
    assert {name: getattr(options, name) for name in given} == given
    valued.Client("test-token", **given)


async def later(event: dict[str, Any]) -> dict[str, Any]:
    return event


class Later:
    """An object whose calls make a coroutine."""

    async def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        return event


#: What an option must be, and what it is not: values, each with how the error shows it.
COUNT = {-1: "-1", True: "True", 2.0: "float", "10": "str", (10,): "tuple", math.nan: "float"}
NO_SECONDS = {"5": "str", True: "bool", (1, 2): "tuple"}
BAD: list[tuple[str, str, dict[Any, str]]] = [
    ("max_workers", "a whole number of at least 1", {**COUNT, 0: "0"}),
    ("max_queue", "a whole number of at least 1", {**COUNT, 0: "0", None: "nothing"}),
    ("retries", "a whole number of at least 0", {**COUNT, None: "nothing"}),
    ("outbox_max_size", "a whole number of at least 8388608", {**COUNT, 8_388_607: "8388607"}),
    *(
        (name, "seconds (more than 0) as a number", {**NO_SECONDS, None: "nothing"})
        for name in ("timeout", "idle_time", "outbox_max_age")
    ),
    *(
        (name, "seconds, more than 0,", {0: "0", -1: "-1", math.nan: "nan", -math.inf: "-inf"})
        for name in ("timeout", "idle_time", "outbox_max_age")
    ),
    ("shutdown_timeout", "seconds (0 or more) as a number", NO_SECONDS),
    ("shutdown_timeout", "seconds, 0 or more,", {-0.5: "-0.5", math.nan: "nan"}),
    *(
        (name, f"seconds, {bound} and at most 1,000,000,", {1e6 + 0.5: "1000000.5", 10**400: "int"})
        for name, bound in (("timeout", "more than 0"), ("shutdown_timeout", "0 or more"))
    ),
    (
        "overflow", "'drop_newest' or 'drop_oldest' or 'block' or 'caller_runs'",
        {"s3cret": "str", "": "an empty string", None: "nothing", ("block",): "tuple"},
    ),
    ("durability", "'process' or 'power'", {"disk": "str", None: "nothing"}),
    ("invalid", "'raise' or 'log'", {"ignore": "str"}),
    ("anonymous", "'raise' or 'drop'", {True: "bool"}),
    ("isolate_tasks", "True, False or None", {1: "int", "no": "str"}),
    ("enabled", "True, False or None", {"no": "str", 0: "int"}),
    ("on_error", "a function of (error, event)", {"log": "str", 5: "int"}),
    ("on_error", "a function without async: it runs on a thread", {later: "", Later(): ""}),
    ("before_send", "a function of one event", {"f": "str"}),
    ("before_send", "a function without async: it runs in the call", {later: "", Later(): ""}),
    ("outbox", "the path of a directory", {5: "int", b"a": "bytes"}),
    ("status", "the path of a directory", {5: "int", b"a": "bytes"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected", "bad", "got"),
    [(name, what, bad, got) for name, what, values in BAD for bad, got in values.items()],
    ids=named,
)
def test_bad_value_is_refused_with_what_is_expected_and_what_it_is(
    name: str, expected: str, bad: Any, got: str
) -> None:
    sentence = f"{name}: expected {expected}"
    if got:
        sentence += f" got {got}" if expected.endswith(",") else f", got {got}"
    assert problems(**{name: bad}) == (sentence,)


@pytest.mark.parametrize("name", ["timeout", "shutdown_timeout", "idle_time"])
def test_seconds_may_be_as_many_as_the_system_can_wait(name: str) -> None:
    given: Any = {name: 1_000_000}
    valued.Client("test-token", **given)


@pytest.mark.parametrize("bad", [5, "user", ["user.id"]], ids=str)
def test_defaults_must_be_a_mapping(bad: Any) -> None:
    with pytest.raises(valued.ValidationError, match=r"^defaults: expected a mapping"):
        valued.Client("test-token", defaults=bad)


@pytest.mark.parametrize(
    ("said", "on"),
    [
        (None, True), ("1", True), ("true", True), (" Yes ", True), ("ON", True),
        ("0", False), ("false", False), ("No", False), ("off", False), ("", False),
    ],
)  # fmt: skip
def test_a_switch_in_the_environment_counts_where_no_argument_is_given(
    said: str | None, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        monkeypatch.setenv("VALUED_ISOLATE_TASKS", said)
    assert Options.of({}, ()).isolate_tasks is on
    assert Options.of({"isolate_tasks": not on}, ()).isolate_tasks is not on


@pytest.mark.parametrize(
    ("variable", "said", "expected"),
    [
        ("VALUED_ISOLATE_TASKS", "maybe", "1 or 0"),
        ("VALUED_DISABLED", "maybe", "1 or 0"),
        ("VALUED_INVALID", "warn", "raise or log"),
        ("VALUED_ANONYMOUS", "keep", "raise or drop"),
    ],
)
def test_variable_that_says_neither_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, said: str, expected: str
) -> None:
    monkeypatch.setenv(variable, said)
    assert problems() == (f"{variable}: expected {expected}, and it says neither",)


@pytest.mark.parametrize("bad", ["threads", 5, [print], {"submit": print}])
def test_unknown_executor_is_refused_with_what_it_needs(bad: Any) -> None:
    sentence = (
        f"executor: {type(bad).__name__} has no submit(fn, *args); give an executor, or a "
        "function that makes one, such as lambda: ThreadPoolExecutor(5)"
    )
    assert problems(executor=bad) == (sentence,)
    with pytest.raises(valued.ValidationError) as caught:
        valued.set_executor(bad)
    assert caught.value.problems == (sentence,)


def test_executor_whose_submit_is_no_method_is_none() -> None:
    assert problems(executor=types.SimpleNamespace(submit=5))[0].startswith("executor: Simple")


def test_every_bad_option_is_named_at_once() -> None:
    found = problems(max_workers=0, timeout=0, overflow="x", executor=5, on_error=5)
    names = [sentence.split(":")[0] for sentence in found]
    assert names == ["executor", "max_workers", "overflow", "timeout", "on_error"]


@pytest.mark.parametrize("connect", [valued.Client, valued.connect])
def test_unknown_option_is_refused_with_a_hint(connect: Any) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        connect("test-token", max_worker=5, colour="s3cret")
    near, far = caught.value.problems
    assert near == "max_worker: no such option; did you mean max_workers?"
    names = ", ".join(Options._fields)
    assert far == f"colour: no such option; the options are {names}"
    assert not valued.connected()


def test_options_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Options().timeout = 5  # type: ignore[misc]


# -- token and endpoint ----------------------------------------------------------------------------


def test_token_and_endpoint_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_TOKEN", "from-environment")
    monkeypatch.setenv("VALUED_ENDPOINT", "http://127.0.0.1:9/events")
    connection = valued.Connection()
    assert connection.headers["Authorization"] == "Bearer from-environment"
    assert connection.endpoint == "http://127.0.0.1:9/events"
    assert repr(valued.Client()) == "Client(endpoint='http://127.0.0.1:9/events')"
    assert valued.Connection("t", "https://example.com/e").endpoint == "https://example.com/e"


def test_empty_endpoint_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_ENDPOINT", "")
    assert valued.Connection("t").endpoint == "https://ingest.valued.app/events"


def test_missing_token_is_refused_with_the_name_of_the_variable() -> None:
    for make in (valued.Client, valued.connect, valued.Scope, valued.Connection):
        with pytest.raises(valued.ValidationError) as caught:
            make()
        assert str(caught.value) == (
            "token: none was given; pass one, or set VALUED_TOKEN, or set "
            "VALUED_DISABLED=1 to send nothing"
        )


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "it is empty"),
        (" ", "it contains spaces"),
        ("s3cret ", "it contains spaces"),
        ("s3cret\n", "it contains spaces"),
        ("s3\tcret", "control characters"),
        ("s3cr\x7fet", "control characters"),
        ("s3crét", "non-ASCII letters"),
        ("s3cret s3cret", "it contains spaces"),
        ("s3cret\r\nX-Other: 1", "it contains spaces"),
        ("s3cret\xa0", "non-ASCII letters"),
    ],
)
def test_bad_token_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, token: str, says: str
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", token)
    for arguments, where in (((token,), "token: "), ((), "VALUED_TOKEN: ")):
        with pytest.raises(valued.ValidationError) as caught:
            valued.Client(*arguments)
        assert str(caught.value).startswith(where)
        assert says in str(caught.value)
        assert "s3" not in str(caught.value)


@pytest.mark.parametrize("token", [5, b"s3cret", ["s3cret"], 0, False])
def test_token_of_another_type_is_refused_by_the_type(token: Any) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.Client(token)
    assert str(caught.value) == f"token: expected a string, got {type(token).__name__}"


@pytest.mark.parametrize(
    "endpoint",
    [
        "s3cret",
        "",
        "ftp://example.com/events",
        "http://",
        "https:///events",
        "http://exa mple.com/",
        "http://example.com:port/",
        "http://example.com:0/",
        "http://[::1/events",
        "http://example.com/\n",
        "http://s3cret:99999/",
        "//s3cret",
        5,
        b"http://s3cret/",
    ],
)
def test_endpoint_that_is_no_http_url_is_refused_and_not_shown(endpoint: Any) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.Client("t", endpoint)
    assert str(caught.value).startswith("endpoint: expected an http(s) URL, such as ")
    assert "s3cret" not in str(caught.value)


def test_bad_endpoint_of_the_environment_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VALUED_ENDPOINT", "s3cret")
    with pytest.raises(valued.ValidationError, match=r"^VALUED_ENDPOINT: expected an http"):
        valued.Client("t")


def test_endpoint_with_a_user_name_is_refused_and_not_shown() -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.Client("t", "https://s3cret:s3cret@example.com/")
    assert str(caught.value).startswith("endpoint: it contains a user name")
    assert "s3cret" not in str(caught.value)


def test_transport_has_no_endpoint() -> None:
    with pytest.raises(valued.ValidationError, match=r"^endpoint: "):
        valued.Client(print, "http://127.0.0.1:9/")


# -- the environment -------------------------------------------------------------------------------


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VALUED_ENV", *OTHERS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test", Environment.TEST),
        ("Testing", Environment.TEST),
        (" TEST ", Environment.TEST),
        ("development", Environment.DEVELOPMENT),
        ("dev", Environment.DEVELOPMENT),
        ("production", Environment.PRODUCTION),
        ("staging", Environment.PRODUCTION),
        ("1", Environment.PRODUCTION),
    ],
)
def test_name_of_an_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: Environment
) -> None:
    monkeypatch.setenv("VALUED_ENV", name)
    assert environment() is expected


@pytest.mark.usefixtures("unset")
def test_running_pytest_is_a_test_where_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert environment() is Environment.TEST  # this very process
    monkeypatch.setenv("VALUED_ENV", "")
    assert environment() is Environment.TEST
    monkeypatch.setenv("VALUED_ENV", "production")
    assert environment() is Environment.PRODUCTION


ASK = "from valued._options import environment; print(environment().value)"


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("variable", OTHERS)
@pytest.mark.parametrize("name", ["test", "development"])
def test_no_variable_of_others_counts(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, name)
    assert run("-c", ASK).stdout == "production\n"


@pytest.mark.usefixtures("unset")
def test_program_that_a_test_starts_is_no_test_nor_one_that_imports_a_test_runner() -> None:
    assert run("-c", ASK).stdout == "production\n"  # it inherits the variables of pytest
    assert run("-c", f"import pytest, unittest; {ASK}").stdout == "production\n"


_TEST_FILE = """
import unittest
from valued._options import environment

class TestIt(unittest.TestCase):
    def test_it(self):
        with open("said", "a") as file:
            file.write("it is " + environment().value)
"""


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "pytest", "-s", "test_it.py"),
        ("-m", "unittest", "test_it"),
        ("-m", "unittest", "discover"),
        ("-m", "pytest", "-s", "-n", "1", "test_it.py"),
        (str(Path(sys.executable).with_name("pytest")), "-s", "test_it.py"),
        ("manage.py", "test"),
        ("-m", "coverage", "run", "--data-file=none", "-m", "pytest", "-s", "test_it.py"),
    ],
    ids=[
        "python -m pytest",
        "unittest",
        "discover",
        "xdist",
        "pytest",
        "manage.py test",
        "coverage run -m pytest",
    ],
)
def test_test_runners_are_told_by_how_they_were_started(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "test_it.py").write_text(_TEST_FILE, "utf-8")
    manage = "import test_it\ntest_it.TestIt('test_it').debug()\n"
    (tmp_path / "manage.py").write_text(manage, "utf-8")
    done = run(*command, cwd=tmp_path)
    assert (tmp_path / "said").read_text("utf-8") == "it is test", done.stdout + done.stderr


@pytest.mark.usefixtures("unset")
def test_command_of_manage_py_is_no_test_and_neither_is_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manage.py").write_text(ASK, "utf-8")
    assert run("manage.py", "migrate", cwd=tmp_path).stdout == "production\n"
    monkeypatch.setattr(sys, "argv", [])  # as where Python is embedded
    assert environment() is Environment.PRODUCTION


@pytest.mark.usefixtures("unset")
def test_client_under_pytest_delivers_in_the_caller() -> None:
    sent: list[dict[str, Any]] = []
    valued.Client(sent.append).action("k", {"user.id": 1})
    assert [event["key"] for event in sent] == ["k"]


@pytest.mark.parametrize(
    ("threads", "off"), [(None, False), (0, True), (1, False)], ids=["no uwsgi", "off", "on"]
)
def test_threads_are_off_under_a_uwsgi_that_was_not_told_to_enable_them(
    monkeypatch: pytest.MonkeyPatch, threads: Any, off: bool
) -> None:
    monkeypatch.delitem(sys.modules, "uwsgi", raising=False)
    if threads is not None:
        monkeypatch.setitem(sys.modules, "uwsgi", types.SimpleNamespace(has_threads=threads))
    assert _options.threads_are_off() is off


# -- the documentation -----------------------------------------------------------------------------


def test_signature_of_the_client_and_the_options_agree() -> None:
    parameters = inspect.signature(valued.Client.__init__).parameters.values()
    keywords = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    assert {each.name: each.default for each in keywords} == Options._field_defaults
    # A named tuple keeps them as forward references.
    annotations = {name: hint.__forward_arg__ for name, hint in Options.__annotations__.items()}
    assert {each.name: each.annotation for each in keywords} == annotations


def test_docstring_of_the_client_names_each_option_with_its_default() -> None:
    text = inspect.getdoc(valued.Client) or ""
    entries = re.findall(r"^\* \*(\w+)\*(?: \(default (.+?)\))?: (.+)", text, re.MULTILINE)
    documented = {
        name: ast.literal_eval(default.strip("`").replace(",", "")) if default else None
        for name, default, _ in entries
    }
    defaults = dict(Options._field_defaults)
    # «Default» of these two is a sentence: what None stands for depends on the environment.
    assert defaults.pop("executor") is defaults.pop("max_workers") is None
    assert documented.pop("executor") is None
    assert documented.pop("max_workers") == DEFAULT_WORKERS
    assert documented == defaults
    assert [type(value) for value in documented.values()] == [type(d) for d in defaults.values()]
    assert [name for name, _, _ in entries] == [*Options._fields]


def test_docstring_of_the_client_names_the_variable_of_each_default() -> None:
    text = " ".join((inspect.getdoc(valued.Client) or "").split())
    entries = dict(re.findall(r"\* \*(\w+)\*(?: \(default .+?\))?: (.+?)(?= \* \*|$)", text))
    for name in (*_options._FROM_ENVIRONMENT, "outbox", "status"):
        assert re.search(r"None: .*``VALUED_\w+``", entries[name]), name
