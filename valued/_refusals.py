"""What becomes of input that can't be sent, or shouldn't be: raised, or counted and logged."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from valued import _events
from valued._errors import SerializationError, ValidationError, ValuedError
from valued._fork import PerProcess
from valued._serializer import LEFT_OUT, encode, merge, normalize_leniently

if TYPE_CHECKING:
    from types import FrameType

    from valued._options import Options
    from valued._typing import JSONObject

#: Kinds of log lines, at most: a field and a reason, and applications have fields without end.
MOST_KINDS: Final = 100


class _Here:
    """One process's figures."""

    def __init__(self) -> None:
        self.counts = {"disabled": 0, "invalid": 0, "anonymous": 0, "refused": 0}
        # Re-entrant, as a signal handler may record an event.
        self.lock = threading.RLock()
        from valued._reporting import Reporter  # who makes a client has imported it

        self.reporter = Reporter(None)
        self.kinds: set[str] = set()
        self.reviewing: set[int] = set()  # threads that are within `before_send`


class Refusals:
    """Decides by the options of a client what becomes of an event that is not sent.

    Any thread may call; the figures of a forked child begin with zero.
    """

    def __init__(self, options: Options) -> None:
        self._raises = options.invalid == "raise"
        self._drops_anonymous = options.anonymous == "drop"
        self._before_send = options.before_send
        self._here: PerProcess[_Here] = PerProcess(_Here)

    def figures(self) -> dict[str, int]:
        """How many events were not sent, by the reason."""
        return dict(self._here.get().counts)

    def count(self, reason: str) -> None:
        """Count an event."""
        here = self._here.get()
        with here.lock:
            here.counts[reason] += 1

    def tolerates(self, error: Exception) -> bool:
        """Whether the call returns, and *error* is counted and logged; False: it is raised."""
        if self._drops_anonymous and _events.is_anonymous(error):
            self.count("anonymous")
            return True
        if self._raises:
            return False
        self._leave_out(error)
        return True

    def gather(self, data: object, fields: dict[str, Any]) -> JSONObject:
        """`_events.gather`, for a scope: what can't be sent is raised, or left out.

        Where that is somebody's id, nobody is known: never whom the scope held before.
        """
        try:
            return _events.gather(data, fields)
        except ValuedError:
            if self._raises:
                raise
        found: JSONObject = {}
        places: list[str] = []

        def leave_out(error: SerializationError) -> None:
            places.append(error.path)
            self._leave_out(error)

        for given in (data, fields):
            plain = normalize_leniently({} if given is None else given, leave_out)
            if isinstance(plain, dict):
                found = merge(found, plain)
            elif plain is not LEFT_OUT:
                self._leave_out(ValidationError("data: expected a mapping"))
                places.append("")
        for party in ("user", "customer"):
            if any(
                f"{place}." in (".", f"{party}.") or f"{place}.".startswith(f"{party}.id.")
                for place in places
            ):
                found[party] = None
        return found

    def review(self, event: JSONObject) -> JSONObject | None:
        """*event* as ``before_send`` wants it sent; None: not at all. Raises nothing of its."""
        if self._before_send is None:
            return event
        here, thread = self._here.get(), threading.get_ident()
        try:
            if thread in here.reviewing:
                raise RecursionError("it recorded an event")
            here.reviewing.add(thread)
            try:
                found = self._before_send(json.loads(encode(event)))
            finally:
                here.reviewing.discard(thread)
        except Exception as error:  # noqa: BLE001 - the function is the application's
            self._warn(f"before_send raised {_named(error)}")
            self.count("refused")
            return None
        if found is None:
            self.count("refused")
            return None
        try:
            return _events.checked(found)
        except ValuedError as error:
            self._leave_out(error, "what before_send returned: ")
            return None

    def _leave_out(self, error: Exception, place: str = "") -> None:
        self.count("invalid")
        self._warn(place + _summary(error))

    def _warn(self, reason: str) -> None:
        here = self._here.get()
        if len(here.kinds) < MOST_KINDS:
            here.kinds.add(reason)
        kind = reason if reason in here.kinds else "others"
        here.reporter.warn(kind, "%d times not sent: %s [%s]", reason, _place())


def _place() -> str:
    """The line of the application that this comes from, such as ``shop.views:57``."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as `logging` does
    while frame is not None and _is_ours(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}" if frame else "no code of Python's"


def _is_ours(module: str) -> bool:
    # A generator of ours, such as that of `nested`, is called by `contextlib`.
    return module in ("valued", "contextlib") or module.startswith("valued.")


def _summary(error: Exception) -> str:
    """What is wrong, without any value: events are about people, and logs keep what they get."""
    if isinstance(error, SerializationError):
        return error.summary
    # Others than ours come out of the application's functions.
    if isinstance(error, ValuedError):
        return str(error)
    return f"a function of the application raised {_named(error)}"


def _named(error: BaseException) -> str:
    """Its class, and where it was raised; its words may hold a value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    return f"{type(error).__name__} at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
