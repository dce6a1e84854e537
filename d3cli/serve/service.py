"""One model as a service: plans requests, hands them to the worker, and follows their replies."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from d3cli.model.model import LoadedModel
from d3cli.serve.drafts import Drafts
from d3cli.serve.errors import ApiError, overloaded
from d3cli.serve.events import Closed, Event, Failed
from d3cli.serve.limits import Limits
from d3cli.serve.metrics import Metrics
from d3cli.serve.plans import Defaults, Plan, Planner
from d3cli.serve.sessions import Sessions
from d3cli.serve.worker import LONGEST_RETRY, Job, Worker
from d3cli.serve.writing import Writing

LEFT = Failed(ApiError(499, "the client has gone", code="client_closed_request"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much a server takes on.

    Attributes:
        waiting: requests that may wait for their turn.
        sessions: KV caches that are kept for later requests.
        kv_bytes: memory for all KV caches.
    """

    waiting: int = 32
    sessions: int = 8
    kv_bytes: int


class Service:
    """One model, one worker.

    Args:
        name: the model's id for clients.
        version: d3's own.

    Attributes:
        created: when the service was made, in seconds since 1970.
        fingerprint: which program and which form of the weights write.
    """

    def __init__(
        self,
        model: LoadedModel,
        name: str,
        *,
        version: str,
        capacity: Capacity,
        defaults: Defaults | None = None,
        draft_model: LoadedModel | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.model, self.name, self.version = model, name, version
        self.limits = limits or Limits()
        self.created = int(time.time())
        form = model.origin.quantization or model.dtype
        self.fingerprint = f"d3-{version}-{form}"
        defaults = defaults or Defaults()
        self.planner = Planner(model, defaults, has_draft_model=draft_model is not None)
        drafts = Drafts(model, draft_model)
        self.sessions = Sessions(
            model, most=capacity.sessions, memory=capacity.kv_bytes, drafts=drafts
        )
        writing = Writing(model, self.sessions, drafts, defaults.chat_template)
        self.worker = Worker(writing, capacity.waiting)
        self.metrics = Metrics(self.worker, self.sessions)

    def check_model(self, name: str) -> None:
        """Refuses another model than the one that runs.

        Raises:
            ApiError: with the id of the one that does.
        """
        if name != self.name:
            raise ApiError(
                404,
                f'this server runs "{self.name}" and no other model',
                param="model",
                code="model_not_found",
            )

    async def events(
        self, plan: Plan, client: str, gone: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[Event]:
        """The events of a reply. Leaving the iterator ends the reply at its next token.

        Args:
            client: clients take turns.
            gone: returns when the client has gone; the last event then is a failure.

        Raises:
            ApiError: too many requests wait.
        """
        job = Job(plan, client, self.limits.reply_s)
        try:
            self.worker.submit(job)
        except ApiError as refusal:
            self.metrics.count(Failed(refusal))
            raise
        watching = asyncio.create_task(_watch(gone, job))
        event: Event | None = None
        try:
            while not isinstance(event, Closed | Failed):
                event = await self._next(job, has_begun=event is not None)
                yield event
        finally:
            watching.cancel()
            if isinstance(event, Closed):
                self.metrics.count(event)
            else:
                self.worker.leave(job)
                self.metrics.count(event or LEFT)

    async def _next(self, job: Job, *, has_begun: bool) -> Event:
        if has_begun:  # the worker minds the time
            return await job.inbox.get()
        try:
            return await asyncio.wait_for(job.inbox.get(), self.limits.reply_s)
        except TimeoutError:
            return Failed(overloaded("the request has waited too long", LONGEST_RETRY))


async def _watch(gone: Callable[[], Awaitable[None]], job: Job) -> None:
    await gone()
    job.inbox.put(LEFT)


async def all_events(events: AsyncGenerator[Event]) -> list[Event]:
    """The events of a whole reply.

    Raises:
        ApiError: the reply failed.
    """
    found: list[Event] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            found.append(event)
    return found
