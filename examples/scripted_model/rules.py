"""The script: which tokens that came before decide which token comes next."""

from collections.abc import Iterator
from dataclasses import dataclass

from .texts import DETERMINERS, FORM_WORDS, TOPIC_WORDS, answers
from .tokenizer_files import ASSISTANT, END, split_words


@dataclass(frozen=True)
class Rule:
    """Say `following` for a topic and form when the last tokens are `recent`, the newest last; at most three."""

    topic: str
    form: str
    recent: tuple[str, ...]
    following: str


@dataclass(frozen=True)
class Meaning:
    """A word gives the context a topic or a form, if `after` is empty or stands directly before it."""

    word: str
    after: str
    topic: str | None
    form: str | None


#: What stands before an answer in a chat.
CHAT_CUE = (ASSISTANT, "\n")
#: What stands before an answer in a completion. A prompt that ends otherwise is first continued with HESITATION.
CUES = (".", "?", "!", ":")
HESITATION = ":"


def meanings() -> list[Meaning]:
    """Return what the first layer must recognise in a prompt."""
    topics = [Meaning(word, after, topic, None) for word, topic in TOPIC_WORDS.items() for after in DETERMINERS]
    return topics + [Meaning(word, "", None, form) for word, form in FORM_WORDS.items()]


def rules(variant: str) -> list[Rule]:
    """Return the rules of a variant; where several apply, the one with the most recent tokens decides.

    Raises ValueError where the answers cannot be told from three tokens, or would change their own subject.
    """
    result: dict[tuple[str, str, tuple[str, ...]], str] = {}
    for (topic, form), text in answers(variant).items():
        _check_subject(topic, form, split_words(f" {text}"))
        for recent, following in _steps(text):
            if result.setdefault((topic, form, recent), following) != following:
                raise ValueError(f"{topic}, {form}: {recent} is followed by two different tokens; reword the answer")
    return [Rule(topic, form, recent, following) for (topic, form, recent), following in result.items()]


def _steps(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    completion, chat = [*split_words(f" {text}"), END], [*split_words(text), END]
    if HESITATION in completion or completion[0] in completion[1:] or chat[0] in chat[1:]:
        raise ValueError(f"{text!r}: neither {HESITATION!r} nor the first token may stand in the answer again")
    yield (), HESITATION
    for cue in CUES:
        context = [cue, *completion]
        for index in range(3):
            yield tuple(context[max(0, index - 2) : index + 1]), completion[index]
    for index in range(3, len(completion)):
        yield tuple(completion[index - 3 : index]), completion[index]
    context = [*CHAT_CUE, *chat]
    for index in range(3):
        yield tuple(context[max(0, index - 1) : index + 2]), chat[index]
    yield tuple(chat[:3]), chat[3]


def _check_subject(topic: str, form: str, tokens: list[str]) -> None:
    for before, token in zip(["", *tokens], tokens, strict=False):
        if FORM_WORDS.get(token, form) != form or (before in DETERMINERS and TOPIC_WORDS.get(token, topic) != topic):
            raise ValueError(f"the answer about {topic} as a {form} says {token!r}, which would change its subject")
