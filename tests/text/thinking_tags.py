"""The tags of reasoning that tests try: those with a rule, and those in the table."""

from d3cli.text.reasoning import TAGS

NAMED_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|thinking|>", "<|/thinking|>"),
)
ALL_TAGS = (*NAMED_TAGS, *TAGS)
NO_TAGS = (
    *("</think>", "<no_think>", "<|END_THINKING|>", "<|think>", "[thinking]", "<rethink>"),
    *("<think_off>", "<ThinkPad>", "<b>", "<|im_start|>", "[1]", "<think and>", ""),
)
