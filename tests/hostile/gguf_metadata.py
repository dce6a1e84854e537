"""GGUF files whose metadata is well-formed, and has wrong types or absurd values."""

from tests.gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U64, f32
from tests.hostile.gguf_registry import HARMLESS_GGUF, REFUSED_GGUF, in_parts, keys

NAN, INFINITE = float("nan"), float("inf")
MOST = (1 << 64) - 1

REFUSED_GGUF["metadata"] |= {
    "an_architecture_that_is_a_number": keys(general__architecture=7),
    "an_architecture_that_is_a_list": keys(general__architecture=["llama"]),
    "an_architecture_that_is_a_path": keys(general__architecture="../outside/evil"),
    "an_architecture_of_a_megabyte": keys(general__architecture="llama" * 200_000),
    "no_architecture": keys(general__architecture=None),
    "an_architecture_that_cannot_skip": keys(general__architecture="mamba"),
    "an_adapter": keys(general__type="adapter"),
    "a_type_that_is_a_list": keys(general__type=["model"]),
    "two_billion_layers": keys(llama__block_count=2**31 - 1),
    "a_million_layers_in_words": keys(llama__block_count="1000000"),
    "layers_by_a_fraction_of_nothing": keys(llama__block_count=(F32, NAN)),
    "layers_that_are_true": keys(llama__block_count=True),
    "a_negative_number_of_layers": keys(llama__block_count=(I32, -4)),
    "a_number_of_layers_for_each_layer": keys(llama__block_count=[4, 4, 4, 4]),
    "more_layers_than_64_bits_can_add": keys(llama__block_count=(U64, MOST)),
    "fewer_layers_than_there_are": keys(llama__block_count=2),
    "seven_heads": keys(llama__attention__head_count=7),
    "heads_for_each_layer": keys(llama__attention__head_count=[4, 4, 2, 4]),
    "no_key_value_heads": keys(llama__attention__head_count_kv=0),
    "more_key_value_heads_than_heads": keys(llama__attention__head_count_kv=8),
    "heads_of_two_billion": keys(llama__attention__key_length=(1 << 31) - 2),
    "a_context_of_one_token": keys(llama__context_length=1),
    "a_context_in_words": keys(llama__context_length="long"),
    "a_context_of_all_tokens": keys(llama__context_length=(U64, MOST)),
    "a_width_in_words": keys(llama__embedding_length="256"),
    "a_width_of_half_of_64_bits": keys(llama__embedding_length=(U64, 1 << 63)),
    "an_mlp_of_four_billion": keys(llama__feed_forward_length=(1 << 32) - 1),
    "an_epsilon_that_is_no_number": keys(llama__attention__layer_norm_rms_epsilon=(F32, NAN)),
    "an_epsilon_in_words": keys(llama__attention__layer_norm_rms_epsilon="small"),
    "a_base_that_is_no_number": keys(llama__rope__freq_base=(F32, NAN)),
    "an_infinite_base": keys(llama__rope__freq_base=(F32, INFINITE)),
    "a_base_of_nothing": keys(llama__rope__freq_base=(F32, 0.0)),
    "a_negative_base": keys(llama__rope__freq_base=(F32, -10000.0)),
    "a_base_in_words": keys(llama__rope__freq_base="10000"),
    "a_base_that_is_a_list": keys(llama__rope__freq_base=[1.0, 2.0]),
    "an_odd_rotation": keys(llama__rope__dimension_count=63),
    "positions_scaled_by_an_unknown_rule": keys(
        llama__rope__scaling__type="\x1b[31m__import__", llama__rope__scaling__factor=2.0
    ),
    "positions_scaled_by_no_number": keys(
        llama__rope__scaling__type="yarn", llama__rope__scaling__factor=(F32, NAN)
    ),
    "positions_scaled_by_less_than_nothing": keys(
        llama__rope__scaling__type="linear", llama__rope__scaling__factor=(F32, -2.0)
    ),
    "positions_scaled_without_end": keys(
        llama__rope__scaling__type="yarn", llama__rope__scaling__factor=(F32, INFINITE)
    ),
    "positions_scaled_from_a_length_in_words": keys(
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=2.0,
        llama__rope__scaling__original_context_length="short",
    ),
    "experts_that_are_not_there": keys(llama__expert_count=8, llama__expert_used_count=2),
    "a_million_experts": keys(llama__expert_count=1_000_000, llama__expert_used_count=999_999),
    "more_experts_used_than_there_are": keys(llama__expert_count=2, llama__expert_used_count=9),
    "a_temperature_that_is_no_number": keys(general__sampling__temp=(F32, NAN)),
    "a_negative_temperature": keys(general__sampling__temp=(F32, -1.0)),
    "a_temperature_in_words": keys(general__sampling__temp="hot"),
    "a_share_of_probability_beyond_all": keys(
        general__sampling__temp=1.0, general__sampling__top_p=(F32, INFINITE)
    ),
}

HARMLESS_GGUF |= {
    "keys_that_name_code": keys(
        general__repo_url="file:///etc/passwd",
        llama__auto_map="evil.Model",
        tokenizer__ggml__class="evil.Tokenizer",
    ),
    "numbers_that_nobody_reads": keys(
        general__quantized_by=(F32, NAN),
        general__file_type=(U64, MOST),
        general__author=(ARRAY, (BOOL, [True] * 100_000)),
        general__tags=(ARRAY, (STRING, ["\x1b[2J"] * 1000)),
    ),
}


def rope_table(*values: float):
    """A table of divisors of rotary positions, as Llama 3.1 has one."""

    def change(parts) -> None:
        import struct

        data = struct.pack(f"<{len(values)}f", *values)
        parts.tensors.append(f32("rope_freqs.weight", len(values)))
        last = parts.tensors[-1]
        parts.tensors[-1] = type(last)(last.name, last.dims, last.type, data)

    return in_parts(change)


REFUSED_GGUF["metadata"] |= {
    "a_table_of_positions_without_numbers": rope_table(*[NAN] * 32),
    "a_table_of_positions_divided_by_nothing": rope_table(*[0.0] * 32),
    "a_table_of_positions_that_is_too_short": rope_table(8.0, 8.0),
}
