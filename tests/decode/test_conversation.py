"""Conversations: whatever happened before, a reply is the one that a fresh process writes."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from transformers.utils.chat_template_utils import mark_control_tokens

from d3cli.base.errors import ContextFullError
from d3cli.decode.conversation import Conversation, ReplyOptions, inside
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.read_ahead import ReadAhead
from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.decode.shared_cache import RepairChoice
from d3cli.decode.transcript import ChatMessage
from d3cli.depth.choice import Source
from d3cli.depth.resolve import resolve_schedule
from d3cli.model.load import load_model
from d3cli.scoring.compare_reply import compare_reply
from tests.decode.draft.fixed import Always

MODEL = load_model(dtype="float32", device="cpu", threads=1)
SMALL_MODEL = load_model(dtype="float32", device="cpu", threads=1)
torch.manual_seed(1)
for parameter in SMALL_MODEL.causal_lm.parameters():  # so that it is wrong now and then
    parameter.data.add_(torch.randn_like(parameter) * parameter.std() * 0.3)
TEXTS = ["What is 27 + 45?", "Tell me a story about a fox.", "Go on.", "Why?", "é 漢 🦊"]
# Shows only the last messages, and only part of each reply, so that earlier prompts are rewritten.
FORGETFUL = (
    "{% for m in messages[-3:] %}<|user|>{{ m.content[:20] if m.role == 'assistant' else m.content "
    "}}{% endfor %}<|assistant|>"
)


def options(
    alpha: float | str = 0.9, max_tokens: int = 12, by_prompt: str = "", **others: Any
) -> ReplyOptions:
    """Options of a reply; `by_prompt` names the units that the prompt orders."""
    schedule = MODEL.schedule(alpha, start=None if alpha in ("off", "auto") else 2)
    if by_prompt:
        decay = alpha if isinstance(alpha, float) else 0.9
        schedule = resolve_schedule(MODEL.weight_bytes, decay, start=1, units=by_prompt)
    return ReplyOptions(schedule, Source.FLAGS, **({"sampling": SamplingParams()} | others),
                        max_tokens=max_tokens)  # fmt: skip


def write(conversation: Conversation, how: ReplyOptions, interrupt_at: int = 99) -> Reply:
    reply = conversation.answer(how)
    for number, _ in enumerate(reply, start=1):
        if number == interrupt_at:
            break
    reply.release()
    conversation.keep(reply, how)
    return reply


def ids(reply: Reply) -> list[int]:
    return [token.token_id for token in reply.tokens]


def fresh(conversation: Conversation, how: ReplyOptions) -> list[int]:
    """The tokens that a new engine writes for the same messages as the last reply."""
    shown = conversation.shown()[:-1]
    reply = Engine(MODEL).stream(
        shown,
        schedule=how.schedule if how.drafter is None else MODEL.schedule("off"),
        sampling=how.sampling,
        max_tokens=how.max_tokens,
        chat_template=how.chat_template,
    )
    list(reply)
    return ids(reply)


class Chat(RuleBasedStateMachine):
    """Turns, edits, replies again, interruptions, reading ahead, comparison, decay and drafts."""

    @initialize(template=st.sampled_from([None, FORGETFUL]), system=st.sampled_from(["", "Short."]))
    def begin(self, template: str | None, system: str) -> None:
        self.conversation = Conversation(MODEL, [ChatMessage("system", system)] if system else [])
        self.template = template
        self.how = options(chat_template=template)
        self.drafters = {
            "": None,
            "auto": Drafter.for_model(MODEL, draft_model=SMALL_MODEL),
            "lookup": Always(LookupSource()),
            "depth": Always(DepthSource(MODEL)),
            "model": Always(ModelSource(MODEL, SMALL_MODEL)),
        }

    def reply(self, interrupt_at: int) -> None:
        reply = write(self.conversation, self.how, interrupt_at)
        assert ids(reply) == fresh(self.conversation, self.how)[: len(reply.tokens)]

    @rule(
        alpha=st.sampled_from(["off", "auto", 0.5, 0.9, 0.97]),
        max_tokens=st.integers(1, 16),
        temperature=st.sampled_from([0.0, 0.0, 1.3]),
        penalty=st.sampled_from([1.0, 1.3]),
        by_prompt=st.sampled_from(["", "layer", "layer", "sublayer"]),
        drafts_by=st.sampled_from(["", "", "auto", "lookup", "depth", "model"]),
        repair=st.sampled_from(["auto", "auto", "never"]),
    )
    def choose(
        self,
        alpha: float | str,
        max_tokens: int,
        temperature: float,
        penalty: float,
        by_prompt: str,
        drafts_by: str,
        repair: RepairChoice,
    ) -> None:
        if drafts_by not in ("", "lookup"):  # a seed gives another text then
            temperature = 0.0
        self.how = options(
            alpha,
            max_tokens,
            by_prompt,
            sampling=SamplingParams(temperature=temperature, repetition_penalty=penalty, seed=4),
            chat_template=self.template,
            drafter=self.drafters[drafts_by],
            repair=repair if drafts_by else "auto",
        )

    @rule(text=st.sampled_from(TEXTS), interrupt_at=st.integers(1, 30))
    def turn(self, text: str, interrupt_at: int) -> None:
        self.conversation.say(text)
        self.reply(interrupt_at)

    @precondition(lambda self: self.conversation.messages)
    @rule(interrupt_at=st.integers(1, 30))
    def regenerate(self, interrupt_at: int) -> None:
        assert self.conversation.take_back_reply()
        self.reply(interrupt_at)

    @precondition(lambda self: self.conversation.messages)
    @rule()
    def edit(self) -> None:
        text = self.conversation.take_back()
        assert text in TEXTS
        assert all(one.role == "assistant" for one in self.conversation.messages[-1:])

    @rule(system=st.sampled_from(["", "Be brief.", "Be kind."]))
    def change_system(self, system: str) -> None:
        self.conversation.system = system

    @rule()
    def clear(self) -> None:
        self.conversation.clear()

    @rule(chunk=st.integers(1, 40), chunks=st.integers(0, 6), measure=st.booleans())
    def read_ahead(self, chunk: int, chunks: int, measure: bool) -> None:
        schedule = self.how.schedule if measure else None
        opening = self.conversation.opening(self.how)
        steps = self.conversation.engine.read_ahead(opening, chunk, schedule=schedule)
        for _, _position in zip(range(chunks), steps, strict=False):
            pass

    @precondition(lambda self: self.conversation.reply)
    @rule()
    def compare(self) -> None:
        reply = self.conversation.reply
        assert reply is not None
        found = compare_reply(self.conversation.engine, reply)
        full = options("off", len(reply.tokens), sampling=reply.sampling,
                       chat_template=self.template)  # fmt: skip
        pairs = zip(ids(reply), fresh(self.conversation, full), strict=False)
        first = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        assert found.first_difference == first
        assert found.rounding.share in (None, 1)

    @precondition(lambda self: self.conversation.reply)
    @rule()
    def repair(self) -> None:
        self.conversation.engine.repair()


class TestWhateverHappenedBefore(Chat.TestCase):
    settings = settings(
        max_examples=15,
        stateful_step_count=12,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
class TestWhateverHappenedBeforeAtLength(Chat.TestCase):
    settings = settings(TestWhateverHappenedBefore.settings, max_examples=40)


class TestMessages:
    def test_a_turn_is_recorded_as_generate_prints_it(self) -> None:
        conversation, how = (
            Conversation(MODEL, [ChatMessage("system", "Short.")]),
            options(max_tokens=5),
        )
        conversation.say("Hello.")
        reply = write(conversation, how)
        system, user, message = conversation.record()
        assert (system.role, system.content) == ("system", "Short.")
        assert (user.role, user.content) == ("user", "Hello.")
        assert message.content == reply.text
        assert message.model == "demo"
        assert message.finish_reason == "length"
        assert message.schedule == how.schedule.to_json() | {"source": Source.FLAGS}
        assert message.stats is not None
        assert message.stats["completion_tokens"] == 5

    def test_nothing_can_be_taken_back_from_nothing(self) -> None:
        conversation = Conversation(MODEL)
        assert conversation.take_back() is None
        assert conversation.take_back_reply() is None

    def test_a_prompt_that_opens_reasoning_is_seen(self) -> None:
        template = "{{ messages[0].content }}<|assistant|><think>\n"
        conversation, how = Conversation(MODEL), options(max_tokens=3, chat_template=template)
        conversation.say("Hello.")
        reply = write(conversation, how)
        assert inside(reply) == "<think>"
        assert conversation.messages[-1].content == "<think>" + reply.text


def test_the_kv_cache_is_reused_with_a_template_of_typed_parts() -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content[0].text }}{% endfor %}<|x|>"
    conversation, how = Conversation(MODEL), options(max_tokens=5, chat_template=template)
    conversation.say("Tell me a story.")
    write(conversation, how)
    opening = conversation.opening(how)
    conversation.say("hi")
    reply = write(conversation, how)
    assert reply.prompt_ids[: len(opening)] == opening
    assert len(opening) > 10
    assert ids(reply) == fresh(conversation, how)


class TestOverflow:
    """The built-in model's context holds 1,024 tokens."""

    def long(self, turns: int) -> Conversation:
        words = "one two three four five six seven eight nine ten " * 8
        messages = []
        for number in range(turns):
            messages += [ChatMessage("user", f"{number} {words}"), ChatMessage("assistant", words)]
        return Conversation(MODEL, messages)

    def test_a_full_context_is_refused_with_both_numbers(self) -> None:
        conversation = self.long(8)
        conversation.say("Hello?")
        with pytest.raises(ContextFullError) as refused:
            conversation.answer(options())
        assert refused.value.tokens >= refused.value.context == MODEL.context_length

    def test_the_oldest_turns_make_room(self) -> None:
        conversation, how = self.long(8), options()
        conversation.say("Hello?")
        before = list(conversation.messages)
        dropped = conversation.make_room(how)
        assert dropped
        assert dropped == before[: len(dropped)]
        assert conversation.messages == before  # all stay in the record
        assert conversation.shown()[0]["role"] == "user"
        reply = write(conversation, how)
        assert len(reply.prompt_ids) <= 0.75 * MODEL.context_length
        assert ids(reply) == fresh(conversation, how)
        conversation.say("And?")
        assert conversation.make_room(how) == []

    def test_many_turns_are_dropped_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        conversation, how = self.long(300), options()
        conversation.say("Hello?")
        encoded: list[int] = []
        whole = conversation._encode
        monkeypatch.setattr(
            conversation, "_encode", lambda *words: encoded.append(1) or whole(*words)
        )
        dropped = conversation.make_room(how)
        assert len(encoded) < 15
        kept = len(conversation.messages) - len(dropped)
        context = MODEL.context_length
        assert conversation._prompt_tokens(how) <= 0.75 * context
        one_more = Conversation(MODEL, conversation.messages[-kept - 2 :])
        assert one_more._prompt_tokens(how) > 0.75 * context  # no more than necessary

    def test_a_huge_old_message_is_left_out_without_tokenizing_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("d3cli.text.tokens.LONGEST_PIECE", 20_000)
        huge = ChatMessage("user", "word " * 100_000)
        conversation = Conversation(MODEL, [huge, *self.long(1).messages])
        conversation.say("Hello?")
        longest = []

        def mark(messages: list[dict[str, str]], tokens: object) -> object:
            longest.append(sum(len(message["content"]) for message in messages))
            return mark_control_tokens(messages, tokens)

        monkeypatch.setattr("d3cli.text.chat_template.mark_control_tokens", mark)
        assert huge in conversation.make_room(options())
        assert max(longest) < 20_000

    def test_one_message_that_is_too_long_is_refused(self) -> None:
        conversation = self.long(1)
        conversation.say("word " * 2000)
        with pytest.raises(ContextFullError):
            conversation.make_room(options())
        assert conversation.left_out == 0
        assert conversation.take_back() == "word " * 2000

    def test_nothing_is_left_out_if_making_room_is_interrupted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = self.long(8)
        conversation.say("Hello?")
        counted = iter([2000, 1000])  # then Ctrl-C

        def count(_: object) -> int:
            for tokens in counted:
                return tokens
            raise KeyboardInterrupt

        monkeypatch.setattr(conversation, "_prompt_tokens", count)
        with pytest.raises(KeyboardInterrupt):
            conversation.make_room(options())
        assert conversation.left_out == 0

    def test_what_fits_is_left_alone(self) -> None:
        conversation = self.long(1)
        conversation.say("Hello?")
        assert conversation.make_room(options()) == []


