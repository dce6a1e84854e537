"""Facts to remember: what a user tells, and questions about it in the same or the next turn.

Each scene states one to four facts and knows the questions that they answer. Names come from a
list or are made up on the spot, so that the model learns to copy a name and not to know it.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from demo_cast import NAMES
from demo_stories import article
from demo_tasks import Exchange, vary
from demo_world import CATEGORIES, NAME_ENDS, NAME_STARTS, NUMBER_WORDS, PET_NAMES


@dataclass(frozen=True, slots=True)
class Scene:
    """Statements, and (question, reply, the fact, what would be wrong) for each thing to ask."""

    statements: tuple[str, ...]
    questions: tuple[tuple[str, str, str, tuple[str, ...]], ...]


def fresh_name(rng: Random, known: Sequence[str]) -> str:
    """A name from the list, or a made-up one."""
    if rng.random() < 0.55:
        return rng.choice(known)
    return rng.choice(NAME_STARTS.split()) + rng.choice(NAME_ENDS.split())


def names(rng: Random, count: int, known: Sequence[str] = NAMES) -> list[str]:
    """`count` different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[fresh_name(rng, known)] = None
    return list(found)


def pets(rng: Random) -> Scene:
    """Pets and what they are called."""
    kinds = rng.sample((*CATEGORIES["pets"], "horse", "cow", "goat", "mouse"), rng.randint(1, 3))
    called = names(rng, len(kinds), PET_NAMES)
    form = rng.choice(("My {k} is called {n}.", "My {k}'s name is {n}.", "I have {a} called {n}."))
    said = [form.format(k=k, a=article(k), n=n) for k, n in zip(kinds, called, strict=True)]
    asks = (
        "What is my {k} called?|What is the name of my {k}?|What is my {k}'s name?|Do you remember "
        "the name of my {k}?|How is my {k} called?"
    ).split("|")
    found = []
    for k, n in zip(kinds, called, strict=True):
        wrong = tuple(x for x in called if x != n)
        found.append((rng.choice(asks).format(k=k), f"Your {k} is called {n}.", n, wrong))
        if len(kinds) > 1:
            others = tuple(x for x in kinds if x != k)
            found.append((f"What kind of animal is {n}?", f"{n} is your {k}.", k, others))
    return Scene(tuple(said), tuple(found))


def possessions(rng: Random) -> Scene:
    """People, what they have, and its colour."""
    people = names(rng, rng.randint(1, 3))
    owned = (*CATEGORIES["toys"][:6], "hat", "coat", "cup", "book", "bag")
    things = rng.sample(owned, len(people))
    colours = rng.sample(CATEGORIES["colours"], len(people))
    verb = rng.choice(("has", "has", "bought", "found"))
    said, found = [], []
    for p, t, c in zip(people, things, colours, strict=True):
        said.append(f"{p} {verb} {article(c)} {t}.")
        wrong = tuple(x for x in colours if x != c)
        found.append((f"What colour is the {t}?", f"The {t} is {c}.", c, wrong))
        ask = rng.choice((f"What colour is {p}'s {t}?", f"Which colour is the {t} of {p}?"))
        found.append((ask, f"{p}'s {t} is {c}.", c, wrong))
        other = tuple(x for x in people if x != p)
        found.append((f"Who {verb} the {t}?", f"{p} {verb} the {t}.", p, other))
        what = f"What does {p} have?" if verb == "has" else f"What did {p} {_BASE[verb]}?"
        found.append((what, f"{p} {verb} {article(c)} {t}.", t, tuple(x for x in things if x != t)))
    return Scene(tuple(said), tuple(found))


_BASE = {"bought": "buy", "found": "find"}


