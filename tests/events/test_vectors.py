"""The recorded vectors, every one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import valued

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "events.json").read_text("utf-8"))


def _play(scope: valued.Scope, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        match step["op"]:
            case "set":
                key = step["key"]
                scope[key if isinstance(key, str) else tuple(key)] = step["value"]
            case "nested":
                with scope.nested(step.get("data")):
                    _play(scope, step["steps"])
            case "action" | "page_view":
                getattr(scope, step["op"])(step.get("key", step.get("url")), step.get("data"))
            case "apply" | "sync_user" | "sync_customer":
                getattr(scope, step["op"])(step.get("data"))
            case "reset" | "sync":
                getattr(scope, step["op"])()
            case unknown:
                raise AssertionError(unknown)


def _without_time(event: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    assert "occured_at" in event
    return event if "occured_at" in expected else {k: event[k] for k in event if k != "occured_at"}


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vector(
    vector: dict[str, Any], recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    def act() -> Any:
        if "normalize" in vector:
            return valued.normalize(vector["normalize"])
        if "scope" in vector:
            return _play(valued.Scope(recorder, vector["scope"]), vector["steps"])
        return getattr(recorder, vector["call"])(*vector["args"])

    if "error" in vector:
        with pytest.raises(valued.ValuedError) as caught:
            act()
        assert vector["error"] in str(caught.value)
        assert sent == []
        assert recorder.stats()["accepted"] == 0
        return
    result = act()
    if "normalize" in vector:
        assert result == vector["expect"]
        return
    expected = vector["expect"] if isinstance(vector["expect"], list) else [vector["expect"]]
    assert [_without_time(e, x) for e, x in zip(sent, expected, strict=True)] == expected
