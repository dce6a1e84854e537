"""One exchange at a time: a user's words and the demo model's answer, for each kind of task.

Every function takes a `random.Random` and returns an `Exchange`; nothing here keeps state, and
nothing knows about conversations, the held-out split or tokens. All wording is our own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from demo_cast import KINDS, NAMES
from demo_stories import article
from demo_world import (
    CATEGORIES,
    CATEGORY_ALIASES,
    DEFINITIONS,
    NAME_ENDS,
    NAME_STARTS,
    NUMBER_WORDS,
    OPPOSITES,
    TREASURES,
    UNKNOWN_TOPICS,
    VILLAGE,
)

ABOUT_ME = f"a very small language model from the made-up village of {VILLAGE}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer; `key` names the task, `later` holds questions for later turns."""

    kind: str
    user: str
    reply: str
    key: str
    check: dict[str, Any] | None = None
    later: tuple[tuple[str, str, str], ...] = field(default=())  # (question, reply, fact)


def vary(rng: Random, text: str) -> str:
    """The same request as another person would type it: please, case, closing mark."""
    polite = "please" in text.lower() or text.startswith(("A ", "I ", "Another ", "Story ", "Now "))
    roll = 1.0 if polite else rng.random()
    if text[-1] == "." and roll < 0.12:
        text = "Please " + text[0].lower() + text[1:]
    elif text[-1] == "." and roll < 0.22:
        text = f"{rng.choice(('Can', 'Could'))} you {text[0].lower()}{text[1:-1]}?"
    elif text[-1] == "." and roll < 0.3:
        text = text[:-1] + ", please."
    if rng.random() < 0.12:
        text = text[:-1]
    if rng.random() < 0.12 and not text.startswith("I "):
        text = text[0].lower() + text[1:]
    return text


def add_steps(a: int, b: int) -> str:
    """Column addition of two numbers below 100, in words that a small model can follow."""
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    text = f"Ones: {a % 10} + {b % 10} = {ones}."
    if ones < 10:
        text += f" Write {ones}. Tens: {a // 10} + {b // 10} = {tens}."
    else:
        text += f" Write {ones - 10}, carry 1. Tens: {a // 10} + {b // 10} + 1 = {tens + 1}."
    return f"{text} The answer is {a + b}."


def subtract_steps(a: int, b: int) -> str:
    """Column subtraction, `a >= b`, both below 100."""
    ones, tens = a % 10 - b % 10, a // 10 - b // 10
    if ones >= 0:
        text = f"Ones: {a % 10} - {b % 10} = {ones}. Tens: {a // 10} - {b // 10} = {tens}."
    else:
        text = f"Ones: {a % 10} is less than {b % 10}, borrow 1: {a % 10 + 10} - {b % 10} ="
        text += f" {ones + 10}. Tens: {a // 10} - 1 - {b // 10} = {tens - 1}."
    return f"{text} The answer is {a - b}."


def multiply_steps(a: int, b: int) -> str:
    """A line of the times tables, known by heart."""
    return f"From the table of {a}: {a} x {b} = {a * b}. The answer is {a * b}."


_SUM_ASKS = {
    "+": (
        "What is {a} + {b}?|Add {a} and {b}.|How much is {a} plus {b}?|{a} + {b} = ?|Work out "
        "{a} + {b}.|What is {a} plus {b}?|Calculate {a} + {b}.|What do {a} and {b} make?|What is "
        "the sum of {a} and {b}?|I have {a} coins and get {b} more. How many coins do I have?|"
        "There are {a} sheep in the meadow and {b} in the barn. How many sheep are there?"
    ),
    "-": (
        "What is {a} - {b}?|Take {b} from {a}.|How much is {a} minus {b}?|{a} - {b} = ?|Work out "
        "{a} - {b}.|What is {a} minus {b}?|Calculate {a} - {b}.|Subtract {b} from {a}.|"
        "I had {a} apples and gave away {b}. How many apples are left?|"
        "The baker had {a} loaves and sold {b}. How many loaves are left?"
    ),
    "x": (
        "What is {a} x {b}?|What is {a} times {b}?|Multiply {a} by {b}.|{a} x {b} = ?|Work out "
        "{a} x {b}.|How much is {a} times {b}?|Calculate {a} * {b}.|What is {a} * {b}?"
    ),
}
_STEPS: dict[str, Callable[[int, int], str]] = {
    "+": add_steps,
    "-": subtract_steps,
    "x": multiply_steps,
}


