"""A small FastAPI application that records what its users do, and what its tasks do for them.

Start the mock server in one terminal and the application in another. Then send requests:

    $ valued listen
    $ export VALUED_TOKEN=any-token VALUED_ENDPOINT=http://127.0.0.1:4567/events
    $ uvicorn --app-dir examples fastapi_app:app
    $ curl -H 'X-User-Id: 7' http://127.0.0.1:8000/reports/12
    $ curl -H 'X-User-Id: 7' -X POST http://127.0.0.1:8000/reports/12

This way the task runs in the request. To run it in a worker, set a broker, such as a Redis on this
machine, for both. Start the worker in a third terminal, with the variables from above:

    $ export CELERY_BROKER_URL=redis://127.0.0.1:6379/0
    $ celery --workdir examples --app fastapi_app:tasks worker

Needs ``fastapi``, ``uvicorn`` and ``celery``, and ``redis`` for that broker.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Annotated

from celery import Celery
from fastapi import Depends, FastAPI, Header, Request, Response

import valued
from valued.integrations.asgi import ScopeMiddleware
from valued.integrations.celery import carry_scope

# At import, so that a wrong setting stops the server and doesn't break a request. Events of
# visitors who are not signed in are dropped, and mistakes in an event are logged: neither breaks a
# page.
valued.connect(anonymous="drop", invalid="log")

# Sends the ids of the user and of the customer with each task to the worker. Nothing else is sent
# along: no name, no address.
carry_scope()

broker = os.environ.get("CELERY_BROKER_URL")
tasks = Celery("fastapi_app", broker=broker)
tasks.conf.update(task_always_eager=broker is None, task_ignore_result=True)


@tasks.task
def render(report: int) -> None:
    # The user is the one whose request started the task.
    valued.action("report.rendered", attributes={"report": report, "pages": report % 7 + 1})


async def sign_in(x_user_id: Annotated[str | None, Header()] = None) -> None:
    # Use your own login here. If the visitor is not signed in, there is no user: each request
    # starts with an empty scope.
    if x_user_id is not None:
        valued.scope.user = {"id": x_user_id}


app = FastAPI(dependencies=[Depends(sign_in)])


@app.middleware("http")
async def page_view(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    # Afterwards, when the user is known, since a page view needs one. This takes microseconds: the
    # event is copied and queued, and sent in the background.
    if request.method == "GET" and response.status_code < 400:
        valued.page_view(str(request.url))
    return response


# Added last, so that it is outermost: the middleware above also sees what the dependency sets. When
# the server shuts down, it delivers what was recorded.
app.add_middleware(ScopeMiddleware)


@app.get("/reports/{number}")
def report(number: int) -> dict[str, int]:
    return {"report": number}


@app.post("/reports/{number}", status_code=202)
def generate(number: int) -> dict[str, int]:
    # Next to the code that did it. The user comes from the scope.
    valued.action("report.ordered", attributes={"report": number})
    render.delay(number)
    return {"report": number}
