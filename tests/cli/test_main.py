"""The command line as a whole: arguments, exit statuses, errors in one line."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.cli import COMMAND
from tests.support.processes import run
from valued.cli import main


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"valued {valued.__version__}\n"


def test_without_a_command_the_help_is_shown_and_the_status_is_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: valued ")
    for command in ("listen", "send", "action", "page-view", "sync-user", "sync-customer", "demo"):
        assert re.search(rf"^ +{command}\s", shown.err, re.MULTILINE)


def test_module_and_console_script_are_the_same() -> None:
    script = Path(sys.executable).with_name("valued")
    by_script = subprocess.run([script, "listen", "-h"], capture_output=True, text=True, timeout=60)
    by_module = run("-m", "valued", "listen", "-h")
    assert by_module.stdout.startswith("usage: valued listen ")
    assert (by_module.returncode, by_module.stdout) == (by_script.returncode, by_script.stdout)


@pytest.mark.parametrize("command", ["send", "action"])
def test_help_warns_of_a_token_on_the_command_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "VALUED_TOKEN" in shown
    assert "list of processes" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["lisen"],
        ["listen", "--port", "65536"],
        ["listen", "--port", "-1"],
        ["listen", "--port", "http"],
        ["listen", "--delay", "-0.1"],
        ["listen", "--delay", "nan"],
        ["listen", "--delay", "soon"],
        ["listen", "--fail", "503"],
        ["listen", "--fail", "503:0"],
        ["listen", "--fail", "200:1"],
        ["listen", "--fail", "600:1"],
        ["listen", "--fail", "x:1"],
        ["listen", "--fail", "503:x"],
        ["demo", "--events", "0"],
        ["demo", "--events", "many"],
        ["action"],
        ["page-view"],
        ["send"],
        ["action", "a.b", "user.id"],
        ["action", "a.b", "=1"],
        ["sync-user", "id"],
    ],
)
def test_usage_error_names_what_is_wrong(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = usage_error(capsys, *arguments)
    wrong = {"action": "KEY", "page-view": "URL", "send": "FILE"}
    assert wrong.get(arguments[-1], arguments[-1]) in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["action", "a.b", "user.id=1"], "token: none was given"),
        (["action", "a.b", "user.id=1", "--token", "a b"], "token: it contains spaces"),
        (["action", "a.b", "user.id=1", "--token", "t", "--endpoint", "x"], "endpoint: expected"),
        (["action", "a.b", "--token", "t"], "Missing user.id or customer.id"),
        (["action", "", "user.id=1", "--token", "t"], "key: expected a string"),
        (["page-view", "/", "customer.id=1", "--token", "t"], "Missing user.id"),
        (["sync-user", "name=x", "--token", "t"], "Missing user.id"),
        (["sync-user", "id=1", "a..b=1", "--token", "t"], "a..b: the key 'a..b' has an empty part"),
        (["send", os.devnull], "token: none was given"),
        (
            ["action", "a.b", "user.id=1", "user_id=1", "--token", "t"],
            "user_id: an event has no",
        ),
        (["action", "a.b", "user=1", "--token", "t"], "user: expected a mapping"),
        (["action", "a.b", "user.id=1.5", "--token", "t"], "user.id: expected an int or a string"),
        (["action", "a.b", "user.id=1", "properties.a=1", "--token", "t"], "properties: an event"),
        (["action", "a.b", "user.id=1", "attributes=1", "--token", "t"], "attributes: expected"),
        (["page-view", "a.b", "user.id=1", "--token", "t"], "url: expected one with a scheme"),
        (["sync-user", "user.id=1", "--token", "t"], "user: sync_user takes the user itself"),
        (["sync-user", "user.id=1", "customer.id=1", "--token", "t"], "user: sync_user takes"),
    ],
)
def test_what_the_library_refuses_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"valued: {message}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_variable_that_is_neither_on_nor_off_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VALUED_DISABLED", "maybe")
    assert main(["action", "a.b", "user.id=1", "--token", "t"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "valued: VALUED_DISABLED: expected 1 or 0, and it says neither\n"
    assert shown.out == ""


#: What costs more than all the rest of a command together.
COSTLY = "asyncio http.server multiprocessing psutil requests rich ssl urllib3"

HELP = """
import contextlib, io, sys
before = {*sys.modules}  # coverage brings some of these
from valued.cli import main
for arguments in ["--help", "--version", ""], *([it, "--help"] for it in sys.argv[2:]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([it for it in arguments if it])
print(sorted({*sys.argv[1].split()} & sys.modules.keys() - before))
"""


def test_help_and_version_import_nothing_that_only_work_needs() -> None:
    commands = ["listen", "send", "action", "page-view", "sync-user", "sync-customer", "outbox"]
    ended = run("-c", HELP, COSTLY, *commands, "demo")
    assert (ended.returncode, ended.stdout) == (0, "[]\n")


def test_listening_imports_neither_what_sends_nor_what_finds_processes() -> None:
    program = (
        "import sys\n"
        "before = {*sys.modules}\n"
        "from valued._service import server\n"
        "from valued.cli import main\n"
        "server.Listener.serve = lambda self: None\n"
        "status = main(['listen', '--port', '0'])\n"
        "costly = {'psutil', 'requests', 'rich', 'urllib3'}\n"
        "print(status, sorted(costly & sys.modules.keys() - before))\n"
    )
    assert run("-c", program).stdout.splitlines()[-1] == "0 []"


def test_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valued.cli.events.run", _raising(KeyboardInterrupt()))
    assert main(["sync-user", "id=1"]) == 130


def test_trouble_of_the_system_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("valued.cli.events.run", _raising(OSError(28, "No space left on device")))
    assert main(["sync-user", "id=1"]) == 1
    assert capsys.readouterr().err == "valued: [Errno 28] No space left on device\n"


def _raising(error: BaseException) -> Any:
    def run(_arguments: object) -> int:
        raise error

    return run


def test_reader_that_went_away_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    # Unbuffered, argparse itself meets the broken pipe, and says nothing either.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        ended = subprocess.run(
            [*COMMAND, "demo", "--help"], stdout=output, stderr=subprocess.PIPE, timeout=60
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_streams_that_are_no_files_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    assert main([]) == 2
    assert "usage" in shown.getvalue()


def test_main_module_that_is_imported_runs_no_command() -> None:
    # As a process does that multiprocessing spawned.
    assert importlib.import_module("valued.__main__").main is main


def test_without_standard_streams_nothing_is_printed_on_the_wrong_one() -> None:
    for line, shown in (('"$0" -m valued --version >&-', ""), ('"$0" -m valued 2>&-', "")):
        ended = subprocess.run(
            ["sh", "-c", line, sys.executable], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (
            2 if "2>" in line else 0,
            shown,
            "",
        )
