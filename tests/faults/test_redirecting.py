"""A server that sends the client elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults._raw import answer, answering


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_fix_is_said(
    status: int, serve: Any, connect: Any
) -> None:
    other = serve(answering())
    server = serve(answering(answer(f"{status} Elsewhere", f"Location: {other.url}")))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    ((error, _),) = client.given_up(1)
    assert error.status == status
    assert "redirects are not followed" in str(error)
    assert other.connections == 0  # so the token did not go there
    assert server.methods == ["POST"]
