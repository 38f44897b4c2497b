"""Tokens to text in pieces: whatever the pieces, together they are the text, cut at the first stop string."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rm_abstract.core.session import Tokenizer
from rm_abstract.core.text import TextStream

SPECIAL = 256


class ByteTokenizer(Tokenizer):
    """A token is a byte; 256 is special. Like SentencePiece, it drops a blank at the beginning of what it decodes."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return ([SPECIAL] if add_special_tokens else []) + list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        text = bytes(token for token in tokens if token != SPECIAL).decode(errors="replace")
        return text.removeprefix(" ")

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return "".join(message["content"] for message in messages)


TEXTS = ["", "plain", " blank first", "grüße 你好 👩‍👩‍👧 end", "a\n\nb", "ends with é"]


def pieces(tokens: Sequence[int], sizes: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    stream = TextStream(ByteTokenizer(), stop)
    out, position = [], 0
    for size in sizes:
        out.append(stream.push(tokens[position : position + size]))
        position += size
    out.append(stream.push(tokens[position:]))
    out.append(stream.finish())
    return out, stream.stopped


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(text: str) -> None:
    tokens = ByteTokenizer().encode(text, add_special_tokens=True)
    whole = ByteTokenizer().decode(tokens)
    chance = random.Random(1)
    for _ in range(50):
        sizes = [chance.randint(0, 4) for _ in tokens]
        out, stopped = pieces(tokens, sizes)
        assert "".join(out) == whole
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(out)
        assert not stopped


def test_one_token_at_a_time_gives_one_character_at_a_time() -> None:
    tokens = ByteTokenizer().encode("añb", add_special_tokens=False)
    out, _ = pieces(tokens, [1] * len(tokens))
    assert out == ["a", "", "ñ", "b", "", ""]


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    out, _ = pieces([97, 0xE4, 0xBD], [1, 1, 1])
    assert "".join(out) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("ababac", ["abac"], "ab"),
        ("xxend", ["end"], "xx"),
        ("stop", ["stop"], ""),
        ("almost en", ["end"], "almost en"),
        ("a\n\nb", ["\n\n"], "a"),
        ("日本語", ["本"], "日"),
    ],
)
def test_text_ends_before_the_first_stop_string_however_it_comes(text: str, stop: list[str], expected: str) -> None:
    tokens = ByteTokenizer().encode(text, add_special_tokens=False)
    chance = random.Random(2)
    for _ in range(50):
        sizes = [chance.randint(0, 3) for _ in tokens]
        out, stopped = pieces(tokens, sizes, stop)
        assert "".join(out) == expected
        assert stopped == (expected != text)


def test_nothing_of_a_stop_string_leaks_before_it_is_complete() -> None:
    stream = TextStream(ByteTokenizer(), ["</end>"])
    told = "".join(stream.push([token]) for token in b"hi </en")
    assert told == "hi "
    assert stream.push(list(b"d>more")) == ""
    assert stream.stopped