def sum_task(rng: Random) -> Exchange:
    """A sum, a difference or a product of small numbers, worked step by step."""
    op = rng.choices("+-x", (9, 9, 4))[0]
    if op == "x":
        return _sum(rng, op, rng.randint(2, 10), rng.randint(2, 10))
    low = 1 if rng.random() < 0.2 else 10
    return _sum(rng, op, rng.randint(low, 99), rng.randint(low, 99))


def small_sum_task(rng: Random) -> Exchange:
    """A sum or a difference in which one number has a single digit."""
    pair = [rng.randint(1, 99), rng.randint(1, 9)]
    rng.shuffle(pair)
    return _sum(rng, rng.choice("+-"), *pair)


def _sum(rng: Random, op: str, a: int, b: int) -> Exchange:
    if op == "-" and a < b:
        a, b = b, a
    ask = rng.choice(_SUM_ASKS[op].split("|")).format(a=a, b=b)
    answer = {"+": a + b, "-": a - b, "x": a * b}[op]
    check = {"type": "sum", "answer": answer}
    key = f"sum:{a}{op}{b}" if op != "x" else f"sum:{ask}"
    return Exchange("sum", vary(rng, ask), _STEPS[op](a, b), key, check)


_LIST_ASKS = (
    "List {n} {c}.|Name {n} {c}.|Give me {n} {c}.|Tell me {n} {c}.|Write down {n} {c}.|"
    "Give me a list of {n} {c}.|I need {n} {c}.|Write a list of {n} {c}.|"
    "Make a list of {n} {c}.|What are {n} {c}?|Can you name {n} {c}?"
)


def list_task(rng: Random) -> Exchange:
    """A numbered list of two to six members of a category, walking along the category."""
    category = rng.choice(sorted(CATEGORIES))
    members = CATEGORIES[category]
    n = rng.randint(2, min(6, len(members)))
    at, items = rng.randrange(len(members)), []
    for _ in range(n):
        items.append(members[at % len(members)])
        at += rng.choice((1, 1, 2)) if len(members) >= 2 * n else 1
    count = NUMBER_WORDS[n] if rng.random() < 0.6 else str(n)
    names = CATEGORY_ALIASES.get(category, (category,))
    name = category if rng.random() < 0.5 else rng.choice(names)
    ask = vary(rng, rng.choice(_LIST_ASKS.split("|")).format(n=count, c=name))
    reply = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    check = {"type": "list", "n": n, "category": category}
    return Exchange("list", ask, reply, f"list:{ask}:{items[0]}", check)


def what_is_task(rng: Random) -> Exchange:
    """What a thing of the village is."""
    word = rng.choice(sorted(DEFINITIONS))
    bare = {"honey", "bread", "soup", "cheese", "tea", "rain", "snow", "fog", "wind", VILLAGE}
    bare |= {"winter", "summer", "spring", "autumn"}
    thing = word if word in bare else f"the {word}" if word in ("sun", "moon") else article(word)
    asks = "What is {t}?|What is {t}?|Tell me what {t} is.|Explain what {t} is.|Do you know what "
    asks += "{t} is?|What does the word {w} mean?|Describe {t}."
    ask = vary(rng, rng.choice(asks.split("|")).format(t=thing, w=word))
    return Exchange("what-is", ask, DEFINITIONS[word], f"what-is:{ask}")


def opposite_task(rng: Random) -> Exchange:
    """The opposite of a word."""
    pair = rng.choice(OPPOSITES).split()
    rng.shuffle(pair)
    asks = "What is the opposite of {w}?|Tell me the opposite of {w}.|Which word is the opposite "
    asks += "of {w}?|Give me the opposite of {w}.|What is the opposite of the word {w}?"
    ask = vary(rng, rng.choice(asks.split("|")).format(w=pair[0]))
    return Exchange("word", ask, f"The opposite of {pair[0]} is {pair[1]}.", f"word:{ask}")


