"""Hostile files that a user names: prompts, rows, held-out text, tasks, templates, results."""

import json
from typing import Any

from tests.hostile.stored_registry import NO_FILES, NO_JSON, content, door

MODEL = ("--device", "cpu", "--dtype", "float32")
ROWS = door("rows", "rows.jsonl", "generate", "demo", "--input", "FILE", *MODEL)
PROMPTS = door("prompts", "prompts.jsonl", "profile", "demo", "--input", "FILE", *MODEL)
PROMPT = door("prompt", "prompt.txt", "generate", "demo", "--prompt-file", "FILE", *MODEL)
TEMPLATE = door("template", "t.jinja", "generate", "demo", "Hi.", "--chat-template", "FILE", *MODEL)
TEXT = door("held-out text", "text.jsonl", "calibrate", "demo", "--data", "FILE", *MODEL)
TASK = door("task", "task.jsonl", "calibrate", "score", "demo", "--task", "FILE", *MODEL)
RESULTS = door(
    "results",
    "results.jsonl",
    *("generate", "demo", "--input", "GOOD"),
    "--output-file",
    "FILE",
    *MODEL,
)


def row(**fields: Any) -> Any:
    return content(json.dumps(fields) + "\n")


def text(raw: str) -> Any:
    return content(raw + "\n")


DIGITS, EVIL = "9" * 100_000, "\x1b]0;OWNED\x07\u202e"
MESSAGES = [{"role": "user", "content": "x"}]
BLANK = {"newlines": content("\n" * 30_000_000), "spaces": content(" " * 30_000_000)}

ROWS.refused |= {
    **NO_FILES,
    **NO_JSON,
    "newlines": BLANK["newlines"],
    "a_number_of_tokens_of_thousands_of_digits": text(
        '{"prompt": "x", "max_tokens": ' + DIGITS + "}"
    ),
    "a_negative_seed": row(prompt="x", seed=-1),
    "a_seed_that_is_no_number": text('{"prompt": "x", "seed": NaN}'),
    "a_prompt_twice": text('{"prompt": "x", "prompt": ["y"]}'),
    "a_prompt_that_is_an_object": row(prompt={"a": {"b": "x"}}),
    "a_key_of_a_megabyte": row(prompt="x", **{EVIL * 50_000: 1}),
    "a_role_of_escape_codes": row(messages=[{"role": EVIL, "content": "x"}]),
    "messages_a_million_deep": text('{"messages": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}"),
    "messages_without_end": row(messages=[{"role": "assistant", "content": "x"}] * 100_000),
    "an_id_that_is_a_list": row(prompt="x", id=[1]),
}
PROMPTS.refused |= {
    "a_link_to_a_device": NO_FILES["a_link_to_a_device"],
    "a_terabyte": NO_FILES["a_terabyte"],
    "bytes": NO_JSON["bytes"],
    "nested_lists": NO_JSON["nested_lists"],
    "newlines": BLANK["newlines"],
    "rows_of_numbers": text("[1, 2, 3]"),
    "a_part_that_is_an_image": row(
        messages=[{"role": "user", "content": [{"type": EVIL, "url": "file:///etc/passwd"}]}]
    ),
    "two_lists_of_rows": row(data=[MESSAGES], rows=[MESSAGES]),
    "digits_after_a_row": text('{"prompt":\n "x"}\n' + DIGITS),
    "a_history_of_lists": row(instruction="x", history=[[[1], [2]]]),
}
PROMPT.refused |= {
    **NO_FILES,
    "bytes": NO_JSON["bytes"],
    "spaces": BLANK["spaces"],
    "a_book_without_an_end": content("fox " * 15_000_000),
    "a_word_of_ten_megabytes": content("o" * 10_000_000),
}
TEMPLATE.refused |= {
    **NO_FILES,
    "bytes": NO_JSON["bytes"],
    "two_megabytes": content("{# " + "x" * (2 << 20) + " #}"),
    "an_escape": content("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
}
TEXT.refused |= {
    **NO_FILES,
    **NO_JSON,
    "newlines": BLANK["newlines"],
    "spaces": BLANK["spaces"],
    "a_response_that_is_a_list": row(prompt="x", response=[[1]]),
    "a_conversation_without_a_reply": row(messages=MESSAGES * 50_000),
    "a_table": content("a,b,c\n" * 100_000),
    "six_million_rows": content('"a"\n' * 6_000_000),
    "keys_that_nobody_knows": row(**{EVIL: 1, "b": 2}),
}
TASK.refused |= {
    **NO_FILES,
    **NO_JSON,
    "newlines": BLANK["newlines"],
    "no_answers": row(prompt="x", answers=[]),
    "a_pattern_that_is_none": row(prompt="x", pattern="(" * 10_000),
    "a_pattern_of_a_giant_count": row(prompt="x", pattern="a{99999999999999999999}"),
    "a_pattern_nested_beyond_the_stack": row(prompt="x", pattern="(" * 5000 + ")" * 5000),
    "an_answer_that_is_a_number": row(prompt="x", answers=[7]),
    "a_field_that_nobody_knows": row(prompt="x", answers=["y"], evil=EVIL),
    "one_prompt_with_two_answers": text(
        '{"prompt": "x", "answers": ["1"]}\n{"prompt": "x", "answers": ["2"]}'
    ),
}
HASHES = {"row_hash": "0" * 16, "settings_hash": "0" * 16}
RESULTS.refused |= {
    **NO_FILES,
    "someone_s_letter": content("Dear friend,\n"),
    "an_index_of_a_hundred_thousand_digits": text('{"index": ' + DIGITS + "}"),
    "an_index_beyond_the_rows": row(index=2**62, **HASHES),
    "a_negative_index": row(index=-1, **HASHES),
    "results_of_other_settings": row(index=0, **HASHES),
    "nested_lists": NO_JSON["nested_lists"],
    "bytes": NO_JSON["bytes"],
}
# The context ends the reply.
ROWS.harmless["half_of_64_bits_of_tokens"] = row(prompt="Hi.", max_tokens=2**63)
