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
        "defaults": None,
        "isolate_tasks": None,
        "enabled": None,
        "invalid": None,
        "anonymous": None,
        "before_send": None,
    }


def named(value: object) -> str:
    """The same in each process: xdist compares."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


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


@pytest.mark.parametrize("name", ["max_workers", "max_queue", "retries"])
@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (-1, "-1"),
        (True, "True"),
        (1.0, "float"),
        ("10", "str"),
        ([10], "list"),
        (math.nan, "float"),
    ],
    ids=str,
)
def test_count_must_be_a_whole_number(name: str, bad: Any, got: str) -> None:
    least = 0 if name == "retries" else 1
    assert problems(**{name: bad}) == (
        f"{name}: expected a whole number of at least {least}, got {got}",
    )


def test_count_that_may_not_be_zero_or_none_is_refused_so() -> None:
    for name in ("max_workers", "max_queue"):
        assert problems(**{name: 0}) == (f"{name}: expected a whole number of at least 1, got 0",)
    for name in ("max_queue", "retries"):
        assert problems(**{name: None})[0].endswith(", got NoneType")


@pytest.mark.parametrize("name", ["timeout", "shutdown_timeout", "idle_time"])
@pytest.mark.parametrize("bad", [-1, -0.5, math.nan, -math.inf])
def test_seconds_must_be_finite_and_not_negative(name: str, bad: float) -> None:
    bound = "0 or more" if name == "shutdown_timeout" else "more than 0"
    assert problems(**{name: bad}) == (f"{name}: expected seconds, {bound}, got {bad}",)


@pytest.mark.parametrize("name", ["timeout", "shutdown_timeout", "idle_time"])
@pytest.mark.parametrize("bad", [1_000_000.5, math.inf, 10**400], ids=["a little", "inf", "long"])
def test_seconds_must_not_be_more_than_the_system_can_wait(name: str, bad: float) -> None:
    given: Any = {name: 1_000_000}
    valued.Client("test-token", **given)
    [problem] = problems(**{name: bad})
    assert " and at most 1,000,000, got " in problem
    assert len(problem) < 100


@pytest.mark.parametrize("name", ["timeout", "shutdown_timeout", "idle_time"])
@pytest.mark.parametrize("bad", [None, "5", True, [5], (1, 2)], ids=str)
def test_seconds_must_be_a_number(name: str, bad: Any) -> None:
    if name == "shutdown_timeout" and bad is None:
        assert Options().seconds_at_end() == 5.0
        return
    bound = "0 or more" if name == "shutdown_timeout" else "more than 0"
    kind = type(bad).__name__
    assert problems(**{name: bad}) == (
        f"{name}: expected seconds ({bound}) as a number, got {kind}",
    )


@pytest.mark.parametrize("bad", [5, "user", ["user.id"]], ids=str)
def test_defaults_must_be_a_mapping(bad: Any) -> None:
    with pytest.raises(valued.ValidationError, match=r"^defaults: expected a mapping"):
        valued.Client("test-token", defaults=bad)


@pytest.mark.parametrize("bad", [1, 0, "no", []], ids=str)
def test_isolate_tasks_must_be_a_bool(bad: Any) -> None:
    expected = f"isolate_tasks: expected True, False or None, got {type(bad).__name__}"
    assert problems(isolate_tasks=bad) == (expected,)


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


def test_a_switch_that_says_neither_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VALUED_ISOLATE_TASKS", "maybe")
    with pytest.raises(valued.ValidationError, match=r"^VALUED_ISOLATE_TASKS: expected 1 or 0"):
        valued.Client("test-token")


def test_seconds_that_may_not_be_zero() -> None:
    for name in ("timeout", "idle_time"):
        assert problems(**{name: 0}) == (f"{name}: expected seconds, more than 0, got 0",)


@pytest.mark.parametrize("bad", ["drop", "", None, 5, ["block"], "s3cret"])
def test_unknown_overflow_is_refused_with_what_there_is(bad: Any) -> None:
    assert problems(overflow=bad) == (
        (
            "overflow: expected 'drop_newest' or 'drop_oldest' or 'block' or 'caller_runs', got "
            f"{type(bad).__name__}"
        ),
    )


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


@pytest.mark.parametrize("bad", ["log", 5, [print]])
def test_on_error_must_be_callable(bad: Any) -> None:
    kind = type(bad).__name__
    assert problems(on_error=bad) == (
        f"on_error: expected a function of (error, event), got {kind}",
    )


def test_every_bad_option_is_named_at_once() -> None:
    found = problems(max_workers=0, timeout=0, overflow="x", executor=5, on_error=5)
    names = [sentence.split(":")[0] for sentence in found]
    assert names == ["max_workers", "timeout", "on_error", "overflow", "executor"]


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


@pytest.mark.parametrize("good", [None, 0, 0.5, 5])
def test_timeout_of_a_call_may_be_zero_or_none(good: Any) -> None:
    assert _options.timeout_seconds(good) == good


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "5", True, [5]], ids=str)
def test_bad_timeout_of_a_call_is_refused(recorder: valued.Client, bad: Any) -> None:
    for call in (_options.timeout_seconds, recorder.flush, recorder.close):
        with pytest.raises(
            valued.ValidationError, match=r"^timeout: expected seconds.* \(?0 or more"
        ):
            call(bad)


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
        5,
        b"http://example.com",
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


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_to_trust_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert _options.ca_bundle_from_environment() is None
    monkeypatch.setenv(variable, "/certificates.pem")
    assert _options.ca_bundle_from_environment() == "/certificates.pem"


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
    for name in _options._FROM_ENVIRONMENT:
        assert re.search(r"None: .*``VALUED_\w+``", entries[name]), name
    assert "``VALUED_OUTBOX``" in entries["outbox"]


def test_each_variable_is_described_in_a_plain_sentence() -> None:
    for name, sentence in _options.VARIABLES.items():
        assert re.fullmatch(r"[\w]+", name)
        assert re.fullmatch(r"[^\n`*]{20,300}\.", sentence), name