def count_task(rng: Random) -> Exchange:
    """Counting up or down between two numbers, or the larger of two."""
    a, b = sorted(rng.sample(range(1, 100), 2))
    if rng.random() < 0.4:
        x, y = rng.sample((a, b), 2)
        asks = "Which is bigger, {x} or {y}?|Which number is larger, {x} or {y}?|"
        asks += "Is {x} or {y} more?"
        ask = vary(rng, rng.choice(asks.split("|")).format(x=x, y=y))
        return Exchange("count", ask, f"{b} is bigger than {a}.", f"count:{x},{y}")
    a = rng.randint(0, 30)
    b = a + rng.randint(2, 9)
    asks = "Count from {x} to {y}.|Please count from {x} to {y}.|Count from {x} up to {y}."
    x, y = (a, b) if rng.random() < 0.7 else (b, a)
    step = 1 if y > x else -1
    ask = vary(rng, rng.choice(asks.split("|")[:2] if step < 0 else asks.split("|")))
    reply = ", ".join(str(i) for i in range(x, y + step, step)) + "."
    return Exchange("count", ask.format(x=x, y=y), reply, f"count:{x}:{y}")


def repeat_task(rng: Random) -> Exchange:
    """Words, names and numbers to say back: it teaches copying, which facts and sums build on."""
    words = [*NAMES, *TREASURES, *KINDS, *CATEGORIES["colours"], *CATEGORIES["foods"]]
    said = []
    for _ in range(rng.randint(1, 7)):
        roll = rng.random()
        made_up = rng.choice(NAME_STARTS.split()) + rng.choice(NAME_ENDS.split())
        number = str(rng.randint(0, 99))
        said.append(number if roll < 0.3 else made_up if roll < 0.55 else rng.choice(words))
    text = rng.choice((" ", ", ")).join(said)
    asks = "Say: {t}|Repeat: {t}|Repeat after me: {t}|Please say {t}|Write {t}|Copy this: {t}"
    return Exchange("repeat", rng.choice(asks.split("|")).format(t=text), text, f"repeat:{text}")


_SMALL_TALK: dict[str, tuple[str, str]] = {
    "hello": (
        "Hello!|Hi.|Hi there!|Good morning!|Good evening.|Hey!|Hello there.|Good day!|Hello, how "
        "are you?|Hi, how are you today?",
        "Hello! What can I do for you?|Hello! Shall I tell you a story?|Hi! Ask me for a story, a "
        "sum or a list.|Good day! How can I help you?",
    ),
    "who": (
        "Who are you?|What are you?|Tell me about yourself.|What is your name?|Are you a person?|"
        "Introduce yourself.|Are you a robot?",
        f"I am {ABOUT_ME}. I tell stories, work out sums, make lists and remember what you say.|"
        f"I am {ABOUT_ME}, made to be tried out.",
    ),
    "what-can": (
        "What can you do?|How can you help me?|What can I ask you?|What do you know?|Help!|"
        "Help me.",
        "I can tell little stories, work out sums, make lists and answer questions about what you "
        "told me.|Ask me for a story, a sum, a list, or tell me something and ask me about it.",
    ),
    "thanks": (
        "Thank you!|Thanks.|Thanks a lot!|Thank you very much.|Great, thanks!|That was nice.|Well "
        "done!|Good job.|I like that.|Very good.",
        "You are welcome!|You are welcome. What else can I do?|I am glad that I could help.|With "
        "pleasure!",
    ),
    "bye": (
        "Goodbye!|Bye.|Good night!|See you tomorrow.|I have to go now.|That is all for today.",
        "Goodbye! Come back soon.|Bye! Have a lovely day.|Goodbye, and good luck!",
    ),
}


def small_talk_task(rng: Random, kind: str | None = None) -> Exchange:
    """Greetings, thanks and questions about the model itself."""
    kind = kind or rng.choice(sorted(_SMALL_TALK))
    asks, replies = _SMALL_TALK[kind]
    ask, reply = vary(rng, rng.choice(asks.split("|"))), rng.choice(replies.split("|"))
    return Exchange("talk", ask, reply, f"talk:{ask}:{reply}")


def unknown_task(rng: Random) -> Exchange:
    """A question far outside the village: the answer is an honest no."""
    topic = rng.choice(UNKNOWN_TOPICS)
    asks = "What is {t}?|Tell me about {t}.|Explain {t}.|What do you know about {t}?|Write about "
    asks += "{t}.|Who knows {t}?|How does {t} work?|I want to know about {t}.|Give me {t}."
    ask = vary(rng, rng.choice(asks.split("|")).format(t=topic))
    reply = rng.choice(
        (
            f"I am a very small model and I only know my village, {VILLAGE}. Ask me for a story, a "
            "sum or a list.",
            "I am sorry, I do not know that. I can tell a story, work out a sum or make a list.",
        )
    )
    return Exchange("unknown", ask, reply, f"unknown:{ask}")
