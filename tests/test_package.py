"""The files around the package: addresses, requirements, what continuous integration runs."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support.documents import doctree
from tests.support.processes import run

ROOT = Path(__file__).parent.parent

#: Documents beside the package and the site.
DOCUMENTS = ["README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst", "RELEASING.rst", "SECURITY.rst"]

#: Bytes of the README. What is longer goes to the site.
LONGEST_README = 8192

#: Pages of a forge that are no files of the tree, and have no other address.
OF_THE_FORGE = {"", "/", ".git", "/issues", "/security/advisories/new"}


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read_string((ROOT / "setup.cfg").read_text("utf-8"))
    return setup


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


#: What users may install besides; the other extras are for work on the library itself.
EXTRAS = {
    name: _lines(text)
    for name, text in _setup()["options.extras_require"].items()
    if name not in ("test", "types", "lint", "docs")
}

#: An extra of the same name has what the integration needs.
INTEGRATIONS = sorted(EXTRAS.keys() - {"cli"})


PROJECT_URL = _setup()["metadata"]["url"]

#: In two parts, so that the command which replaces it leaves this one.
PLACEHOLDER = "https://example.com/" + "valued-client"


def test_project_url_is_marked_as_the_one_constant() -> None:
    text = (ROOT / "setup.cfg").read_text("utf-8")
    mark = rf"# PROJECT_URL: [^=]*RELEASING\.rst[^=]*\nurl = {re.escape(PROJECT_URL)}\n"
    # Of a source distribution setuptools writes it again, without comments.
    assert re.search(mark, text) or "[egg_info]" in text
    assert f"git grep -lF {PLACEHOLDER} " in (ROOT / "RELEASING.rst").read_text("utf-8")
    for line in _lines(_setup()["metadata"]["project_urls"]):
        assert re.match(rf"[A-Z][a-z]+ = {re.escape(PROJECT_URL)}", line), line


@pytest.mark.parametrize("name", ["setup.cfg", *DOCUMENTS])
def test_addresses_of_the_project_lead_to_files_of_the_tree(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    for rest in re.findall(rf"{re.escape(PROJECT_URL)}([\w./-]*)", text):
        path = re.fullmatch(r"/(?:blob|raw|tree)/main/([\w./-]+)", rest)
        assert rest in OF_THE_FORGE or (path and (ROOT / path[1]).exists()), PROJECT_URL + rest
    if PROJECT_URL != PLACEHOLDER and name != "RELEASING.rst":
        assert PLACEHOLDER not in text


def test_links_of_the_readme_are_absolute() -> None:
    """The page of a package index has no files beside it."""
    text = (ROOT / "README.rst").read_text("utf-8")
    targets = re.findall(r"<([^\s<>]+)>`__?", text)
    targets += re.findall(r"^\.\. _.*?: (\S+)$", text, re.MULTILINE)
    targets += re.findall(r"^(?:\.\. (?:image|figure)::| +:target:) (\S+)", text, re.MULTILINE)
    assert [it for it in targets if not re.match(r"https?://", it)] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.rst").read_bytes()) <= LONGEST_README


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    doctree(name, report_level=1, highlight="long")  # which knows what languages there are
    assert capfd.readouterr().err == ""


def test_summary_is_one_line() -> None:
    assert len(_setup()["metadata"]["description"]) <= 100


def _last_line() -> str:
    return (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1]


def test_ci_runs_the_command_that_contributors_are_told() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert lines[:3] == ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")/.."']
    assert [line for line in lines[:-1] if "tox" in line or "pytest" in line] == []
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for name in ("README.rst", "CONTRIBUTING.rst"):
        assert f"   $ {_last_line()}\n" in (ROOT / name).read_text("utf-8"), name


def _tox() -> configparser.ConfigParser:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read_string((ROOT / "tox.ini").read_text("utf-8"))
    return tox


def test_tox_runs_by_default_what_ci_runs() -> None:
    default = {name.strip() for name in _tox()["tox"]["env_list"].split(",")}
    match = re.search(r"tox run -e (\S+)$", _last_line())
    assert match is not None
    ours = set(match[1].split(","))
    assert ours - {"py"} <= default
    assert default - ours == {"py310", "py311", "py312", "py313", "py314"}


def test_floors_are_tested_as_they_are_promised() -> None:
    setup = _setup()
    lowest = {}
    promised = [_lines(setup["options"]["install_requires"]), *EXTRAS.values()]
    for line in [line for lines in promised for line in lines]:
        name, version = line.split(">=")
        lowest[name] = version
    exactly = dict(
        line.split("==") for line in _lines(_tox()["testenv:floors"]["deps"]) if "==" in line
    )
    assert exactly.keys() == lowest.keys()
    for name, version in lowest.items():
        # `>=13` means 13.0.0; what is used may be written shorter.
        assert re.sub(r"(\.0)+$", "", exactly[name]) == re.sub(r"(\.0)+$", "", version), name
    assert _tox()["testenv:floors"]["base_python"] == "py310"
    assert setup["options"]["python_requires"] == ">=3.10"


def test_integrations_are_found() -> None:
    assert {"celery", "django", "flask", "rq"} <= set(INTEGRATIONS)
    modules = {path.stem for path in (ROOT / "valued" / "integrations").glob("[!_]*")}
    assert modules == {"asgi", "wsgi", *INTEGRATIONS}  # those two need no package


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_integration_is_in_each_list_of_them(name: str) -> None:
    extras = _setup()["options.extras_require"]
    needed = {re.split(r"[<>=]", line)[0] for line in EXTRAS[name]}
    assert needed <= {re.split(r"[<>=]", line)[0] for line in _lines(extras["test"])}
    assert name in re.split(r",\s*", _tox()["testenv:docs"]["extras"])
    for path in ("valued/integrations/__init__.py", "CHANGELOG.rst"):
        assert f"``{name}``" in (ROOT / path).read_text("utf-8"), path
    pages = ROOT / "docs"
    assert (pages / "howto" / f"{name}.rst").exists()
    assert f"\n   {name}\n" in (pages / "howto" / "index.rst").read_text("utf-8")
    reference = (pages / "reference" / "integrations.rst").read_text("utf-8")
    assert f"   * - `valued.integrations.{name}`\n" in reference
    assert list((ROOT / "tests" / "integrations").glob(f"test_{name}.py"))


@pytest.mark.parametrize(
    "path",
    [".pre-commit-config.yaml", *sorted(
        it.relative_to(ROOT).as_posix() for it in (ROOT / ".github").rglob("*.yml")
    )],
)  # fmt: skip
def test_file_of_a_forge_is_yaml(path: str) -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / path).read_text("utf-8")
    read = yaml.safe_load(text)
    assert isinstance(read, dict)
    if "/workflows/" not in path:
        return
    assert "not been run yet" in text
    assert "permissions" in read
    for job in read["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            assert "uses" not in step or re.search(r"@(v\d+|release/v\d+)$", step["uses"])
            for environment in re.findall(r"tox run .*-e (\S+)", step.get("run", "")):
                known = {"py", *(name.strip() for name in _tox()["tox"]["env_list"].split(","))}
                assert set(environment.split(",")) <= known


#: What is in a clone and in no copy of it.
_MADE = (".git", ".tox", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build",
         "dist", "_build")  # fmt: skip


def test_source_distribution_has_what_its_tests_and_documentation_need(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_MADE))
    (copy / "tests" / "__pycache__").mkdir()
    (copy / "tests" / "__pycache__" / "left.pyc").touch()
    program = f"from setuptools import build_meta as b; b.build_sdist({str(tmp_path)!r})"
    done = run("-W", "error", "-c", program, cwd=copy, timeout=120)
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        listed = {name.partition("/")[2] for name in packed.getnames()}
    for name in (
        "tox.ini", ".pre-commit-config.yaml", ".ci/run", ".ci/package.py", "tests/conftest.py",
        "tests/test_package.py", "docs/conf.py", "docs/index.rst", "docs/_static/valued.css",
        "examples/pytest.ini", "benchmarks/__init__.py", "tests/cli/visits.jsonl", *DOCUMENTS,
        *(it.relative_to(ROOT).as_posix() for it in (ROOT / ".github").rglob("*.yml")),
    ):  # fmt: skip
        assert name in listed, name
    assert [name for name in listed if "__pycache__" in name or name.endswith(".pyc")] == []
