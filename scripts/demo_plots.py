"""Sentences that the demo model's stories are made of, all written for this project.

Slots: {h} the hero's name, {hero} its kind, {f} the friend's name, {k} the friend's kind, {x} a
thing, {an} the article before it. Plain data; `demo_stories` puts it together.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plot:
    """Four beats of a story, each in several wordings."""

    problem: tuple[str, ...]
    attempt: tuple[str, ...]
    help: tuple[str, ...]
    solution: tuple[str, ...]


OPENINGS = (
    "Once upon a time there was {a} {hero} called {h} who lived near {place}.",
    "In a quiet corner of Larkmere, close to {place}, lived {a} {hero} called {h}.",
    "Long ago, {a} {hero} named {h} lived in a small house by {place}.",
    "Everyone in the village knew {h}, the {hero} who lived beside {place}.",
    "There was once {a} {hero} whose name was {h}, and whose home was near {place}.",
    "Not far from {place} lived {a} {adj} {hero} called {h}.",
)
ADJECTIVES = "kind small clever shy brave cheerful curious gentle stubborn lazy young old".split()
TRAITS = (
    "{h} was {adj}, and liked nothing better than {treat}.",
    "{h} was known for being {adj} and for sharing {treat} with everyone.",
    "Every day {h} got up early, opened the window and sang a little song.",
    "{h} had a {colour} coat, a warm bed and a good heart.",
    "The neighbours said that {h} was too {adj}, but they said it with a smile.",
    "{h} owned very little: a {colour} coat, a wooden chair and {an} {x}.",
    "{h} always wanted to see more of the world.",
)
WEATHER = (
    "One {season} morning the air was cold and the grass was white.",
    "One rainy {season} day the clouds hung low over the roofs.",
    "One {season} evening the wind began to blow from the hills.",
    "It was a bright {season} day, and the birds were loud in the trees.",
    "On the first day of {season}, fog covered the whole valley.",
    "One {season} night the moon was so bright that nobody could sleep.",
)
PLOTS: dict[str, Plot] = {
    "lost": Plot(
        (
            "{h} looked on the shelf and saw that the {x} was gone.",
            "That was when {h} lost the {x} that grandmother had left behind.",
            "On the way home the {x} fell out of the bag, and {h} did not notice.",
        ),
        (
            "{h} looked under the bed, behind the door and even in the soup pot, but found "
            "nothing.",
            "For two hours {h} walked up and down the road, and found only an old shoe.",
            "{h} asked at the market and at the inn, but nobody had seen the {x}.",
        ),
        (
            "Then {f} the {k} came by and asked why {h} looked so sad.",
            "{f} the {k} heard the crying and sat down next to {h}.",
            "At last {h} went to {f} the {k}, who was good at finding things.",
        ),
        (
            '"Let us think," said {f}. "Where did you last use it?" They went back to {place}, and '
            "there lay the {x}, shining in the grass.",
            "Together they followed the small footprints in the mud, and under a bush they found "
            "the {x}.",
            "{f} laughed and pointed at a nest in the tree. A magpie had taken the {x}, and gave "
            "it back for a piece of bread.",
        ),
    ),
    "stuck": Plot(
        (
            "From far away {h} heard a thin voice calling for help near {place}.",
            "Behind the fence {h} found {f} the {k}, stuck in the deep mud.",
            "{h} heard a splash: {f} the {k} had fallen into the cold water.",
        ),
        (
            "{h} pulled and pulled, but it was no use.",
            "First {h} tried with a long stick, but the stick broke.",
            "{h} ran to get a rope, but the rope was too short.",
        ),
        (
            '"Do not worry," said {h}. "I will not leave you alone."',
            '"Stay calm, {f}," called {h}. "I have another idea."',
            "{h} thought hard, and then remembered the {x} at home.",
        ),
        (
            "{h} fetched the {x}, tied it to a strong branch, and slowly {f} climbed out.",
            "{h} called the neighbours. They all held hands in a long row and pulled, and at once "
            "{f} was free.",
            "With two boards {h} made a little path, and {f} walked out with careful steps.",
        ),
    ),
    "broken": Plot(
        (
            "The day before the great feast, the {x} broke into two pieces.",
            "{h} sat down without looking, and there was a loud crack. It was the {x}.",
            "When {h} wanted to use the {x}, it did not work any more.",
        ),
        (
            "{h} tried glue, but the glue did not hold.",
            "{h} tied it with string, but the string came loose.",
            "The smith said that it could not be mended, and {h} went away with a heavy heart.",
        ),
        (
            "That evening {f} the {k} knocked at the door and asked to see it.",
            '"Show it to me," said {f} the {k}. "My father taught me how to mend such things."',
            "{f} the {k} had a box full of tiny tools and a lot of patience.",
        ),
        (
            "They worked all night by the light of one candle, and in the morning the {x} was "
            "better than before.",
            "{f} turned one small screw, and the {x} was as good as new.",
            "It took three days, but then the {x} was whole again, with a {colour} line where the "
            "crack had been.",
        ),
    ),
    "noise": Plot(
        (
            "In the middle of the night there was a strange noise: tap, tap, tap.",
            "A deep voice seemed to come out of the wall near {place}.",
            "Every evening at eight, something scratched at the roof, and {h} was afraid.",
        ),
        (
            "{h} hid under the blanket, but the noise did not stop.",
            "{h} lit a candle and looked in every room, but nobody was there.",
            "{h} called out, but there was no answer.",
        ),
        (
            "So {h} asked {f} the {k} to come and listen.",
            "The next night {f} the {k} came too and brought {an} {x}.",
            '"We are two now," said {f} the {k}, "and two are not afraid."',
        ),
        (
            "They opened the door together, and found a baby owl that had lost its way. They "
            "carried it back to its nest.",
            "It was only a loose branch in the wind. They cut it off and laughed until they cried.",
            "Behind a stone they found the {x}, swinging in the wind and hitting the wall.",
        ),
    ),
    "storm": Plot(
        (
            "Then a great storm came and blew the roof off the house.",
            "Then the river rose, and the water came closer to {place}.",
            "Then snow fell for three days, and the way to the market was closed.",
        ),
        (
            "{h} tried to fight it alone, but it was too much for one.",
            "{h} carried stones until it grew dark, but the wind was stronger.",
            "{h} put all the furniture in front of the door, but it did not help.",
        ),
        (
            "In the darkness a light came nearer. It was {f} the {k} with {an} {x}.",
            "{f} the {k} saw it from the hill and ran down to help.",
            '"Come with me," said {f} the {k}. "There is room for two in my house."',
        ),
        (
            "They rang the big bell, and soon the whole village was there. Before the sun rose, "
            "everything was safe.",
            "They waited together, told old tales and shared {treat}, until the sky was clear.",
            "With the {x} and a lot of hard work they held on until the storm was tired.",
        ),
    ),
    "contest": Plot(
        (
            "A notice hung at {place}: whoever made the best {treat} would win {an} {x}.",
            "The village was to hold a race around {place}, and the prize was {an} {x}.",
            "{h} wanted to win the singing contest, but had never sung in front of others.",
        ),
        (
            "{h} practised every day, and every day something went wrong.",
            "On the first try {h} fell over, and the others laughed.",
            "{h} was so nervous that nothing worked at all.",
        ),
        (
            '"You try too hard," said {f} the {k}. "Do it for the joy of it."',
            "{f} the {k} came to help and showed {h} a simple trick.",
            "Only {f} the {k} believed in {h} and stayed until the evening.",
        ),
        (
            "On the great day {h} took a deep breath, smiled at {f}, and did it better than ever. "
            "The {x} went to {h}.",
            "In the end {h} came second, but the winner gave the {x} to {h} for being fair.",
            "{h} and {f} went in together, and together they won the {x}.",
        ),
    ),
    "gift": Plot(
        (
            "It was almost the birthday of {f} the {k}, and {h} had no gift.",
            "{h} wanted to thank {f} the {k}, but did not know how.",
            "{f} the {k} was ill in bed, and {h} wished to bring some joy.",
        ),
        (
            "{h} went to the market, but everything cost too much.",
            "{h} tried to bake {treat}, but it was burnt and black.",
            "{h} painted a picture, but the rain washed it away.",
        ),
        (
            "Then {h} saw the old {x} on the shelf and had an idea.",
            "The baker saw the sad face and said that the best gifts are made at home.",
            "Near {place} {h} found {an} {x} that nobody wanted.",
        ),
        (
            "{h} cleaned the {x}, painted it {colour}, and tied a ribbon around it. {f} had "
            "never had a better gift.",
            "{h} put flowers into the {x} and set it in front of the door. {f} smiled for the "
            "whole day.",
            "So {h} gave the {x} and a whole afternoon of time, and {f} was very glad.",
        ),
    ),
    "journey": Plot(
        (
            "{h} found an old map with a {colour} cross on it and packed a small bag.",
            "A letter came: an uncle far away wished to give {h} {an} {x}.",
            "{h} wanted to know what lay behind the hills, and set out at dawn.",
        ),
        (
            "After a few miles the road was gone, and {h} was lost.",
            "The way was long, and soon {h} had nothing left to eat.",
            "{h} came to a wide river and could not cross it.",
        ),
        (
            "On a stone sat {f} the {k}, who knew every path.",
            "{f} the {k} shared some {treat} with {h} and came along.",
            "Just then {f} the {k} came by in a little boat.",
        ),
        (
            "They walked by the light of the stars, and in the morning they stood before a cave. "
            "In it was {an} {x}, and it was beautiful.",
            "Together they reached the end of the road. There was no gold, only {an} {x}, but "
            "they were happy.",
            "After three days they saw {place} again, with {an} {x} in the bag and many tales to "
            "tell.",
        ),
    ),
}
MIDDLES = (
    '"What shall I do?" said {h}.',
    "{h} sat down on a stone and sighed.",
    "{h} was very sad, but did not give up.",
    "Slowly it grew dark, and the first stars came out.",
    "A crow sat on the fence and watched.",
    "{h} counted to ten and tried to be brave.",
)
THANKS = (
    '"Thank you," said {h}. "I could not have done it without you, {f}."',
    '"You are a true friend," said {f} to {h}.',
    "{h} hugged {f}, and for a while nobody said a word.",
    "{f} smiled, and {h} smiled back.",
    '"It was nothing," said {f}. "Next time you will help me."',
)
CELEBRATIONS = (
    "That evening they sat by the fire and ate {treat}.",
    "Then they went home and shared some {treat}.",
    "The whole village came to {place}, and there was {treat} for everyone.",
    "There was music and dancing until the moon was high.",
)
ENDINGS = (
    "From that day on, {h} and {f} were the best of friends.",
    "And {h} never forgot that asking for help is also a way of being brave.",
    "Since then {h} always keeps a light in the window for anyone who is lost.",
    "And if you go to {place} today, you can still hear them laugh.",
    "{h} slept well that night and dreamed of new adventures.",
    "And the {x} has stood on the shelf ever since, where all can see it.",
    "And so {h} learned that a small kindness can do great things.",
)
COLOURS = "red blue green yellow white brown grey purple orange".split()
SEASONS = "spring summer autumn winter".split()
