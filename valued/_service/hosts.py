"""Which hosts a request may name, and which pages may ask.

A page can have the browser ask for a host of the page's own, and have its name lead to this machine
(DNS rebinding). For the browser the answer then belongs to the page. So a server that only this
machine can reach answers only requests that name this machine.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container
    from email.message import Message


def is_loopback(address: str) -> bool:
    """Whether it is a loopback address; a name is none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_this_machine(named: str, names: Container[str], *, literal: bool = False) -> bool:
    """Whether the header ``Host``, *named*, means this machine, or one of *names* (lower case).

    *literal*: any IP address does. The name of a page that rebinds is none.
    """
    try:
        host = urllib.parse.urlsplit(f"//{named}").hostname or ""
    except ValueError:
        return False
    if host in names or f".{host}".endswith(".localhost") or is_loopback(host):
        return True
    return literal and _is_address(host)


def is_same_site(headers: Message) -> bool:
    """Whether a request with *headers* comes from no page, or from one of this server."""
    origins = headers.get_all("Origin", [])
    hosts = headers.get_all("Host", [])
    return (
        origins in ([], [f"http://{host}" for host in hosts])
        and len(hosts) == 1
        and {*headers.get_all("Sec-Fetch-Site", [])} <= {"same-origin", "none"}
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
