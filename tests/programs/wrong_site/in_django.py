"""The site in Django, set up by its settings, in one file: ``wsgi`` and ``asgi``."""

import json
from collections.abc import Iterator
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

import valued
from tests.programs.wrong_site import calls


def user(request: Any) -> Any:
    return calls.who(request.headers.get("X-Who"))


def page_view(request: Any, _response: Any) -> Any:
    return calls.choose(request.headers.get("X-Page-View"))


settings.configure(
    SECRET_KEY="of the tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["valued.integrations.django"],
    MIDDLEWARE=["valued.integrations.django.ScopeMiddleware"],
    VALUED={
        "INVALID": "log",
        "ANONYMOUS": "drop",
        "BEFORE_SEND": calls.before_send,
        "USER": user,
        "CUSTOMER": lambda request: calls.who(request.headers.get("X-Customer")),
        "PAGE_VIEWS": page_view,
        "FLUSH_ON_SIGNALS": True,
    },
)
django.setup()


def call(_request: Any, name: str) -> JsonResponse:
    return JsonResponse(calls.called(name))


def stream(_request: Any, name: str) -> StreamingHttpResponse:
    def chunks() -> Iterator[str]:
        yield "["
        yield json.dumps(calls.called(name))
        yield "]"

    return StreamingHttpResponse(chunks(), content_type="text/plain")


def page(_request: Any) -> HttpResponse:
    valued.action("page.opened")
    return HttpResponse("<p>A page</p>")


async def apage(_request: Any) -> HttpResponse:
    return page(_request)


def figures(_request: Any) -> JsonResponse:
    valued.flush(10)
    return JsonResponse({**valued.client().stats()})


urlpatterns = [
    path("call/<str:name>", call),
    path("stream/<str:name>", stream),
    path("page", page),
    path("apage", apage),
    path("figures", figures),
]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