class TestReadAhead:
    def test_the_next_turn_reads_only_what_the_user_wrote(self) -> None:
        conversation, how = Conversation(MODEL), options(max_tokens=60)
        conversation.say(TEXTS[1])
        first = write(conversation, how)
        assert conversation.engine.cache.is_ragged
        done: list[bool] = []
        ahead = ReadAhead(
            conversation.engine,
            lambda: conversation.opening(how),
            how.schedule,
            lambda: done.append(True),
        )
        ahead._thread.join()
        ahead.stop()
        assert done == [True]
        assert not conversation.engine.cache.is_ragged
        assert first.agreement is not None
        assert first.agreement.compared == sum(t.depth < MODEL.num_layers for t in first.tokens)
        conversation.say("Go on.")
        second = write(conversation, how)
        assert len(second.prompt_ids) - second.reused < 12
        assert ids(second) == fresh(conversation, how)

    def test_it_can_be_stopped_at_any_moment(self) -> None:
        how = options()
        for _ in range(5):
            conversation = TestOverflow().long(5)
            ahead = ReadAhead(
                conversation.engine,
                lambda c=conversation: c.opening(how),
                how.schedule,
                lambda: None,
            )
            ahead.stop()
            conversation.say("Go on.")
            assert ids(write(conversation, how)) == fresh(conversation, how)

    def test_a_template_that_fails_is_left_for_the_next_prompt(self) -> None:
        conversation = Conversation(MODEL)
        how = options(chat_template="{{ raise_exception('no') }}")
        assert conversation.opening(how) == []
