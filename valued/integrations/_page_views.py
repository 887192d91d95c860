"""Page views that a web framework records by itself: which ones, and that they break no page."""

from __future__ import annotations

from collections.abc import Callable

import valued
from valued.integrations._saying import say


def check(page_views: object) -> None:
    """Raise `ValidationError` where *page_views* is neither a bool nor a function."""
    if not isinstance(page_views, bool) and not callable(page_views):
        raise valued.ValidationError(
            "page_views: expected True, False or a function of the request and the response, "
            f"got {type(page_views).__name__}"
        )


def is_page(method: str, status: int, content_type: str | None) -> bool:
    """Whether an answer is a page for a person: GET, status 2xx, HTML."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return method == "GET" and 200 <= status < 300 and kind == "text/html"


def record(url: str, choose: Callable[[], object] | None = None) -> None:
    """Record a page view of the shared scope's user; skipped where no user's id is known.

    *choose*: called first. None or False: no page view. True: one of *url*. A string: of that URL.

    Raises nothing: an answer that is ready is sent, whatever becomes of its page view. The one
    exception is `valued.testing.RealEndpointError`, which must fail the test.
    """
    try:
        if not valued.connected():
            return
        chosen = True if choose is None else choose()
        if chosen is None or chosen is False or valued.scope.user_id is None:
            return
        valued.page_view(url if chosen is True else chosen)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - functions of the application's may raise anything
        say_failed(error)


def say_failed(error: Exception) -> None:
    """Log that a page view was not recorded; not the words of others, which may hold a value.

    Raises it again where it is `valued.testing.RealEndpointError`.
    """
    # By its name: to import `valued.testing` is nothing for a page.
    if isinstance(error, valued.ValuedError) and type(error).__name__ == "RealEndpointError":
        raise error
    if isinstance(error, valued.SerializationError):
        say("a page view was not recorded: %s", error.summary)
    elif isinstance(error, valued.ValuedError):
        say("a page view was not recorded: %s", error)
    else:
        say("a page view was not recorded: %s was raised", type(error).__name__)
