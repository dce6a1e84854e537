"""The schedule that drafts in the lossless mode, and its notes, without any model."""

import pytest

from d3cli.base.errors import spelled
from d3cli.depth.choice import Choice, Source
from d3cli.depth.draft_choice import choose_for_drafts
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes
from tests.depth.layers import equal_layers

MODEL = equal_layers(16)
NESTED = WeightBytes((LayerBytes(100, 200, 10, 40, 90),) * 4, 100, 600)
STORED = DepthSchedule(16, 0.98, 8, 2, 2, ("9", "7", "5"))


def texts(choice: Choice) -> list[str]:
    return [spelled(note) for note in choice.notes]


@pytest.mark.parametrize("source", ["auto", "depth"])
def test_nested_weights_lose_all_low_planes_from_the_first_drafted_token(source: str) -> None:
    choice = choose_for_drafts(NESTED, source)  # type: ignore[arg-type]
    assert isinstance(choice.schedule, DepthSchedule)
    assert choice.schedule.dropped(0) == ()
    assert choice.schedule.dropped(1) == NESTED.unit_names("plane")
    assert texts(choice) == ["lossless mode: drafts leave out the low planes of the weights"]


def test_other_weights_draft_nothing_by_depth() -> None:
    full = DepthSchedule.full(16)
    assert choose_for_drafts(MODEL, "auto", stored=STORED) == Choice(full, Source.DEFAULT)
    depth = choose_for_drafts(MODEL, "depth", stored=STORED)
    assert (depth.schedule, depth.source) == (full, Source.DEFAULT)
    (note,) = texts(depth)
    assert "no draft can pay" in note


def test_off_drafts_nothing_by_depth_even_if_weights_are_nested() -> None:
    choice = choose_for_drafts(NESTED, "auto", "off")
    assert choice == Choice(DepthSchedule.full(4), Source.OFF)


def test_an_alpha_decays_from_the_first_drafted_token_in_the_stored_order() -> None:
    choice = choose_for_drafts(MODEL, "depth", 0.8, start=8, stored=STORED)
    assert choice.source is Source.FLAGS
    assert (choice.schedule.alpha, choice.schedule.start) == (0.8, 0)
    assert choice.schedule.units == STORED.units
    alpha, start = texts(choice)
    assert alpha.startswith("lossless mode: alpha is for the drafts: ")
    assert start == "lossless mode: start has no effect on drafts"


def test_without_a_stored_order_the_prompt_decides() -> None:
    choice = choose_for_drafts(MODEL, "auto", 0.8)
    assert isinstance(choice.schedule, PromptSchedule)
    assert choice.source is Source.PROMPT
    assert texts(choice)[0].endswith("ordered by the prompt")


@pytest.mark.parametrize("source", ["lookup", "model"])
def test_sources_without_depth_ignore_the_depth_options_and_say_so_once(source: str) -> None:
    choice = choose_for_drafts(NESTED, source, 0.8, core_first=1, units="layer")  # type: ignore[arg-type]
    assert choice.schedule == DepthSchedule.full(4)
    assert texts(choice) == ["lossless mode: alpha, core_first and units have no effect on drafts"]
