"""Little stories about the invented village: a hero, a place, a problem, and a way out.

Fills the sentences of `demo_plots`; knows nothing about dialogues or tokens. Every choice comes
from the caller's `random.Random`, so one seed gives one story.
"""

from dataclasses import dataclass
from random import Random

from demo_plots import (
    ADJECTIVES,
    CELEBRATIONS,
    COLOURS,
    ENDINGS,
    MIDDLES,
    OPENINGS,
    PLOTS,
    SEASONS,
    THANKS,
    TRAITS,
    WEATHER,
)
from demo_world import FOODS_TREAT, HERO_NAMES, STORY_HEROES, STORY_PLACES, TREASURES


@dataclass(frozen=True, slots=True)
class Story:
    """The finished text and the facts in it that a later question may ask for."""

    text: str
    hero: str
    name: str
    place: str
    friend: str
    thing: str
    treat: str

    @property
    def key(self) -> str:
        """What makes two stories the same story for the held-out split."""
        return f"story:{self.hero}:{self.name}:{self.place}:{self.friend}:{self.thing}"


def article(word: str) -> str:
    """`word` with a or an before it."""
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def tell(
    rng: Random,
    *,
    hero: str | None = None,
    name: str | None = None,
    place: str | None = None,
    thing: str | None = None,
) -> Story:
    """A story of about 150 to 300 tokens; what the caller leaves open is drawn at random."""
    hero = hero or rng.choice(STORY_HEROES)
    name = name or rng.choice(HERO_NAMES)
    place = place or rng.choice(STORY_PLACES)
    thing = thing or rng.choice(TREASURES)
    kind = rng.choice([k for k in STORY_HEROES if k != hero])
    friend = rng.choice([n for n in HERO_NAMES if n != name])
    treat = rng.choice(FOODS_TREAT)
    adj = rng.choice(ADJECTIVES)
    slots = {
        "a": article(hero).split()[0], "hero": hero, "h": name, "place": place, "f": friend,
        "k": kind, "x": thing, "an": article(thing).split()[0], "treat": treat, "adj": adj,
        "colour": rng.choice(COLOURS), "season": rng.choice(SEASONS),
    }  # fmt: skip
    plot = PLOTS[rng.choice(sorted(PLOTS))]
    opening = rng.choice(OPENINGS)
    if "{adj} {hero}" in opening:
        opening = opening.replace("{a} {adj}", article(adj))
    sentences = [opening, *rng.sample(TRAITS, 2), rng.choice(WEATHER), rng.choice(plot.problem)]
    before, after = rng.sample(MIDDLES, 2)
    sentences += [before, *rng.sample(plot.attempt, rng.choice((1, 1, 2))), after]
    sentences += [rng.choice(plot.help), rng.choice(plot.solution)]
    sentences += [rng.choice(THANKS), rng.choice(CELEBRATIONS), rng.choice(ENDINGS)]
    text = " ".join(s.format(**slots) for s in dict.fromkeys(sentences))
    return Story(text, hero, name, place, friend, thing, treat)
