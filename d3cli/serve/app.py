"""The routes of the API, as a FastAPI application."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d3cli.serve.error_handlers import add_error_handlers
from d3cli.serve.events import Closed, Event, Failed
from d3cli.serve.fields import ChatFields, ReplyFields, TextFields
from d3cli.serve.formats import ChatFormat, ReplyFormat, TextFormat
from d3cli.serve.guard import Guard
from d3cli.serve.metrics import Metrics
from d3cli.serve.plans import Plan
from d3cli.serve.service import Service, all_events


def create_app(
    service: Service,
    *,
    key: str | None = None,
    hosts: Sequence[str] | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """The application of a service, with its guard.

    Args:
        key, hosts: as for `Guard`.
        origins: the origins of web pages that may use the API from a browser.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop_now()
        await asyncio.to_thread(service.worker.join)

    app = FastAPI(
        title="d3",
        version=service.version,
        summary="OpenAI's API for one local model.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # it would send clients to whatever host they name
        lifespan=lifespan,
    )
    add_error_handlers(app)
    _add_routes(app, service)
    guarded: ASGIApp = Guard(app, key=key, hosts=hosts, limits=service.limits)
    counted = _counted(guarded, service.metrics)
    if origins:
        return CORSMiddleware(
            counted,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return counted


def _add_routes(app: FastAPI, service: Service) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "An error in OpenAI's form."}
        for status in (400, 401, 403, 404, 408, 413, 415, 500, 503, 504, 505)
    }
    reply: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "A reply: whole, or with `stream` as server-sent events.",
            "content": {"application/json": {}, "text/event-stream": {}},
        }
    }

    @app.post("/v1/chat/completions", responses=errors | reply, response_model=None)
    async def chat_completions(fields: ChatFields, request: Request) -> Response:
        """Writes the next message of a conversation."""
        service.check_model(fields.model)
        plan = service.planner.chat(fields)
        return await _reply(service, request, fields, plan, ChatFormat)

    @app.post("/v1/completions", responses=errors | reply, response_model=None)
    async def completions(fields: TextFields, request: Request) -> Response:
        """Continues a text."""
        service.check_model(fields.model)
        plan = service.planner.text(fields)
        return await _reply(service, request, fields, plan, TextFormat)

    @app.get("/v1/models", responses=errors)
    async def models() -> dict[str, Any]:
        """Lists the one model."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", responses=errors)
    async def model(name: str) -> dict[str, Any]:
        """Describes the model."""
        service.check_model(name)
        return _model(service)

    @app.get("/health", responses=errors)
    async def health() -> JSONResponse:
        """Whether requests are answered."""
        if service.worker.is_stopping or not service.worker.is_alive:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses=errors, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _model(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "d3",
        "d3": {
            "context": service.sessions.context,
            "num_layers": model.num_layers,
            "dtype": model.dtype,
            "quantization": model.origin.quantization,
        },
    }


async def _reply(
    service: Service,
    request: Request,
    fields: ReplyFields,
    plan: Plan,
    form: type[ChatFormat] | type[TextFormat],
) -> Response:
    """Waits for the reply's first event, so that a failure until then has its own status."""
    options = fields.stream_options
    made = form(
        service.name,
        service.fingerprint,
        with_scores=plan.with_scores,
        with_usage=options is not None and bool(options.include_usage),
    )
    client = fields.user or (request.client.host if request.client else "")
    events = service.events(plan, client, partial(_gone, request))
    if not fields.stream:
        return JSONResponse(made.whole(await all_events(events)))
    first = await anext(events)
    if isinstance(first, Failed):
        await events.aclose()
        raise first.error
    return _EventStream(_stream(first, events, made))


async def _gone(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    first: Event, events: AsyncGenerator[Event], made: ReplyFormat
) -> AsyncIterator[str]:
    """A reply as server-sent events."""
    async with aclosing(events):
        event = first
        while True:
            for chunk in made.chunks(event):
                yield _sent(chunk)
            if isinstance(event, Failed):
                yield _sent(event.error.body())
                return
            if isinstance(event, Closed):
                yield "data: [DONE]\n\n"
                return
            event = await anext(events)


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


class _EventStream(StreamingResponse):
    """A stream that ends when its client has gone; `Service.events` notices that."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        async with aclosing(self._content):  # type: ignore[type-var]
            with suppress(OSError):  # the client has gone, or takes nothing
                await self.stream_response(send)


def _counted(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Counts the responses of an application."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's path, and never what the client has written.
                path = getattr(scope.get("route"), "path", "other")
                metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await app(scope, receive, sent)

    return counted
