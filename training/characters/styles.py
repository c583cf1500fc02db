"""The styles: ten to train on, two held out whole. Data only; `world.py` says what it means.

DiceBear's lorelei, croodles and thumbs are left alone on purpose: unused by any training.
"""

from training.characters.world import Accessory, Part, Style, numbered, unsaid

PERSON = ("person", "character", "cartoon character", "cartoon person")
FACE = ("face", "character", "cartoon face", "person", "cartoon")

_PEEPS_HEADS = {
    "afro": "a {hair} afro", "bangs": "{hair} hair with bangs",
    "bangs2": "{hair} hair with bangs", "bantuKnots": "{hair} hair in knots",
    "bear": "a bear head", "bun": "{hair} hair in a bun with a {clothes} headband",
    "bun2": "{hair} hair in a high bun", "buns": "{hair} hair in buns",
    "cornrows": "{hair} cornrows", "cornrows2": "{hair} cornrows", "dreads1": "{hair} dreadlocks",
    "dreads2": "{hair} dreadlocks", "flatTop": "a {hair} flat top",
    "flatTopLong": "a tall {hair} flat top", "grayBun": "{hair} hair in a bun",
    "grayMedium": "medium {hair} hair", "grayShort": "short {hair} hair",
    "hatBeanie": "a {clothes} beanie", "hatHip": "a black hat", "hijab": "a black hijab",
    "long": "long {hair} hair", "longAfro": "a big {hair} afro",
    "longBangs": "long {hair} hair with bangs", "longCurly": "long curly {hair} hair",
    "medium1": "medium {hair} hair", "medium2": "medium {hair} hair",
    "medium3": "medium {hair} hair", "mediumBangs": "medium {hair} hair with bangs",
    "mediumBangs2": "curly {hair} hair with bangs",
    "mediumBangs3": "medium {hair} hair with bangs", "mediumStraight": "straight {hair} hair",
    "mohawk": "a {hair} mohawk", "mohawk2": "a spiky {hair} mohawk", "noHair1": "a bald head",
    "noHair2": "a bald head", "noHair3": "balding {hair} hair", "pomp": "a {hair} pompadour",
    "shaved1": "short shaved {hair} hair", "shaved2": "short shaved {hair} hair",
    "shaved3": "spiky shaved {hair} hair", "short1": "short {hair} hair",
    "short2": "short {hair} hair", "short3": "short {hair} hair", "short4": "short {hair} hair",
    "short5": "short {hair} hair", "turban": "a {clothes} turban",
    "twists": "short {hair} twists", "twists2": "short {hair} twists",
}  # fmt: skip

_PEEPS_COLOURED = (
    "bangs", "cornrows", "grayBun", "grayMedium", "grayShort", "mediumBangs2", "mohawk",
    "mohawk2", "noHair3", "short4",
)  # fmt: skip

OPEN_PEEPS = Style(
    key="openPeeps",
    word="open-peeps",
    nouns=PERSON,
    main="head",
    parts={
        "head": Part(_PEEPS_HEADS, "hair", often=_PEEPS_COLOURED),
        "facialHair": Part(
            {
                "chin": "a black chin beard", "full": "a black beard", "full2": "a black beard",
                "full3": "a long black beard", "full4": "a {hair} beard",
                "goatee1": "a black goatee", "goatee2": "a black goatee",
                **numbered("moustache", 8, "a black moustache", digits=1),
                "moustache9": "a {hair} moustache",
            },
            "beard", 0.2, often=("full4", "moustache9"),
        ),
        "accessories": Part(
            {"eyepatch": "an eyepatch", "glasses": "glasses", "glasses2": "round glasses",
             "glasses3": "glasses", "glasses4": "white glasses", "glasses5": "round glasses",
             "sunglasses": "sunglasses", "sunglasses2": "sunglasses"},
            "glasses", 0.25,
        ),
        "mask": Part(unsaid("medicalMask", "respirator"), "extra", 0.0),
    },
    colours={"skin": ("skinColor",), "hair": ("headContrastColor",), "clothes": ("clothingColor",)},
    moods={
        "": {"face": ("blank", "calm", "serious", "solemn", "contempt", "suspicious")},
        "smiling": {"face": ("smile", "smileBig", "smileTeethGap", "cute", "cheeky")},
        "laughing": {"face": ("smileLOL",)},
        "loving": {"face": ("lovingGrin1", "lovingGrin2")},
        "angry": {"face": ("angryWithFang", "rage", "veryAngry", "driven")},
        "worried": {"face": ("concerned", "concernedFear", "hectic")},
        "scared": {"face": ("fear",)},
        "surprised": {"face": ("awe",)},
        "sleepy": {"face": ("tired", "eyesClosed")},
        "old": {"face": ("old",)},
        "talking": {"face": ("explaining",)},
        "eating": {"face": ("eatingHappy",)},
    },
    accessories=(
        Accessory("accessories", ("sunglasses", "sunglasses2"), "sunglasses", "glasses"),
        Accessory("accessories", ("glasses", "glasses3"), "glasses", "glasses"),
        Accessory("accessories", ("eyepatch",), "an eyepatch", "glasses"),
        Accessory("mask", ("medicalMask",), "a white face mask", "extra"),
        Accessory("mask", ("respirator",), "a blue face mask", "extra"),
    ),
    black_hair=frozenset(
        head for head, phrase in _PEEPS_HEADS.items()
        if "{hair}" in phrase and head not in _PEEPS_COLOURED
    ),
)  # fmt: skip

