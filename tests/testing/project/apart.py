"""Two tests at the same time, each on a worker of pytest-xdist. Run by pytest, not by ours."""

import os
import time
from pathlib import Path

import app
import pytest

MET = Path(os.environ["MET"])


def wait_for(name):
    deadline = time.monotonic() + 30
    while not (MET / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("own", "other"), [("1", "2"), ("2", "1")])
def test_sees_its_own_events_only(valued_events, own, other):
    (MET / f"began {own}").touch()
    wait_for(f"began {other}")
    app.work(int(own))
    (MET / f"recorded {own}").touch()
    wait_for(f"recorded {other}")
    assert [event["user"]["id"] for event in valued_events] == [int(own)]
    (MET / f"looked {own}").touch()
    wait_for(f"looked {other}")
