"""The house: who imports whom, what an import does, what is published, what is packaged."""

from __future__ import annotations

import ast
import configparser
import email
import email.policy
import inspect
import json
import os
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import valued
from tests.support.processes import run

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "valued"
LONGEST_MODULE = 400  # lines; beyond that, a module holds two ideas

#: Each folder and each module at the top of the package, and what it may import of ours: a folder
#: with all of its modules. Below only knows further below, so the order is part of it.
MAY_IMPORT = {
    "_version": [],
    "_errors": [],
    "_typing": ["_errors"],
    "_redaction": [],
    "_options": ["_errors", "_typing", "_redaction"],
    "_process": ["_errors", "_typing"],
    "_events": ["_errors", "_typing", "_options", "_process"],
    "_delivery": ["_errors", "_typing", "_options", "_process"],
    "_outbox": ["_errors", "_typing", "_options", "_process"],
    "_status": ["_errors", "_typing", "_options", "_process", "_outbox"],
    "_http": ["_version", "_errors", "_typing", "_redaction", "_options", "_process", "_events"],
    "_scopes": ["_errors", "_typing", "_process", "_events"],
    "_client": [
        "_errors", "_typing", "_redaction", "_options", "_process", "_events", "_delivery",
        "_outbox", "_status", "_http", "_scopes",
    ],
    "_scope": ["_errors", "_typing", "_redaction", "_events", "_scopes", "_client"],
    "_shared": [
        "_errors", "_typing", "_redaction", "_options", "_process", "_events", "_delivery",
        "_scopes", "_client", "_scope",
    ],
    "_service": [],
    "testing": ["_errors", "_redaction", "_process", "_events", "_http", "_service"],
    "pytest_plugin": ["_http", "testing"],
    "integrations": [],
    "cli": ["_redaction", "_service"],
    "__main__": ["cli"],
}  # fmt: skip

#: What an import of the library must not bring in: it costs time, or starts to patch and hook. The
#: frameworks are here by themselves: an integration is named after the package that it imports.
NOT_AT_IMPORT = [
    *(path.stem for path in sorted((PACKAGE / "integrations").glob("[!_]*"))),
    "_pytest",
    "asyncio",
    "billiard",
    "concurrent.futures",
    "gevent",
    "gunicorn",
    "multiprocessing",
    "prometheus_client",
    "psutil",
    "requests",
    "rich",
    "socket",
    "sqlite3",
    "urllib3",
    "uwsgi",
    "valued._delivery.sender",
    "valued.cli",
    "valued.integrations",
]


def _modules() -> dict[str, Path]:
    """The file of each module, by its name without ``valued.``; that of a package by its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def _imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that *path* imports, wherever in it, for the type checker or not."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from valued._process import fork` names a module, `from valued import Client` none.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            short = name.removeprefix("valued.")
            while short and short not in known:
                short = short.rpartition(".")[0]
            if name.startswith("valued.") and short:
                yield short


def _folder(name: str) -> str:
    return name.split(".")[0]


def test_folders_import_only_what_the_table_allows() -> None:
    known = _modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        uses = {_folder(other) for other in _imports(path, known)} - {_folder(name)}
        found.setdefault(_folder(name), set()).update(uses)
    assert found.keys() == MAY_IMPORT.keys()
    assert {name: sorted(uses - set(MAY_IMPORT[name])) for name, uses in found.items()} == {
        name: [] for name in found
    }


def test_table_has_no_cycle() -> None:
    order = list(MAY_IMPORT)
    for name, below in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(name) for other in below), name


def test_modules_import_each_other_in_no_cycle() -> None:
    known = _modules()
    left = {name: set(_imports(path, known)) - {name} for name, path in known.items()}
    while free := [name for name, uses in left.items() if not uses]:
        left = {name: uses - set(free) for name, uses in left.items() if name not in free}
    assert left == {}


#: What a framework brings along (``asgiref`` is Django's), or the type checker; and a package that
#: has another name than its integration.
MAY_ALSO = {"_typeshed", "asgiref", "prometheus_client"}


def test_integrations_use_what_is_public_their_framework_and_each_other() -> None:
    folder = PACKAGE / "integrations"
    for path in folder.rglob("*.py"):
        # Of a private module, the first word: it belongs to the public one beside it.
        name = path.relative_to(folder).parts[0].removesuffix(".py").strip("_").split("_")[0]
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [str(node.module)]
            else:
                continue
            for module in imported:
                top = module.split(".")[0]
                assert top in {*sys.stdlib_module_names, *MAY_ALSO, "valued", name}, path
                assert module == "valued" or not module.startswith("valued.") or (
                    module.startswith("valued.integrations")
                ), path  # fmt: skip


#: Folders of the package; their own files have a docstring and nothing else.
PACKAGES = sorted(path.name for path in PACKAGE.glob("_*") if path.is_dir() and path.name[1] != "_")


def test_packages_contain_no_code_of_their_own() -> None:
    for name in PACKAGES:
        assert len(_tree(PACKAGE / name / "__init__.py").body) == 1, name


def test_modules_are_described_for_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.rst").read_text("utf-8")
    described = re.findall(r"^``([_\w/]+)\.py``  ", text, re.MULTILINE)
    outside = {"integrations", "cli", "testing", "pytest_plugin", "__main__"}
    inside = [name for name in _modules() if _folder(name) not in outside and name not in PACKAGES]
    assert sorted(described) == sorted(name.replace(".", "/") for name in inside)


def _functions_of_tests() -> dict[str, set[str]]:
    """The names of the test functions, by the file that they are in."""
    return {
        path.relative_to(ROOT).as_posix(): {
            node.name for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef)
        }
        for path in (ROOT / "tests").rglob("test_*.py")
    }


def test_tests_that_the_site_names_exist() -> None:
    functions = _functions_of_tests()
    told: dict[str, int] = {}
    for page in sorted((ROOT / "docs").rglob("*.rst")):
        text = page.read_text("utf-8")
        # A file, then those of its tests that are meant, up to the next file or row.
        told_of = r":source:`(tests/(?:\w+/)*test_\w+\.py)`((?:(?!:source:|\n   \* - ).)*)"
        for file, named in re.findall(told_of, text, re.DOTALL):
            assert file in functions, (page.name, file)
            names = set(re.findall(r"``(test_\w+)``", named))
            assert names <= functions[file], (page.name, file, names - functions[file])
            told[page.stem] = told.get(page.stem, 0) + len(names)
    assert told["failures"] > 70
    assert told["faults"] > 30


def test_files_that_contributors_are_told_of_exist() -> None:
    for document in ("CONTRIBUTING.rst", "RELEASING.rst", "SECURITY.rst", "CHANGELOG.rst"):
        text = (ROOT / document).read_text("utf-8")
        # Not what has a placeholder, such as <module>.
        named = re.findall(
            r"``((?:docs|tests|valued|benchmarks|examples|\.github|\.ci)(?:/[\w./-]*)?)``", text
        )
        named += re.findall(r"``([A-Z]+\.\w+|\w+\.(?:cfg|toml|ini|yaml))``", text)
        assert named
        missing = [name for name in named if not (ROOT / name).exists()]
        assert missing == [], document


def test_modules_are_short() -> None:
    lengths = {
        str(path): len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {path: n for path, n in lengths.items() if n > LONGEST_MODULE} == {}


def test_one_module_alone_asks_which_process_this_is() -> None:
    asking = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("getpid", "getppid", "register_at_fork", "post_fork_hook")
    }
    # The demo forks, and prints who is who. An integration uses only what is public, and this one
    # has connections of its own.
    own = {
        "_process/fork.py",
        "integrations/_celery_connections.py",
        "integrations/_celery_delivery.py",
    }
    assert {path for path in asking if not path.startswith("cli")} == own


def test_one_module_alone_reads_the_environment() -> None:
    reading = {
        str(path.relative_to(PACKAGE))
        for path in _modules().values()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    # The others set what programs are to read that a test starts, or that a framework has its own.
    others = ("cli/", "integrations/", "testing/", "pytest_plugin.py")
    assert {path for path in reading if not path.startswith(others)} == {"_options.py"}


# What makes something that a fork would break, replaced by what notes who makes it. The library is
# imported twice: once for what it imports from elsewhere, which is not its own doing, and then to
# watch itself alone.
_WATCHED_IMPORT = """
import _thread, atexit, builtins, io, json, os, signal, socket, sys, threading
import psutil, valued

