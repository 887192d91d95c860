"""Input that can't or shouldn't be sent: the error is raised, or counted and logged."""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from valued._errors import SerializationError, ValidationError, ValuedError, name_of, shown
from valued._events import categories
from valued._events.bad_values import MAX_DEPTH
from valued._events.serializer import PARTIES, encode, merge, merge_into, normalize, parts_of
from valued._events.values import TOO_MANY
from valued._process import shutdown
from valued._process.fork import PerProcess

if TYPE_CHECKING:
    from types import FrameType

    from valued._options import Options
    from valued._typing import JSONObject

#: The most kinds of log lines. A kind is a field and a reason; some applications have countless
#: fields.
MOST_KINDS: Final = 100


class _Counts:
    """The counts of one process."""

    def __init__(self) -> None:
        self.by_reason = {"disabled": 0, "invalid": 0, "anonymous": 0, "refused": 0}
        # Re-entrant, as a signal handler may record an event.
        self.lock = threading.RLock()
        self.reviewing: set[int] = set()  # threads that are within `before_send`


class _Log:
    """What one process has logged, for all clients."""

    def __init__(self) -> None:
        from valued._process.reporting import Reporter  # imported already with the first client

        self.reporter = Reporter(None)
        shutdown.report_at_exit(self.reporter)
        self.kinds: set[str] = set()


_log: Final[PerProcess[_Log]] = PerProcess(_Log)


class Refusals:
    """Decides, by the options of a client, what to do with an event that can't be sent.

    Any thread may call. In a forked child all counts start at zero.
    """

    def __init__(self, options: Options) -> None:
        self._raises = options.invalid == "raise"
        self._drops_anonymous = options.anonymous == "drop"
        self._before_send = options.before_send
        self._counts: PerProcess[_Counts] = PerProcess(_Counts)

    def stats(self) -> dict[str, int]:
        """How many events were not sent, by reason."""
        return dict(self._counts.get().by_reason)

    def count(self, reason: str) -> None:
        """Count an event."""
        counts = self._counts.get()
        with counts.lock:
            counts.by_reason[reason] += 1

    def tolerates(self, error: Exception) -> bool:
        """Whether the call should return, with *error* counted and logged; False: raise it."""
        if self._drops_anonymous and categories.is_anonymous(error):
            self.count("anonymous")
            return True
        if self._raises:
            return False
        self._leave_out(error)
        return True

    def normalize_call(self, data: object, fields: dict[str, Any]) -> JSONObject:
        """The data of a call to a scope: raises for what can't be sent, or leaves it out.

        If a user's or customer's id is left out, the scope has no user or customer afterwards: it
        never keeps the one that it had before.
        """
        try:
            return categories.data_of_scope(data, fields)
        except ValuedError:
            if self._raises:
                raise
        unsure: set[str] = set()
        found: JSONObject = {}
        for given in (data, fields):
            if type(given) is dict:
                found = merge(found, self._what_is_left(given, unsure))
            elif given is not None:
                try:
                    found = merge(found, categories.mapping(given, "data"))
                except ValuedError as error:
                    self._leave_out(error)
                    unsure.update(PARTIES)
        for name, problem in categories.wrong_forms(found).items():
            self._leave_out(ValidationError(problem))
            del found[name]
            unsure.update({name} & {*PARTIES})
        for party in unsure:
            now = found.get(party)
            if not (isinstance(now, dict) and "id" in now):
                found[party] = None
        return found

    def _what_is_left(
        self, data: dict[Any, Any], unsure: set[str], above: tuple[str, ...] = (), within: Any = ()
    ) -> JSONObject:
        """What can be sent of *data*, which is at the path *above*, *within* other mappings.

        *unsure* gets the parties whose id may have been left out.
        """
        found: JSONObject = normalize({above: {}}) if above else {}
        for name, value in list(data.items()):
            key = (*above, name) if above else name
            part = self._part(key, value, unsure, (*within, data))
            merge_into(found, part, lambda bad: self._leave_out(bad.error()))
        return found

    def _part(
        self, key: object, value: object, unsure: set[str], within: tuple[Any, ...]
    ) -> JSONObject:
        """What can be sent of one field: all of it, or its smallest parts that can."""
        try:
            return normalize({key: value})  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001 - looking up a key may raise anything, too
            fault = error
        try:
            path = parts_of(key)
        except ValuedError:
            self._leave_out(fault)
            # Deeper, it is no more than a detail of a party.
            unsure.update(parties_of(key) if len(within) < 3 else ())
            return {}
        is_party = path[0] in PARTIES and len(path) == 1
        is_id = path[0] in PARTIES and path[1:2] == ["id"]
        if (
            type(value) is dict
            and not is_id
            # Too many are left out together: each part may have too many, too.
            and (is_party or getattr(fault, "reason", "") != TOO_MANY)
            and len(path) < MAX_DEPTH
            and all(value is not it for it in within)
        ):
            return self._what_is_left(value, unsure, tuple(path), within)
        self._leave_out(fault)
        if is_party or is_id:
            unsure.add(path[0])
        return {}

    def review(self, event: JSONObject) -> JSONObject | None:
        """*event* as changed by ``before_send``; None: don't send it. Its exceptions are logged."""
        if self._before_send is None:
            return event
        counts, thread = self._counts.get(), threading.get_ident()
        try:
            if thread in counts.reviewing:
                raise RecursionError("it recorded an event")
            counts.reviewing.add(thread)
            try:
                found = self._before_send(json.loads(encode(event)))
            finally:
                counts.reviewing.discard(thread)
        except Exception as error:  # noqa: BLE001 - the function is the application's
            _warn(f"before_send raised {_named(error)}")
            self.count("refused")
            return None
        if found is None:
            self.count("refused")
            return None
        try:
            return categories.checked(found)
        except ValuedError as error:
            self._leave_out(error, "what before_send returned: ")
            return None

    def _leave_out(self, error: Exception, prefix: str = "") -> None:
        self.count("invalid")
        _warn(prefix + _summary(error))


