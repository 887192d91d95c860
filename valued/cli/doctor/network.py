"""The way to the service: proxy, name, addresses, TLS, an answer, the clock, and one event.

Proxies and certificates are those of a client's own session, as the environment has them.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import errno
import itertools
import os
import shlex
import socket
import ssl
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import requests
import requests.utils
from urllib3.util.connection import allowed_gai_family
from urllib3.util.ssl_ import create_urllib3_context

import valued
from valued.cli.doctor.result import FAIL, OK, Result, fail, ok, skipped, warn
from valued.cli.doctor.settings import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

#: Seconds by which clocks may differ. One that is synchronized is right to a fraction of a second;
#: the rest is for slow answers, and for headers, which have whole seconds.
CLOCK_TOLERANCE: Final = 30.0

#: The event of ``--send``: it is one of an account's, so it says where it comes from.
KEY: Final = "valued.doctor"
USER: Final = "valued-doctor"

#: What TLS says of a certificate (OpenSSL's numbers), and what to do: the authority is unknown, or
#: it signed itself; it has expired, or is not valid yet.
_UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
_OUT_OF_DATE: Final = frozenset({9, 10})

#: There is no way from this machine to such addresses.
_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

_TRUST: Final = "export REQUESTS_CA_BUNDLE=/path/to/the/authorities.pem"


#: In their order.
CHECKS: Final = ("proxy", "dns", "connection", "tls", "answer", "clock", "event")


class Way(NamedTuple):
    """What the environment comes to, for an endpoint."""

    connection: valued.Connection
    session: requests.Session
    scheme: str
    host: str
    port: int
    proxy: str | None
    timeout: float
    #: Whether the user has set the endpoint.
    is_chosen: bool


def checks(
    token: str | None, endpoint: str | None, timeout: float, without_event: str
) -> Iterator[Result]:
    """All of them. *without_event*: why none is sent."""
    connection = valued.Connection(token, endpoint, timeout=timeout)
    try:
        session = connection.session
    except valued.DeliveryError as error:
        # It names the variable, and says what to do about it.
        text = str(error).removeprefix("nothing can be sent: ").partition("; then start")[0]
        failed = "tls" if "CA_BUNDLE" in text else "proxy"
        yield fail(failed, text, f"unset {text.partition(':')[0]}")
        for check in CHECKS:
            if check != failed:
                yield skipped(check, f"see {failed}")
        return
    with contextlib.closing(connection):
        chosen = endpoint or os.environ.get("VALUED_ENDPOINT")
        yield from _of_way(_way(connection, session, timeout, chosen), without_event)


def _of_way(way: Way, without_event: str) -> Iterator[Result]:
    failed = ""
    for found in itertools.chain([proxy(way)], () if way.proxy else _direct(way)):
        yield found
        failed = failed or (found.check if found.status == FAIL else "")
    if way.proxy:
        for check in ("dns", "connection", "tls"):
            yield skipped(check, "the proxy connects to the service")
    if failed:
        for check in ("answer", "clock", "event"):
            yield skipped(check, f"see {failed}")
        return
    result, ahead = answer(way)
    yield result
    yield clock(ahead)
    yield skipped("event", without_event) if without_event else event(way)


def _direct(way: Way) -> Iterator[Result]:
    result, addresses = dns(way)
    yield result
    connected = list(connections(way, addresses))
    yield from connected
    pairs = zip(addresses, connected, strict=False)
    yield tls(way, [address for address, found in pairs if found.status == OK])


def _way(
    connection: valued.Connection, session: requests.Session, timeout: float, given: str | None
) -> Way:
    parts = urllib.parse.urlsplit(connection.endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    chosen = requests.utils.select_proxy(connection.endpoint, session.proxies)
    host = parts.hostname or ""
    return Way(connection, session, parts.scheme, host, port, chosen, timeout, bool(given))


# -- checks ----------------------------------------------------------------------------------------


def proxy(way: Way) -> Result:
    """Which proxy a client would use, and whether it accepts a connection."""
    if way.proxy is None:
        return ok("proxy", "none is used for this endpoint")
    url = requests.utils.prepend_scheme_if_needed(way.proxy, "http")  # type: ignore[no-untyped-call]
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 1080)
    shown = f"{parts.scheme}://{parts.hostname}:{port}"  # without name and password
    try:
        _within(way.timeout, lambda: _connect((parts.hostname or "", port), way.timeout))
    except OSError as error:
        return fail(
            "proxy",
            f"{shown}: {_said(error)}",
            f"export {way.scheme}_proxy=http://HOST:PORT",
        )
    return ok("proxy", f"{shown} accepts connections")


def dns(way: Way) -> tuple[Result, list[Any]]:
    """The addresses of the host, as `socket.getaddrinfo` has them."""
    try:
        found = _within(
            way.timeout,
            # Of the kinds that a client asks for: without IPv6 on this machine, IPv4 only.
            lambda: socket.getaddrinfo(
                way.host, way.port, allowed_gai_family(), socket.SOCK_STREAM
            ),
        )
    except (OSError, UnicodeError) as error:
        text = f"no address of {way.host}: {_said(error)}"
        return fail("dns", text, f"getent hosts {way.host}"), []
    number = f"{len(found)} address{'es' if len(found) > 1 else ''}"
    return ok("dns", f"{way.host} has {number}"), found


def connections(way: Way, addresses: list[Any]) -> Iterator[Result]:
    """Whether each address accepts a connection; one that doesn't costs time, but no event."""
    if not addresses:
        yield skipped("connection", "the host has no address")
    errors: list[OSError | None] = []
    for address in addresses:
        try:
            _connect(address[4], way.timeout, address[0])
            errors.append(None)
        except OSError as error:  # noqa: PERF203
            errors.append(error)
    for address, failure in zip(addresses, errors, strict=True):
        yield _connected(way, _shown(address[4]), failure, others=None in errors)


