"""The configuration of servers: uWSGI, Gunicorn, gevent. Files are read, and never run."""

from __future__ import annotations

import ast
import configparser
import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from valued.cli.doctor.result import Result, fail, ok, skipped, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Looked for in the current directory.
UWSGI: Final = "uwsgi.ini"
GUNICORN: Final = "gunicorn.conf.py"

#: Seconds that Gunicorn gives a worker by default.
GRACEFUL_TIMEOUT: Final = 30

#: Which of uWSGI's options let threads of Python's run; false, 0 and none don't.
_THREADS: Final = ("enable-threads", "threads")
_OFF: Final = frozenset({"false", "no", "off", "0"})

#: A value in a file that only running it would tell.
_UNKNOWN: Final = object()

#: What must not be loaded when gevent patches, since it keeps what it took from the modules.
_TOO_EARLY: Final = ("ssl", "urllib3", "requests", "valued")

FIRST_LINE: Final = "from gevent import monkey; monkey.patch_all()"

#: Prints, after all that the module itself prints, what was loaded when gevent patched.
_WATCHED: Final = """
import importlib, json, os, sys
names = sys.argv.pop().split(",")
found = {"patched": False, "loaded": [], "error": ""}
def note(event):
    if type(event).__name__ == "GeventWillPatchAllEvent" and not found["patched"]:
        found.update(patched=True, loaded=[name for name in names if name in sys.modules])
try:
    from gevent import events
except ImportError:
    events = None
else:
    events.subscribers.append(note)
try:
    importlib.import_module(sys.argv.pop())
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"
found["installed"] = events is not None
print(f"\\n{json.dumps(found)}", flush=True)
os._exit(0)  # exit handlers may print, and threads of the module go on
"""


# -- uWSGI -----------------------------------------------------------------------------------------


def uwsgi(given: str | None) -> Result:
    """Whether an ini file of uWSGI lets threads run."""
    path = given or UWSGI
    if given is None and not os.path.exists(path):
        return skipped("uwsgi", f"there is no {UWSGI} here (--uwsgi FILE)")
    # A line may have no value, and a name may come twice; %(name) is uWSGI's own.
    parser = configparser.ConfigParser(
        allow_no_value=True, strict=False, interpolation=None, delimiters=("=",)
    )
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        options = dict(parser["uwsgi"])
    except (OSError, ValueError, KeyError, configparser.Error) as error:
        return _unreadable("uwsgi", path, error, "valued doctor --uwsgi uwsgi.ini")
    if any(
        (options.get(name) or "").strip().lower() not in _OFF for name in _THREADS & options.keys()
    ):
        return ok("uwsgi", f"{path} turns threads on")
    return warn(
        "uwsgi",
        f"{path} doesn't turn threads on; before uWSGI 2.0.27, each event is then sent in the "
        "request that records it",
        "enable-threads = true",
    )


def _unreadable(check: str, path: str, error: Exception, fix: str) -> Result:
    if isinstance(error, OSError):
        why = error.strerror or "it can't be read"
    else:
        why = "it is no such configuration"
    return fail(check, f"{path}: {why}", fix)


# -- Gunicorn --------------------------------------------------------------------------------------


def gunicorn(given: str | None, shutdown_timeout: float) -> Iterator[Result]:
    """Whether a worker has the time to deliver at its end, and whether gevent patches in time."""
    path = given or GUNICORN
    if given is None and not os.path.exists(path):
        yield skipped("gunicorn", f"there is no {GUNICORN} here (--gunicorn FILE)")
        return
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
    except (OSError, ValueError, SyntaxError) as error:
        yield _unreadable("gunicorn", path, error, "valued doctor --gunicorn gunicorn.conf.py")
        return
    yield _graceful(path, _value(tree, "graceful_timeout", GRACEFUL_TIMEOUT), shutdown_timeout)
    worker, preload = (
        _value(tree, "worker_class", "sync"),
        _value(tree, "preload_app", default=False),
    )
    if "gevent" in str(worker) and preload is True and not _patches(tree):
        yield fail(
            "gunicorn",
            f"{path}: with preload_app, gevent patches after the application was imported; make "
            "this the first line",
            FIRST_LINE,
        )


def _graceful(path: str, graceful: Any, shutdown_timeout: float) -> Result:
    if not isinstance(graceful, (int, float)):
        return warn(
            "gunicorn",
            f"{path}: the value of graceful_timeout is unknown, as it is no literal",
            f"graceful_timeout = {_enough(shutdown_timeout)}",
        )
    if graceful <= shutdown_timeout:
        return fail(
            "gunicorn",
            f"{path}: Gunicorn kills a worker after graceful_timeout = {graceful:g} s, and it may "
            f"deliver for {shutdown_timeout:g} s (shutdown_timeout)",
            f"graceful_timeout = {_enough(shutdown_timeout)}",
        )
    return ok(
        "gunicorn",
        f"graceful_timeout ({graceful:g} s) is above shutdown_timeout ({shutdown_timeout:g} s)",
    )


def _enough(shutdown_timeout: float) -> int:
    return max(GRACEFUL_TIMEOUT, math.ceil(shutdown_timeout) + 5)


def _value(tree: ast.Module, name: str, default: object) -> Any:
    """What *name* is after the file was run; `_UNKNOWN` unless it is set to a literal."""
    value = default
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=found)], value=ast.expr() as assigned)
                | ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as assigned)
            ):
                if found == name:
                    value = _literal(assigned)
            case ast.AnnAssign(value=None):
                pass  # a type only
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                pass  # names in there are others
            case _:
                if any(_binds(node, name) for node in ast.walk(statement)):
                    value = _UNKNOWN
    return value


def _literal(expression: ast.expr) -> object:
    try:
        return ast.literal_eval(expression)
    except ValueError:
        return _UNKNOWN


def _binds(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Name(id=found, ctx=ast.Store()):
            return found == name
        case ast.alias():
            return (node.asname or node.name) in (name, "*")
    return False


def _patches(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func).endswith("patch_all")
        for node in ast.walk(tree)
    )


# -- gevent ----------------------------------------------------------------------------------------


def gevent(module: str | None, timeout: float) -> Result:
    """Import *module* in a process of its own, and look whether gevent patched in time."""
    if module is None:
        return skipped("gevent", "no module was given to look at (--import MODULE)")
    command = [sys.executable, "-c", _WATCHED, module, ",".join(_TOO_EARLY)]
    # An application that records events at import must not send them.
    environment = {**os.environ, "VALUED_DISABLED": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - the module is the user's own
            command, env=environment, capture_output=True, timeout=timeout, check=False
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        text = f"the import of {module} took longer than {timeout:g} s"
        return fail("gevent", text, f"valued doctor --import {module} --timeout 60")
    except (IndexError, ValueError):
        return fail(
            "gevent", f"the import of {module} ended the process", f"python -c 'import {module}'"
        )
    return _patched(module, found)


def _patched(module: str, found: dict[str, Any]) -> Result:
    if found["error"]:
        text = f"{module} can't be imported: {found['error']}"
        return fail("gevent", text, f"python -c 'import {module}'")
    if not found["installed"]:
        return skipped("gevent", "it is not installed")
    if not found["patched"]:
        return ok("gevent", f"{module} patches nothing")
    loaded = found["loaded"]
    if not loaded:
        return ok("gevent", f"{module} patches before {', '.join(_TOO_EARLY)} are imported")
    text = f"{module} patches after the import of {', '.join(loaded)}; make this its first line"
    # Only with the module ssl does gevent itself warn that the program may not work.
    return (fail if "ssl" in loaded else warn)("gevent", text, FIRST_LINE)
