"""Commands about turns: /undo, /clear."""

from d3cli.base.errors import UsageError
from d3cli.cli.chat.session import Chat, as_typed


def undo(chat: Chat, _: str) -> None:
    """Takes back the last turn; its message becomes the draft.

    Raises:
        UsageError: the user has said nothing.
    """
    text = chat.conversation.take_back()
    if text is None:
        raise UsageError("there is nothing to take back", "say something first")
    chat.save()
    chat.draft = as_typed(chat.attachments.take_back(text))
    chat.screen.print("the last turn is taken back; your message is at the prompt", "dim")


def clear(chat: Chat, _: str) -> None:
    """Begins a new conversation."""
    chat.start_new()
    chat.screen.print("a new conversation", "dim")
