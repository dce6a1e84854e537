"""Little stories about the invented village: a cast of two or three, a problem, and a way out.

Fills the sentences of `demo_plots`; knows nothing about dialogues or tokens. Every choice comes
from the caller's `random.Random`, so one seed gives one story.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from demo_cast import Character, character, company, usual, usual_name
from demo_plots import (
    ABOUT_THE_FRIEND,
    ADJECTIVES,
    CELEBRATIONS,
    COLOURS,
    ENDINGS,
    FRIENDS,
    FRIENDS_OF_THREE,
    MIDDLES,
    OPENINGS,
    PAIRS,
    PLOTS,
    SEASONS,
    THANKS,
    THANKS_FOR_HELP,
    TRAITS,
    TRIOS,
    WEATHER,
)
from demo_world import FOODS_TREAT, STORY_PLACES, TREASURES


@dataclass(frozen=True, slots=True)
class Story:
    """The finished text and the facts in it that a later question may ask for."""

    text: str
    cast: tuple[Character, ...]
    plot: str
    place: str
    thing: str

    @property
    def key(self) -> str:
        """The key for the held-out split: two stories with one key count as the same."""
        cast = "+".join(f"{c.name} the {c.kind}" for c in self.cast)
        return f"{cast}:{self.plot}:{self.place}:{self.thing}"


def article(word: str) -> str:
    """`word` with a or an before it."""
    an = word[0].lower() in "aeiou" and not word.startswith("uni")
    return f"{'an' if an else 'a'} {word}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def complete(
    rng: Random, names: Sequence[str | None], kinds: Sequence[str | None], count: int
) -> tuple[Character, ...]:
    """A cast of `count` from the names and kinds that a request gives, `None` where it does not.

    A kind without a name gets one of its own names. The rest of the cast is the hero's company.
    """
    taken = [n for n in names if n]
    found: list[Character] = []
    known = [k for k in kinds if k]
    if not known:
        known = [any_kind(rng)]
    rest = company(rng, known[0], max(0, count - len(known)), known)
    all_kinds = [*known, *rest][:count]
    for at, kind in enumerate(all_kinds):
        name = names[at] if at < len(names) else None
        name = name or usual_name(rng, kind, taken)
        taken.append(name)
        found.append(character(name, kind))
    return tuple(found)


def tell(
    rng: Random,
    cast: Sequence[Character],
    *,
    place: str | None = None,
    thing: str | None = None,
    plot: str | None = None,
    adjective: str | None = None,
    settled: bool = False,
) -> Story:
    """A story of about 150 to 260 tokens; what the caller leaves open is drawn at random.

    A hero of each kind has a usual place, thing, treat and plot, drawn half of the time. `settled`
    leaves out the sentences `ABOUT_THE_FRIEND`.
    """
    hero, friend = cast[:2]
    third = cast[2] if len(cast) > 2 else None

    def draw(choices: Sequence[str], salt: int) -> str:
        usually = choices[usual(hero.kind, len(choices), salt)]
        return usually if rng.random() < 0.5 else rng.choice(choices)

    def any_of(templates: Sequence[str]) -> str:
        return rng.choice([t for t in templates if not settled or t not in ABOUT_THE_FRIEND])

    plots = sorted(p for p in PLOTS if PLOTS[p].with_thing or thing is None)
    plot = plot or draw(plots, 0)
    place, thing = place or draw(STORY_PLACES, 1), thing or draw(TREASURES, 2)
    adj = adjective or rng.choice(ADJECTIVES)
    adj2 = rng.choice([other for other in ADJECTIVES if other != adj])
    he, his, him = hero.pronouns()
    fhe, fhis, fhim = friend.pronouns()
    slots = {
        "h": hero.name, "hero": hero.kind, "a": article(hero.kind).split()[0],
        "f": friend.name, "k": friend.kind, "ak": article(friend.kind).split()[0],
        "he": he, "his": his, "him": him, "He": he.capitalize(), "His": his.capitalize(),
        "fhe": fhe, "fhis": fhis, "fhim": fhim, "adj": adj, "adj2": adj2, "place": place,
        "x": thing, "an": article(thing).split()[0], "treat": draw(FOODS_TREAT, 3),
        "colour": rng.choice(COLOURS), "season": rng.choice(SEASONS),
        "all": listed([c.name for c in cast]),
    }  # fmt: skip
    if third:
        slots |= {"g": third.name, "m": third.kind, "am": article(third.kind).split()[0]}
    told = PLOTS[plot]
    thanker = (friend, hero) if told.hero_helps else (hero, friend)
    slots |= {"u": thanker[0].name, "v": thanker[1].name}
    talk = told.talk_of_three if third and told.talk_of_three else told.talk
    sentences = [draw(OPENINGS, 4), rng.choice(TRAITS)]
    sentences += [rng.choice(FRIENDS_OF_THREE if third else FRIENDS)]
    if rng.random() < 0.6:
        sentences += [any_of(TRIOS if third else PAIRS)]
    sentences += [rng.choice(WEATHER), any_of(told.problem), rng.choice(talk)]
    sentences += rng.sample(told.attempt, rng.choice((1, 1, 2)))
    if rng.random() < 0.5:
        sentences += [MIDDLES[rng.choice(told.middles.split())]]
    if third:
        sentences += [rng.choice(told.third)]
    sentences += [any_of(told.solution)]
    thanks = THANKS + THANKS_FOR_HELP * told.helped
    sentences += [rng.choice(thanks), rng.choice(CELEBRATIONS), rng.choice(ENDINGS)]
    text = " ".join(s.format(**slots) for s in sentences)
    return Story(text, tuple(cast), plot, place, thing)


def any_kind(rng: Random) -> str:
    """A hero for a request that names none."""
    return rng.choices(_HEROES, _HERO_WEIGHTS)[0]


# An open request has one of a few heroes, mostly the first.
_HEROES = ("mouse", "fox", "girl", "hedgehog", "boy", "otter", "owl", "rabbit")
_HERO_WEIGHTS = (6, 4, 3, 2, 2, 1, 1, 1)