for name in [name for name in sys.modules if name.split(".")[0] == "valued"]:
    del sys.modules[name]
made = []

def noting(owner, name):
    original = getattr(owner, name)
    def call(*args, **kwargs):
        # Not the import system's own locks and files (it has two names, by whether `importlib` was
        # imported), nor those of what measures this test.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not caller.startswith(("importlib", "_frozen_importlib", "coverage")):
            made.append(f"{owner.__name__}.{name} in {caller}")
        return original(*args, **kwargs)
    setattr(owner, name, call)

process = psutil.Process()
before = process.num_threads(), process.num_fds() if hasattr(process, "num_fds") else 0

for owner, names in {
    threading: ["Lock", "RLock", "Condition", "Event", "Semaphore", "Barrier"],
    threading.Thread: ["start"],
    _thread: ["start_new_thread", "allocate_lock", "RLock"],
    socket: ["create_connection", "socketpair"],
    builtins: ["open"], io: ["open"], os: ["open", "pipe"],
    signal: ["signal"], atexit: ["register"],
}.items():
    for name in names:
        noting(owner, name)

class Socket(socket.socket):
    def __init__(self, *args, **kwargs):
        made.append("socket.socket")
        super().__init__(*args, **kwargs)

socket.socket = Socket
import valued

found = list(made)
after = process.num_threads(), process.num_fds() if hasattr(process, "num_fds") else 0
print(json.dumps([found, before == after]))
"""


def test_import_makes_no_lock_thread_socket_or_file() -> None:
    done = run("-c", _WATCHED_IMPORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [[], True]


def test_import_brings_in_no_framework_and_nothing_slow() -> None:
    # Without coverage, which has imports of its own.
    environment = {name: os.environ[name] for name in os.environ if "COV" not in name}
    program = "import json, sys, valued; print(json.dumps(list(sys.modules)))"
    done = run("-c", program, env=environment)
    assert done.returncode == 0, done.stderr
    assert [name for name in NOT_AT_IMPORT if name in json.loads(done.stdout)] == []


def test_import_says_nothing_where_warnings_are_errors() -> None:
    done = run("-W", "error", "-c", "import valued")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_testing_is_there_without_an_import_of_its_own() -> None:
    assert (
        run("-c", "import valued; print(valued.testing.recorded.__name__)").stdout == "recorded\n"
    )


def test_public_names_are_sorted_and_complete() -> None:
    assert valued.__all__ == sorted(valued.__all__)
    public = {
        name
        for name in dir(valued)
        if not name.startswith("_") and not isinstance(getattr(valued, name), types.ModuleType)
    }
    assert public == set(valued.__all__) - {"__version__"}


@pytest.mark.parametrize("name", [name for name in valued.__all__ if name != "__version__"])
def test_public_object_says_what_it_is_and_where_users_find_it(name: str) -> None:
    public = getattr(valued, name)
    assert inspect.getdoc(public)
    if callable(public):
        assert public.__module__ == "valued"
    # What a protocol's method means is told by its class.
    described = isinstance(public, type) and not getattr(public, "_is_protocol", False)
    for own, member in vars(public).items() if described else ():
        if callable(member) and not own.startswith("_"):
            assert inspect.getdoc(member), f"{name}.{own}"


def test_version_is_a_literal_and_the_only_one() -> None:
    match = re.search(r'^__version__: Final = "(\d+\.\d+\.\d+)"$',
                      (PACKAGE / "_version.py").read_text("utf-8"), re.MULTILINE)  # fmt: skip
    assert match is not None
    assert match[1] == valued.__version__
    assert match[1] in (ROOT / "CHANGELOG.rst").read_text("utf-8")


@pytest.mark.parametrize("show", [repr, str, lambda value: f"{value!r} {vars(value)}"])
def test_token_shows_in_nothing(show: object) -> None:
    assert callable(show)
    token = "s3cret-token"
    client = valued.Client(token, "http://127.0.0.1:9/events", retries=0)
    shared = valued.connect(client)
    connection = valued.Connection(token, "http://127.0.0.1:9/events")
    with pytest.raises(valued.DeliveryError) as refused:
        connection({"category": "action"})
    with pytest.raises(valued.ValidationError) as invalid:
        valued.Client(token + "\n")
    with pytest.raises(valued.ValidationError) as misplaced:
        valued.Client("another", token)
    texts = [
        show(thing)
        for thing in (
            client, shared, connection, valued.Scope(client), valued.scope,
            refused.value, invalid.value, misplaced.value,
        )
    ]  # fmt: skip
    texts += [repr(connection.headers), repr(refused.value.__cause__)]
    assert [text for text in texts if token in text] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution, and a wheel that was built from it alone."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    _build(ROOT, "sdist", folder, folder / "copy")
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(source, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    [unpacked] = source.iterdir()
    _build(unpacked, "wheel", folder, None)
    return folder


def _build(project: Path, kind: str, folder: Path, copy: Path | None) -> None:
    """By setuptools' own interface, as pip calls it; in a copy, so that none is left here."""
    if copy is not None:
        copy.mkdir()
        for name in _sources():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((project / name).read_bytes())
        project = copy
    program = f"from setuptools import build_meta as b; b.build_{kind}({str(folder)!r})"
    done = run("-c", program, cwd=project, timeout=120)
    assert done.returncode == 0, done.stderr


