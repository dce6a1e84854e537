"""Hostile files in d3's own home: calibrations, kernel choices, conversations, settings."""

from typing import Any

from d3cli.depth.calibration_file import file_of
from tests.hostile.stored_registry import (
    NO_FILES,
    NO_JSON,
    PIPE,
    content,
    door,
    in_json,
    put,
    put_text,
)

FILE = f"calibrations/{file_of('demo').name}"
CALIBRATION = door("calibration", FILE, "calibrate", "show", "demo", in_home=True)
# A reply does without a calibration that cannot be used, and says so.
IN_A_REPLY = door(
    "calibration of a reply",
    FILE,
    *("generate", "demo", "Hi.", "--max-tokens", "2", "--device", "cpu", "--dtype", "bfloat16"),
    in_home=True,
    ignored="depth: the stored calibration is not used: ",
)
DRAFTS = door("draft calibration", FILE, "calibrate", "show", "demo", in_home=True)
SCHEDULE, DRAFT = ("entries", 0, "schedule"), ("drafts", 0)
EVIL = "\x1b]0;OWNED\x07\u202e"


def twice(data: Any) -> None:
    data["entries"] *= 2


def prompt_order(**changes: Any) -> Any:
    """The schedule of schema 2, whose order each prompt decides, with other fields."""
    good = {
        "num_layers": 16,
        "alpha": 0.99,
        "start": 4,
        "core_first": 4,
        "core_last": 4,
        "units": ["5", "6", "7", "8"],
        "weights": [1.0] * 4,
        "max_dropped": 3,
        "order": "prompt",
    }

    def change(data: Any) -> None:
        data["schema"] = 2
        data["entries"][0]["schedule"] = {**good, **changes}

    return in_json(change)


CALIBRATION.refused |= {
    **NO_FILES,
    **PIPE,
    **NO_JSON,
    "empty": content(b""),
    "a_list": content("[]"),
    "cut_short": lambda path, good, _: path.write_bytes(good[:400]),
    "a_schema_of_the_future": put(5, "schema"),
    "a_schema_of_a_hundred_thousand_digits": put_text("4" * 100_000, "schema"),
    "the_calibration_of_another_model": put("someone/else", "model"),
    "a_model_of_a_megabyte": put(EVIL * 50_000, "model"),
    "no_entries": put([], "entries"),
    "an_entry_that_is_a_number": put([7], "entries"),
    "one_form_twice": in_json(twice),
    "two_hundred_thousand_entries": put([{}] * 200_000, "entries"),
    "a_choice_that_is_not_there": put("bfloat16 nested", "choice"),
    "a_field_that_nobody_knows": put(1, "entries", 0, "evil"),
    "a_fingerprint_that_is_a_path": put("../../secret", "entries", 0, "fingerprint"),
    "a_drop_that_is_no_number": put_text("NaN", "entries", 0, "unseen", "drop"),
    "an_infinite_ratio": put_text("1e999", "entries", 0, "unseen", "byte_ratio"),
    "an_interval_backwards": put([0.5, 0.1], "entries", 0, "unseen", "drop_interval"),
    "documents_by_the_exabyte": put(2**63, "entries", 0, "unseen", "documents"),
    "a_date_that_is_none": put("yesterday", "entries", 0, "date"),
    "a_date_of_the_year_99999": put("99999-01-01T00:00:00+00:00", "entries", 0, "date"),
    "settings_in_a_list": put([1], "entries", 0, "settings"),
    "layers_by_the_exabyte": put(2**63, *SCHEDULE, "num_layers"),
    "a_million_units": put([str(n) for n in range(100_000)], *SCHEDULE, "skip_order"),
    "units_that_are_commands": put([EVIL] * 7, *SCHEDULE, "skip_order"),
    "one_unit_seven_times": put(["7"] * 7, *SCHEDULE, "skip_order"),
    "weights_that_are_not_the_layers": put([-1.0] * 7, *SCHEDULE, "weights"),
    "weights_without_numbers": put_text("[NaN,NaN,NaN,NaN,NaN,NaN,NaN]", *SCHEDULE, "weights"),
    "a_start_that_is_true": put(True, *SCHEDULE, "start"),
    "an_alpha_of_nothing": put(0, *SCHEDULE, "alpha"),
    "a_fall_that_is_unknown": put(EVIL, *SCHEDULE, "fall"),
    "an_order_of_the_prompt_with_a_core_of_all": prompt_order(core_first=2**40),
    "an_order_of_the_prompt_below_nothing": prompt_order(min_depth=-5.0),
    "an_order_of_the_prompt_over_no_layers": prompt_order(num_layers=0),
    "an_order_of_the_prompt_that_drops_more_than_all": prompt_order(max_dropped=2**31),
    "an_order_of_the_prompt_over_several_kinds": prompt_order(
        units=["5", "6.attn"], weights=[1.0, 0.5], max_dropped=1
    ),
    "an_order_of_the_prompt_over_commands": prompt_order(units=[EVIL] * 4),
    "an_order_of_the_prompt_with_a_fixed_one": prompt_order(skip_order=["7"]),
    "rivals_by_the_thousand": put([{"sort": EVIL}] * 10_000, "entries", 0, "rivals"),
}
IN_A_REPLY.refused |= {
    "bytes": NO_JSON["bytes"],
    "a_pipe": PIPE["a_pipe"],
    "a_terabyte": NO_FILES["a_terabyte"],
    "a_link_to_a_device": NO_FILES["a_link_to_a_device"],
    "nested_objects": NO_JSON["nested_objects"],
    "of_another_model_s_layers": put(12, *SCHEDULE, "num_layers"),
    "an_order_of_the_prompt_over_other_layers": prompt_order(num_layers=32),
    "an_order_of_the_prompt_over_planes_that_are_not_there": prompt_order(
        units=["5.attn.lo", "6.attn.lo"], weights=[0.3, 0.3], max_dropped=2
    ),
}
DRAFTS.refused |= {
    "an_agreement_beyond_all": put(1.5, *DRAFT, "agreement"),
    "a_bound_above_its_value": put(0.99, *DRAFT, "agreement_low"),
    "a_gain_that_is_no_number": put_text("NaN", *DRAFT, "gain"),
    "a_length_of_half_of_64_bits": put(2**63, *DRAFT, "length"),
    "a_cost_of_nothing": put(0, *DRAFT, "cost"),
    "a_schedule_in_words": put("steep", *DRAFT, "schedule"),
    "units_of_layers_that_are_not_there": put(["99"] * 3, *DRAFT, "schedule", "skip_order"),
    "drafts_in_an_object": put({"0": {}}, "drafts"),
    "settings_nested": put({"a": {"b": []}}, *DRAFT, "settings"),
}

