"""The characters of the demo model's stories: names, kinds, and who usually meets whom.

A story that is not told who is in it takes its cast from these tables. Each kind has three names
that no other kind has, so the most likely name of a friend is never the hero's own. Each kind also
has a usual place, treat, plot and company, so that stories about different heroes differ. Names in
a request are drawn from all of the names, for any kind. Plain data and pure functions.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

from dataclasses import dataclass
from random import Random

from demo_world import NAME_ENDS, NAME_STARTS

# kind: its names. A name after a colon belongs to a "he", one before it to a "she".
_KIND_LINES = """
fox Tansy : Rufus Jasper|owl Olive Minerva : Edgar|hedgehog Hattie : Barnaby Teasel
mouse Dot Nell : Pip|otter Tilda : Marlow Finn|badger Maud : Digby Burdock
hare Clover Juniper : Linden|mole Edie : Monty Alder|squirrel Hazel Saffron : Rowan
frog Lottie : Percy Basil|duck Posy Winnie : Ned|goat Nettle : Archie Barley
hen Mabel Flora : Cecil|cat Minnie Sage : Felix|dog Bella : Toby Rollo
pony Fern Dora : Jack|lamb Daisy Elsie : Gus|donkey Rosa : Stan Otto
rabbit Willa Ivy : Bracken|robin Ruby : Wilf Rusty|crow Sable : Bertie Hugo
bear Ursula : Bruno Oscar|beaver Tess : Woody Reed|turtle Greta : Moss Tully
wolf Ember Luna : Flint|girl Mira Clara Anna : |boy : Ben Leo Max
miller Wilma : Dusty Emil|baker Rita : Carl Ivo|smith Stella : Bran Conrad
farmer Martha : Henry Peter|weaver Lena Cora : Silas|fisher Marina : Nils Jonas
potter Vera : Paul Tobias|shepherd Heidi : Amos Gabriel|teacher Grace Ida : Walter
sailor Nora : Kit Sinbad|dragon Sorrel : Sparky Cinder|knight Joan : Arthur Roland
princess Alice Celeste Rose : |wizard Morgana : Merlin Quill|giant Berta : Magnus Goliath
king : Oswald Edmund Ludo|robot Zoe : Bolt Axel
"""

# Names that belong to no kind: only a request names these, or a hero of a rarer kind bears one.
_MORE_SHE = (
    "Ella Kira Maya Olga Sara Una Hanna Jill Eva Kate Lucy Mary Susan Polly Amy Lily Nina Emma "
    "Sophie Mia Julia Maria Laura Yara Fay Iris Tina Emily"
)
_MORE_HE = (
    "Tom Sam Adam Kurt Omar Theo Victor Daniel John Nick Ralph Hans Erik Simon Luke David James "
    "Alex Harry Oliver Noah Liam Robert Quinn George Charlie"
)

# Kinds that a request may name; they are nobody's usual company.
_RARE_KINDS = (
    "tiger lion elephant monkey zebra panda whale dolphin unicorn witch ghost pirate penguin "
    "parrot camel snake spider snail bee beetle swan goose cow sheep horse deer rat kitten puppy "
    "fairy elf queen prince troll monster snowman cook tailor carpenter gardener doctor painter "
    "pig ant butterfly goldfish hamster clown dancer kangaroo crab seal"
).split()

_COMPANIES = (
    "fox owl hedgehog mouse otter badger hare mole squirrel frog duck goat hen cat dog pony lamb "
    "donkey rabbit robin crow bear beaver turtle wolf",
    "girl miller boy baker farmer smith weaver fisher potter shepherd teacher sailor",
    "dragon princess wizard knight giant king robot",
)
_SHE_ONLY, _HE_ONLY = {"girl", "princess", "witch", "queen"}, {"boy", "king", "prince"}


@dataclass(frozen=True, slots=True)
class Character:
    """One of the cast: a name, a kind, and the pronoun's gender."""

    name: str
    kind: str
    she: bool

    def pronouns(self) -> tuple[str, str, str]:
        """Subject, possessive, object."""
        return ("she", "her", "her") if self.she else ("he", "his", "him")


