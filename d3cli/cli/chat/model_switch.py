"""``/model``: goes on with another model, or with the present one if the other cannot be loaded."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d3cli.base.errors import D3Error, ModelError, UsageError
from d3cli.cli import signals
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.depth import calibrate_command
from d3cli.cli.loading import load, note_size
from d3cli.cli.model_options import ModelOptions
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import Think
from d3cli.cli.request import note_turn_end, resolve_think, template_check
from d3cli.decode.sampling import SamplingParams
from d3cli.files.names import find_local

if TYPE_CHECKING:
    from d3cli.cli.chat.session import Chat
    from d3cli.model.load_plan import LoadOptions
    from d3cli.model.model import LoadedModel


@dataclass(frozen=True, slots=True)
class Models:
    """How this chat loads models.

    Attributes:
        load: loads the model of this name for these settings; given a system prompt, also an empty
            one, it first checks that the chat template can render a conversation.
        calibrate_with: returns the command that calibrates the model of this name.
        revision_of: returns the revision that was asked for of the model of this name, if any.
    """

    load: Callable[[str, ChatSettings, str | None], "LoadedModel"]
    calibrate_with: Callable[[str], str]
    revision_of: Callable[[str], str | None]


def models_from(output: Output, loading: ModelOptions, first: str) -> Models:
    """How a chat loads another model; a revision is one of the `first`, which may come back."""

    def load_another(name: str, now: ChatSettings, system: str | None) -> "LoadedModel":
        needs: LoadOptions = {"full_depth_only": not now.drops}
        if now.max_tokens is not None:
            needs["reply_tokens"] = now.max_tokens
        check_text = None if system is None else template_check(system, now.chat_template)
        model = load(output, name, options_for(name), check_text, decays=now.decays, **needs)
        note_turn_end(output, model, now.chat_template, now.stop)
        return model

    def options_for(name: str) -> ModelOptions:
        return loading if name == first else replace(loading, revision=None)

    return Models(
        load_another,
        calibrate_with=lambda name: calibrate_command(name, options_for(name)),
        revision_of=lambda name: options_for(name).revision,
    )


class NoModelLeftError(D3Error):
    """Neither the new model nor the one before it can be loaded."""


def switch_model(chat: "Chat", name: str) -> None:
    """Goes on with another model.

    Memory may be too small for both, so the present model is released first. If the other one
    cannot be loaded, the present one is loaded again.

    Raises:
        D3Error: the other model cannot be loaded.
        NoModelLeftError: nor can the present one.
    """
    find_local(name)  # a wrong name is reported before anything is released
    record, system = chat.conversation.record(), chat.conversation.system
    old_name, settings = chat.model_name, chat.settings
    failure: Exception | None = None
    think = settings.think
    chat.replies.forget()
    chat.drafts.forget()
    chat.comparisons.clear()
    del chat.conversation, chat.options
    gc.collect()
    signals.exit_at_once()  # everything is saved, and loading cannot be interrupted safely
    try:
        model = chat.models.load(name, settings, system)
        # Checked while the present model can still come back.
        SamplingParams.resolve(settings.sampling, model.text.generation_settings)
        think = _fitting_think(model, settings)
        chat.model_name = name
    except Exception as error:  # whatever it was, the chat needs a model first
        failure = error
        model = _load_again(chat, old_name, error)
    finally:
        signals.stop_once()
    from d3cli.decode.conversation import Conversation

    revision = chat.models.revision_of(chat.model_name)
    chat.conversation = Conversation(model, record, revision=revision)
    if think is not settings.think:
        chat.output.note("this model has no thinking switch, so think is at its default again")
        chat.settings = replace(settings, think=think)
    _check_draft_model(chat, model)
    try:
        chat.change()
    except UsageError:  # for example more core layers than the new model has
        chat.output.note("depth: the settings do not fit this model, so they are auto again")
        chat.change(alpha="auto", start=None, core_first=None, core_last=None, units="auto")
    if failure is not None:
        raise failure


def _check_draft_model(chat: "Chat", model: "LoadedModel") -> None:
    """Goes on without the draft model if it has another tokenizer.

    Also while replies are plain: ``/lossless on`` could not be followed later.
    """
    from d3cli.decode.draft.by_model import check_draft_model

    if chat.drafts.draft_model is None:
        return
    try:
        check_draft_model(model, chat.drafts.draft_model)
    except ModelError as error:
        chat.output.note(f"{error.message}; the chat goes on without it")
        chat.drafts.draft_model = None
        if chat.settings.lossless == "model":
            chat.settings = replace(chat.settings, lossless="auto")
    else:
        note_size(chat.output, model, chat.drafts.draft_model)


def _fitting_think(model: "LoadedModel", settings: ChatSettings) -> Think | None:
    """The choice of thinking, or None if this model cannot follow it."""
    try:
        text = model.text
        resolve_think(text.tokenizer, text.renderer, settings.think, settings.chat_template)
    except UsageError:
        return None
    return settings.think


def _load_again(chat: "Chat", name: str, failure: Exception) -> "LoadedModel":
    try:
        return chat.models.load(name, chat.settings, None)
    except Exception as error:
        chat.output.failure(failure)
        raise NoModelLeftError(
            f"{name} cannot be loaded again: {error}", "the conversation is saved: d3 chat -c"
        ) from error
