"""Hostile traces, as ``d3 profile --from`` and ``--against`` read them."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.hostile.stored_registry import (
    NO_FILES,
    NO_JSON,
    content,
    door,
    in_json,
    put,
    put_text,
)

TRACE = door("trace", "trace.json", "profile", "--from", "FILE")
AGAINST = door(
    "trace beside another", "other.json", "profile", "--from", "GOOD", "--against", "FILE"
)
OF_SCHEMA_1 = door("trace of schema 1", "old.json", "profile", "--from", "FILE")
AS_HTML = door(
    "trace as HTML",
    "t.json",
    *("profile", "--from", "FILE", "-o", "html"),
    "--output-file",
    "o.html",
)
AS_CSV = door(
    "trace as CSV", "t.json", *("profile", "--from", "FILE", "-o", "csv"), "--output-file", "o.csv"
)
TOKEN = ("replies", 0, "tokens", 2)
EVIL = "\x1b]0;OWNED\x07\u202e</script><script>alert(1)</script>"


def many_replies(data: Any) -> None:
    """A model of many layers, and many replies, each of which is checked against it."""
    layers = 1000
    data["model"] |= {"num_layers": layers, "layer_bytes": [[1, 1, 0]] * layers}
    order = [str(n) for n in range(1, layers)]
    data["schedule"] |= {
        "num_layers": layers,
        "skip_order": order,
        "weights": [1.0] * len(order),
        "core_first": 1,
        "core_last": 0,
    }
    data["needed_order"] = order
    reply = data["replies"][0] | {"tokens": [], "layers": None, "clock": None, "repeats": []}
    data["replies"] = [reply] * 2000


def many_tokens(data: Any) -> None:
    reply = data["replies"][0]
    token = reply["tokens"][0]
    reply["tokens"] = [token | {"step": n, "ms": None} for n in range(1000)]
    reply |= {"layers": None, "clock": None}


def backwards(data: Any) -> None:
    data["replies"][0]["tokens"].reverse()


def of_two_replies(data: Any) -> None:
    data["replies"] = [data["replies"][0], deepcopy(data["replies"][0])]
    data["replies"][1]["skip_order"] = ["3"]


TRACE.refused |= {
    **NO_FILES,
    **NO_JSON,
    "empty": content(b""),
    "cut_short": lambda path, good, _: path.write_bytes(good[: len(good) // 2]),
    "two_documents": lambda path, good, _: path.write_bytes(good * 2),
    "a_schema_of_the_future": put(2**31, "schema"),
    "a_schema_in_words": put("3", "schema"),
    "a_schema_of_a_hundred_thousand_digits": put_text("9" * 100_000, "schema"),
    "a_schema_that_is_no_number": put_text("NaN", "schema"),
    "a_seed_of_a_hundred_thousand_digits": put_text("7" * 100_000, "replies", 0, "seed"),
    "a_seed_beyond_64_bits": put_text("1" + "0" * 4000, "replies", 0, "seed"),
    "layers_that_are_infinite": put_text("Infinity", *TOKEN, "depth"),
    "a_depth_of_ten_to_the_999": put_text("1e999", *TOKEN, "depth"),
    "a_probability_that_is_no_number": put_text("NaN", *TOKEN, "logprob"),
    "more_layers_than_any_model_has": put(2**63, "model", "num_layers"),
    "bytes_that_wrap_around": put(2**64 - 1, *TOKEN, "bytes_read"),
    "negative_bytes": put(-1, "model", "fixed_bytes"),
    "a_model_of_no_bytes": put([[0, 0, 0]] * 16, "model", "layer_bytes"),
    "layers_of_another_model": put([[1, 1, 1]] * 3, "model", "layer_bytes"),
    "a_layer_in_words": put("layers", "model", "layer_bytes"),
    "units_of_layers_that_are_not_there": put(["99999999999"], "schedule", "skip_order"),
    "units_with_commands_in_them": put([EVIL], "schedule", "skip_order"),
    "a_million_units": put([str(n) for n in range(1_000_000)], "schedule", "skip_order"),
    "one_unit_a_thousand_times": put(["7"] * 1000, "schedule", "skip_order"),
    "an_order_that_each_prompt_decides_differently": in_json(of_two_replies),
    "an_unknown_order": put(EVIL, "schedule", "order"),
    "an_alpha_in_words": put("steep", "schedule", "alpha"),
    "an_alpha_below_nothing": put(-1e308, "schedule", "alpha"),
    "steps_that_count_backwards": in_json(backwards),
    "a_reply_that_is_a_number": put(7, "replies", 0),
    "replies_in_an_object": put({"0": {}}, "replies"),
    "tokens_in_words": put("tokens", "replies", 0, "tokens"),
    "a_text_that_is_a_list": put([[]], *TOKEN, "text"),
    "a_token_id_that_is_true": put(True, *TOKEN, "token_id"),
    "drafts_without_passes": put("lookup", *TOKEN, "drafted_by"),
    "passes_of_a_reply_that_drafts_nothing": put(
        {"step_ms": 1.0, "passes": []}, "replies", 0, "lossless"
    ),
    "drafts_by_an_unknown_source": put({"source": "evil", "schedule": {}}, "lossless"),
    "drafts_by_a_damaged_schedule": put(
        {"source": "depth", "schedule": {"num_layers": 2**40}}, "lossless"
    ),
    "low_planes_without_end": put([[1, 1]] * 100_000, "model", "low_bytes"),
    "kernels_in_a_list": put(["mv"] * 10, "model", "kernels"),
    "times_of_layers_that_are_not_there": put(
        [{"attn": 1.0, "mlp": 1.0, "other": 1.0}] * 50_000, "replies", 0, "layers", "layers"
    ),
    "a_name_twice": lambda path, good, _: path.write_bytes(
        good.rstrip()[:-1] + b', "schema": {"schema": 3}}'
    ),
}
AGAINST.refused |= {
    "a_directory": NO_FILES["a_directory"],
    "nested_lists": NO_JSON["nested_lists"],
    "a_schema_of_the_future": put(99, "schema"),
    "another_kind_of_json": content('{"schema": 3, "prompt": "Hi."}'),
}


def old_with_a_bomb(data: Any) -> None:
    data["unknown"] = [[]] * 4_000_000


OF_SCHEMA_1.refused |= {
    "more_dropped_than_there_is": put(10_000, *TOKEN, "dropped_units"),
    "a_number_of_dropped_units_in_words": put("all", *TOKEN, "dropped_units"),
    "a_schedule_that_is_a_list": put([], "schedule"),
    "layers_of_another_model": put([[1, 1, 1]], "model", "layer_bytes"),
    "tokens_that_are_null": put(None, "replies", 0, "tokens"),
}
OF_SCHEMA_1.harmless["four_million_lists_that_nobody_reads"] = in_json(old_with_a_bomb)


def texts(path: Path, good: bytes, _: Path) -> None:
    """Escape codes and markup in every text."""

    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoilt(each) for key, each in value.items()}
        if isinstance(value, list):
            return [spoilt(each) for each in value]
        return value + EVIL if isinstance(value, str) else value

    data = json.loads(good)
    for key in ("created", "versions", "machine", "stop"):
        data[key] = spoilt(data[key])
    data["model"] |= dict.fromkeys(("name", "model_type", "dtype", "device"), EVIL)
    for reply in data["replies"]:
        reply |= {"prompt": EVIL * 1000, "finish_reason": EVIL, "tokens": spoilt(reply["tokens"])}
    path.write_text(json.dumps(data))


for each in (TRACE, AS_HTML, AS_CSV):
    each.harmless["escape_codes_in_every_text"] = texts
    each.harmless["a_prompt_of_ten_megabytes"] = put("\x1b[2J" * 2_500_000, "replies", 0, "prompt")
    each.harmless["many_tokens"] = in_json(many_tokens)
TRACE.harmless["a_start_of_half_of_64_bits"] = put(2**63, "schedule", "start")
TRACE.harmless["many_replies_over_many_layers"] = in_json(many_replies)
AS_HTML.harmless["many_replies_over_many_layers"] = in_json(many_replies)
