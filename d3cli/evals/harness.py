"""The model "d3" of lm-evaluation-harness: log-likelihoods and replies at a depth schedule.

Importing this module registers it. It needs lm-evaluation-harness (``pip install "d3cli[eval]"``);
the other modules of this package do not.
"""

import logging
from collections.abc import Sequence
from typing import Any

import lm_eval.models  # noqa: F401 - the harness registers its own models only before all others
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from d3cli import __version__
from d3cli.base.errors import UsageError, spelled
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.decode.stats import RunStats
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.evals.generation import Generation
from d3cli.evals.likelihoods import (
    Likelihood,
    fit_context,
    log_likelihoods,
    rolling_windows,
    runs_at_full_depth,
)
from d3cli.evals.model_args import EvalSettings, Evaluated, load_evaluated
from d3cli.scoring.documents import Document
from d3cli.text.chat_template import Message, render_chat
from d3cli.text.tokens import encode_beginning

log = logging.getLogger(__name__)
EncodedPair = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("d3")
class D3LM(TemplateLM):
    """A model that d3 runs, at one depth schedule.

    Args:
        given: the fields of `EvalSettings`, and what the harness adds to them.

    Attributes:
        evaluated: the model, its schedule, and where that comes from.
        likelihoods: of all continuations scored so far.
        replies: the figures of all replies written so far.

    Raises:
        UsageError: an argument is unknown or impossible.
        D3Error: the model cannot be loaded.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__()
        given.pop("max_batch_size", None)  # for a search of the largest batch, which d3 has not
        if str(given.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del given["device"]  # the harness' default, which its own models ignore here as well
        self.settings = EvalSettings.read(given)
        self.evaluated: Evaluated = load_evaluated(self.settings)
        for note in self.evaluated.notes:
            log.warning("%s", spelled(note))
        self._model = self.evaluated.model
        self.tokenizer = self._model.tokenizer
        self.likelihoods: list[Likelihood] = []
        self.replies: list[RunStats] = []
        self._engine = Engine(self._model)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "D3LM":
        """As the harness' own; where both give a setting, the model's arguments count."""
        return cls(**{**(additional_config or {}), **arg_dict})

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return self._model.name.replace("/", "__")

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def max_length(self) -> int:
        return self._model.context_length

    @property
    def batch_size(self) -> int | str:
        return self.settings.batch_size

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results: how deep the model ran."""
        evaluated, model = self.evaluated, self._model
        tokens = sum(one.tokens for one in self.likelihoods)
        layers = sum(one.layers for one in self.likelihoods)
        return {
            "d3_version": __version__,
            "d3_schedule": evaluated.schedule.to_json() | {"source": evaluated.source.value},
            "model_dtype": model.dtype,
            "d3_quantization": model.origin.quantization,
            "d3_likelihood_tokens": tokens,
            "d3_likelihood_mean_layers": layers / tokens if tokens else None,
            "d3_reply_tokens": sum(one.completion_tokens for one in self.replies),
            "d3_reply_mean_layers": mean_layers(self.replies),
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any
    ) -> list[int]:
        """Token ids; the tokenizer's BOS, if any, in front, unless the text begins with it."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        return encode_beginning(self.tokenizer, string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: Sequence[Message], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, by the model's chat template.

        Args:
            add_generation_prompt: False if the last message is the beginning of the reply.

        Raises:
            ModelError: the model has no template, or it cannot render the conversation.
        """
        text = self._model.text
        messages, begun = list(chat_history), ""
        if not add_generation_prompt:
            begun = messages.pop()["content"]
        rendered = render_chat(text.tokenizer, messages, text.renderer, think=self.settings.thinks)
        return rendered + begun

    def _loglikelihood_tokens(
        self, requests: Sequence[EncodedPair], disable_tqdm: bool = False, **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        fitted = [
            fit_context(context, continuation, self.max_length)
            for _, context, continuation in requests
        ]
        self._warn_of_cuts([cut for _, cut in fitted])
        found = self._score([document for document, _ in fitted], disable_tqdm)
        answers = [(one.log_prob, one.is_greedy) for one in found]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihoods of whole texts, each window of the context as one reply.

        Raises:
            UsageError: each prompt decides the order, and these have none.
        """
        if isinstance(self.evaluated.schedule, PromptSchedule):
            raise UsageError(
                "whole texts have no prompt that could decide which units to drop, so all would "
                "run at full depth",
                "calibrate the model with a fixed order, or use alpha=off",
            )
        texts = [request.args[0] for request in requests]
        windows = [
            rolling_windows(self.tok_encode(text), self.prefix_token_id, self.max_length)
            for text in texts
        ]
        found = iter(self._score([one for each in windows for one in each], disable_tqdm))
        sums = [sum(next(found).log_prob for _ in each) for each in windows]
        for text, log_prob in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), log_prob)
        return sums

    def _score(self, documents: Sequence[Document], disable_tqdm: bool) -> list[Likelihood]:
        schedule, size = self.evaluated.schedule, self.settings.batch_size
        full = sum(runs_at_full_depth(document, schedule) for document in documents)
        if full:
            log.warning(
                "%d of %d contexts are too short to decide which units to drop; what follows them "
                "runs at full depth",
                full,
                len(documents),
            )
        found: dict[int, Likelihood] = {}
        rows = None if size == "auto" else size
        with tqdm(total=len(documents), disable=disable_tqdm, desc="Scoring") as progress:
            for batch in log_likelihoods(self._model, documents, schedule, rows):
                found |= batch
                progress.update(len(batch))
        ordered = [found[number] for number in range(len(documents))]
        self.likelihoods += ordered
        return ordered

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies that continue the contexts, each ended by a stop string, its length or an EOS.

        Raises:
            UsageError: a task's generation arguments cannot be used.
        """
        found, cuts = [], []
        for request in tqdm(requests, disable=disable_tqdm, desc="Writing replies"):
            context, given = request.args
            text, cut = self._reply(context, Generation.read(given))
            cuts.append(cut)
            found.append(text)
            self.cache_hook.add_partial("generate_until", (context, given), text)
        self._warn_of_cuts(cuts)
        return found

    def _reply(self, context: str, generation: Generation) -> tuple[str, int]:
        """The text of one reply, and how many tokens of its context were cut."""
        room = self.max_length - generation.max_tokens
        if room < 1:
            raise UsageError(
                f"the task asks for replies of {generation.max_tokens:,} tokens, and the model's "
                f"context holds {self.max_length:,}",
                "use --gen_kwargs max_gen_toks=N, or a model with a longer context",
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        # Each sampled reply has a seed of its own, so that repeats differ, and runs do not.
        seed = {"seed": self.settings.seed + len(self.replies)}
        sampling = SamplingParams.resolve(
            seed | dict(generation.sampling), self._model.text.generation_settings
        )
        reply = self._engine.stream_ids(
            ids[-room:],
            schedule=self.evaluated.schedule,
            sampling=sampling,
            max_tokens=generation.max_tokens,
            stop=generation.until,
            continues=True,
        )
        for _ in reply:
            pass
        self.replies.append(reply.stats)
        return reply.text, max(0, len(ids) - room)

    def _warn_of_cuts(self, cuts: Sequence[int]) -> None:
        if any(cuts):
            log.warning(
                "%d of %d contexts are longer than the model holds: up to %d tokens were cut from "
                "their beginnings",
                sum(cut > 0 for cut in cuts),
                len(cuts),
                max(cuts),
            )


def mean_layers(replies: Sequence[RunStats]) -> float | None:
    """The mean depth over all decode steps of the replies; None if there were none."""
    steps = [
        (one.mean_depth, one.completion_tokens - 1) for one in replies if one.mean_depth is not None
    ]
    total = sum(count for _, count in steps)
    return sum(depth * count for depth, count in steps) / total if total else None