def _read_kinds() -> tuple[dict[str, tuple[str, ...]], set[str]]:
    kinds, she = {}, set[str]()
    for entry in _KIND_LINES.replace("\n", "|").strip("|").split("|"):
        first, second = entry.split(":")
        kind, *women = first.split()
        kinds[kind] = (*women, *second.split())
        she.update(women)
    return kinds, she


KIND_NAMES, _SHE = _read_kinds()
KINDS = tuple(KIND_NAMES)
_SHE |= set(_MORE_SHE.split())
NAMES = tuple(n for names in KIND_NAMES.values() for n in names) + tuple(
    f"{_MORE_SHE} {_MORE_HE}".split()
)
ALL_KINDS = KINDS + tuple(_RARE_KINDS)
_SHE_ENDS = ("a", "ina", "ora", "ela", "is", "ley")


def is_she(name: str) -> bool:
    """The gender of a name: by the tables, or for a made-up name by its end."""
    return name in _SHE or (name not in NAMES and name.endswith(_SHE_ENDS))


def character(name: str, kind: str) -> Character:
    """The character of this name and kind."""
    return Character(name, kind, is_she(name))


def fits(name: str, kind: str) -> bool:
    """Whether a name's gender suits a kind that has one, such as a princess."""
    return not (kind in _HE_ONLY if is_she(name) else kind in _SHE_ONLY)


def made_up(rng: Random) -> str:
    """A name of two made-up pieces, so that copying a name never seen before is trained too."""
    return rng.choice(NAME_STARTS.split()) + rng.choice(NAME_ENDS.split())


def any_name(rng: Random, kind: str, taken: list[str]) -> str:
    """A name as a request may give it: any that suits the kind, or a made-up one."""
    while True:
        name = made_up(rng) if rng.random() < 0.15 else rng.choice(NAMES)
        if name not in taken and fits(name, kind):
            return name


def usual_name(rng: Random, kind: str, taken: list[str]) -> str:
    """One of the kind's own names, the first most often."""
    names = KIND_NAMES.get(kind)
    if names is None:
        pool = [n for n in f"{_MORE_SHE} {_MORE_HE}".split() if fits(n, kind)]
        at = usual(kind, len(pool))
        names = tuple(pool[(at + i) % len(pool)] for i in (0, 5, 11))
    weights = [6 if n not in taken else 0 for n in names]
    weights[1:] = [w * share // 6 for w, share in zip(weights[1:], (3, 1), strict=True)]
    return rng.choices(names, weights)[0] if any(weights) else any_name(rng, kind, taken)


def usual(kind: str, choices: int, salt: int = 0) -> int:
    """A fixed number below `choices` for a kind, by which it has its place, treat and plot."""
    return (ALL_KINDS.index(kind) * 7 + len(kind) * 3 + salt) % choices


def company(rng: Random, kind: str, count: int, taken: list[str]) -> list[str]:
    """`count` other kinds that this one usually meets; none of them in `taken`."""
    circle = next((c.split() for c in _COMPANIES if kind in c.split()), _COMPANIES[0].split())
    at = circle.index(kind) if kind in circle else usual(kind, len(circle))
    found: list[str] = []
    for number in range(count):
        near = [circle[(at + 3 * number + step) % len(circle)] for step in (1, 2, 3)]
        free = [k not in (*taken, kind, *found) for k in near]
        weights = [w * is_free for w, is_free in zip((6, 3, 1), free, strict=True)]
        if not any(weights):
            near = [k for k in circle if k not in (*taken, kind, *found)]
            weights = [1] * len(near)
        found.append(rng.choices(near, weights)[0])
    return found
