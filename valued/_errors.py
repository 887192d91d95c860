"""The exceptions: one base, and a built-in one beside it where users expect it.

The facts are attributes, the sentence is in ``__str__``. All of them can be pickled: a
multiprocessing pool carries an exception of a task back to its parent that way. No token is in any.

Below them: how errors name what belongs to the application. Its classes and strings may run code of
their own, or contain line ends; what is shown of them is safe in one line of a log.
"""

from __future__ import annotations

from typing import Final

#: How many characters errors show of a name, a key or a string.
SHOWN: Final = 200


class ValuedError(Exception):
    """The base of this library's own exceptions. None of them shows the token."""


class ValidationError(ValuedError, ValueError):
    """An argument, an option or an event that can't be used as it is. Also a `ValueError`.

    ``problems`` (a tuple of strings): one sentence for each mistake, which names the field and the
    fix.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


class SerializationError(ValuedError, TypeError):
    """A value that can't be sent as JSON. Also a `TypeError`.

    ``path``: where it is, such as ``attributes.items[0].price``; empty for the value itself.
    ``reason``: what is wrong and how to fix it. ``summary``: both, without any value and without
    the words of other exceptions, so that it can be logged. ``__cause__``: the exception that a
    converter raised.
    """

    def __init__(self, path: str, reason: str, summary: str | None = None) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason
        words = "a value that can't be sent" if summary is None else summary
        self.summary = f"{path}: {words}" if path else words

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class NotConnectedError(ValuedError, RuntimeError):
    """The shared client was used before `valued.connect`, or after `valued.disconnect`."""


class PicklingError(ValuedError, TypeError):
    """A client, a scope or a connection that can't be pickled as it is; the message has the fix."""


class DeliveryError(ValuedError):
    """An event that could not be delivered. ``on_error`` gets it; no event call raises it.

    ``reason``: what happened, a string. ``status``: the HTTP status, None if there was no answer.
    ``attempts``: how often it was sent; 0 if it failed with others, while the service was down.
    ``age``: seconds since the event was accepted. ``body``: the first 500 characters of the answer.
    ``retry_after``: seconds that the service asked to wait, None if it did not. ``permanent``: True
    if there is no answer, and no attempt can succeed before a person changes a setting, such as the
    URL of a proxy; then the event is not tried again, except from an outbox.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        attempts: int = 1,
        age: float = 0.0,
        body: str = "",
        retry_after: float | None = None,
        permanent: bool = False,  # noqa: FBT001, FBT002 - a pickle passes it by position
    ) -> None:
        super().__init__(reason, status, attempts, age, body, retry_after, permanent)
        self.reason = reason
        self.status = status
        self.attempts = attempts
        self.age = age
        self.body = body
        self.retry_after = retry_after
        self.permanent = permanent

    def __str__(self) -> str:
        answer = f"; the answer began: {self.body!r}" if self.body else ""
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"{self.reason} ({tries} in {self.age:.1f} s){answer}"


def shown(text: str, length: int = SHOWN) -> str:
    """*text* for one log line: at most *length* characters, unprintable ones escaped."""
    if len(text) > length:
        text = f"{text[:length]}…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def name_of(cls: type) -> str:
    """Its ``__name__``, even if its metaclass overrides that."""
    name = type.__dict__["__name__"].__get__(cls)
    return shown(str.__str__(name))  # the name may be of a class of its own, too


def kind_of(value: object) -> str:
    """What *value* is, for an error: the name of its class, never the value."""
    if value is None:
        return "nothing"
    if type(value) is str and not value:
        return "an empty string"
    # What is normalized already is a dict of ours.
    return "dict" if issubclass(type(value), dict) else name_of(type(value))


def expected(name: str, what: str, value: object) -> str:
    """The sentence for a *value* that is of no use as *name*."""
    return f"{name}: expected {what}, got {kind_of(value)}"
