"""Each outcome has its count. See `test_interleavings`: they add up at every moment."""

from __future__ import annotations

import valued
from tests.delivery.support import Post


def test_each_outcome_has_its_count() -> None:
    def send(body: bytes, _key: str, _seconds: float) -> None:
        if body == b"1":
            raise valued.DeliveryError("no", 400)

    post = Post(send, max_queue=3)
    post.accept(b"1", b"2", b"3", b"4")
    post.jobs.run_one()
    post.jobs.run_one()
    post.pipeline.close(post.simulation.now)
    assert post.pipeline.stats() == {
        "accepted": 4,
        "delivered": 1,
        "failed": 1,
        "dropped": 2,
        "pending": 0,
        "retried": 0,
        "dropped_by_reason": {"overflow": 1, "exit": 0, "closed": 1},
        "adopted": 0,
        "handed_over": 0,
        "unsaved": 0,
    }


def test_stats_are_a_copy() -> None:
    post = Post()
    post.pipeline.stats()["dropped_by_reason"]["exit"] = 5
    assert post.pipeline.stats()["dropped_by_reason"]["exit"] == 0
