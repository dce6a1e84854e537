"""Requests for stories: what a user may say about the cast, the place, the thing or the plot.

Every function takes a `random.Random`; nothing here knows about conversations or tokens. All
wording is our own.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

from dataclasses import dataclass, field
from random import Random
from typing import Any

from demo_cast import ALL_KINDS, KINDS, any_name, fits, is_she
from demo_plots import ADJECTIVES, PLOTS
from demo_stories import Story, article, complete, listed, tell
from demo_tasks import Exchange, vary
from demo_world import STORY_PLACES, TREASURES

_ASKS = (
    "Tell me a story about {who}.|Tell me a story about {who}.|Tell me a little story about {who}.|"
    "Write a story about {who}.|Write a short story about {who}.|Write me a story about {who}.|"
    "Tell a story about {who}.|Can you tell me a story about {who}?|Give me a story about {who}.|"
    "I would like a story about {who}.|I want a story about {who}.|Make up a story about {who}.|"
    "Tell me a bedtime story about {who}.|A story about {who}, please.|A story about {who}.|"
    "Tell me a tale about {who}.|Do you know a story about {who}?|Tell me one about {who}.|"
    "Story about {who}.|Now tell me a story about {who}.|Tell us a story about {who}."
).split("|")
_OPEN_ASKS = (
    "Tell me a story.|Tell me a story.|Tell me another story.|Can you tell me a story?|I want to "
    "hear a story.|Write a short story.|Write a story.|Make up a story for me.|Tell me a bedtime "
    "story.|Do you know a story?|Tell me one more story.|Tell me a story from the village.|A "
    "story, please.|Another story, please.|Tell me a short story.|Tell me a story for children."
).split("|")
_FREE = {
    2: "two friends|two friends|two friends|two animals|two good friends|friends|friendship|"
    "animals|a friend|kindness|courage|the village|a rainy day|a happy day|something funny|"
    "anything|winter|school|the sea|magic|love|Larkmere|an animal|a good deed|a long day|"
    "best friends",
    3: "three friends|three animals|three good friends|a group of friends",
}
_MORE_ADJECTIVES = "little little tiny big lonely friendly magic lost silly funny good wise"
_FORMS = {
    "open": 10, "free": 9, "plot": 6, "thing": 3, "place": 3, "kind": 22, "named": 15,
    "two kinds": 10, "two named": 16, "name": 3, "two names": 6, "mixed": 4, "three kinds": 3,
    "three named": 6, "three names": 3,
}  # fmt: skip


@dataclass(slots=True)
class _Request:
    """What a request says; None stands for what it leaves open.

    `said_kinds` holds False where a kind follows from a name alone; `count` is the cast's size.
    """

    who: str = ""
    names: list[str | None] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    count: int = 2
    place: str | None = None
    thing: str | None = None
    plot: str | None = None
    said_kinds: list[bool] = field(default_factory=list)
    adjective: str | None = None

    @property
    def check(self) -> dict[str, Any]:
        """What a script can check in the story: the part of the cast that the request gives."""
        said = self.said_kinds or [True] * len(self.kinds)
        rows = list(zip(self.names, self.kinds, said, strict=True))
        return {
            "cast": {name: kind if told else "" for name, kind, told in rows if name},
            "kinds": [kind for name, kind, told in rows if told and not name],
            "count": self.count if self.who and not self.names else max(1, len(self.kinds)),
        }

    @property
    def given(self) -> list[str]:
        """The names, kinds, place and thing that it fixes."""
        return sorted(w for w in (*self.names, *self.kinds, self.place, self.thing) if w)


def _kind(rng: Random, taken: list[str]) -> str:
    """A kind that a request may name: mostly one of the village's."""
    while True:
        kind = rng.choice(KINDS if rng.random() < 0.85 else ALL_KINDS)
        if kind not in taken:
            return kind


def _called(rng: Random, name: str, kind: str) -> str:
    """A named character in a request."""
    forms = ("{n} the {k}", "{n} the {k}", "{a} called {n}", "{a} named {n}", "my {k} {n}")
    return rng.choice(forms).format(n=name, k=kind, a=article(kind))


def _alike(rng: Random, names: list[str], kinds: list[str]) -> list[str]:
    """Named characters of a request, all in the same form."""
    form = rng.choice(("{n} the {k}", "{n} the {k}", "{a} called {n}", "{a} named {n}"))
    pairs = zip(names, kinds, strict=True)
    return [form.format(n=n, k=k, a=article(k)) for n, k in pairs]


