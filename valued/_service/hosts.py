"""Which hosts a request may name.

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


def is_loopback(address: str) -> bool:
    """Whether it is a loopback address; a name is none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_this_machine(named: str, names: Container[str]) -> bool:
    """Whether the header ``Host``, *named*, means this machine, or one of *names* (lower case)."""
    try:
        host = urllib.parse.urlsplit(f"//{named}").hostname or ""
    except ValueError:
        return False
    return host in names or f".{host}".endswith(".localhost") or is_loopback(host)
