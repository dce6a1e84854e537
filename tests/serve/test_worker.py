"""One thread writes all replies: a bounded queue, clients that go away, and an end in order."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from d3cli.base.errors import GenerationError
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.serve.errors import ApiError
from d3cli.serve.events import Closed, Event, Failed, Opened, Written
from d3cli.serve.fields import ChatFields
from d3cli.serve.limits import Limits
from d3cli.serve.plans import Plan
from d3cli.serve.service import Service, all_events
from d3cli.serve.worker import Job
from tests.copies import stranger
from tests.serve.conftest import STORY, alone, chat, new_service, user

HANGS = 60


@dataclass
class Held:
    """An inbox that can hold the worker at an event, and act there.

    Attributes:
        at: the number of written tokens at which `act` is called, in the worker's thread.
    """

    at: int = 0
    act: Callable[[], object] = lambda: None
    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def put(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Written) and len(self.written) == self.at:
            self.act()
        if isinstance(event, Closed | Failed):
            self.ended.set()

    @property
    def written(self) -> list[Written]:
        return [event for event in self.events if isinstance(event, Written)]


def plan_of(service: Service, text: str = STORY, **fields: Any) -> Plan:
    return service.planner.chat(ChatFields(**chat(text, **fields)))


def new_job(plan: Plan, inbox: Held, client: str = "", limit_s: float = HANGS) -> Job:
    return Job(plan, client, limit_s, inbox)  # type: ignore[arg-type]


@contextmanager
def started(service: Service) -> Iterator[Service]:
    service.worker.start()
    try:
        yield service
    finally:
        service.worker.stop_now()
        service.worker.join()


def wait(inbox: Held) -> Event:
    assert inbox.ended.wait(HANGS)
    return inbox.events[-1]


def test_a_client_that_goes_ends_its_reply_at_that_token(builtin: LoadedModel) -> None:
    with started(new_service(builtin)) as service:
        inbox = Held(at=5)
        job = new_job(plan_of(service, max_tokens=100), inbox)
        inbox.act = lambda: service.worker.leave(job)
        service.worker.submit(job)
        following = Held()
        service.worker.submit(new_job(plan_of(service), following))
        wait(following)
        assert len(inbox.written) == 5
        assert not isinstance(inbox.events[-1], Closed)
        # The next reply begins with a cache that a reply was broken off in.
        text = "".join(event.text for event in following.written)
        assert text == alone(builtin, user(STORY), max_tokens=12)


def test_a_client_that_goes_while_it_waits_costs_nothing(builtin: LoadedModel) -> None:
    service = new_service(builtin)
    left, stays = Held(), Held()
    job = new_job(plan_of(service), left)
    service.worker.submit(job)
    service.worker.submit(new_job(plan_of(service), stays))
    service.worker.leave(job)
    with started(service):
        wait(stays)
    assert left.events == []


def test_clients_take_turns(builtin: LoadedModel) -> None:
    service = new_service(builtin)
    order: list[str] = []
    inboxes = []
    for client in ("a", "a", "b"):
        inbox = Held(at=1, act=lambda client=client: order.append(client))  # type: ignore[misc]
        service.worker.submit(new_job(plan_of(service, max_tokens=1), inbox, client))
        inboxes.append(inbox)
    with started(service):
        for inbox in inboxes:
            wait(inbox)
    assert order == ["a", "b", "a"]


def test_beyond_the_queue_a_client_is_told_when_to_come_back(builtin: LoadedModel) -> None:
    service = new_service(builtin, waiting=2)
    for _ in range(2):
        service.worker.submit(new_job(plan_of(service), Held()))
    with pytest.raises(ApiError) as refused:
        service.worker.submit(new_job(plan_of(service), Held()))
    assert refused.value.status == 503
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_the_thread_ends_nobody_waits_for_it(builtin: LoadedModel) -> None:
    service = new_service(builtin)

    def end() -> None:
        raise SystemExit

    present, waiting = Held(at=3, act=end), Held()
    service.worker.submit(new_job(plan_of(service), present))
    service.worker.submit(new_job(plan_of(service), waiting))
    with started(service):
        for inbox in (present, waiting):
            failed = wait(inbox)
            assert isinstance(failed, Failed) and failed.error.status == 503
        service.worker.join()
        with pytest.raises(ApiError, match="stopping"):
            service.worker.submit(new_job(plan_of(service), Held()))


def test_stopping_lets_the_present_reply_end_and_refuses_all_others(builtin: LoadedModel) -> None:
    with started(new_service(builtin)) as service:
        waiting = Held()
        present = Held(at=3)
        service.worker.submit(new_job(plan_of(service), present, "a"))

        def stop() -> None:
            service.worker.submit(new_job(plan_of(service), waiting, "b"))
            service.worker.stop()

        present.act = stop
        assert isinstance(wait(present), Closed)
        failed = wait(waiting)
        assert isinstance(failed, Failed)
        assert failed.error.status == 503
        with pytest.raises(ApiError, match="stopping"):
            service.worker.submit(new_job(plan_of(service), Held()))
        service.worker.join()
        assert not service.worker.is_alive


def test_stopping_now_ends_the_present_reply_and_tells_its_client(builtin: LoadedModel) -> None:
    with started(new_service(builtin)) as service:
        inbox = Held(at=2, act=lambda: service.worker.stop_now())
        service.worker.submit(new_job(plan_of(service), inbox))
        service.worker.join()
    assert isinstance(wait(inbox), Failed)
    assert inbox.events[-1].error.status == 503  # type: ignore[union-attr]
    assert len(inbox.written) == 2


def test_a_reply_that_takes_too_long_is_given_up(builtin: LoadedModel) -> None:
    with started(new_service(builtin)) as service:
        inbox = Held()
        service.worker.submit(new_job(plan_of(service), inbox, limit_s=0))
        failed = wait(inbox)
    assert isinstance(failed, Failed)
    assert (failed.error.status, failed.error.code) == (504, "timeout")
    assert len(inbox.written) <= 1


def test_a_failure_ends_its_reply_alone(
    builtin: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with started(new_service(builtin)) as service:
        for error, status, code in (
            (GenerationError("the logits of step 3 are not finite"), 500, "generation_failed"),
            (RuntimeError("a secret"), 500, "internal_error"),
            (MemoryError(), 500, "internal_error"),
        ):
            inbox, following = Held(), Held()
            plan = plan_of(service)
            with monkeypatch.context() as patch:
                failing = Mock(side_effect=error)
                patch.setattr("d3cli.decode.loop.decode_step", failing)
                service.worker.submit(new_job(plan, inbox))
                failed = wait(inbox)
            assert isinstance(failed, Failed)
            assert (failed.error.status, failed.error.code) == (status, code)
            assert "secret" not in failed.error.message
            assert len(service.sessions) == 0  # a cache that failed serves nobody
            service.worker.submit(new_job(plan, following))
            assert isinstance(wait(following), Closed)
    logged = [type(one.exc_info[1]) for one in caplog.records if one.exc_info is not None]
    assert logged == [RuntimeError, MemoryError]  # what nobody foresaw


def test_what_others_sent_does_not_decide_a_reply(tmp_path: Path) -> None:
    """A short prompt's order may come from all that was read before; here it must not."""
    model = load_model(stranger(tmp_path / "model"), dtype="float32", device="cpu")
    service = new_service(model)
    given = {"alpha": 0.9, "start": 0}
    inboxes = Held(), Held()
    with started(service):
        for text, inbox in zip((STORY * 3, "Hi."), inboxes, strict=True):
            service.worker.submit(new_job(plan_of(service, text, **given), inbox))
        ends = [wait(inbox) for inbox in inboxes]
    long, short = (end.usage["d3"]["depth"] for end in ends if isinstance(end, Closed))
    assert long < short == model.num_layers