def parties_of(key: object) -> tuple[str, ...]:
    """The parties that an invalid key may refer to."""
    while (type(key) is tuple or type(key) is list) and key:
        key = key[0]
    name = key.partition(".")[0] if type(key) is str else ""
    return PARTIES if not name else (name,) if name in PARTIES else ()


def _warn(reason: str) -> None:
    log = _log.get()
    kind = _INDEX.sub("[]", reason)
    if len(log.kinds) < MOST_KINDS:
        log.kinds.add(kind)
    kind = kind if kind in log.kinds else "others"
    log.reporter.warn(kind, "%d times not sent: %s [%s]", reason, _caller())


#: A position in a list: all positions are of one kind.
_INDEX: Final = re.compile(r"\[\d+\]")


def _caller() -> str:
    """The line of the application that made the call, such as ``shop.views:57``."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - `logging` does the same
    while frame is not None and _is_ours(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}" if frame else "no code of Python's"


def _is_ours(module: str) -> bool:
    # `contextlib` calls our generators, such as that of `nested`.
    return module in ("valued", "contextlib") or module.startswith("valued.")


def _summary(error: Exception) -> str:
    """What is wrong, without any value: events are about people, and logs are kept."""
    where = _raised_at(error)
    if isinstance(error, ValuedError) and _is_ours(where.partition(":")[0]):
        return error.summary if isinstance(error, SerializationError) else str(error)
    return f"a function of the application raised {_named(error)}"


def _named(error: BaseException) -> str:
    """Its class, and where it was raised. Not its message, which may contain a value."""
    return f"{name_of(type(error))} at {_raised_at(error)}"


def _raised_at(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "valued:0"  # made here, and never raised
    return f"{shown(str(trace.tb_frame.f_globals.get('__name__')))}:{trace.tb_lineno}"
