"""A short text that a model reads while its weights are rounded, to see which inputs are large.

It has some of all that models are asked for: a conversation, prose, steps, numbers, code, other
languages. None of it is in the texts that d3 calibrates or is tested on. Knows nothing of weights.
"""

from typing import Any

from d3cli.model.context import choose_context

TOKENS = 256  # as good as ten times as many: docs/performance.md
TEXT = """User: My bread never rises in winter. What am I doing wrong?
Assistant: Probably nothing, except that your kitchen is colder than the recipe assumes. Yeast works
at about half the speed for every 8 degrees less. You can:
1. use water at 35 °C instead of cold water;
2. let the dough rest in the oven with only the lamp on;
3. wait longer: 3 hours rather than 90 minutes.
The harbour was empty when the ferry left. Marta counted the gulls on the roof of the old customs
house, eleven of them, and thought of the letter she had not sent. "You could still go back," said
the man beside her, but neither of them moved.
In 1869 the canal shortened the voyage from London to Bombay by 41%, which changed the price of tea,
cotton and coal within a few years.
def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)
Wie spät ist es? Je ne sais pas, mais il fait déjà nuit. Mañana será otro día. 今天下雨。
"""


def typical_ids(tokenizer: Any, config: Any) -> list[int]:
    """The text in a model's tokens, as many as it holds; at most `TOKENS`."""
    most = min(TOKENS, choose_context("", config).length)
    ids = tokenizer(TEXT, truncation=True, max_length=most).input_ids
    return [token for token in ids if token < config.vocab_size]