def collect(service: Service, plan: Plan, gone: Any = None) -> list[Event]:
    async def never() -> None:
        await asyncio.Event().wait()

    async def read() -> list[Event]:
        events: AsyncGenerator[Event] = service.events(plan, "", gone or never)
        return await all_events(events)

    return asyncio.run(read())


def test_events_come_in_order(builtin: LoadedModel) -> None:
    with started(new_service(builtin)) as service:
        events = collect(service, plan_of(service))
    assert isinstance(events[0], Opened)
    assert isinstance(events[-1], Closed)
    assert all(isinstance(event, Written) for event in events[1:-1])
    assert b'd3_replies_total{ended="complete"} 1.0' in service.metrics.text()


def test_a_client_that_has_gone_is_noticed_while_it_waits(builtin: LoadedModel) -> None:
    async def gone() -> None:
        return

    service = new_service(builtin)  # its worker has not started
    with pytest.raises(ApiError) as left:
        collect(service, plan_of(service), gone)
    assert left.value.status == 499
    assert service.worker.waiting == 0
    assert b'd3_replies_total{ended="left"} 1.0' in service.metrics.text()


def test_nobody_watches_the_client_of_a_refused_request(builtin: LoadedModel) -> None:
    watched: list[None] = []

    async def gone() -> None:
        watched.append(None)

    service = new_service(builtin)
    service.worker.stop()
    with pytest.raises(ApiError) as refused:
        collect(service, plan_of(service), gone)
    assert refused.value.status == 503
    assert not watched
    assert b'd3_replies_total{ended="refused"} 1.0' in service.metrics.text()
    assert b'ended="left"' not in service.metrics.text()


def test_a_request_does_not_wait_for_ever(builtin: LoadedModel) -> None:
    service = new_service(builtin, limits=Limits(reply_s=0.05))
    with pytest.raises(ApiError) as late:
        collect(service, plan_of(service))
    assert (late.value.status, late.value.retry_after) == (503, 60)
    assert service.worker.waiting == 0
