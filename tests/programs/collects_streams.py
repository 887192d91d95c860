"""Streams that nobody closes, collected amid changes of context variables."""

import contextvars
import gc

import valued
from valued.integrations.wsgi import ScopeMiddleware

valued.connect(lambda _event: None, executor=valued.ImmediateExecutor())
others = [contextvars.ContextVar(f"other{n}") for n in range(40)]


class Body:
    def __iter__(self):
        return self

    def __next__(self):
        return b""


middleware = ScopeMiddleware(lambda environ, start: Body())
gc.set_threshold(3, 1, 1)
for number in range(20000):
    dropped = [middleware({}, None)]
    dropped.append(dropped)  # so that the garbage collector ends it
    next(dropped[0])
    gc.set_threshold(number % 9 + 1, 1, 1)
    del dropped
    for other in others[:8]:
        other.set(number)
    gc.set_threshold(1000, 1, 1)
    valued.scope.user_id = number
    assert valued.scope.user_id == number
print("ok")