def _sources() -> list[str]:
    names = ["LICENSE", "MANIFEST.in", "README.rst", "pyproject.toml", "setup.cfg"]
    return names + [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*")
                    if path.suffix == ".py" or path.name in ("py.typed", "page.html")]  # fmt: skip


def test_wheel_holds_the_package_its_types_and_its_command(built: Path) -> None:
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = f"valued_client-{valued.__version__}.dist-info"
        commands = configparser.ConfigParser()
        commands.read_string(wheel.read(f"{info}/entry_points.txt").decode())
        text = wheel.read(f"{info}/METADATA").decode("utf-8")
        metadata = email.message_from_string(text, policy=email.policy.default)
    packaged = {name for name in names if not name.startswith(info)}
    assert packaged == {name for name in _sources() if name.startswith("valued")}
    assert {"valued/py.typed", "valued/cli/__init__.py", "valued/__main__.py"} <= packaged
    assert dict(commands["console_scripts"]) == {"valued": "valued.cli:main"}
    assert metadata["Version"] == valued.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert [it for it in metadata.get_all("Classifier") or [] if it.startswith("License")] == []
    assert metadata["Description-Content-Type"] == "text/x-rst"
    assert metadata.get_payload().strip() == (ROOT / "README.rst").read_text("utf-8").strip()
    required = metadata.get_all("Requires-Dist") or []
    always = [requirement for requirement in required if "extra ==" not in requirement]
    assert sorted(re.split(r"[<>=!~ ]", name)[0] for name in always) == ["psutil", "requests"]
    setup = configparser.ConfigParser()
    setup.read_string((ROOT / "setup.cfg").read_text("utf-8"))
    extras = set(setup["options.extras_require"])
    assert {"celery", "cli", "django", "flask", "rq"} <= extras
    assert set(metadata.get_all("Provides-Extra") or []) == extras


def test_wheel_works_away_from_the_clone(built: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    program = (
        "import valued; sent = []; valued.connect(sent.append); "
        "valued.action('a', {'user.id': 1}); assert valued.flush(10); "
        "print(valued.__file__, sent[0]['key'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(wheel / "valued" / "__init__.py"), "a"]


def test_nothing_installs_more_than_two_packages() -> None:
    setup = configparser.ConfigParser()
    setup.read_string((ROOT / "setup.cfg").read_text("utf-8"))
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line]
    assert [re.split(r"[<>=]", line)[0] for line in lines if line[0] != "#"] == [
        "requests",
        "psutil",
    ]
