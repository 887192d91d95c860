"""20,000 exceptions and signal handlers at random instants of calls; the seeds are printed."""

from __future__ import annotations

import pytest

from tests.delivery.test_interrupted import KINDS, interrupts

#: Of each kind, and in all. Each pause of a retry takes a quarter of a second.
COUNT = dict.fromkeys(KINDS, 825) | {"immediate, retried": 67}
assert 3 * sum(COUNT.values()) >= 20_000


@pytest.mark.timeout(1_900)
@pytest.mark.parametrize("way", ["line", "nested", "signal"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_interrupt_leaves_an_event_unsettled(kind: str, way: str) -> None:
    interrupts(kind, way, COUNT[kind], timeout=1_800)
