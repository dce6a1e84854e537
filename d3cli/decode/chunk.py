"""What one token added to a reply. Knows nothing of how it was chosen."""

from dataclasses import dataclass

from d3cli.decode.loop import DecodedToken


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What one token added to a reply.

    Attributes:
        text: the text that is now complete; it may be empty. Part of a character, or of what may
            become a stop string, is held back.
        token: the token.
        finish_reason: "stop", "length" or "context" on the last chunk, else None.
    """

    text: str
    token: DecodedToken
    finish_reason: str | None = None

    @property
    def token_id(self) -> int:
        return self.token.token_id

    @property
    def depth(self) -> float:
        return self.token.depth