def _connected(way: Way, address: str, failure: OSError | None, *, others: bool) -> Result:
    if failure is None:
        return ok("connection", f"{address} accepts connections")
    text = f"{address}: {_said(failure)}"
    if not others:
        return fail("connection", f"{text} (a firewall? is the service up?)", _look(way))
    if failure.errno in _NO_ROUTE:
        # As for IPv6 on most machines: a client sees it at once, and takes another address.
        return skipped("connection", f"{text}; another address accepts connections")
    return warn("connection", f"{text}, so that a client waits; another address works", _look(way))


def _look(way: Way) -> str:
    return f"curl -v --max-time {way.timeout:g} {way.scheme}://{_shown((way.host, way.port))}/"


def tls(way: Way, addresses: list[Any]) -> Result:
    """Whether the host proves who it is, with the certificates that a client would trust."""
    if way.scheme != "https":
        return skipped("tls", "the endpoint is http://")
    if not addresses:
        return skipped("tls", "there is no connection")
    trusted = (
        requests.utils.DEFAULT_CA_BUNDLE_PATH
        if way.session.verify is True
        else str(way.session.verify)
    )
    try:
        context = create_urllib3_context()  # as requests has it: versions and ciphers
        if os.path.isdir(trusted):
            context.load_verify_locations(capath=trusted)
        else:
            context.load_verify_locations(trusted)
    except OSError as error:
        return fail("tls", f"{trusted} can't be used: {_said(error)}", _TRUST)
    try:
        with (
            socket.create_connection(addresses[0][4][:2], way.timeout) as plain,
            context.wrap_socket(plain, server_hostname=way.host) as secured,
        ):
            certificate: Any = secured.getpeercert()
            version = secured.version()
    except ssl.SSLCertVerificationError as error:
        return fail("tls", f"{way.host}: {error.verify_message}", _trusting(way, error))
    except ssl.SSLError as error:
        return fail("tls", f"{way.host}: {_said(error)} (a port without TLS?)", _look(way))
    except (OSError, ValueError) as error:  # a ValueError: it broke off before the handshake
        return fail("tls", f"{way.host}: {_said(error)}", _look(way))
    return ok("tls", f"{version}, certificate valid until {certificate.get('notAfter')}")


