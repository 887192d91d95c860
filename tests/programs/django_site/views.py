"""Each view records who its visitor says to be, for the test to compare with whose event it is."""

import asyncio
import os
import time

from django.contrib.auth import alogin, get_user_model, login, logout
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from rest_framework.authentication import SessionAuthentication, TokenAuthentication
from rest_framework.response import Response
from rest_framework.views import APIView

import valued

CHUNKS = 3


def record(request, step):
    """An event that needs no user, so that nobody's has a place to go to."""
    attributes = {
        "id": request.headers.get("X-Id"),
        "step": step,
        "expected": request.headers.get("X-Expected"),
        "pid": os.getpid(),
    }
    valued.action("step", {"customer.id": 1, "attributes": attributes})


def page(request):
    record(request, 0)
    return HttpResponse("<p>Hello")


async def apage(request):
    await request.auser()
    record(request, 0)
    await asyncio.sleep(0)
    record(request, 1)
    return HttpResponse("<p>Hello")


def quiet(request):
    return HttpResponse("<p>Hello")


async def aquiet(request):
    return HttpResponse("<p>Hello")


async def unloaded(request):
    try:
        record(request, 0)
    except valued.ValidationError as error:
        return HttpResponse(str(error), status=409)
    return HttpResponse("<p>Hello")


def stream(request):
    def chunks():
        for step in range(CHUNKS):
            record(request, step)
            yield b"chunk"
            time.sleep(0)

    return StreamingHttpResponse(chunks())


async def astream(request):
    await request.auser()

    async def chunks():
        for step in range(CHUNKS):
            record(request, step)
            yield b"chunk"
            await asyncio.sleep(0)

    return StreamingHttpResponse(chunks())


def dropped(request):
    def chunks():
        try:
            while True:
                yield b"chunk" * 1000
        finally:
            record(request, 0)

    return StreamingHttpResponse(chunks())


async def adropped(request):
    await request.auser()

    async def chunks():
        try:
            while True:
                yield b"chunk" * 1000
                await asyncio.sleep(0)
        finally:
            record(request, 0)

    return StreamingHttpResponse(chunks())


def _asked_for(request):
    return get_user_model().objects.get(pk=request.headers["X-Expected"])


def sign_in(request):
    login(request, _asked_for(request), "django.contrib.auth.backends.ModelBackend")
    record(request, 0)
    return HttpResponse("<p>Hello")


async def asign_in(request):
    user = await get_user_model().objects.aget(pk=request.headers["X-Expected"])
    await alogin(request, user, "django.contrib.auth.backends.ModelBackend")
    record(request, 0)
    return HttpResponse("<p>Hello")


def sign_in_again(request):
    """Somebody is signed in, and his events are recorded; then somebody else signs in."""
    valued.action("before", {"customer.id": 1})
    login(request, _asked_for(request), "django.contrib.auth.backends.ModelBackend")
    record(request, 0)
    return HttpResponse("<p>Hello")


def sign_out(request):
    logout(request)
    record(request, 0)
    return HttpResponse("<p>Hello")


def set_user(request):
    valued.scope.user = {"id": "given"}
    record(request, 0)
    return HttpResponse("<p>Hello")


def data(request):
    return JsonResponse({})


def file(request):
    return FileResponse(open(__file__, "rb"))


def failing(request):
    valued.scope["attributes.left"] = True
    raise RuntimeError("on purpose")


class Api(APIView):
    authentication_classes = (TokenAuthentication, SessionAuthentication)

    def get(self, request):
        record(request, 0)
        return Response({})
