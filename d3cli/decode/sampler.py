"""From logits to the next token: greedy, or sampled as transformers samples.

The processors are transformers' own, in the order of `generate`: the checkpoint's rules and the
repetition penalty, then for sampling temperature, top-k, top-p and the other warpers. So a seed
draws the tokens that `model.generate` draws with the same settings. One default differs: without a
top-k, transformers keeps the 50 most likely tokens, and d3 keeps all. Knows nothing of models,
depth or text.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
)

from d3cli.base.errors import GenerationError
from d3cli.decode.sampling import SamplingParams

# Makes the seed of drafts from the seed of a reply. torch's generator for the CPU looks at the low
# 32 bits only.
_OTHER_SEED = 0x2545F491


class Sampler:
    """Chooses tokens. It owns its random generator, so one sampler serves one reply.

    `choose` is one step of a reply. A caller that must compare distributions takes the two halves
    apart: `probabilities`, then `draw`.

    Args:
        prompt_ids, eos_token_ids, max_tokens: the reply's, which the checkpoint's rules look at.
            Without `max_tokens`, no end of the reply is forced.
    """

    def __init__(
        self,
        params: SamplingParams,
        device: torch.device | str = "cpu",
        *,
        prompt_ids: Sequence[int] = (),
        eos_token_ids: Iterable[int] = (),
        max_tokens: int | None = None,
    ) -> None:
        self._params = params
        self._is_greedy = params.is_greedy
        self._prompt_ids, self._max_tokens = prompt_ids, max_tokens
        self._eos_token_ids = sorted(eos_token_ids)
        self._has_rules = bool(params.rules.changed())
        self._needs_ids = self._has_rules or params.repetition_penalty != 1
        self._processors: LogitsProcessorList | None = None  # from the first logits on
        self._generator = torch.Generator(device=device)
        if params.seed is not None:
            self._generator.manual_seed(params.seed)

    def choose(self, logits: Tensor, token_ids: Sequence[int]) -> int:
        """The next token; greedy takes the argmax and computes no probabilities.

        Args:
            logits: ``[V]`` float32, as the model computed them.
            token_ids: the prompt and the reply so far, which penalties and rules look at.

        Raises:
            ModelError: the checkpoint's rules name a token that the model does not have.
            GenerationError: the checkpoint's rules leave no token.
        """
        if self._is_greedy:
            return int(self.scores(logits, token_ids).argmax())
        return self.draw(self.probabilities(logits, token_ids))

    def probabilities(self, logits: Tensor, token_ids: Sequence[int]) -> Tensor:
        """The distribution ``[V]`` that the next token is drawn from; one-hot if greedy."""
        scores = self.scores(logits, token_ids)
        if self._is_greedy:
            return torch.zeros_like(scores).index_fill_(0, scores.argmax(), 1.0)
        return scores.softmax(dim=-1)

    def draft(self, logits: Tensor, token_ids: Sequence[int]) -> tuple[int, list[Tensor]]:
        """A token for a draft, and the distribution that it was drawn from; none if greedy."""
        if self._is_greedy:
            return self.choose(logits, token_ids), []
        probabilities = self.probabilities(logits, token_ids)
        return self.draw(probabilities), [probabilities]

    def verify(
        self, logits: Tensor, token_ids: Sequence[int], drafted: int, drafted_from: Tensor
    ) -> int:
        """The drafted token, or another one: together as if drawn from `probabilities`.

        With p that distribution and q the draft's, the token is accepted with probability
        min(1, p / q), and otherwise another is drawn from max(0, p - q) (Leviathan et al.,
        arXiv 2211.17192, section 2.3).

        Args:
            drafted_from: q, ``[V]``.
        """
        wanted = self.probabilities(logits, token_ids)
        chance = torch.rand((), generator=self._generator, device=self._generator.device)
        if float(chance) * float(drafted_from[drafted]) < float(wanted[drafted]):
            return drafted
        rest = (wanted - drafted_from).clamp_(min=0)
        # Rounding may leave nothing where both are the same.
        return self.draw(rest if bool(rest.any()) else wanted)

    def for_drafts(self) -> "Sampler":
        """A sampler with the same settings, whose draws are independent of this one's."""
        drafts = copy(self)
        drafts._generator = torch.Generator(device=self._generator.device)
        drafts._generator.manual_seed(self._generator.initial_seed() ^ _OTHER_SEED)
        return drafts

    def draw(self, probabilities: Tensor) -> int:
        """A token drawn from ``probabilities`` ``[V]``, which advances the random generator.

        A greedy sampler takes the most likely token instead, the lowest id in a tie.
        """
        if self._is_greedy:
            return int(probabilities.argmax())
        return int(torch.multinomial(probabilities, num_samples=1, generator=self._generator))

    def scores(self, logits: Tensor, token_ids: Sequence[int]) -> Tensor:
        """Logits ``[V]`` after penalties, rules and warpers; raises as `choose` does."""
        if self._processors is None:
            self._processors = LogitsProcessorList(self._make_processors(logits))
        ids = torch.tensor([token_ids if self._needs_ids else []], dtype=torch.long)
        scores: Tensor = self._processors(ids.to(logits.device), logits[None])  # [1, V]
        if self._has_rules and not math.isfinite(float(scores.max())):
            raise GenerationError(
                "the checkpoint's generation settings leave no token to choose: "
                f"{', '.join(self._params.rules.changed())}",
                "they are in its generation_config.json: correct or remove them",
            )
        return scores[0]

    def _make_processors(self, logits: Tensor) -> Iterator[LogitsProcessor]:
        """What `generate` would process logits with, in its order."""
        params, rules = self._params, self._params.rules
        if self._has_rules:
            rules.check_tokens(logits.shape[-1])
            yield from self._rules_before_the_penalty(logits)
        if params.repetition_penalty != 1:
            yield RepetitionPenaltyLogitsProcessor(penalty=float(params.repetition_penalty))
        if self._has_rules:
            yield from self._rules_after_the_penalty(logits)
        if not params.is_greedy:
            yield from self._warpers(logits)
        if rules.renormalize_logits:
            yield LogitNormalization()

    def _rules_before_the_penalty(self, logits: Tensor) -> Iterator[LogitsProcessor]:
        rules, prompt = self._params.rules, self._prompt(logits)
        if rules.sequence_bias:
            biases = [[list(ids), float(bias)] for ids, bias in rules.sequence_bias]
            yield SequenceBiasLogitsProcessor(sequence_bias=biases)
        if rules.encoder_repetition_penalty != 1:
            yield EncoderRepetitionPenaltyLogitsProcessor(
                float(rules.encoder_repetition_penalty), prompt
            )

    def _rules_after_the_penalty(self, logits: Tensor) -> Iterator[LogitsProcessor]:
        rules, prompt = self._params.rules, self._prompt(logits)
        ends = [id_ for id_ in self._eos_token_ids if id_ < logits.shape[-1]]
        eos = torch.tensor(ends, dtype=torch.long, device=logits.device)
        device, length = str(logits.device), prompt.shape[1]
        if rules.no_repeat_ngram_size:
            yield NoRepeatNGramLogitsProcessor(rules.no_repeat_ngram_size)
        if rules.encoder_no_repeat_ngram_size:
            yield EncoderNoRepeatNGramLogitsProcessor(rules.encoder_no_repeat_ngram_size, prompt)
        if rules.bad_words_ids:
            yield NoBadWordsLogitsProcessor([list(ids) for ids in rules.bad_words_ids], eos)
        if ends and rules.min_length and not rules.min_new_tokens:
            yield MinLengthLogitsProcessor(rules.min_length, eos, device=device)
        if ends and rules.min_new_tokens:
            yield MinNewTokensLengthLogitsProcessor(
                length, rules.min_new_tokens, eos, device=device
            )
        if rules.forced_bos_token_id is not None:
            yield ForcedBOSTokenLogitsProcessor(rules.forced_bos_token_id)
        forced = rules.forced_eos_token_id
        if forced is not None and self._max_tokens is not None:
            yield ForcedEOSTokenLogitsProcessor(
                length + self._max_tokens,
                forced if isinstance(forced, int) else list(forced),
                device=device,
            )
        if ends and rules.exponential_decay_length_penalty is not None:
            yield ExponentialDecayLengthPenalty(rules.exponential_decay_length_penalty, eos, length)
        if rules.suppress_tokens:
            yield SuppressTokensLogitsProcessor(rules.suppress_tokens, device=device)
        if rules.begin_suppress_tokens:
            after_bos = length <= 1 and rules.forced_bos_token_id is not None
            yield SuppressTokensAtBeginLogitsProcessor(
                rules.begin_suppress_tokens, length + after_bos, device=device
            )

    def _warpers(self, logits: Tensor) -> Iterator[LogitsProcessor]:
        params, rules = self._params, self._params.rules
        if params.temperature != 1:
            yield TemperatureLogitsWarper(float(params.temperature))
        if rules.top_h is not None:
            yield TopHLogitsWarper(top_h=rules.top_h)
        if params.top_k:
            yield TopKLogitsWarper(top_k=params.top_k)
        if params.top_p < 1:
            yield TopPLogitsWarper(top_p=params.top_p)
        if params.min_p > 0:
            yield MinPLogitsWarper(min_p=params.min_p)
        if rules.typical_p < 1:
            yield TypicalLogitsWarper(mass=rules.typical_p)
        if 0 < rules.epsilon_cutoff < 1:
            yield EpsilonLogitsWarper(epsilon=rules.epsilon_cutoff)
        if 0 < rules.eta_cutoff < 1:
            yield EtaLogitsWarper(epsilon=rules.eta_cutoff, device=str(logits.device))

    def _prompt(self, logits: Tensor) -> Tensor:
        """The prompt's ids, ``[1, S]``."""
        return torch.tensor([list(self._prompt_ids)], dtype=torch.long, device=logits.device)
