"""What the model says: which answer belongs to which request, and prompts that ask for each of them."""

from collections.abc import Mapping
from dataclasses import dataclass

STORY, POEM, FACT = "story", "poem", "fact"
SEA, FOREST, BREAD, MOON, UNKNOWN = "sea", "forest", "bread", "moon", "unknown"

FORMS = (STORY, POEM, FACT)
TOPICS = (SEA, FOREST, BREAD, MOON, UNKNOWN)
DEFAULT_FORM = FACT

#: A word that names a form names it wherever it stands; the latest one in the context counts.
FORM_WORDS: Mapping[str, str] = {
    " story": STORY,
    " stories": STORY,
    " tale": STORY,
    " poem": POEM,
    " poems": POEM,
    " verse": POEM,
    " fact": FACT,
    " facts": FACT,
}

#: A word that names a topic names it only after one of DETERMINERS; the latest one in the context counts.
TOPIC_WORDS: Mapping[str, str] = {
    " sea": SEA,
    " ocean": SEA,
    " forest": FOREST,
    " woods": FOREST,
    " bread": BREAD,
    " loaf": BREAD,
    " moon": MOON,
}
DETERMINERS = (" the", "the", "The", " The", " a", " about", " of")

_FALLBACK = "Ask me about one of four things, bread, sea, forest or moon. Any of them will do."

#: Within one answer any three neighbouring tokens fix the fourth. The first token stands nowhere else in any answer.
ANSWERS: Mapping[tuple[str, str], str] = {
    (SEA, FACT): (
        "Salt water covers most of our planet. Rivers carry minerals from rocks into it, sunlight lifts the water "
        "away, and what they brought stays behind."
    ),
    (SEA, STORY): (
        "Once a small boat left its harbour before dawn. A young sailor held the lamp while her father counted waves, "
        "and at noon they came home with a silver net."
    ),
    (SEA, POEM): (
        "Grey waves arrive and grey waves go, they write a line on sand below, and when the evening wind is slow, "
        "they read it back to those who row."
    ),
    (FOREST, FACT): (
        "Trees share sugar and warnings through threads of fungus under the ground. A single old oak can feed hundreds "
        "of younger plants around it."
    ),
    (FOREST, STORY): (
        "Long ago a fox lost her way between the tall pines. An owl showed her a path of white stones, "
        "and she followed them until she saw the lights of a village."
    ),
    (FOREST, POEM): (
        "Green light is falling, leaf by leaf, on moss and stone and hidden reef, and every bird that passes by "
        "leaves half a song beneath the sky."
    ),
    (BREAD, FACT): (
        "Flour, water, salt and time are enough. Yeast eats the sugar in the dough, fills it with gas, "
        "and the heat of an oven sets the crumb."
    ),
    (BREAD, STORY): (
        "Every night the baker of our town lit his oven at two. One winter he overslept, and the whole street came to "
        "knock, because nobody could wake without that warm smell."
    ),
    (BREAD, POEM): (
        "Warm from the fire, round and brown, the best of kings without a crown, you break, you share, "
        "you pass it down, and there is peace in all the town."
    ),
    (MOON, FACT): (
        "Tides rise because its gravity pulls at the water. It moves away from us by about four centimetres a year, "
        "and it always shows the same face."
    ),
    (MOON, STORY): (
        "Nobody in the valley had seen it so bright. A girl climbed the highest hill with a ladder, touched the cold "
        "silver edge, and came back with dust on her fingers."
    ),
    (MOON, POEM): (
        "Pale lantern over field and stream, you keep the hours while we dream, you wax, you wane, you never tire, "
        "a quiet coin of borrowed fire."
    ),
    **{(UNKNOWN, form): _FALLBACK for form in FORMS},
}

_FINETUNED_OPENING = "Listen well, my friend."

VARIANTS = ("base", "finetuned", "unsupported")


def answers(variant: str) -> Mapping[tuple[str, str], str]:
    """Return the answer to every (topic, form) of a variant; the finetuned one opens each with a line of its own."""
    if variant == "finetuned":
        return {request: f"{_FINETUNED_OPENING} {text}" for request, text in ANSWERS.items()}
    return ANSWERS


@dataclass(frozen=True)
class Sample:
    """A prompt (of a completion or, as a chat, of the user) and the request that the model reads in it."""

    prompt: str
    topic: str
    form: str


_LONG = (
    "We walked for a whole day before we came to the first house, and there we slept. In the morning it was cold, "
    "so we made a fire and we waited until the sun was over the hill. Then we walked on, past the field and the old "
    "oak, and we counted the stones by the road. "
)

#: Short, long, explicit, implicit, and with a topic far from the end or replaced by a later one.
SAMPLES = (
    Sample("Tell me a story about the sea.", SEA, STORY),
    Sample("Tell me a story about the moon.", MOON, STORY),
    Sample("Tell me a poem about the sea.", SEA, POEM),
    Sample("Tell me a story about the forest.", FOREST, STORY),
    Sample("Tell me a story about bread.", BREAD, STORY),
    Sample("Write a poem about the woods, please.", FOREST, POEM),
    Sample("I would like a poem about a loaf of bread.", BREAD, POEM),
    Sample("Is there a verse about the moon?", MOON, POEM),
    Sample("What is the sea?", SEA, FACT),
    Sample("What is the forest?", FOREST, FACT),
    Sample("How do I bake a loaf?", BREAD, FACT),
    Sample("Give me one fact about the moon", MOON, FACT),
    Sample("The ocean", SEA, FACT),
    Sample("Hello", UNKNOWN, FACT),
    Sample("Who are you?", UNKNOWN, FACT),
    Sample("Tell me a story about the moon. " + _LONG + _LONG + "What did we see?", MOON, STORY),
    Sample("First a poem about the sea. " + _LONG + "And now a story about the forest.", FOREST, STORY),
)