BIG_SMILE = Style(
    key="bigSmile",
    word="big-smile",
    nouns=FACE,
    main="hair",
    parts={
        "hair": Part(
            {
                "shortHair": "short {hair} hair", "mohawk": "a {hair} mohawk",
                "wavyBob": "a wavy {hair} bob", "bowlCutHair": "a {hair} bowl cut",
                "curlyBob": "a curly {hair} bob", "straightHair": "long straight {hair} hair",
                "braids": "{hair} braids", "shavedHead": "a shaved head of {hair} hair",
                "bunHair": "{hair} hair in a bun", "froBun": "curly {hair} hair in a bun",
                "bangs": "long {hair} hair with bangs",
                "halfShavedHead": "half shaved {hair} hair",
                "curlyShortHair": "short curly {hair} hair",
            },
            "hair",
        ),
        "accessories": Part(
            {"glasses": "yellow glasses", "mustache": "a brown moustache", "catEars": "cat ears",
             "sailormoonCrown": "a golden crown"},
            "extra", 0.3,
        ),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",)},
    moods={
        "": {"eyes": ("normal",), "mouth": ("unimpressed",)},
        "smiling": {"eyes": ("normal", "cheery"), "mouth": ("openedSmile", "gapSmile", "kawaii", "teethSmile", "braces")},
        "grinning": {"eyes": ("cheery",), "mouth": ("teethSmile", "awkwardSmile")},
        "sad": {"eyes": ("sad",), "mouth": ("openSad", "unimpressed")},
        "angry": {"eyes": ("angry",), "mouth": ("unimpressed", "openSad")},
        "confused": {"eyes": ("confused",), "mouth": ("unimpressed", "awkwardSmile")},
        "winking": {"eyes": ("winking",), "mouth": ("openedSmile", "kawaii", "gapSmile")},
        "sleepy": {"eyes": ("sleepy",), "mouth": ("unimpressed", "kawaii")},
        "amazed": {"eyes": ("starstruck",), "mouth": ("openedSmile", "gapSmile")},
    },
    accessories=(
        Accessory("accessories", ("sunglasses",), "sunglasses", "glasses"),
        Accessory("accessories", ("glasses",), "yellow glasses", "glasses"),
        Accessory("accessories", ("clownNose",), "a red clown nose", "extra"),
        Accessory("accessories", ("sleepMask",), "a purple sleep mask", "extra"),
        Accessory("accessories", ("faceMask",), "a white face mask", "extra"),
        Accessory("accessories", ("catEars",), "cat ears", "extra"),
    ),
)  # fmt: skip

MICAH = Style(
    key="micah",
    word="micah",
    nouns=PERSON,
    main="hair",
    parts={
        "hair": Part(
            {"fonze": "short {hair} hair", "mrT": "a {hair} mohawk", "dougFunny": "a bald head",
             "mrClean": "a bald head", "dannyPhantom": "{hair} hair in a ponytail",
             "full": "long wavy {hair} hair", "turban": "a {hair} turban",
             "pixie": "a {hair} bob"},
            "hair", often=("fonze", "full", "pixie", "dannyPhantom", "mrT", "turban"),
        ),
        "facialHair": Part({"beard": "a {hair} beard", "scruff": "stubble"}, "beard", 0.2),
        "glasses": Part(
            {"round": "round {glasses} glasses", "square": "square {glasses} glasses"},
            "glasses", 0.25,
        ),
        "shirt": Part(
            {"open": "a {clothes} shirt", "crew": "a {clothes} t-shirt",
             "collared": "a {clothes} collared shirt"},
            "clothes",
        ),
        "earrings": Part({"hoop": "{earring} hoop earrings", "stud": "{earring} earrings"}, "extra", 0.2),
        "ears": Part(unsaid("attached", "detached")),
        "nose": Part(unsaid("curve", "pointed", "tound")),
        "eyebrows": Part(unsaid("up", "down", "eyelashesUp", "eyelashesDown")),
    },
    colours={
        "skin": ("baseColor",), "hair": ("hairColor", "facialHairColor"),
        "clothes": ("shirtColor",), "glasses": ("glassesColor",), "earring": ("earringColor",),
    },
    moods={
        "smiling": {"eyes": ("eyes", "round", "smiling"), "mouth": ("smile",)},
        "laughing": {"eyes": ("eyes", "round", "smiling"), "mouth": ("laughing",)},
        "surprised": {"eyes": ("eyes", "round"), "mouth": ("surprised",)},
        "nervous": {"eyes": ("eyes", "round"), "mouth": ("nervous",)},
        "sad": {"eyes": ("eyes", "round"), "mouth": ("sad",)},
        "frowning": {"eyes": ("eyes", "round"), "mouth": ("frown",)},
        "pouting": {"eyes": ("eyes", "round"), "mouth": ("pucker",)},
        "smirking": {"eyes": ("eyes", "round", "smiling"), "mouth": ("smirk",)},
    },
    accessories=(
        Accessory("glasses", ("round",), "round {accessory} glasses", "glasses", "glassesColor"),
        Accessory("glasses", ("square",), "square {accessory} glasses", "glasses", "glassesColor"),
        Accessory("earrings", ("hoop",), "{accessory} hoop earrings", "extra", "earringColor"),
    ),
)  # fmt: skip

PERSONAS = Style(
    key="personas",
    word="personas",
    nouns=PERSON,
    main="hair",
    parts={
        "hair": Part(
            {
                "long": "long {hair} hair", "sideShave": "half shaved {hair} hair",
                "shortCombover": "short {hair} hair", "curlyHighTop": "a curly {hair} high top",
                "bobCut": "a {hair} bob", "curly": "curly {hair} hair",
                "pigtails": "{hair} pigtails", "curlyBun": "curly {hair} hair in a bun",
                "buzzcut": "a {hair} buzz cut", "bobBangs": "a {hair} bob with bangs",
                "bald": "a bald head", "balding": "balding {hair} hair", "cap": "a cap",
                "bunUndercut": "{hair} hair in a bun", "fade": "short {hair} hair",
                "beanie": "a red beanie", "straightBun": "{hair} hair in a bun",
                "extraLong": "very long {hair} hair",
                "shortComboverChops": "short {hair} hair with sideburns",
                "mohawk": "a {hair} mohawk",
            },
            "hair",
        ),
        "facialHair": Part(
            {"beardMustache": "a {hair} beard", "pyramid": "a {hair} moustache",
             "walrus": "a {hair} moustache", "goatee": "a {hair} goatee",
             "shadow": "{hair} stubble", "soulPatch": "a {hair} soul patch"},
            "beard", 0.2,
        ),
        "eyes": Part({"glasses": "glasses", "sunglasses": "sunglasses"}, "glasses", 0.2, often=("glasses",)),
        "body": Part(
            {"squared": "a {clothes} shirt", "rounded": "a {clothes} shirt",
             "small": "a {clothes} shirt", "checkered": "a checkered {clothes} shirt"},
            "clothes",
        ),
        "nose": Part(unsaid("mediumRound", "smallRound", "wrinkles")),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",), "clothes": ("clothingColor",)},
    moods={
        "smiling": {"eyes": ("open", "happy"), "mouth": ("smile", "bigSmile")},
        "frowning": {"eyes": ("open",), "mouth": ("frown",)},
        "surprised": {"eyes": ("open",), "mouth": ("surprise",)},
        "smirking": {"eyes": ("open",), "mouth": ("smirk",)},
        "sleepy": {"eyes": ("sleep",), "mouth": ("smirk", "lips", "frown")},
        "winking": {"eyes": ("wink",), "mouth": ("smile", "smirk", "bigSmile")},
        "": {"eyes": ("open",), "mouth": ("lips",)},
    },
    accessories=(
        Accessory("eyes", ("sunglasses",), "sunglasses", "glasses"),
        Accessory("eyes", ("glasses",), "glasses", "glasses"),
        Accessory("mouth", ("pacifier",), "a pacifier", "extra"),
    ),
)  # fmt: skip

TOON_HEAD = Style(
    key="toonHead",
    word="toon-head",
    nouns=PERSON,
    main="hair",
    parts={
        "hair": Part(
            {"sideComed": "short {hair} hair", "undercut": "short {hair} hair",
             "spiky": "spiky {hair} hair", "bun": "{hair} hair in a bun"},
            "hair",
        ),
        "rearHair": Part(
            {"longStraight": "long straight {hair} hair", "longWavy": "long wavy {hair} hair",
             "shoulderHigh": "shoulder length {hair} hair", "neckHigh": "medium {hair} hair"},
            "hair", 0.45,
        ),
        "beard": Part(
            {"moustacheTwirl": "a {hair} moustache", "fullBeard": "a {hair} beard",
             "chin": "a {hair} chin beard", "chinMoustache": "a {hair} goatee",
             "longBeard": "a long {hair} beard"},
            "beard", 0.22,
        ),
        "clothes": Part(
            {"turtleNeck": "a {clothes} turtleneck", "openJacket": "a {clothes} jacket",
             "dress": "a {clothes} dress", "shirt": "a {clothes} shirt",
             "tShirt": "a {clothes} t-shirt"},
            "clothes",
        ),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",), "clothes": ("clothesColor",)},
    moods={
        "smiling": {"eyes": ("happy", "wide"), "eyebrows": ("happy", "neutral", "raised"), "mouth": ("smile",)},
        "laughing": {"eyes": ("happy", "bow"), "eyebrows": ("happy", "raised"), "mouth": ("laugh",)},
        "angry": {"eyes": ("wide", "happy"), "eyebrows": ("angry",), "mouth": ("angry",)},
        "sad": {"eyes": ("humble", "wide"), "eyebrows": ("sad",), "mouth": ("sad",)},
        "surprised": {"eyes": ("wide",), "eyebrows": ("raised",), "mouth": ("agape",)},
        "winking": {"eyes": ("wink",), "eyebrows": ("happy", "neutral"), "mouth": ("smile", "laugh")},
        "sleepy": {"eyes": ("humble",), "eyebrows": ("neutral",), "mouth": ("smile",)},
    },
)  # fmt: skip

MINIAVS = Style(
    key="miniavs",
    word="miniavs",
    nouns=PERSON,
    main="hair",
    parts={
        "hair": Part(
            {"balndess": "nearly bald {hair} hair", "slaughter": "balding {hair} hair",
             "ponyTail": "{hair} hair in a ponytail", "long": "long {hair} hair",
             "curly": "curly {hair} hair", "stylish": "stylish {hair} hair",
             "elvis": "a {hair} pompadour", "classic02": "short {hair} hair",
             "classic01": "short {hair} hair"},
            "hair",
        ),
        "mustache": Part(
            {"pencilThinBeard": "a thin {hair} beard", "pencilThin": "a thin {hair} moustache",
             "horshoe": "a horseshoe {hair} moustache", "freddy": "a {hair} moustache"},
            "beard", 0.25,
        ),
        "glasses": Part({"normal": "black glasses"}, "glasses", 0.2),
        "body": Part({"tShirt": "a {clothes} t-shirt", "golf": "a {clothes} turtleneck"}, "clothes"),
        "head": Part(unsaid("normal", "wide", "thin")),
        "blushes": Part({"default": "pink cheeks"}, "extra", 0.3),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",), "clothes": ("bodyColor",)},
    moods={
        "smiling": {"eyes": ("normal",), "mouth": ("default",)},
        "confident": {"eyes": ("confident",), "mouth": ("default",)},
        "happy": {"eyes": ("happy",), "mouth": ("default",)},
        "gap-toothed": {"eyes": ("normal", "happy", "confident"), "mouth": ("missingTooth",)},
    },
    accessories=(Accessory("glasses", ("normal",), "black glasses", "glasses"),),
)  # fmt: skip

DYLAN = Style(
    key="dylan",
    word="dylan",
    nouns=FACE,
    main="hair",
    parts={
        "hair": Part(
            {"plain": "short {hair} hair", "wavy": "wavy {hair} hair",
             "shortCurls": "short curly {hair} hair", "parting": "{hair} hair with a parting",
             "spiky": "spiky {hair} hair", "roundBob": "a round {hair} bob",
             "longCurls": "long curly {hair} hair", "buns": "{hair} hair in buns",
             "bangs": "long {hair} hair with bangs", "fluffy": "fluffy {hair} hair",
             "flatTop": "a {hair} flat top", "shaggy": "shaggy {hair} hair"},
            "hair",
        ),
        "facialHair": Part({"default": "stubble"}, "beard", 0.2),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",)},
    moods={
        "happy": {"mood": ("happy",)}, "angry": {"mood": ("angry",)}, "": {"mood": ("neutral",)},
        "laughing": {"mood": ("superHappy",)}, "sad": {"mood": ("sad",)},
        "hopeful": {"mood": ("hopeful",)}, "confused": {"mood": ("confused",)},
    },
)  # fmt: skip

FUN_EMOJI = Style(
    key="funEmoji",
    word="fun-emoji",
    nouns=("emoji", "emoji face", "face"),
    main="eyes",
    parts={
        "eyes": Part(
            {"sad": "big eyes", "tearDrop": "a tear", "pissed": "annoyed eyes",
             "cute": "cute eyes", "wink": "a wink", "wink2": "a wink", "plain": "plain eyes",
             "glasses": "glasses", "closed": "closed happy eyes", "love": "heart eyes",
             "stars": "star eyes", "shades": "sunglasses", "closed2": "closed eyes",
             "crying": "crying eyes", "sleepClose": "sleeping eyes"},
            "extra",
        ),
    },
    colours={"face": ("backgroundColor",)},
    moods={
        "": {"mouth": ("plain",)}, "smiling": {"mouth": ("lilSmile", "wideSmile")},
        "sad": {"mouth": ("sad",)}, "shy": {"mouth": ("shy",)}, "cute": {"mouth": ("cute",)},
        "shouting": {"mouth": ("shout",)}, "grinning": {"mouth": ("smileTeeth",)},
        "laughing": {"mouth": ("smileLol",)}, "angry": {"mouth": ("pissed",)},
        "drooling": {"mouth": ("drip",)}, "cheeky": {"mouth": ("tongueOut",)},
        "kissing": {"mouth": ("kissHeart",)}, "sick": {"mouth": ("sick",)},
    },
    accessories=(Accessory("mouth", ("faceMask",), "a white face mask", "extra"),),
)  # fmt: skip

PIXEL_ART = Style(
    key="pixelArt",
    word="pixel-art",
    nouns=("character", "person", "pixel character", "pixel person"),
    main="hair",
    parts={
        "hair": Part(
            numbered("short", 24, "short {hair} hair") | numbered("long", 21, "long {hair} hair"),
            "hair",
        ),
        "beard": Part(numbered("variant", 8, "a {hair} beard"), "beard", 0.15),
        "glasses": Part(
            numbered("light", 7, "{glasses} glasses") | numbered("dark", 7, "dark {glasses} glasses"),
            "glasses", 0.2,
        ),
        "hat": Part(numbered("variant", 10, "a {hat} hat"), "hat", 0.1),
        "accessories": Part(numbered("variant", 4, "golden earrings"), "extra", 0.1),
        "clothing": Part(numbered("variant", 23, "a {clothes} shirt"), "clothes"),
        "eyes": Part(numbered("variant", 12)),
    },
    colours={
        "skin": ("skinColor",), "hair": ("hairColor",), "clothes": ("clothingColor",),
        "glasses": ("glassesColor",), "hat": ("hatColor",), "iris": ("eyesColor",),
    },
    moods={
        "smiling": {"mouth": tuple(numbered("happy", 13))},
        "sad": {"mouth": tuple(numbered("sad", 10))},
    },
    accessories=(
        Accessory("glasses", tuple(numbered("dark", 7)), "dark {accessory} glasses", "glasses", "glassesColor"),
        Accessory("glasses", tuple(numbered("light", 7)), "{accessory} glasses", "glasses", "glassesColor"),
        Accessory("hat", tuple(numbered("variant", 10)), "a {accessory} hat", "hat", "hatColor"),
    ),
    fixed={"mouthColor": "d2555a", "accessoriesColor": "daa520"},
)  # fmt: skip

_BIG_EARS_MOUTHS = {1: 5, 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 8}

BIG_EARS = Style(
    key="bigEars",
    word="big-ears",
    nouns=FACE,
    main="hair",
    parts={
        "hair": Part(
            numbered("short", 20, "short {hair} hair") | numbered("long", 20, "long {hair} hair"),
            "hair",
        ),
        "frontHair": Part(numbered("variant", 12)),
        "face": Part(numbered("variant", 10)),
        "eyes": Part(numbered("variant", 32)),
        "ear": Part(numbered("variant", 8)),
        "nose": Part(numbered("variant", 12)),
        "sideburn": Part(numbered("variant", 7)),
        "cheek": Part(numbered("variant", 6), probability=0.4),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",)},
    moods={
        "": {
            "mouth": tuple(
                f"variant{group:02d}{i:02d}"
                for group, count in _BIG_EARS_MOUTHS.items() for i in range(1, count + 1)
            )
        }
    },
)  # fmt: skip

ADVENTURER = Style(
    key="adventurer",
    word="",
    nouns=PERSON,
    main="hair",
    parts={
        "hair": Part(
            numbered("short", 19, "short {hair} hair") | numbered("long", 26, "long {hair} hair"),
            "hair",
        ),
        "glasses": Part(numbered("variant", 5, "glasses"), "glasses", 0.2),
        "earrings": Part(numbered("variant", 6, "earrings"), "extra", 0.15),
        "features": Part(
            {"mustache": "a moustache", "blush": "pink cheeks", "birthmark": "a birthmark",
             "freckles": "freckles"},
            "extra", 0.15,
        ),
    },
    colours={"skin": ("skinColor",), "hair": ("hairColor",)},
    moods={
        "": {"eyes": tuple(numbered("variant", 26)), "eyebrows": tuple(numbered("variant", 15)),
             "mouth": tuple(numbered("variant", 30))},
    },
)  # fmt: skip

NOTIONISTS = Style(
    key="notionists",
    word="",
    nouns=PERSON,
    main="hair",
    parts={
        "hair": Part({**numbered("variant", 63), "hat": ""}),
        "body": Part(numbered("variant", 25)),
        "beard": Part(numbered("variant", 12, "a beard"), "beard", 0.2),
        "glasses": Part(numbered("variant", 11, "glasses"), "glasses", 0.25),
        "nose": Part(numbered("variant", 20)),
        "bodyIcon": Part(unsaid("electric", "saturn", "galaxy"), probability=0.4),
        "gesture": Part(unsaid("hand"), probability=0.0),
    },
    colours={},
    moods={
        "": {"eyes": tuple(numbered("variant", 5)), "brows": tuple(numbered("variant", 13)),
             "lips": tuple(numbered("variant", 30))},
    },
)  # fmt: skip

TRAINING_STYLES = {
    style.key: style
    for style in (OPEN_PEEPS, BIG_SMILE, MICAH, PERSONAS, TOON_HEAD, MINIAVS, DYLAN, FUN_EMOJI, PIXEL_ART, BIG_EARS)
}  # fmt: skip
HELDOUT_STYLES = {style.key: style for style in (NOTIONISTS, ADVENTURER)}
STYLES = TRAINING_STYLES | HELDOUT_STYLES

SHARE = {key: 0.4 if key == "funEmoji" else 1.0 for key in TRAINING_STYLES}
"""How often a training style is drawn, relative to the others: emoji vary less."""