def homes(rng: Random) -> Scene:
    """People and where they live."""
    people = names(rng, rng.randint(1, 3))
    places = rng.sample(CATEGORIES["places"], len(people))
    said, found = [], []
    for p, place in zip(people, places, strict=True):
        said.append(rng.choice((f"{p} lives at the {place}.", f"{p} lives near the {place}.")))
        near = said[-1].split()[2]
        wrong = tuple(x for x in places if x != place)
        found.append((f"Where does {p} live?", f"{p} lives {near} the {place}.", place, wrong))
        ask, other = f"Who lives {near} the {place}?", tuple(x for x in people if x != p)
        found.append((ask, f"{p} lives {near} the {place}.", p, other))
    return Scene(tuple(said), tuple(found))


def trades(rng: Random) -> Scene:
    """People and their jobs."""
    people = names(rng, rng.randint(1, 3))
    jobs = rng.sample(CATEGORIES["jobs"], len(people))
    said, found = [], []
    for p, job in zip(people, jobs, strict=True):
        said.append(f"{p} is {article(job)}.")
        wrong = tuple(x for x in jobs if x != job)
        ask = rng.choice((f"What is {p}'s job?", f"What does {p} do?", f"What work does {p} do?"))
        found.append((ask, f"{p} is {article(job)}.", job, wrong))
        other = tuple(x for x in people if x != p)
        found.append((f"Who is the {job}?", f"The {job} is {p}.", p, other))
    return Scene(tuple(said), tuple(found))


def counts(rng: Random) -> Scene:
    """How many of what is where."""
    goods = rng.sample(
        "apples pears eggs plums cups spoons hens ducks books stones candles nuts".split(),
        rng.randint(1, 3),
    )
    where = rng.sample(("basket", "bowl", "box", "bag", "kitchen", "barn"), len(goods))
    amounts = rng.sample(range(2, 13), len(goods))
    as_word = rng.random() < 0.5
    said, found = [], []
    for good, w, n in zip(goods, where, amounts, strict=True):
        shown = NUMBER_WORDS[n] if as_word else str(n)
        wrong = tuple(NUMBER_WORDS[x] if as_word else str(x) for x in amounts if x != n)
        said.append(f"There are {shown} {good} in the {w}.")
        ask = rng.choice((f"How many {good} are there?", f"How many {good} are in the {w}?"))
        reply = f"There are {shown} {good} in the {w}."
        found.append((ask, reply, shown, wrong))
        elsewhere = tuple(x for x in where if x != w)
        found.append((f"Where are the {good}?", f"The {good} are in the {w}.", w, elsewhere))
    return Scene(tuple(said), tuple(found))


def about_me(rng: Random) -> Scene:
    """What the user says about themselves."""
    name, place = names(rng, 1)[0], rng.choice(CATEGORIES["places"])
    job, colour = rng.choice(CATEGORIES["jobs"]), rng.choice(CATEGORIES["colours"])
    food, age = rng.choice(CATEGORIES["foods"] + CATEGORIES["fruits"]), str(rng.randint(6, 90))
    rows = [
        (f"My name is {name}.", "What is my name?", f"Your name is {name}.", name),
        (f"I am called {name}.", "What am I called?", f"You are called {name}.", name),
        (f"I live near the {place}.", "Where do I live?", f"You live near the {place}.", place),
        (f"I am {article(job)}.", "What is my job?", f"You are {article(job)}.", job),
        (f"My favourite colour is {colour}.", "What is my favourite colour?",
         f"Your favourite colour is {colour}.", colour),
        (f"My favourite food is {food}.", "What is my favourite food?",
         f"Your favourite food is {food}.", food),
        (f"I am {age} years old.", "How old am I?", f"You are {age} years old.", age),
        (f"I like {food}.", "What do I like?", f"You like {food}.", food),
    ]  # fmt: skip
    chosen = rng.sample(rows, rng.randint(1, 3))
    values = [row[3] for row in chosen]
    found = tuple((q, r, v, tuple(x for x in values if x != v)) for _, q, r, v in chosen)
    return Scene(tuple(row[0] for row in chosen), found)


