"""Stats add up at every moment, whatever is called."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import valued
from tests.delivery.simulation import Simulation, simulated
from tests.delivery.support import Post, figures, transient

POLICIES = ["drop_newest", "drop_oldest", "caller_runs"]


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


def test_stats_add_up_while_threads_record_and_send() -> None:
    tries: dict[bytes, int] = {}

    def send(body: bytes, _key: str, _seconds: float) -> None:
        simulation.sleep(0.07)
        tries[body] = tries.get(body, 0) + 1
        if int(body) % 5 == 0 and tries[body] == 1:
            raise transient(0.2)
        if int(body) % 7 == 0:
            raise valued.DeliveryError("no", 400)

    def look() -> None:
        while True:
            found = figures(pipeline)
            if found.get("accepted") == 100 and not found.get("pending"):
                return
            simulation.sleep(0.01)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, max_workers=3, max_queue=60)
        for number in range(100):
            simulation.start(pipeline.accept, b"%d" % number)
        looking = simulation.start(look)
        simulation.run()
        looking.result()


class Accounts(RuleBasedStateMachine):
    """Counts, bounds and flushes hold whatever is called; jobs run, and time passes, when told."""

    post: Post | None = None

    @initialize(overflow=st.sampled_from(POLICIES), max_queue=st.integers(1, 5))
    def make(self, overflow: str, max_queue: int) -> None:
        self.outcome: BaseException | None = None
        self.accepted = 0
        self.bounded = overflow != "caller_runs"
        self.max_queue = max_queue
        self.post = Post(self.send, overflow=overflow, max_queue=max_queue, retries=3)
        self.accept, self.figures = self.post.accept, self.post.figures

    def send(self, _body: bytes, _key: str, _seconds: float) -> None:
        if self.outcome is not None:
            raise self.outcome

    @rule()
    def record(self) -> None:
        self.accepted += 1
        self.accept(b"{}")

    @rule(outcome=st.sampled_from(["delivered", "retried", "failed"]))
    def run_job(self, outcome: str) -> None:
        assert self.post
        answers = {"retried": transient(5.0), "failed": valued.DeliveryError("no", 413)}
        self.outcome = answers.get(outcome)
        if self.post.jobs.waiting:
            self.post.jobs.run_one()
        self.outcome = None

    @rule(seconds=st.integers(0, 20))
    def pass_time(self, seconds: int) -> None:
        assert self.post
        self.post.pass_time(float(seconds))

    @rule()
    def close(self) -> None:
        assert self.post
        pending = self.figures().get("pending", 0)
        assert self.post.pipeline.close(self.post.simulation.now) is (pending == 0)
        assert "pending" not in self.figures()

    @invariant()
    def accounts_balance(self) -> None:
        if self.post is not None:
            found = self.figures()
            assert found.get("accepted", 0) == self.accepted
            assert self.post.is_settled() is ("pending" not in found)
            if self.bounded:
                assert found.get("pending", 0) <= self.max_queue

    def teardown(self) -> None:
        if self.post is not None:
            for _ in range(20):
                self.post.go_on(200.0)
            assert "pending" not in self.figures()
            self.post.simulation.end()


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(
    derandomize=True,
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
