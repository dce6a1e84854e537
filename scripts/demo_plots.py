"""Sentences that the demo model's stories are made of, all written for this project.

Three characters may appear: the hero, a friend, and sometimes a third. Slots: {h} {f} {g} are
their names; {hero} {k} {m} their kinds, {a} {ak} {am} the articles before those; {he} {his} {him}
and {fhe} {fhis} {fhim} the pronouns of the hero and the friend, {He} and {His} at the start of a
sentence. {x} is a thing, {an} its article. In the thanks, {u} thanks {v}.

No sentence outside quotes names one character twice, no quote begins with a name, and nobody says
their own name: `demo_story_check` relies on that. Plain data; `demo_stories` puts it together.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plot:
    """The beats of a story, each in several wordings; `third` is for a cast of three."""

    problem: tuple[str, ...]
    talk: tuple[str, ...]
    attempt: tuple[str, ...]
    third: tuple[str, ...]
    solution: tuple[str, ...]
    talk_of_three: tuple[str, ...] = ()
    middles: str = "sigh sad brave"
    hero_helps: bool = False
    helped: bool = True
    with_thing: bool = True
    asks: tuple[str, ...] = ()


OPENINGS = (
    "Once upon a time there was {a} {hero} called {h} who lived near {place}.",
    "In a quiet corner of Larkmere, close to {place}, lived {a} {hero} called {h}.",
    "Long ago, {a} {hero} called {h} lived in a small house by {place}.",
    "Not far from {place} lived {a} {hero} called {h}.",
    "There was once {a} {hero} called {h}, whose home was near {place}.",
)
TRAITS = (
    "{He} was {adj}, and liked nothing better than {treat}.",
    "{He} had a {colour} coat, a warm bed and a good heart.",
    "Every morning {he} opened the window and sang a little song.",
    "{He} always wanted to see more of the world.",
    "The neighbours said that {he} was too {adj}, but they said it with a smile.",
)
FRIENDS = (
    "{His} best friend was {ak} {k} called {f}.",
    "Next door lived {ak} {k} called {f}, and the two were friends.",
    "Every day {he} met {ak} {k} called {f}.",
    "Across the road lived {ak} {k} called {f}, and they knew each other well.",
)
FRIENDS_OF_THREE = (
    "{His} best friends were {ak} {k} called {f} and {am} {m} called {g}.",
    "Next door lived {ak} {k} called {f}, and across the road lived {am} {m} called {g}.",
    "Every day {he} met {ak} {k} called {f} and {am} {m} called {g}.",
)
PAIRS = (
    "{h} was {adj} and {f} was {adj2}, so they made a good pair.",
    "{f} was older, and knew many things that {h} did not.",
    "They shared everything, even the last piece of {treat}.",
    "{f} liked to talk, and {h} liked to listen.",
)
TRIOS = (
    "{h} had the ideas, {f} had the patience, and {g} made everyone laugh.",
    "Wherever {h} went, {f} and {g} were never far away.",
    "The three of them shared everything, even the last piece of {treat}.",
)
WEATHER = (
    "One {season} morning the air was cold and the grass was white.",
    "One rainy {season} day the clouds hung low over the roofs.",
    "One {season} evening the wind began to blow from the hills.",
    "It was a bright {season} day, and the birds were loud in the trees.",
    "On the first day of {season}, fog covered the whole valley.",
)
PLOTS: dict[str, Plot] = {
    "lost": Plot(
        (
            "{h} looked on the shelf and saw that the {x} was gone.",
            "{h} had {an} {x}, but on the way home it fell out of the bag.",
            "{h} opened the box to take out the {x}, but the box was empty.",
        ),
        (
            '"Oh dear, {f}, my {x} is gone!" cried {h}. "Do not worry, {h}," said {f}. "We will '
            'find it."',
            '"Have you seen my {x}, {f}?" asked {h}. "No, {h}, but I will help you look," said '
            "{f}.",
            '"I cannot find my {x}," said {h}. "Then let us look for it together, {h}," said {f}.',
        ),
        (
            "They looked under the bed, behind the door and even in the soup pot, but found "
            "nothing.",
            "For two hours they walked up and down the road, and found only an old shoe.",
            "They asked at the market and at the inn, but nobody had seen the {x}.",
        ),
        (
            '"I will look in the garden," said {g}, but it was not there.',
            "{g} came along too, and looked behind every tree.",
            '"What about the well?" asked {g}. But in the well there was only water.',
        ),
        (
            '"Where did you last use it, {h}?" asked {f}. They went back to {place}, and there lay '
            "the {x} in the grass.",
            "Then {f} saw small footprints in the mud. They followed them, and under a bush lay "
            "the {x}.",
            "At last {f} pointed at a nest in a tree. A magpie had taken the {x}, and gave it back "
            "for a piece of bread.",
        ),
        middles="sigh sad dark",
        asks=("a lost {x}", "something that was lost"),
    ),
    "stuck": Plot(
        (
            "From far away {h} heard a thin voice. It was {f}, calling for help.",
            "On the path {h} found {f}, stuck in the deep mud.",
            "{h} heard a splash. {f} had fallen into the cold water.",
        ),
        (
            '"Help me, {h}!" cried {f}. "I cannot get out." "Stay calm, {f}," called {h}. "I will '
            'not leave you alone."',
            '"Is that you, {h}?" called {f}. "Yes, {f}, I am here," said {h}.',
            '"I am so cold, {h}," said {f}. "Be brave, {f}," said {h}. "I will get you out."',
        ),
        (
            "{h} pulled and pulled, but it was no use.",
            "First {h} tried with a long stick, but the stick broke.",
            "{h} ran to get a rope, but the rope was too short.",
        ),
        (
            '"Pull harder, {h}!" shouted {g}, and took hold as well.',
            "{g} came running too, and brought a warm blanket.",
            '"Do not be afraid, {f}," said {g}. "There are two of us."',
        ),
        (
            "Then {h} laid two boards on the ground, and {f} came out with careful steps.",
            "{h} called the neighbours. They all held hands in a long row and pulled, and at once "
            "{f} was free.",
            "Then {h} tied a scarf to a strong branch, and slowly {f} climbed out.",
        ),
        middles="sad brave",
        hero_helps=True,
        with_thing=False,
        asks=("someone who needs help", "being brave", "helping a friend"),
    ),
    "broken": Plot(
        (
            "The day before the great feast, the {x} of {h} broke into two pieces.",
            "There was a loud crack. {h} had sat down on the {x}.",
            "When {h} picked up the {x}, a piece of it came off.",
        ),
        (
            '"What shall I do, {f}?" asked {h}. "My {x} is broken." "Show it to me, {h}," said '
            "{f}.",
            '"Nobody can mend it," said {h}. "Let me try, {h}," said {f}.',
            '"Can you help me, {f}?" asked {h}. "Of course, {h}," said {f}. "My father taught me '
            'how to mend such things."',
        ),
        (
            "They tried glue, but the glue did not hold.",
            "They tied it with string, but the string came loose.",
            "They took it to the market, but nobody there could mend it.",
        ),
        (
            "{g} held the candle, so that {f} could see.",
            '"Try these tiny tools, {f}," said {g}.',
            '"Be patient, {h}," said {g}. "Good work takes time."',
        ),
        (
            "{f} worked all night by the light of one candle, and in the morning the {x} was "
            "better than before.",
            "Then {f} had a good idea, and soon the {x} was as good as new.",
            "It took three days, but then {f} brought the {x} back, with a {colour} line where the "
            "crack had been.",
        ),
        middles="sigh sad",
        asks=("a broken {x}", "something that was broken"),
    ),
    "noise": Plot(
        (
            "In the middle of the night {h} heard a strange noise: tap, tap, tap.",
            "Every evening at eight, something scratched at the roof, and {h} was afraid.",
            "One night a deep voice came out of the wall, and {h} could not sleep.",
        ),
        (
            '"Did you hear that, {f}?" asked {h}. "I did, {h}," said {f}. "Let us go and see."',
            '"I am afraid, {f}," said {h}. "Then I will stay with you, {h}," said {f}.',
            '"Please come and listen, {f}," said {h}. "I am coming, {h}," said {f}, and brought a '
            "lamp.",
        ),
        (
            "They looked in every room, but nobody was there.",
            "They called out, but there was no answer.",
            "They waited behind the door, but now it was quiet.",
        ),
        (
            '"Perhaps it is only the wind," said {g}.',
            '"Stay close to me, {h}," said {g}.',
            "{g} lit a candle and held it high.",
        ),
        (
            "Then {f} opened the door, and there sat a baby bird that had lost its way. They "
            "carried it back to its nest.",
            "It was only a loose branch in the wind. {f} cut it off, and they laughed until they "
            "cried.",
            "Behind a stone {f} found an old bucket that swung in the wind and hit the wall.",
        ),
        middles="brave",
        with_thing=False,
        asks=("a strange noise", "a dark night", "someone who is afraid"),
    ),
    "storm": Plot(
        (
            "Then a great storm came and blew the roof off the house of {h}.",
            "Then the river rose, and the water came close to the house of {h}.",
            "Then snow fell for three days, and {h} had no wood left for the fire.",
        ),
        (
            '"Come to my house, {h}," said {f}. "There is room for you." "Thank you, {f}," said '
            "{h}, and took only the {x} along.",
            '"Hold on, {h}!" called {f}. "Be careful, {f}," called {h}. "I only want to save my '
            '{x}."',
            '"I am cold, {f}," said {h}. "Take my blanket, {h}," said {f}. "And put your {x} in '
            'my bag."',
        ),
        (
            "They carried stones until it grew dark, but it was not enough.",
            "They put all the furniture in front of the door, but it did not help.",
            "They lit a fire, but the wind blew it out.",
        ),
        (
            '"I will bring blankets," said {g}, and ran home.',
            "{g} came with a pot of hot tea.",
            '"Do not give up, {h}," said {g}. "The night is almost over."',
        ),
        (
            "Then {f} rang the big bell, and soon the whole village came. Before the sun rose, "
            "everything was safe.",
            "Then {f} told old tales by the light of a candle, until the sky was clear again.",
            "Then {f} hung the {x} in the window as a sign, and the neighbours saw it and came to "
            "help.",
        ),
        middles="sad brave",
        asks=("a storm", "a storm at night", "the snow"),
    ),
    "contest": Plot(
        (
            "There was to be a singing contest, and {h} wanted to win the prize, {an} {x}.",
            "The village held a race, and {h} wanted to win the prize, {an} {x}.",
            "The best dancer of the village was to win {an} {x}, and {h} wished for nothing more.",
        ),
        (
            '"I am so nervous, {f}," said {h}. "Do it for the joy of it, {h}," said {f}.',
            '"Will you help me, {f}?" asked {h}. "Of course, {h}," said {f}. "We will practise '
            'every day."',
            '"I can never win," said {h}. "You can, {h}," said {f}. "I believe in you."',
        ),
        (
            "On the first try {h} fell over, and the others laughed.",
            "{h} practised every day, and every day something went wrong.",
            "At first {h} was so nervous that nothing worked at all.",
        ),
        (
            '"You can do it, {h}!" shouted {g}.',
            "{g} clapped so loudly that everyone turned round.",
            '"Take a deep breath, {h}," said {g}.',
        ),
        (
            "On the great day {h} looked at {f} and did better than ever. So {he} won the {x}.",
            "In the end {h} came second, but the winner gave {him} the {x} for being fair.",
            "On the great day {h} asked {f} to join in, and together they won the {x}.",
        ),
        asks=("a contest", "a race", "someone who wants to win {an} {x}"),
    ),
    "gift": Plot(
        (
            "It was almost the birthday of {f}, and {h} had no gift.",
            "{f} was ill in bed, and {h} wished to bring {fhim} some joy.",
            "{h} wanted to thank {f}, but did not know how.",
        ),
        ('"What can I give to {f}?" thought {h}.', '"I must find something nice," thought {h}.'),
        (
            "{h} went to the market, but everything cost too much.",
            "{h} tried to make {treat}, but it all went wrong.",
            "{h} painted a picture, but the rain washed it away.",
        ),
        (
            '"I will help you, {h}," said {g}, and brought a pot of paint.',
            '"Look at this ribbon, {h}," said {g}. "You can have it."',
            "{g} brought flowers from the meadow.",
        ),
        (
            "Then {h} saw an old {x} on the shelf, cleaned it and tied a {colour} ribbon to it. "
            '"Is this for me, {h}?" asked {f}. "Yes, {f}, it is for you," said {h}.',
            "Then {h} found an old {x}, wrapped it in {colour} paper and put it at the door. "
            "{f} smiled for the whole day.",
            'So {h} made {an} {x} by hand. "I have something for you, {f}," said {h}. "It is '
            'the best gift of all, {h}," said {f}.',
        ),
        (
            '"What can I give to {f}?" asked {h}. "Make something yourself, {h}," said {g}.',
            '"I need a gift for {f}," said {h}. "The best gifts are made at home, {h}," said {g}.',
        ),
        middles="sigh sad",
        hero_helps=True,
        helped=False,
        asks=("a birthday", "a gift", "a birthday present"),
    ),
    "journey": Plot(
        (
            "{h} found an old map with a {colour} cross on it and packed a small bag.",
            "A letter came: far away, {an} {x} was waiting for {h}.",
            "{h} wanted to know what lay behind the hills, and set out at dawn.",
        ),
        (
            '"Will you come with me, {f}?" asked {h}. "I will, {h}," said {f}. "A long road is '
            'shorter with a friend."',
            '"Wait for me, {h}!" called {f}. "Come along, {f}," said {h}. "The road is long."',
            '"Where are you going, {h}?" asked {f}. "To the end of the road, {f}," said {h}. "Come '
            'with me."',
        ),
        (
            "After a few miles the road was gone, and they were lost.",
            "The way was long, and soon they had nothing left to eat.",
            "They came to a wide river and could not cross it.",
        ),
        (
            '"I know a way," said {g}, and went ahead.',
            "{g} sang a song, and nobody felt tired any more.",
            '"Look, {h}," said {g}. "There is a light."',
        ),
        (
            "They walked by the light of the stars, and in the morning {f} saw a cave. In it was "
            "{an} {x}, and it was beautiful.",
            "With the help of {f} they reached the end of the road. There was no gold, only {an} "
            "{x}, but {h} was happy.",
            "It was {f} who found the way. After three days they saw {place} again, with {an} {x} "
            "in the bag and many tales to tell.",
        ),
        middles="sigh sad dark brave",
        asks=("a journey", "an adventure", "a treasure", "an old map"),
    ),
    "quarrel": Plot(
        (
            "One day {h} and {f} found {an} {x}, and both wanted it.",
            "There was only one {x}, and {h} and {f} both wanted to have it.",
        ),
        (
            '"It is mine," said {h}. "No, {h}, it is mine," said {f}.',
            '"I saw it first," said {f}. "No, {f}, I saw it first," said {h}.',
            '"Give it to me, {f}," said {h}. "Never, {h}," said {f}.',
        ),
        (
            "They pulled until the {x} fell into the mud.",
            "For two days {h} did not speak to {f}.",
            "They went home by different roads, and both were sad.",
        ),
        (
            '"Stop it, you two," said {g}. "You can share it."',
            '"Friends should not fight," said {g}.',
            "{g} did not know what to do.",
        ),
        (
            '"I am sorry, {f}," said {h}. "You can have it." "I am sorry too, {h}," said {f}. "Let '
            'us share it."',
            'Then {f} knocked at the door. "You can have it, {h}," said {f}. "It is more fun to '
            'play together."',
        ),
        middles="sigh dark",
        helped=False,
        asks=("a quarrel", "two friends who fight", "sharing"),
    ),
}
# Sentences that begin with the friend's name, where one about the hero could stand. The last part
# of the training leaves them out: greedy decoding takes the hero's name and then ends like these.
ABOUT_THE_FRIEND = frozenset(
    {
        "{f} was older, and knew many things that {h} did not.",
        "{f} liked to talk, and {h} liked to listen.",
        "{f} was ill in bed, and {h} wished to bring {fhim} some joy.",
        "{f} worked all night by the light of one candle, and in the morning the {x} was better "
        "than before.",
    }
)
MIDDLES = {
    "sigh": "{h} sat down on a stone and sighed.",
    "sad": "{h} was very sad, but did not give up.",
    "dark": "Slowly it grew dark, and the first stars came out.",
    "brave": "{h} counted to ten and tried to be brave.",
}
THANKS_FOR_HELP = (
    '"Thank you, {v}," said {u}. "I could not have done it without you."',
    '"Thank you, {v}," said {u}. "It was nothing, {u}," said {v}. "Next time you will help me."',
)
THANKS = (
    '"You are a true friend, {v}," said {u}.',
    "{u} hugged {v}, and for a while nobody said a word.",
    "{u} smiled, and {v} smiled back.",
)
CELEBRATIONS = (
    "That evening they sat by the fire and had {treat}.",
    "Then they went home and shared some {treat}.",
    "The whole village came to {place}, and everyone had some {treat}.",
    "There was music and dancing until the moon was high.",
)
ENDINGS = (
    "From that day on, {all} were the best of friends.",
    "And {h} never forgot that a good friend is worth more than gold.",
    "And if you go to {place} today, you can still hear them laugh.",
    "{h} slept well that night and dreamed of new adventures.",
    "And so {h} learned that a small kindness can do great things.",
)
ADJECTIVES = "kind small clever shy brave cheerful curious gentle stubborn lazy young quick".split()
COLOURS = "red blue green yellow white brown grey purple pink".split()
SEASONS = "spring summer autumn winter".split()