def _draw_cast(rng: Random, form: str) -> _Request:
    """A request that names kinds, names or both."""
    count = {"two": 2, "three": 3, "mixed": 2}.get(form.split()[0], 1)
    kinds: list[str] = []
    names: list[str] = []
    for _ in range(count):
        kinds.append(_kind(rng, kinds))
        names.append(any_name(rng, kinds[-1], names))
    asked = _Request(names=[*names], kinds=[*kinds], count=max(2, count))
    if count == 1 and rng.random() < 0.15:
        asked.count = 3
    if form.endswith(("kind", "kinds")):
        described = [*kinds]
        if rng.random() < 0.25:
            asked.adjective = rng.choice((*ADJECTIVES, *_MORE_ADJECTIVES.split()))
            described[0] = f"{asked.adjective} {kinds[0]}"
        asked.who, asked.names = listed([article(k) for k in described]), [None] * count
    elif form.endswith(("name", "names")):
        asked.kinds = ["girl" if is_she(n) else "boy" for n in names]
        asked.said_kinds = [False] * count
        friends = rng.choice(("{n}", "{n}", "{n}", "{c} friends, {n}", "{c} friends called {n}"))
        word = {2: "two", 3: "three"}.get(count)
        asked.who = (friends if word else "{n}").format(n=listed(names), c=word)
    elif form == "mixed":
        other = rng.choice(("{a}", "{his} friend the {k}", "{a} called {n}", "{n}"))
        his = "her" if is_she(names[0]) else "his"
        if other == "{n}":
            kinds[1] = "girl" if is_she(names[1]) else "boy"
            asked.kinds, asked.said_kinds = [*kinds], [True, False]
        elif "{n}" not in other:
            asked.names[1] = None
        second = other.format(a=article(kinds[1]), his=his, k=kinds[1], n=names[1])
        asked.who = f"{_called(rng, names[0], kinds[0])} and {second}"
    else:
        if rng.random() < 0.8:
            asked.who = listed(_alike(rng, names, kinds))
        else:
            asked.who = listed([_called(rng, n, k) for n, k in zip(names, kinds, strict=True)])
    return asked


_MORE = (
    " who lives near {place}", " at {place}", " near {place}", " and {x}", " who finds {x}",
    " who loses {x}", " who has {x}", " with {x}",
)  # fmt: skip


def _draw(rng: Random, settled: bool) -> _Request:
    """Any request; `settled` leaves the cast open more often."""
    weights = _FORMS | {"open": 14, "free": 20} if settled else _FORMS
    form = rng.choices(list(weights), list(weights.values()))[0]
    if form == "open":
        return _Request(count=rng.choices((2, 3), (4, 1))[0])
    if form == "free":
        count = rng.choices((2, 3), (5, 3))[0]
        return _Request(rng.choice(_FREE[count].split("|")), count=count)
    if form == "plot":
        plot = rng.choice(sorted(PLOTS))
        thing = rng.choice(TREASURES)
        who = rng.choice(PLOTS[plot].asks)
        named = who.format(x=thing, an=article(thing).split()[0])
        return _Request(named, thing=thing if "{x}" in who else None, plot=plot)
    if form in ("thing", "place"):
        thing, place = rng.choice(TREASURES), rng.choice(STORY_PLACES)
        if form == "thing":
            return _Request(article(thing), thing=thing)
        return _Request(place, place=place)
    asked = _draw_cast(rng, form)
    if form in ("kind", "named") and rng.random() < 0.4:
        more = rng.choice(_MORE)
        place, thing = rng.choice(STORY_PLACES), rng.choice(TREASURES)
        asked.who += more.format(place=place, x=article(thing))
        asked.place = place if "{place}" in more else None
        asked.thing = thing if "{x}" in more else None
        if "loses" in more:
            asked.plot = "lost"
    elif rng.random() < 0.12:
        asked.place = rng.choice(STORY_PLACES)
        asked.who += rng.choice((" at ", " near ")) + asked.place
    return asked


def story_task(rng: Random, settled: bool = False) -> Exchange:
    """A story and the request for it, which fixes its cast, place, thing or plot, or nothing.

    `settled` is for the last part of the training: see `tell`.
    """
    asked = _draw(rng, settled)
    ask = rng.choice(_ASKS).format(who=asked.who) if asked.who else rng.choice(_OPEN_ASKS)
    cast = complete(rng, asked.names, asked.kinds, asked.count)
    assert all(fits(c.name, c.kind) for c in cast)
    adjective = asked.adjective if asked.adjective in ADJECTIVES else None
    given = {"place": asked.place, "thing": asked.thing, "plot": asked.plot}
    story = tell(rng, cast, **given, adjective=adjective, settled=settled)
    # A held-out request that fixes two things is never seen in training. For a request that fixes
    # less, only the story is not seen.
    key = "+".join(asked.given)
    if len(asked.given) < 2:
        key = f"{key}:{asked.plot}:{story.key}"
    check = {"type": "story", **asked.check}
    return Exchange("story", vary(rng, ask), story.text, f"story:{key}", check, _later(rng, story))


def _later(rng: Random, story: Story) -> tuple[tuple[str, str, str], ...]:
    """(question, reply, fact) for the next turn."""
    hero, friend = story.cast[:2]
    kind = rng.choice(("story", "tale"))
    found = [
        (f"Who was the {kind} about?", f"It was about {hero.name} the {hero.kind}.", hero.name),
        ("What was the hero called?", f"The hero was called {hero.name}.", hero.name),
        ("Where did the hero live?", f"{hero.name} lived near {story.place}.", story.place),
    ]
    if len(story.cast) == 2:
        ask = rng.choice(("Who was {h}'s friend?", "Who was the friend of {h}?"))
        reply = f"It was {friend.name} the {friend.kind}."
        found.append((ask.format(h=hero.name), reply, friend.name))
    return tuple(found)
