"""An application whose client is made as it is imported. It needs nothing of the test's."""

import os

import valued

valued.connect(os.environ.get("TOKEN"), os.environ.get("ENDPOINT"))


def work(number):
    valued.action("worked", {"user.id": number, "attributes.pid": os.getpid()})
    return number


def site(environ, start_response):
    work(int(environ["PATH_INFO"].lstrip("/")))
    start_response("204 No Content", [])
    return []
