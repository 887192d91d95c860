"""Page views of a Django application: which answers are one, and of which URL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import SynchronousOnlyOperation
from django.urls import NoReverseMatch, get_script_prefix, reverse
from django.utils.encoding import escape_uri_path

from valued.integrations import _page_views
from valued.integrations.django._fields import load_user, needs_user


def is_page_view(request: Any, response: Any) -> bool:
    """Whether an answer is a page for a person.

    That is: GET, status 2xx, ``text/html``, and not below the admin, ``STATIC_URL`` or
    ``MEDIA_URL``. Any thread may call.
    """
    if not _page_views.is_page(
        request.method, response.status_code, response.headers.get("Content-Type")
    ):
        return False
    match = request.resolver_match
    return not (match is not None and "admin" in match.app_names) and not any(
        request.path.startswith(prefix) for prefix in _prefixes()
    )


def _prefixes() -> list[str]:
    prefixes = [django_settings.STATIC_URL, django_settings.MEDIA_URL]
    with contextlib.suppress(NoReverseMatch):
        prefixes.append(reverse("admin:index"))
    # One that is empty, as `MEDIA_URL` is by default, or that everything is below, tells nothing.
    return [it for it in prefixes if it and it.startswith("/") and it != get_script_prefix()]


class PageViews:
    """Records page views; raises nothing, since the page is ready."""

    def __init__(self, choose: Callable[[Any, Any], object] | None) -> None:
        """*choose*: returns, for the request and a response that is a page, True, None or a URL."""
        self._choose = choose

    def record(self, request: Any, response: Any) -> None:
        """Record the page view of *response*, if it is one."""
        if self._choose is None:
            return
        try:
            url = self._url(request, response)
        except Exception as error:  # noqa: BLE001 - the application's own function
            _page_views.say_failed(error)
        else:
            if url is not None:
                _page_views.record(url)

    async def arecord(self, request: Any, response: Any) -> None:
        """The same in an async handler, where the user may have to be loaded first."""
        if self._choose is None:
            return
        try:
            try:
                url = self._url(request, response)
            except SynchronousOnlyOperation:
                await load_user(request)
                url = self._url(request, response)
            if url is not None and needs_user(request):
                await load_user(request)
        except Exception as error:  # noqa: BLE001 - the same, or the database
            _page_views.say_failed(error)
        else:
            if url is not None:
                _page_views.record(url)

    def _url(self, request: Any, response: Any) -> str | None:
        if self._choose is None or not is_page_view(request, response):
            return None
        chosen = self._choose(request, response)
        if chosen is None or chosen is False:
            return None
        if isinstance(chosen, str):
            return chosen
        if chosen is not True:
            raise TypeError
        # Two slashes in front, as Django has it: a path may begin with two itself, which would
        # name a host.
        path = escape_uri_path(request.path)
        return str(request.build_absolute_uri(f"//{path}"))
