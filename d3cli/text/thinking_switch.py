"""Finds the variable by which a chat template turns thinking on or off.

Public templates use several names. A name is a switch only if both of its values make a difference:
a template may mention one in a comment, or use it for something else. Knows nothing of tokenizers,
nor of how a template is run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.text.renderer import Renderer


@dataclass(frozen=True, slots=True)
class Switch:
    """A variable of a chat template, with its values for thinking and for not thinking.

    Attributes:
        needs: a value that the template must name, since it may write any other value as it is.
    """

    name: str
    on: bool | int | str = True
    off: bool | int | str = False
    needs: str = ""

    def variables(self, think: bool) -> dict[str, Any]:
        """What to give to the template."""
        return {self.name: self.on if think else self.off}


SWITCHES = (
    Switch("enable_thinking"),  # Qwen 3, GLM 4.5, SmolLM3, EXAONE 4, Nemotron, Hunyuan, ERNIE
    Switch("thinking"),  # DeepSeek V3.1, Granite 3.2 and 3.3, Kimi K2.5
    Switch("reasoning"),  # Command A Reasoning
    Switch("think"),
    Switch("enable_reasoning"),
    Switch("thinking_mode", "enabled", "disabled", needs="enabled"),  # MiniMax M3
    Switch("thinking_mode", "thinking", "chat", needs="thinking"),  # DeepSeek V4
    Switch("thinking_mode", "on", "off", needs="on"),
    Switch("reasoning_effort", "high", "none", needs="none"),  # Mistral Small 4
    Switch("thinking_budget", -1, 0),  # Seed-OSS; -1 is no limit
)
# Conversations on which a switch may show; some templates write it into a system prompt.
_PROBES = (
    [{"role": "user", "content": "quser"}],
    [{"role": "system", "content": "qsystem"}, {"role": "user", "content": "quser"}],
)


def find_switch(
    renderer: Renderer, template: str, variables: Mapping[str, Any] | None = None
) -> Switch | None:
    """The thinking switch of a template; None if it has none.

    The template is rendered at least twice for each name that it contains. If it fails each time,
    the first name counts: encoding a conversation reports the failure.

    Args:
        variables: what else the template gets.
    """
    for switch in SWITCHES:
        named = re.search(rf"\b{switch.name}\b", template)
        value = not switch.needs or re.search(rf"""['"]{switch.needs}['"]""", template)
        if named and value and _makes_a_difference(switch, renderer, template, variables or {}):
            return switch
    return None


def _makes_a_difference(
    switch: Switch, renderer: Renderer, template: str, variables: Mapping[str, Any]
) -> bool:
    rendered = False
    for plain in _PROBES:
        typed = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in plain]
        for conversation in (plain, typed):
            try:
                on, off = (
                    renderer.render(
                        template, conversation, {**variables, **switch.variables(think)}
                    )
                    for think in (True, False)
                )
            except ModelError:
                continue
            if on != off:
                return True
            rendered = True
    return not rendered
