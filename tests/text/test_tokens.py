"""Text and token ids: whole characters, stop strings, raw prompts."""

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from d3cli.base.errors import ContextFullError, PromptError, UsageError
from d3cli.base.settings import BUILTIN
from d3cli.files.names import find_model
from d3cli.text import tokens
from d3cli.text.stop_strings import StopStrings
from d3cli.text.tokens import (
    Detokenizer,
    check_length,
    encode_in_pieces,
    encode_raw,
)


def builtin() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(find_model(BUILTIN).path)


TOKENIZER = builtin()


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As in Llama 2 and Mistral: words with "▁" for a space, and the 256 bytes as ids 0 to 255."""
    vocabulary = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁the", "▁Hi", "!", "<unk>"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(vocabulary)}, [], unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTE_FALLBACK = byte_fallback_tokenizer()


class TestDetokenizer:
    @given(st.text())
    def test_pieces_join_to_the_text(self, text: str) -> None:
        ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        stream = Detokenizer(TOKENIZER)
        assert "".join(stream.push(i) for i in ids) + stream.flush() == text

    @given(st.text(alphabet="añ€😀👩\u200d", min_size=1))
    def test_no_piece_ends_inside_a_character(self, text: str) -> None:
        stream = Detokenizer(TOKENIZER)
        for token_id in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
            assert "\ufffd" not in stream.push(token_id)
        assert stream.flush() == ""

    @given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
    def test_any_ids_decode_as_they_do_all_together(self, ids: list[int]) -> None:
        stream = Detokenizer(TOKENIZER)
        text = "".join(stream.push(i) for i in ids) + stream.flush()
        assert text == TOKENIZER.decode(ids, skip_special_tokens=True)

    def test_an_open_character_at_the_end_is_shown_as_a_replacement(self) -> None:
        ids = TOKENIZER("😀", add_special_tokens=False)["input_ids"]
        stream = Detokenizer(TOKENIZER)
        assert "".join(stream.push(i) for i in ids[:-1]) == ""
        assert "\ufffd" in stream.flush()

    @given(st.lists(st.integers(128, 259), max_size=30))
    def test_broken_utf_8_between_words_costs_no_word(self, ids: list[int]) -> None:
        stream = Detokenizer(BYTE_FALLBACK)
        text = "".join(stream.push(i) for i in ids) + stream.flush()
        # Decoding the whole drops a run of bytes that ends badly. The stream has shown its start.
        whole = BYTE_FALLBACK.decode(ids, skip_special_tokens=True)
        assert [c for c in text if c.isascii()] == [c for c in whole if c.isascii()]

    @given(st.lists(st.sampled_from(["▁the", "▁Hi", "!", "€", "😀"]), max_size=12))
    def test_whole_characters_of_a_byte_fallback_tokenizer(self, words: list[str]) -> None:
        ids = []
        for word in words:
            known = BYTE_FALLBACK.convert_tokens_to_ids(word)
            ids += [known] if known is not None else list(word.encode())
        stream = Detokenizer(BYTE_FALLBACK)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) == BYTE_FALLBACK.decode(ids)
        assert stream.flush() == ""


class TestStopStrings:
    @given(
        st.text(alphabet="ab\n", max_size=40),
        st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
        st.data(),
    )
    def test_chunk_boundaries_do_not_matter(
        self, text: str, stops: list[str], data: st.DataObject
    ) -> None:
        ended = (text[:end] for end in range(len(text) + 1) if text[:end].endswith((*stops,)))
        first = next(ended, None)
        expected = text
        if first is not None:
            expected = min((first.removesuffix(stop) for stop in stops), key=len)
        filter_, shown, rest = StopStrings(stops), "", text
        while rest:
            cut = data.draw(st.integers(1, len(rest)))
            piece, stopped = filter_.push(rest[:cut])
            shown, rest = shown + piece, rest[cut:]
            if stopped:
                break
        assert shown + filter_.flush() == expected

    def test_text_that_cannot_become_a_stop_is_shown_at_once(self) -> None:
        stops = StopStrings(["###"])
        assert stops.push("a#") == ("a", False)
        assert stops.push("b") == ("#b", False)

    def test_an_empty_stop_is_refused(self) -> None:
        with pytest.raises(UsageError):
            StopStrings([""])


class TestEncodeRaw:
    def test_special_tokens_are_parsed(self) -> None:
        token = TOKENIZER.eos_token
        assert TOKENIZER.eos_token_id in encode_raw(TOKENIZER, f"Hello{token}")

    def test_a_bos_in_the_text_is_not_doubled(self) -> None:
        if TOKENIZER.bos_token is None:
            pytest.skip("this tokenizer has no BOS")
        ids = encode_raw(TOKENIZER, f"{TOKENIZER.bos_token}Hello")
        assert ids.count(TOKENIZER.bos_token_id) == 1

    def test_an_empty_text_is_refused(self) -> None:
        with pytest.raises(PromptError):
            encode_raw(TOKENIZER, "")


class Counting:
    """The tokenizer, which counts the characters that it gets."""

    def __init__(self) -> None:
        self.characters = 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return TOKENIZER(text, **options)


class TestLongTexts:
    @pytest.mark.parametrize("end", ["\n", " ", "x"])
    def test_pieces_hold_the_whole_text(self, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tokens, "LONGEST_PIECE", 100)
        whole = f"\nA fox ran over nine hills{end}" * 200
        ids = list(encode_in_pieces(TOKENIZER, whole))
        assert TOKENIZER.decode(ids) == whole
        assert len(ids) <= 1.1 * len(TOKENIZER(whole, add_special_tokens=False)["input_ids"])

    def test_a_short_text_is_one_piece(self) -> None:
        whole = "A fox ran over nine hills.\n" * 2000
        ids = TOKENIZER(whole, add_special_tokens=False)["input_ids"]
        assert list(encode_in_pieces(TOKENIZER, whole)) == ids

    def test_its_words_never_become_control_tokens(self) -> None:
        token = TOKENIZER.eos_token
        ids = list(encode_in_pieces(TOKENIZER, f"I say {token} and go on."))
        assert TOKENIZER.eos_token_id not in ids
        assert TOKENIZER.decode(ids) == f"I say {token} and go on."

    def test_pieces_are_counted_in_bytes(self) -> None:
        tokenizer = Counting()
        with pytest.raises(ContextFullError):
            check_length(tokenizer, "🦊" * 500_000, 1024)
        assert tokenizer.characters == tokens.LONGEST_PIECE // 4

    def test_no_more_is_tokenized_than_is_asked_for(self) -> None:
        tokenizer = Counting()
        assert len(list(islice(encode_in_pieces(tokenizer, "a fox " * 2_000_000), 320))) == 320
        assert tokenizer.characters <= tokens.LONGEST_PIECE

    def test_far_beyond_the_context_only_the_beginning_is_tokenized(self) -> None:
        tokenizer = Counting()
        with pytest.raises(ContextFullError, match=r"is at least .* tokens long") as refused:
            check_length(tokenizer, "a fox " * 2_000_000, 1024)
        assert tokenizer.characters == tokens.LONGEST_PIECE
        assert refused.value.tokens > 2 * refused.value.context

    def test_what_may_fit_is_not_refused(self) -> None:
        tokenizer = Counting()
        check_length(tokenizer, "a fox " * 100_000, 1024)  # the exact count refuses it later
        assert tokenizer.characters == 0
        check_length(tokenizer, "a fox " * 200_000, 400_000)
        assert tokenizer.characters == 0
