"""Page views that a web framework records by itself: which ones, and that they break no page."""

from __future__ import annotations

import logging

import valued


def is_page(method: str, status: int, content_type: str | None) -> bool:
    """Whether an answer is a page that somebody looks at: GET, 2xx, HTML."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return method == "GET" and 200 <= status < 300 and kind == "text/html"


def record(url: str) -> None:
    """Record a page view of the shared scope's user; skipped where no user's id is known.

    Raises nothing: an answer that is ready is sent, whatever becomes of its page view.
    """
    try:
        if valued.connected() and valued.scope.user_id is not None:
            valued.page_view(url)
    except Exception as error:  # noqa: BLE001 - a `user` function of the application's may raise anything
        # Not its words, which may hold what it was asked for.
        logging.getLogger("valued").warning(
            "a page view was not recorded: %s was raised", type(error).__name__
        )
