"""The invented village of Larkmere: word lists for the demo model's training text.

Plain data, all of it written for this project. Nothing here knows how a dialogue is put
together; `demo_text` and `demo_stories` do that.
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

VILLAGE = "Larkmere"

# One line per category that a list can be asked for. The order matters: a list walks along
# its category, so neighbours come out together. Plural name -> members.
_CATEGORY_LINES: dict[str, str] = {
    "animals": "fox hare otter badger mouse owl goat hen duck cat dog pony cow sheep frog mole",
    "birds": "robin owl crow duck goose swan wren lark heron magpie hen dove finch gull",
    "fish": "trout perch carp pike eel salmon herring cod minnow bream tench roach",
    "insects": "bee ant moth beetle cricket wasp butterfly ladybird fly gnat dragonfly hornet",
    "pets": "dog cat rabbit hamster parrot goldfish pony tortoise canary ferret",
    "fruits": "apple pear plum cherry grape peach lemon orange melon fig berry banana",
    "vegetables": "carrot onion leek potato bean pea cabbage turnip beet pumpkin radish kale",
    "foods": "bread soup cheese pie stew porridge cake butter honey jam eggs noodles",
    "drinks": "water milk tea cider juice coffee cocoa lemonade broth mead",
    "colours": "red blue green yellow white black brown orange purple grey pink silver",
    "trees": "oak ash birch willow pine elm maple beech alder hazel holly larch",
    "flowers": "rose daisy tulip lily violet poppy iris bluebell marigold primrose clover",
    "tools": "hammer saw spade rake axe needle chisel file drill ladder rope bucket",
    "toys": "kite ball doll drum top boat puzzle hoop whistle puppet marble swing",
    "instruments": "drum flute fiddle harp horn bell pipe lute piano guitar trumpet",
    "clothes": "hat coat scarf shirt boots gloves socks cloak apron dress belt jacket",
    "places": "mill bridge market school bakery forge well tower barn harbour orchard inn",
    "jobs": "baker miller smith farmer teacher fisher weaver potter carpenter shepherd cook tailor",
    "rooms": "kitchen attic cellar hall bedroom pantry parlour workshop library bathroom",
    "furniture": "table chair bed shelf bench stool cupboard desk chest lamp sofa wardrobe",
    "shapes": "circle square triangle star oval cube cone ring diamond spiral",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "months": "January February March April May June July August September October November "
    "December",
    "seasons": "spring summer autumn winter",
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "metals": "iron copper tin gold silver lead brass bronze steel zinc",
}

CATEGORIES: dict[str, tuple[str, ...]] = {k: tuple(v.split()) for k, v in _CATEGORY_LINES.items()}

# Other names under which a stranger may ask for the same list.
CATEGORY_ALIASES: dict[str, tuple[str, ...]] = {
    "animals": ("animals", "different animals", "kinds of animals"),
    "fruits": ("fruits", "kinds of fruit", "pieces of fruit", "types of fruit"),
    "colours": ("colours", "colors", "different colours"),
    "foods": ("foods", "things to eat", "kinds of food"),
    "drinks": ("drinks", "things to drink", "kinds of drink"),
    "clothes": ("clothes", "things to wear", "pieces of clothing"),
    "places": ("places", "places in the village", "places in Larkmere"),
    "jobs": ("jobs", "jobs in the village", "kinds of work"),
    "toys": ("toys", "things to play with"),
    "instruments": ("instruments", "musical instruments"),
    "vegetables": ("vegetables", "kinds of vegetables"),
    "furniture": ("pieces of furniture", "things in a house"),
    "tools": ("tools", "tools in a workshop"),
}

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

PET_NAMES = (
    "Rex Bella Milo Luna Pip Biscuit Shadow Daisy Rusty Pepper Ginger Max Toby Coco Socks Bruno "
    "Misty Patch Smoky Honey Teddy Snow Fudge Buddy Rocky Poppy Oreo Felix Whiskers Nala Simba "
    "Spot Charlie Lucky Duke Molly"
).split()

# Pieces for made-up names, so that copying a name the model has never seen is trained too.
NAME_STARTS = "Bal Cor Dar El Fen Gal Har Is Jor Kal Lor Mar Nor Or Pel Rin Sel Tar Ul Vel Zor Ti"
NAME_ENDS = "a en in o us ik ela ora ius ando et is am ina ok ley win ton ric mo dy ster by"

STORY_PLACES = (
    "the old mill|the stone bridge|the market square|the village school|the bakery|the forge|"
    "the orchard|the harbour|the hay barn|the clock tower|the willow pond|the oak wood|"
    "the sheep meadow|the river bank|the windy hill|the little inn|the rose garden|"
    "the lighthouse|the blue lake|the pine forest|the long lane|the castle|the snowy valley|"
    "the beach"
).split("|")

TREASURES = (
    "key lantern kite bell map hat scarf button spoon ring basket drum flute book clock cup "
    "whistle boat coin mirror pocket-knife feather jar blanket teapot compass marble ribbon"
).split()

FOODS_TREAT = (
    "apple pie|honey cake|hot soup|warm bread|plum jam|berry tart|oat biscuits|cheese rolls|"
    "pumpkin stew|cherry cake|mint tea|pear crumble|roasted nuts|pancakes"
).split("|")

OPPOSITES = (
    "hot cold|big small|tall short|fast slow|old new|happy sad|light dark|wet dry|hard soft|"
    "loud quiet|full empty|open closed|early late|near far|high low|clean dirty|strong weak|"
    "rich poor|day night|up down|left right|in out|thick thin|heavy light|sweet sour|front back|"
    "first last|yes no|begin end|awake asleep|brave afraid|rough smooth"
).split("|")

# "What is a mill?" -> one or two short sentences.
DEFINITIONS: dict[str, str] = {
    "mill": "A mill is a building where grain is ground into flour. Ours is turned by the river.",
    "bridge": "A bridge is a way to cross water or a road. Ours is made of stone.",
    "market": "A market is a place where people buy and sell things. Ours opens every Saturday.",
    "school": "A school is a place where children learn to read, write and count.",
    "bakery": "A bakery is a shop where bread and cakes are made. It smells best in the morning.",
    "forge": "A forge is the workshop of a smith. Iron is made hot there and shaped with a hammer.",
    "well": "A well is a deep hole that gives water. A bucket on a rope brings it up.",
    "tower": "A tower is a tall, narrow building. Ours has a clock and a bell.",
    "barn": "A barn is a large farm building for hay and animals.",
    "harbour": "A harbour is a safe place for boats, away from the big waves.",
    "orchard": "An orchard is a field of fruit trees, such as apple and pear trees.",
    "inn": "An inn is a house where travellers can eat and sleep.",
    "lighthouse": "A lighthouse is a tower with a bright lamp that shows ships the way at night.",
    "castle": "A castle is a large, strong house with thick walls, built long ago.",
    "river": "A river is a long stream of water that runs to a lake or to the sea.",
    "lake": "A lake is a large piece of water with land all around it.",
    "forest": "A forest is a large place full of trees, where many animals live.",
    "meadow": "A meadow is a field of grass and flowers where sheep like to eat.",
    "hill": "A hill is a high piece of land, lower than a mountain.",
    "fox": "A fox is a wild animal with red fur and a thick tail. It hunts at night.",
    "hare": "A hare is like a rabbit, but larger and faster, with very long ears.",
    "otter": "An otter is an animal that swims very well and eats fish.",
    "badger": "A badger is a strong animal with a black and white face. It digs its home.",
    "owl": "An owl is a bird with large eyes that hunts at night and flies without a sound.",
    "goat": "A goat is a farm animal with horns. It climbs well and eats almost anything.",
    "hen": "A hen is a farm bird that lays eggs.",
    "duck": "A duck is a bird that swims on ponds and rivers.",
    "frog": "A frog is a small green animal that jumps, swims and sings in the evening.",
    "mole": "A mole is a small animal that digs tunnels under the grass. It cannot see well.",
    "bee": "A bee is a small insect that visits flowers and makes honey.",
    "robin": "A robin is a small bird with a red chest that sings even in winter.",
    "dog": "A dog is an animal that lives with people, guards the house and likes to play.",
    "cat": "A cat is a small animal that lives with people and catches mice.",
    "pony": "A pony is a small horse. Children learn to ride on it.",
    "trout": "A trout is a fish that lives in cold, clean rivers.",
    "apple": "An apple is a round fruit, red or green, that grows on a tree.",
    "carrot": "A carrot is a long orange vegetable that grows under the ground.",
    "honey": "Honey is a sweet food that bees make from flowers.",
    "bread": "Bread is a food made from flour, water and salt, baked in an oven.",
    "soup": "Soup is a hot food made by cooking vegetables or meat in water.",
    "cheese": "Cheese is a food made from milk. Some cheese is soft and some is hard.",
    "tea": "Tea is a hot drink made from leaves and water.",
    "oak": "An oak is a large, strong tree that grows very old and drops acorns.",
    "willow": "A willow is a tree that grows near water, with long, soft branches.",
    "rose": "A rose is a flower with a sweet smell and sharp thorns.",
    "hammer": "A hammer is a tool with a heavy head. You use it to drive nails into wood.",
    "saw": "A saw is a tool with sharp teeth that cuts wood.",
    "spade": "A spade is a tool for digging in the garden.",
    "needle": "A needle is a thin, sharp tool for sewing cloth.",
    "kite": "A kite is a light toy on a long string that flies in the wind.",
    "drum": "A drum is a round instrument that you play with your hands or with sticks.",
    "flute": "A flute is an instrument that you play by blowing air across it.",
    "fiddle": "A fiddle is an instrument with four strings that you play with a bow.",
    "lantern": "A lantern is a lamp that you can carry. It keeps the flame safe from the wind.",
    "map": "A map is a picture that shows where places are.",
    "clock": "A clock is a machine that shows the time.",
    "baker": "A baker is a person who makes bread and cakes. Bakers get up very early.",
    "miller": "A miller is a person who works in a mill and makes flour.",
    "smith": "A smith is a person who makes things from hot iron.",
    "farmer": "A farmer is a person who grows food and keeps animals.",
    "teacher": "A teacher is a person who helps others to learn.",
    "fisher": "A fisher is a person who catches fish for a living.",
    "weaver": "A weaver is a person who makes cloth from thread.",
    "potter": "A potter is a person who makes cups and bowls from clay.",
    "shepherd": "A shepherd is a person who takes care of sheep.",
    "rain": "Rain is water that falls from the clouds in small drops.",
    "snow": "Snow is frozen water that falls from the sky in soft white flakes.",
    "fog": "Fog is a cloud that lies on the ground, so that you cannot see far.",
    "storm": "A storm is very bad weather with strong wind, rain and often thunder.",
    "wind": "Wind is air that moves. It turns the mill and carries kites.",
    "sun": "The sun is the bright star that gives us light and warmth by day.",
    "moon": "The moon is the bright round thing that we see in the sky at night.",
    "winter": "Winter is the cold part of the year, when the lake freezes.",
    "summer": "Summer is the warm part of the year, when the days are long.",
    "spring": "Spring is the time of the year when flowers and leaves come back.",
    "autumn": "Autumn is the time of the year when apples are ripe and leaves fall.",
    "Larkmere": "Larkmere is a small made-up village by a river, with a mill, a market and an inn.",
}

# Things that the model is taught to say it does not know.
UNKNOWN_TOPICS = (
    "the capital of France|the president|the speed of light|quantum physics|the stock market|"
    "football results|the news|computers|Python code|a web page|the population of China|"
    "Shakespeare|the Roman empire|rockets|the planet Mars|chemistry|electric cars|London|America|"
    "the longest river in the world|tax law|medicine|grammar|French|the weather tomorrow|"
    "my email|a poem about love|the meaning of life|politics|films|the internet|history|banks|"
    "the highest mountain|a train to Berlin|dinosaurs|machine learning|the price of gold|music "
    "from the radio|video games|phones|an essay|the year 1990|Einstein|the law|aeroplanes"
).split("|")
