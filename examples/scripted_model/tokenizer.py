"""The oracle's tokenizer: reads the model's tokenizer files and does what they say. It knows no other kind."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path


class Tokenizer:
    """Byte-level BPE as in a tokenizer.json, and the chat template, written out by hand."""

    def __init__(self, directory: str | Path) -> None:
        content = json.loads((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((Path(directory) / "tokenizer_config.json").read_text(encoding="utf-8"))
        split, byte_level = content["pre_tokenizer"]["pretokenizers"]
        if content["model"]["type"] != "BPE" or (split["type"], byte_level["type"]) != ("Split", "ByteLevel"):
            raise ValueError(f"{directory}: the oracle reads only tokenizers that split, then use byte-level BPE")
        self._pattern = re.compile(split["pattern"]["Regex"])
        self._special: dict[str, int] = {token["content"]: token["id"] for token in content["added_tokens"]}
        self._ids: dict[str, int] = content["model"]["vocab"]
        self._tokens = {index: token for token, index in self._ids.items()}
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
        self._prefix = [
            index
            for part in content["post_processor"]["single"]
            if "SpecialToken" in part
            for index in content["post_processor"]["special_tokens"][part["SpecialToken"]["id"]]["ids"]
        ]
        # GPT-2's alphabet: bytes that print stand for themselves, the others get the characters from U+0100 on.
        unprintable = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
        self._symbols = {byte: chr(byte) for byte in range(256)}
        self._symbols |= {byte: chr(0x100 + index) for index, byte in enumerate(unprintable)}
        self._bytes = {symbol: byte for byte, symbol in self._symbols.items()}
        self.bos: str = config["bos_token"]
        self.eos_id = self._special[config["eos_token"]]
        self.pad_id = self._special[config["pad_token"]]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, in which special tokens count as such; by default after the beginning token."""
        ids = list(self._prefix) if add_special_tokens else []
        for part in re.split("(" + "|".join(map(re.escape, self._special)) + ")", text):
            if part in self._special:
                ids.append(self._special[part])
            else:
                for piece in self._pattern.findall(part):
                    ids += self._encode_piece(piece)
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        parts = [self._symbols[byte] for byte in piece.encode()]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(parts)]
            first = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[first] == len(self._ranks):
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        return [self._ids[part] for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        symbols = "".join(self._tokens[index] for index in ids if index in self._tokens)
        return bytes(self._bytes[symbol] for symbol in symbols).decode(errors="replace")

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt of a chat: what the chat template renders, with the cue for the assistant's answer."""
        turns = [f"<|{message['role']}|>\n{message['content']}<|end|>\n" for message in messages]
        return self.bos + "".join(turns) + "<|assistant|>\n"

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat's prompt; each message has a `role` and a `content`."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)
