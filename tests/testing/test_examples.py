"""The suites of the examples, as their readers run them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.processes import run
from tests.testing.support import assert_passed, pytest_in

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize(
    ("suite", "needs"),
    [("test_flask_app.py", ("flask",)), ("test_fastapi_app.py", ("fastapi", "httpx", "celery"))],
)
def test_suite_of_an_application_passes_without_a_token(
    tmp_path: Path, suite: str, needs: tuple[str, ...]
) -> None:
    for name in needs:
        pytest.importorskip(name)
    # A copy: nothing is to be left beside the examples.
    for name in (suite, suite.removeprefix("test_"), "pytest.ini"):
        shutil.copy(EXAMPLES / name, tmp_path)
    # A framework's own deprecations are no matter of ours.
    assert_passed(pytest_in(tmp_path, "-q", "-W", "ignore", suite), 3)


def test_suite_of_the_django_project_passes_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("django")
    pytest.importorskip("celery")
    monkeypatch.delenv("VALUED_ENV")
    shutil.copytree(EXAMPLES / "django_project", tmp_path, dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = run("manage.py", "test", "reports", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr
