"""``d3 serve``: an OpenAI-compatible server for one model."""

import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from d3cli.base.errors import D3Error
from d3cli.base.settings import default_model
from d3cli.cli import ranks
from d3cli.cli.command_line import command
from d3cli.cli.output import Output
from d3cli.cli.serve.options import ServeSettings

if TYPE_CHECKING:
    from d3cli.serve.service import Service

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@command(ServeSettings)
def serve(settings: ServeSettings) -> int:
    """Serve a model to programs that speak OpenAI's protocol.

    /v1/chat/completions, /v1/completions and /v1/models, streamed or whole, for editors, web front
    ends and scripts: their base URL is http://127.0.0.1:8000/v1. The options about depth and
    sampling are for requests that say nothing: a request can set all of them itself. Ctrl-C lets
    the present reply end.

    Examples:
    - `d3 serve`

    - `d3 serve qwen-3-4b --lossless`

    - `D3_API_KEY=... d3 serve qwen-3-4b --host 0.0.0.0`
    """
    output = Output()
    ranks.refuse("d3 serve")
    if any(find_spec(name) is None for name in NEEDED):
        raise D3Error(
            "d3 serve needs FastAPI and uvicorn, which are not installed",
            "pip install 'd3cli[serve]'",
        )
    # Imports that only a server should wait for.
    from d3cli.cli.serve.access import check_access, reserve
    from d3cli.cli.serve.loading import load_service, read_request

    access = settings.access
    key = check_access(access)
    request = read_request(output, settings)
    name = settings.model or default_model()
    with reserve(access.host, access.port) as listener:
        service = load_service(output, settings, name, request)
        return _run(output, settings, service, listener, key)


def _run(
    output: Output,
    settings: ServeSettings,
    service: "Service",
    listener: socket.socket,
    key: str | None,
) -> int:
    """Serves until a signal; returns the exit code."""
    from d3cli.cli.serve.access import listen
    from d3cli.cli.serve.logs import log_to
    from d3cli.serve.app import create_app
    from d3cli.serve.guard import LOCAL_HOSTS
    from d3cli.serve.running import run

    app = create_app(
        service,
        key=key,
        hosts=None if key is not None else (*LOCAL_HOSTS, settings.access.host),
        origins=settings.access.allow_origin or (),
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    who = "with the key" if key is not None else "from this machine alone"
    listen(listener)
    output.note(f"listening on http://{shown}:{port}/v1 ({who}); model: {service.name}")
    log_to(output)
    stopped_by = run(app, service, listener)
    return 128 + stopped_by if stopped_by else 0