KERNELS = door(
    "kernel choices", "kernels.json", "kernels", in_home=True, ignored="will be replaced"
)
MACHINE, CHOICE = ("machines", 0), ("machines", 0, "choices", 0)
KERNELS.refused |= {
    **NO_FILES,
    **PIPE,
    **NO_JSON,
    "empty": content(b""),
    "a_schema_of_the_future": put(4, "schema"),
    "machines_in_words": put("none", "machines"),
    "a_machine_that_is_a_list": put([], *MACHINE, "machine"),
    "a_million_machines": put([None] * 200_000, "machines"),
    "a_kernel_that_does_not_exist": put("os.system", *CHOICE, "one"),
    "a_kernel_that_is_packed_for_one_row_only": put("oneDNN packed", *CHOICE, "one"),
    "a_speed_that_is_no_number": put_text("NaN", *CHOICE, "gigabytes_per_s"),
    "a_negative_speed": put(-1.0, *CHOICE, "torch_gigabytes_per_s"),
    "a_shape_of_nothing": put(0, *CHOICE, "out_features"),
    "a_shape_of_a_thousand_digits": put_text("8" * 4000, *CHOICE, "in_features"),
    "rows_that_no_measurement_finds": put(
        [{"kind": "int8", "out_features": 8, "in_features": 8, "kernel_rows": 3}], *MACHINE, "rows"
    ),
    "a_choice_in_words": put("yes", *MACHINE, "bfloat16_is_fast"),
}

CONVERSATIONS = door(
    "conversation",
    "conversations/20260101-000000-abc.jsonl",
    "chat",
    "--list",
    in_home=True,
    ignored="20260101-000000-abc",
)


def line(text: str) -> Any:
    return content(text + "\n")


CONVERSATIONS.refused |= {
    "a_terabyte": NO_FILES["a_terabyte"],
    **{name: change for name, change in NO_JSON.items() if name != "half_a_surrogate"},
    "a_schema_of_the_future": line('{"schema": 9, "role": "user", "content": "x"}'),
    "a_role_that_is_unknown": line('{"schema": 1, "role": "root", "content": "x"}'),
    "half_a_surrogate_in_a_message": line('{"schema": 1, "role": "user", "content": "\\ud800"}'),
    "a_content_of_lists": line('{"schema": 1, "role": "user", "content": [[[]]]}'),
    "a_system_prompt_at_the_end": line(
        '{"schema": 1, "role": "user", "content": "x"}\n'
        '{"schema": 1, "role": "system", "content": "y"}'
    ),
    "a_schema_of_a_hundred_thousand_digits": line('{"schema": ' + "1" * 100_000 + "}"),
    "only_blank_lines": content("\n" * 1_000_000),
}
CONVERSATIONS.harmless |= {
    "a_title_of_escape_codes": line(
        '{"schema": 1, "role": "user", "content": "\\u001b]0;OWNED\\u0007\\u202e\\u001b[2J"}'
    ),
    "a_title_of_ten_megabytes": line(
        '{"schema": 1, "role": "user", "content": "' + "x" * 10_000_000 + '"}'
    ),
    "figures_of_any_kind": line(
        '{"schema": 1, "role": "assistant", "content": "x", "model": "\\u001b[2J",'
        ' "schedule": {"num_layers": -1}, "stats": {"seed": 1e308, "tokens": [[]]}}'
    ),
}
# Not listed, since they are no files.
CONVERSATIONS.harmless |= {
    name: change for name, change in {**NO_FILES, **PIPE}.items() if name != "a_terabyte"
}

SETTINGS = door("settings", "config.toml", "models", in_home=True)
SETTINGS.refused |= {
    **NO_FILES,
    **PIPE,
    "bytes": NO_JSON["bytes"],
    "nested_lists": content("a = " + "[" * 100_000 + "]" * 100_000),
    "nested_tables": content("[" + ".".join("a" * 50_000) + "]\nb = 1"),
    "one_key_twice": content('model = "a"\nmodel = "b"'),
    "a_number_of_digits": content("alpha = " + "9" * 100_000),
    "a_model_that_is_a_table": content("[model]\nname = 'x'"),
    "aliases_in_a_list": content("aliases = [1, 2]"),
    "an_alias_of_numbers": content("[aliases]\nmine = 7"),
}
