"""The session of one process: headers, proxies and certificates, as the environment has them.

It is asked once in each process. What can't be used there, such as a proxy of an unknown kind, is a
permanent error of each event: no attempt helps before a person has changed it.
"""

from __future__ import annotations

import importlib.util
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import requests
import requests.utils
import urllib3
from requests.auth import AuthBase

from valued._errors import DeliveryError, shown
from valued._http.pool import Adapter
from valued._options import ca_bundle_from_environment, variable_name

#: The schemes of proxies for which PySocks is needed.
_SOCKS: Final = frozenset({"socks4", "socks4a", "socks5", "socks5h"})


class _Bearer(AuthBase):
    """Sets our ``Authorization``; as `auth` it takes precedence over ``~/.netrc``."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # A plain string: recorders save it, and their files are not to name a class of ours.
        request.headers["Authorization"] = str(self._authorization)
        return request


def new_session(
    endpoint: str, headers: Mapping[str, str], pool_size: int, idle_timeout: float
) -> requests.Session:
    """A session for one process, with the proxies and certificates of the environment."""
    session = requests.Session()
    session.headers.update(headers)
    session.auth = _Bearer(headers["Authorization"])
    # Else `requests` would read ~/.netrc, and the system's proxies, which on macOS crashes a
    # forked child. Only the variables are read, once.
    session.trust_env = False
    session.proxies.update(_proxies(endpoint))
    session.verify = _ca_bundle() or True
    adapter = Adapter(pool_size, idle_timeout)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _proxies(endpoint: str) -> dict[str, str]:
    """The proxies that the environment names for *endpoint*; read once in each process."""
    found = dict(urllib.request.getproxies_environment())
    # Without variables, `requests` would ask the system, which on macOS crashes a forked child.
    if not found or requests.utils.should_bypass_proxies(endpoint, no_proxy=None):
        return {}
    proxy = requests.utils.select_proxy(endpoint, found)
    problem = None if proxy is None else _proxy_problem(proxy)
    if problem is not None:
        own = urllib.parse.urlsplit(endpoint).scheme
        name = variable_name(f"{own if own in found else 'all'}_proxy")
        raise _permanent(f"{name}: {problem}")
    return found


def _proxy_problem(proxy: str) -> str | None:
    # Its address isn't shown: a password may be in it.
    example = "expected one such as 'http://proxy.example:3128'"
    try:
        url: Any = requests.utils.prepend_scheme_if_needed(proxy, "http")  # type: ignore[no-untyped-call]
        parts = urllib.parse.urlsplit(url)
    except (ValueError, urllib3.exceptions.LocationParseError):
        return f"it is not a URL; {example}"
    if not parts.hostname:
        return f"it names no host; {example}"
    if parts.scheme in _SOCKS:
        if importlib.util.find_spec("socks") is None:
            return "it is a SOCKS proxy, which needs PySocks: pip install 'requests[socks]'"
    elif parts.scheme not in ("http", "https"):
        return f"its scheme is {shown(parts.scheme)}, which is unknown; {example}"
    return None


def _permanent(problem: str) -> DeliveryError:
    return DeliveryError(
        f"nothing can be sent: {problem}; then start the process again", permanent=True
    )


def _ca_bundle() -> str | None:
    name, path = ca_bundle_from_environment()
    if path is not None and not os.path.exists(path):
        raise _permanent(f"{name}: there is no {shown(path)}; name a file with certificates")
    return path