def likes(rng: Random) -> Scene:
    """People and the foods that they like."""
    people = names(rng, rng.randint(2, 3))
    foods = rng.sample(CATEGORIES["foods"], len(people))
    said, found = [], []
    for p, food in zip(people, foods, strict=True):
        said.append(f"{p} likes {food}.")
        wrong, other = tuple(x for x in foods if x != food), tuple(x for x in people if x != p)
        found.append((f"What does {p} like?", f"{p} likes {food}.", food, wrong))
        found.append((f"Who likes {food}?", f"{p} likes {food}.", p, other))
    return Scene(tuple(said), tuple(found))


SCENES: tuple[Callable[[Random], Scene], ...] = (
    pets, pets, possessions, possessions, homes, trades, counts, about_me, about_me, likes,
)  # fmt: skip

_NOTED = (
    "Thank you, I will remember that.|That is good to know.|I see.|How nice! I will keep that in "
    "mind.|Good, I have noted it.|All right, I will remember.|Thank you for telling me."
).split("|")


def _said(rng: Random, statements: tuple[str, ...]) -> str:
    """The statements as one message, sometimes joined with `and`."""
    parts = list(statements)
    rng.shuffle(parts)
    if len(parts) > 1 and rng.random() < 0.4:
        first = parts[1]
        if first.split()[0] in ("My", "There"):
            first = first[0].lower() + first[1:]
        parts = [f"{parts[0][:-1]} and {first}", *parts[2:]]
    return " ".join(parts)


def fact_exchanges(rng: Random, drill: bool = False) -> list[Exchange]:
    """A scene told and asked about: in one message, or told first and asked in the next turns.

    A drill has two facts or more, and more questions about them.
    """
    scene = rng.choice(SCENES)(rng)
    while drill and len(scene.statements) < 2:
        scene = rng.choice(SCENES)(rng)
    said = _said(rng, scene.statements)
    wanted = rng.randint(3, 7) if drill else rng.choice((1, 1, 2, 3))
    asked = rng.sample(scene.questions, min(len(scene.questions), wanted))

    def ask(row: tuple[str, str, str, tuple[str, ...]], before: str) -> Exchange:
        question, reply, fact, wrong = row
        check = {"type": "fact", "answer": fact, "wrong": list(wrong)}
        user = f"{before} {vary(rng, question)}" if before else vary(rng, question)
        return Exchange("fact", user, reply, f"fact:{said}:{question}", check)

    if rng.random() < 0.45:
        return [ask(asked[0], said), *(ask(row, "") for row in asked[1:])]
    lead = rng.choice(("", "", "", "Remember this: ", "Please remember: ", "Listen: "))
    told = Exchange("told", lead + said, rng.choice(_NOTED), f"told:{said}")
    return [told, *(ask(row, "") for row in asked)]


def lookup_exchanges(rng: Random) -> list[Exchange]:
    """Bare pairs and questions about them: the shortest way to train looking something up."""
    keys = names(rng, rng.randint(2, 5))
    if rng.random() < 0.5:
        keys = rng.sample(CATEGORIES["foods"] + CATEGORIES["toys"], len(keys))
    kinds = [CATEGORIES[c] for c in ("colours", "jobs", "animals", "places", "fruits")]
    if rng.random() < 0.6:
        values = rng.sample(rng.choice(kinds), len(keys))
    else:
        values = [str(n) for n in rng.sample(range(100), len(keys))]
    pairs = dict(zip(keys, values, strict=True))
    form, gap = rng.choice(("{k} is {v}", "{k}: {v}", "{k} = {v}")), rng.choice((". ", ", "))
    said = gap.join(form.format(k=k, v=v) for k, v in pairs.items()) + "."
    ask, reply = rng.choice(
        (("{k}?", "{v}"), ("What is {k}?", "{v}"), ("What is {k}?", "{k} is {v}."))
    )
    found = []
    for key in rng.sample(keys, len(keys)):
        user = ask.format(k=key) if found else f"{said} {ask.format(k=key)}"
        answer = reply.format(k=key, v=pairs[key])
        check = {"type": "fact", "answer": pairs[key], "wrong": []}
        found.append(Exchange("lookup", user, answer, f"lookup:{said}:{key}", check))
    return found
