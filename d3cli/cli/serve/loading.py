"""The model of a server, and what its options mean for requests that say nothing."""

from pathlib import Path

from d3cli import __version__
from d3cli.base.amounts import readable_size
from d3cli.cli.depth import calibrate_command
from d3cli.cli.loading import announce, load_models
from d3cli.cli.options import GenerationOptions
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import TemplateOptions
from d3cli.cli.request import Request, note_turn_end
from d3cli.cli.serve.options import ServeSettings
from d3cli.model.memory import available_memory
from d3cli.model.schedule_choice import choose_draft_schedule, choose_schedule
from d3cli.serve.limits import Limits
from d3cli.serve.plans import Defaults
from d3cli.serve.service import Capacity, Service

KV_SHARE = 0.5  # of the free memory


def read_request(output: Output, settings: ServeSettings) -> Request:
    """The options of replies, checked before a model is loaded.

    Raises:
        UsageError: a value is impossible, or options contradict each other.
    """
    return Request.read(
        output,
        GenerationOptions(
            template=TemplateOptions(chat_template=settings.chat_template),
            depth=settings.depth,
            sampling=settings.sampling,
            drafts=settings.drafts,
            loading=settings.loading,
        ),
    )


def load_service(output: Output, settings: ServeSettings, name: str, request: Request) -> Service:
    """Loads the model, and says what replies will be like."""
    loading, drafting = settings.loading, request.drafting
    announce(output, name, loading, drafting, decays=request.decays)
    model, draft_model = load_models(
        output,
        name,
        loading,
        drafting,
        request.check_text(None),
        decays=request.decays,
        **request.needs,
    )
    calibrate_with = calibrate_command(name, loading)
    depth = (request.alpha, request.start, request.core, request.units)
    if drafting is None:
        choice = choose_schedule(model, *depth, calibrate_with)
    else:
        choice = choose_draft_schedule(model, drafting.source, *depth)
    for note in choice.notes:
        output.note(note)
    note_turn_end(output, model, request.chat_template, request.stop)
    served_name = settings.access.served_name or _id(name)
    defaults = Defaults(
        alpha=request.alpha,
        start=request.start,
        core=request.core,
        units=request.units,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        stop=request.stop,
        lossless=None if drafting is None else drafting.source,
        chat_template=request.chat_template,
        calibrate_with=calibrate_command(served_name, loading),
    )
    asked = settings.capacity
    kv_bytes = int(KV_SHARE * available_memory(model.device))
    if asked.kv_memory is not None:
        kv_bytes = int(asked.kv_memory * 1e9)
    service = Service(
        model,
        served_name,
        version=__version__,
        capacity=Capacity(waiting=asked.queue, sessions=asked.sessions, kv_bytes=kv_bytes),
        defaults=defaults,
        draft_model=draft_model,
        limits=Limits(reply_s=asked.timeout),
    )
    if service.sessions.context < model.context_length:
        output.note(
            f"the KV cache may take {readable_size(kv_bytes)}, so prompt and reply may have "
            f"{service.sessions.context:,} tokens instead of the model's {model.context_length:,}"
        )
    return service


def _id(name: str) -> str:
    """The model's id for clients, which need not know where it lies."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name
