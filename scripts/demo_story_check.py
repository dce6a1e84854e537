"""Whether a story keeps its characters apart: a check of the text alone, with no model.

`faults` finds names that are missing, that nobody introduced, or that two characters share; a
character who speaks to or of themselves as another; and a sentence that gives one name two roles.
It knows how stories introduce names and mark speech. `role_faults` also knows the sentences of
`demo_plots`: it reads each one back and finds roles that change hands within a story.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import demo_plots as plots
from demo_cast import NAMES
from demo_world import CATEGORIES, VILLAGE

_SPOKE = "said|asked|cried|called|shouted|thought|answered|whispered|laughed|replied"
_QUOTE = re.compile(r'"([^"]*)"')
_SPEAKER_AFTER = re.compile(rf"\s*(?:{_SPOKE})\s+([A-Z]\w*)")
_INTRODUCED = re.compile(r"\w (?:called|named|name was) ([A-Z]\w*)")
_OF_KIND = re.compile(r"(\w+) (?:called|named) ([A-Z]\w*)|([A-Z]\w*),? the (\w+)")
_NO_NAMES = {"I", VILLAGE, *CATEGORIES["days"], *CATEGORIES["months"]}


def _templates() -> Iterator[tuple[str, str]]:
    """Every sentence, or group of sentences, that a story may be made of, and its plot if any."""
    found = [*plots.OPENINGS, *plots.TRAITS, *plots.FRIENDS, *plots.FRIENDS_OF_THREE]
    found += [*plots.PAIRS, *plots.TRIOS, *plots.WEATHER, *plots.MIDDLES.values()]
    found += [*plots.THANKS, *plots.THANKS_FOR_HELP, *plots.CELEBRATIONS, *plots.ENDINGS]
    yield from ((template, "") for template in found)
    for name, plot in plots.PLOTS.items():
        beats = [*plot.problem, *plot.talk, *plot.talk_of_three, *plot.attempt]
        yield from ((template, name) for template in (*beats, *plot.third, *plot.solution))


# Words that begin a sentence of a story without being a name.
_STARTERS = {w for t, _ in _templates() for w in re.findall(r"\b[A-Z][a-z]*\b", t)} | {"She", "He"}
_STARTERS |= set("Her His They It The A An And But So In At On Take Good Cheers Have Stay".split())


def faults(
    reply: str, cast: Mapping[str, str], kinds: Sequence[str] = (), count: int = 1
) -> list[str]:
    """The faults in the names of a story; an empty list if there are none.

    `cast` maps each name in the request to its kind ("" if the request gives none), `kinds` are
    the kinds without a name, and `count` is the minimum number of named characters.
    """
    introduced = _INTRODUCED.findall(reply)
    known = {*cast, *introduced}
    mentions = Counter(_names(reply))
    found = [f"{name} is missing" for name in cast if not mentions[name]]
    found += [f"{name} never acts" for name in known if mentions[name] == 1]
    found += [f"{name} was not introduced" for name in mentions if name not in known]
    found += [f"two are called {n}" for n, times in Counter(introduced).items() if times > 1]
    if len(known) < count:
        found.append(f"{len(known)} named characters of {count}")
    found += [f"no {kind}" for kind in kinds if not re.search(rf"\b{kind}\b", reply)]
    for kind, name, other, other_kind in _OF_KIND.findall(reply):
        said, of = (kind, name) if name else (other_kind, other)
        if cast.get(of) and said != cast[of].split()[-1]:
            found.append(f"{of} is called a {said}")
    return [*found, *_speech_faults(reply), *_sentence_faults(reply, known)]


def _names(text: str) -> Iterator[str]:
    """Every name in the text, in order: capitalized words that do not just begin a sentence."""
    for match in re.finditer(r"\b[A-Z]\w*", text):
        word, before = match[0], text[: match.start()].rstrip(" ")
        begins = not before or before[-1] in '.!?":\n'
        if word in NAMES or word not in (_NO_NAMES | _STARTERS if begins else _NO_NAMES):
            yield word


def _speech_faults(reply: str) -> Iterator[str]:
    """Speakers who use their own name for another."""
    speaker, end = "", 0
    for quote in _QUOTE.finditer(reply):
        between = reply[end : quote.start()]
        end = quote.end()
        after = _SPEAKER_AFTER.match(reply, end)
        if after:
            speaker = after[1]
        elif len(re.findall(r"[.!?]", between)) > 1:
            speaker = ""
        own = rf"(?<!I am )(?<!my name is )\b{speaker}\b"
        if speaker and re.search(own, quote[1]):
            yield f"{speaker} speaks to or of {speaker}"


def _sentence_faults(reply: str, known: set[str]) -> Iterator[str]:
    """Sentences, outside quotes, in which one name stands twice."""
    for sentence in re.split(r"(?<=[.!?])\s+", _QUOTE.sub('""', reply)):
        counts = Counter(w for w in re.findall(r"\b[A-Z]\w*", sentence) if w in known)
        yield from (f"{n} twice in: {sentence}" for n, times in counts.items() if times > 1)


_NAMES = ("h", "f", "g", "u", "v")


@dataclass(frozen=True, slots=True)
class _Reading:
    """A sentence read back: its plot, and the name in each of its slots."""

    plot: str
    text: str
    names: tuple[tuple[str, str], ...]

    def clashes(self, roles: Mapping[str, str]) -> list[str]:
        """Names that are elsewhere in the story in another role."""
        now, found = dict(roles), []
        for slot, name in self.names:
            others = [n for s, n in now.items() if s != slot and (s in "uv") == (slot in "uv")]
            if now.get(slot, name) != name or name in others:
                found.append(f"{name} instead of {now.get(slot, 'another')} in: {self.text}")
            now[slot] = name
        return found


def _pattern(template: str) -> tuple[re.Pattern[str], list[str]]:
    """A template as a pattern, and the slots of its groups, which hold names."""
    parts, slots = [], []
    for text, slot, _, _ in Formatter().parse(template):
        parts.append(re.escape(text))
        if slot in _NAMES:
            parts.append(r"([A-Z]\w*)")
            slots.append(slot)
        elif slot:
            parts.append("[A-Z][A-Za-z, ]+?" if slot == "all" else r"[A-Za-z' -]+?")
    return re.compile("".join(parts)), slots


_PATTERNS = [
    (*_pattern(template), plot)
    for template, plot in sorted(_templates(), key=lambda row: -len(row[0]))
]


def _readings(reply: str) -> Iterator[list[_Reading]]:
    """For each sentence of a story, the ways to read it as one of the templates."""
    at = 0
    while at < len(reply):
        matches = [(m, s, p) for pattern, s, p in _PATTERNS if (m := pattern.match(reply, at))]
        yield [_Reading(p, m[0], tuple(zip(s, m.groups(), strict=True))) for m, s, p in matches]
        begin = matches[0][0].end() if matches else at
        following = re.compile(r"\s+" if matches else r'[.!?]"?\s+').search(reply, begin)
        at = following.end() if following else len(reply)


def role_faults(reply: str) -> list[str]:
    """Names that pass from one role of the story to another, or that two roles share."""
    roles: dict[str, str] = {}
    thanks: dict[str, str] = {}
    found: list[str] = []
    plot = ""
    for readings in filter(None, _readings(reply)):
        best = min(readings, key=lambda reading: len(reading.clashes(roles)))
        clashes = best.clashes(roles)
        found += clashes
        plot = plot or best.plot
        names = {} if clashes else dict(best.names)
        thanks |= {slot: name for slot, name in names.items() if slot in "uv"}
        roles |= {slot: name for slot, name in names.items() if slot not in "uv"}
    if plot and thanks:
        helper, helped = ("h", "f") if plots.PLOTS[plot].hero_helps else ("f", "h")
        if (thanks["u"], thanks["v"]) != (roles.get(helped), roles.get(helper)):
            found.append(f"{thanks['u']} thanks {thanks['v']}")
    return found