def _trusting(way: Way, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return _TRUST
    if error.verify_code in _OUT_OF_DATE:
        return "date -u"
    address = _shown((way.host, way.port))
    return (
        f"openssl s_client -connect {address} -servername {way.host} </dev/null"
        " | openssl x509 -noout -ext subjectAltName"
    )


def answer(way: Way) -> tuple[Result, float | None]:
    """A HEAD request, without the token: any answer shows that the service is reachable.

    Also by how many seconds this machine's clock is ahead of the answer's, if that is known.
    """
    try:
        began = time.time()
        response = _within(way.timeout, lambda: _head(way))
        moment = (began + time.time()) / 2
    except (requests.RequestException, OSError, ValueError) as error:
        return _unanswered(way, _innermost(error)), None
    status = f"{response.status_code} {response.reason or ''}".strip()
    return _judged(way, response, status), _ahead(response.headers.get("Date"), moment)


def _unanswered(way: Way, cause: BaseException) -> Result:
    fix = _look(way)
    if isinstance(cause, ssl.SSLCertVerificationError):  # through a proxy
        fix = _trusting(way, cause)
    elif "failed: 407" in str(cause):  # of a tunnel
        fix = _with_password(way)
    return fail("answer", f"none: {_said(cause)}", fix)


def _with_password(way: Way) -> str:
    return f"export {way.scheme}_proxy=http://USER:PASSWORD@HOST:PORT"


def _head(way: Way) -> requests.Response:
    with way.session.request(
        "HEAD",
        way.connection.endpoint,
        # Without the token: only an event needs it. And no answer from a cache, for its date.
        headers={"Authorization": None, "Cache-Control": "no-cache"},
        auth=lambda request: request,
        allow_redirects=False,
        timeout=way.timeout,
        stream=True,
    ) as response:
        return response


def _judged(way: Way, response: requests.Response, status: str) -> Result:
    code = response.status_code
    if code == 407:
        text = f"{status}: the proxy wants a name and a password"
        return fail("answer", text, _with_password(way))
    if code in (301, 302, 303, 307, 308):
        to = urllib.parse.urljoin(way.connection.endpoint, response.headers.get("Location"))
        return warn(
            "answer",
            f"{status}: it redirects, and a client follows no redirect",
            f"export VALUED_ENDPOINT={shlex.quote(shown_url(to))}",
        )
    if code in (404, 410) and way.is_chosen:
        # Some servers answer so to each HEAD: an event tells.
        text = f"{status} to a HEAD: if an event is answered so, too, the path is wrong"
        again = shlex.quote(shown_url(way.connection.endpoint))
        return warn("answer", text, f"valued doctor --send --endpoint {again}")
    # 501: a server that knows no HEAD, which is fine.
    if code >= 500 and code != 501:
        text = f"{status}: the service has a problem; a client tries each event again"
        return warn("answer", text, "valued doctor --send")
    return ok("answer", f"the service is reachable (it answered HEAD with {status})")


def _ahead(date: str | None, moment: float) -> float | None:
    try:
        theirs = email.utils.parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return moment - theirs.timestamp()


def clock(ahead: float | None) -> Result:
    """This machine's clock against the service's: it gives each event its time."""
    if ahead is None:
        return skipped("clock", "no answer has a date")
    if abs(ahead) <= CLOCK_TOLERANCE:
        return ok("clock", f"right to within {CLOCK_TOLERANCE:g} s")
    order = "ahead of" if ahead > 0 else "behind"
    text = f"{datetime.timedelta(seconds=round(abs(ahead)))} (h:m:s) {order} the service's"
    return warn("clock", f"{text}, and so is the time of each event", "timedatectl set-ntp true")


def event(way: Way) -> Result:
    """One event, and how it was answered."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    sent = {"category": "action", "key": KEY, "user": {"id": USER}, "occured_at": now}
    try:
        way.connection(sent)
    except valued.DeliveryError as error:
        if error.status in (401, 403):
            fix = "export VALUED_TOKEN='the token of your account'"
        else:
            fix = f"valued action {KEY} user.id={USER}"
        return fail("event", str(error), fix)
    return ok("event", f"the service accepted {KEY} of the user {USER}, and so the token")


# -- sockets ---------------------------------------------------------------------------------------


def _connect(address: Any, timeout: float, family: int | None = None) -> None:
    if family is None:
        socket.create_connection(address, timeout).close()
        return
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(timeout)
        one.connect(address)


def _within(seconds: float, function: Callable[[], T]) -> T:
    """What *function* returns. Raises `TimeoutError`: looking up a name has no bound of its own."""
    returned: list[T] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            returned.append(function())
        except BaseException as error:  # noqa: BLE001 - raised below
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not returned:
        raise TimeoutError(f"nothing came within {seconds:g} s (--timeout)")
    return returned[0]


def _shown(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _innermost(error: BaseException) -> BaseException:
    """`requests` and urllib3 wrap each other's exceptions; the innermost says what happened."""
    cause: Any = error
    while True:
        reason = getattr(cause, "reason", None)
        first = reason if isinstance(reason, Exception) else next(iter(cause.args), None)
        if not isinstance(first, Exception):
            return cause  # type: ignore[no-any-return]
        cause = first
