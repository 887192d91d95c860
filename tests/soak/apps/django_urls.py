"""The user is found by Django's session, which the cookie names."""

import asyncio
import time

from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from tests.soak.apps.journal import record


def _given(request):
    return request.headers["X-Id"], request.headers.get("X-Expected")


def page(request):
    time.sleep(0.001)
    record(*_given(request))
    return HttpResponse("page")


async def apage(request):
    await request.auser()
    await asyncio.sleep(0)
    record(*_given(request))
    return HttpResponse("page")


def stream(request):
    id, expected = _given(request)

    def chunks():
        for number in range(3):
            record(f"{id}-{number}", expected)
            yield b"chunk"
            time.sleep(0.001)

    return StreamingHttpResponse(chunks())


async def astream(request):
    id, expected = _given(request)
    await request.auser()

    async def chunks():
        for number in range(3):
            record(f"{id}-{number}", expected)
            yield b"chunk"
            await asyncio.sleep(0)

    return StreamingHttpResponse(chunks())


urlpatterns = [
    path("page", page),
    path("apage", apage),
    path("stream", stream),
    path("astream", astream),
]
