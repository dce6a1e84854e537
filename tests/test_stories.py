"""The check of the built-in model's stories: it finds characters that are not kept apart."""

import sys
from pathlib import Path
from random import Random

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from demo_batches import in_short_replies
from demo_story_check import faults, role_faults
from demo_story_tasks import story_task
from demo_text import is_held_out, unseen_prompts

OPENING = (
    "Once upon a time there was a fox called Rufus who lived near the old mill. His best friend "
    "was an owl called Olive. Rufus looked on the shelf and saw that the key was gone. "
)
TALK = '"Have you seen my key, Olive?" asked Rufus. "No, Rufus, but I will help you look," said '
TALK += "Olive. "
THANKS = '"Thank you, Olive," said Rufus. "I could not have done it without you."'
STORY = OPENING + TALK + THANKS
CAST = {"Rufus": "fox", "Olive": "owl"}


def found(story: str) -> list[str]:
    return [*faults(story, CAST, count=2), *role_faults(story)]


def test_a_story_that_keeps_its_characters_apart_has_no_faults() -> None:
    assert found(STORY) == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param(THANKS, "Rufus smiled, and Rufus smiled back.", id="one-name-for-two"),
        pytest.param(THANKS, "Rufus hugged Rufus.", id="hugs-himself"),
        pytest.param("said Rufus", "said Olive", id="speaker-swapped"),
        pytest.param("asked Rufus", "asked Olive", id="questioner-swapped"),
        pytest.param('Rufus. "I', 'Rufus. "Rufus, I', id="speaks-to-himself"),
        pytest.param("said Rufus", "said Bella", id="intruder-speaks"),
        pytest.param("Thank you, Olive", "Thank you, Bella", id="intruder-addressed"),
        pytest.param("Rufus looked on", "Bella looked on", id="intruder-acts"),
        pytest.param("Rufus looked on", "Olive looked on", id="hero-swapped"),
        pytest.param("an owl called Olive", "an owl called Rufus", id="two-of-one-name"),
        pytest.param("Olive", "Bella", id="missing"),
        pytest.param("an owl called Olive", "a fox called Olive", id="wrong-kind"),
        pytest.param(TALK + THANKS, "They went home.", id="friend-never-acts"),
    ],
)
def test_each_way_to_mix_characters_up_is_found(good: str, bad: str) -> None:
    assert good in STORY
    assert found(STORY.replace(good, bad)) != []


def test_a_name_that_no_table_knows_is_an_intruder() -> None:
    assert faults(STORY.replace("said Rufus", "said Xanthippe"), CAST) != []
    assert faults(STORY + " Xanthippe smiled.", CAST) != []


def test_a_kind_that_was_asked_for_must_appear() -> None:
    assert faults(STORY, {}, ["fox", "owl"], 2) == []
    assert faults(STORY, {}, ["fox", "mouse"], 2) == ["no mouse"]


def test_fewer_characters_than_asked_for_are_found() -> None:
    assert faults(STORY, {}, [], 3) == ["2 named characters of 3"]


def test_roles_that_change_hands_are_found_where_each_sentence_is_in_order() -> None:
    """Here only the story as a whole shows it: Olive lost nothing."""
    story = OPENING + TALK + "Rufus came along too, and looked behind every tree."
    assert faults(story, CAST) == []
    assert role_faults(story) != []


def test_stories_for_training_have_no_faults() -> None:
    for seed in range(400):
        told = story_task(Random(seed))
        check = told.check
        assert check is not None
        assert faults(told.reply, check["cast"], check["kinds"], check["count"]) == []
        assert role_faults(told.reply) == []


def test_swapping_two_names_in_one_sentence_of_a_story_is_found() -> None:
    tried = missed = 0
    for seed in range(200):
        told = story_task(Random(f"swap:{seed}"))
        cast = dict.fromkeys(told.check["cast"] if told.check else {}, "")
        sentences = told.reply.split(". ")
        for at, sentence in enumerate(sentences[3:], 3):
            names = [w.strip('",.!?') for w in sentence.split() if w.strip('",.!?').istitle()]
            names = [n for n in names if told.reply.count(n) > 2 and f"called {n}" in told.reply]
            if len(set(names)) != 2 or "and" in sentence:
                continue
            first, second = dict.fromkeys(names)
            swapped = sentence.replace(first, "~").replace(second, first).replace("~", second)
            story = ". ".join([*sentences[:at], swapped, *sentences[at + 1 :]])
            tried += 1
            missed += not [*faults(story, cast), *role_faults(story)]
    assert tried > 200
    assert missed == 0


def test_held_out_requests_differ_and_are_held_out() -> None:
    prompts = unseen_prompts("story", 50)
    assert len({d.messages[-2]["content"] for d in prompts}) == 50
    assert all(is_held_out(d.keys[-1]) for d in prompts)


def test_the_tokens_of_short_replies_are_marked() -> None:
    """Labels of two rows: replies of two and four tokens, and one of five."""
    labels = torch.tensor(
        [[-100, 5, 6, -100, 7, 7, 7, 7, -100], [-100, 3, 3, 3, 3, 3] + [-100] * 3]
    )
    short = in_short_replies(labels, most=4)
    assert short.tolist() == [
        [False, True, True, False, True, True, True, True, False],
        [False] * 9,
    ]
    assert not in_short_replies(labels, most=1).any()
