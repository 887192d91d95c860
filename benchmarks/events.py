"""The event that everything here is measured with: an action with four attributes."""

from __future__ import annotations

from typing import Any, Final

KEY: Final = "report.generated"
ATTRIBUTES: Final[dict[str, Any]] = {
    "format": "pdf",
    "pages": 7,
    "plan": "pro",
    "template": "quarterly",
}
#: What a caller gives; the dotted keys are those of the README.
DATA: Final[dict[str, Any]] = {"user.id": 123, "customer.id": 12, "attributes": ATTRIBUTES}
#: What is sent for it: what yardsticks encode, since it is all that they would have to.
EVENT: Final[dict[str, Any]] = {
    "category": "action",
    "key": KEY,
    "user": {"id": 123},
    "customer": {"id": 12},
    "attributes": ATTRIBUTES,
    "occured_at": "2026-11-23T10:00:00+01:00",
}
TOKEN: Final = "token"
HEADERS: Final = {
    "Content-Type": "application/json",
    "Authorization": f"Bearer {TOKEN}",
    "User-Agent": "yardstick",
}
