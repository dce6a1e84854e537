"""Log-probabilities of tokens, with the text that each token adds. Knows nothing of requests."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from d3cli.decode.chunk import GenerationChunk
from d3cli.decode.reply import Reply
from d3cli.serve.events import TokenScore
from d3cli.text.control_tokens import reply_writing, skipped_tokens
from d3cli.text.tokens import Detokenizer

# The log-probability of a token that the model rules out: JSON has no minus infinity.
IMPOSSIBLE = -9999.0


class Scorer:
    """Turns tokens, in their order, into scores.

    A special token has no text. Among the most likely tokens it is called by its name, since
    several may be there.
    """

    def __init__(self, writer: Detokenizer, tokenizer: Any) -> None:
        self._writer = writer
        self._names = {id_: name for name, id_ in skipped_tokens(tokenizer).items()}

    def score(
        self, token_id: int, logprob: float | None, most_likely: Sequence[tuple[int, float]]
    ) -> TokenScore:
        """The score of the next token."""
        others = tuple(
            (self._called(other), max(chance, IMPOSSIBLE)) for other, chance in most_likely
        )
        own = None if logprob is None else max(logprob, IMPOSSIBLE)
        return TokenScore(self._writer.push(token_id), own, others)

    def _called(self, token_id: int) -> str:
        return self._writer.peek(token_id) or self._names.get(token_id, "")


class ReplyScores:
    """The scores of a reply's tokens, each as soon as some of its text is sent.

    Text that may be the beginning of a stop string is held back, and so are its tokens. If it was
    one, they are left out: the scores are for the text that was sent. A token that begins before
    the stop string and runs into it is whole, since its log-probability is that of all of it.

    Args:
        ends: tokens that end a reply; they have no score.
    """

    def __init__(self, reply: Reply, ends: Collection[int]) -> None:
        tokenizer = reply.model.tokenizer
        written, _ = reply_writing(tokenizer, (), ends)
        self._reply, self._ends = reply, ends
        self._scorer = Scorer(reply.new_detokenizer(written), tokenizer)
        self._waiting: deque[tuple[int, TokenScore]] = deque()  # with where its text begins
        self._written = self._sent = 0  # characters

    def after(self, chunk: GenerationChunk) -> tuple[TokenScore, ...]:
        """The scores that belong to the text of the reply's next chunk."""
        token, piece = chunk.token, self._reply.pieces[-1]
        if token.token_id not in self._ends:
            score = self._scorer.score(token.token_id, token.logprob, token.most_likely)
            self._waiting.append((self._written, replace(score, text=piece)))
        self._written += len(piece)
        self._sent += len(chunk.text)
        found_stop = chunk.finish_reason == "stop" and token.token_id not in self._ends
        return tuple(self._ready(everything=chunk.finish_reason is not None and not found_stop))

    def _ready(self, *, everything: bool) -> Iterator[TokenScore]:
        while self._waiting and (everything or self._waiting[0][0] < self._sent):
            yield self._waiting.popleft()[1]
