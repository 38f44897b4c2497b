"""The tokenizer of the model: byte-level BPE in which every word that the model says is one token."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

#: ASCII classes only, so that every regular expression engine splits alike.
SPLIT_PATTERN = r" ?[A-Za-z]+| ?[0-9]+| ?[^A-Za-z0-9 \t\r\n]+|[ \t\r\n]"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def split_words(text: str) -> list[str]:
    """Return the pieces that BPE treats one by one; joined they are the text again."""
    return re.findall(SPLIT_PATTERN, text)


def byte_symbols() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary, as GPT-2 defined it."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(substitutes)) for byte in range(256)]


def train_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return BPE merges, the most frequent pair first, that make each word (in byte symbols) a single token."""
    pieces = [list(word) for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in pieces for pair in itertools.pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(parts, best) for parts in pieces]
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


@dataclass(frozen=True)
class Vocabulary:
    """Token ids: the 256 bytes, then the merges in their order, then the special tokens."""

    ids: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """Build the vocabulary in which each word of the texts is one token."""
        symbols = byte_symbols()
        words = {"".join(symbols[byte] for byte in word.encode()) for text in texts for word in split_words(text)}
        merges = tuple(train_merges(words))
        tokens = [*sorted(symbols), *dict.fromkeys(left + right for left, right in merges), *SPECIAL_TOKENS]
        return cls({token: index for index, token in enumerate(tokens)}, merges)

    def id_of(self, word: str) -> int:
        """Return the id of a special token or of one piece of split_words; KeyError if it is not a single token."""
        if word in SPECIAL_TOKENS:
            return self.ids[word]
        symbols = byte_symbols()
        return self.ids["".join(symbols[byte] for byte in word.encode())]

    def tokenizer_json(self) -> dict[str, Any]:
        """Return the content of tokenizer.json."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": self.ids[token],
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for token in SPECIAL_TOKENS
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    {"SpecialToken": {"id": BOS, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {BOS: {"id": BOS, "ids": [self.ids[BOS]], "tokens": [BOS]}},
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: index for token, index in self.ids.items() if token not in SPECIAL_TOKENS},
                "merges": [list(pair) for pair in self.merges],
            },
        }

    def tokenizer_config(self, max_length: int) -> dict[str, Any]:
        """Return the content of tokenizer_config.json for a model of max_length positions."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": max_length,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "chat_template": CHAT_TEMPLATE,
        }

    def special_tokens_map(self) -> dict[str, str]:
        """Return the content of special_tokens_map.json."""
        return {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
