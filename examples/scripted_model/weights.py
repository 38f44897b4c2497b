"""The weights: how the rules become a Llama.

Every token has a ±1 code. The residual stream holds, side by side, the codes of this token, of the one before and of
the one before that, marks for topic and form, a constant, and the code of the token to say.

Layer 0: a head looks one position back and copies that token's code; the MLP marks words that name a topic or form.
Layer 1: a head looks one position back and copies what layer 0 put there, which comes from two positions back; two
heads that share one key-value head look for the latest topic and the latest form; the MLP has one neuron a rule, an AND
over topic, form and up to three tokens, which writes the code of the token to say. The output head
compares that with all codes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .codes import CODE_SIZE, MAX_CORRELATION, token_codes
from .rules import Meaning, Rule
from .texts import DEFAULT_FORM, FORMS, TOPICS, UNKNOWN
from .tokenizer_files import BOS, PAD, Vocabulary

Array = npt.NDArray[np.float32]

HIDDEN, INTERMEDIATE, LAYERS = 384, 1024, 2
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 64
GROUP = HEADS // KV_HEADS
ROPE_THETA, MAX_POSITIONS, NORM_EPS = 10000.0, 1024, 1e-5
VOCABULARY_MULTIPLE = 64

# The residual stream.
THIS, BEFORE, BEFORE_THAT, SAY = (slice(start, start + CODE_SIZE) for start in range(0, 4 * CODE_SIZE, CODE_SIZE))
CONSTANT = 256
IS_TOPIC, IS_FORM, IS_PADDING = 257, 258, 259
OWN_TOPIC, OWN_FORM, TOPIC, FORM = 264, 272, 280, 288

CONSTANT_SIZE, MARK_SIZE = 8.0, 4.0

# What the RMSNorms multiply with: not one, so that a backend that forgets them is found out.
CODE_GAIN, MARK_GAIN = 0.5, 2.0

KEY_SIZE = 8.0
#: The planes of RoPE that look for an exact distance. No other distance below MAX_POSITIONS scores above 0.83 of it.
POSITION_PLANES, POSITION_SCORE = 6, 160.0
#: Slow planes find a mark at any distance, and the sine of a less slow one prefers the latest mark.
TOPIC_PLANE, TOPIC_AGE_PLANE, FORM_PLANE, FORM_AGE_PLANE, BOS_PLANE, PADDING_PLANE = 31, 23, 30, 24, 29, 28
MARK_SCORE, AGE_SCORE, BOS_SCORE, PADDING_SCORE = 340.0, 300.0, 20.0, 500.0

#: An AND opens this far below a full match, which is half way to the nearest miss, and then lets this much through.
SLACK = (1 - MAX_CORRELATION) / 2
OPEN = 10.0
#: How loudly a rule speaks by the number of tokens that it knows; the ones that know less speak at the same time.
RULE_SIZES = (1.0, 3.0, 8.0, 8.0)
DEFAULT_LOGIT = 24.0


@dataclass(frozen=True)
class Stream:
    """The residual stream as a layer meets it: root mean square of what it typically holds."""

    rms: float

    @classmethod
    def holding(cls, *, codes: int, marks: int) -> "Stream":
        """Describe a stream with so many codes and marks, and the constant."""
        square = codes * CODE_SIZE + marks * MARK_SIZE**2 + CONSTANT_SIZE**2
        return cls(math.sqrt(square / HIDDEN))

    def reader(self, gain: float) -> float:
        """Return the weight that, behind an RMSNorm of this gain, reads an entry of the stream as it was."""
        return self.rms / gain

    @property
    def code(self) -> float:
        """The weight that reads one entry of a code as ±1."""
        return self.reader(CODE_GAIN)

    @property
    def mark(self) -> float:
        """The weight that reads a mark as 1."""
        return self.reader(MARK_GAIN) / MARK_SIZE

    @property
    def constant(self) -> float:
        """The weight that reads the constant as 1."""
        return self.reader(MARK_GAIN) / CONSTANT_SIZE


def build_weights(
    vocabulary: Vocabulary, seed: int, meanings: Sequence[Meaning], rules: Sequence[Rule]
) -> dict[str, Array]:
    """Return the tensors of the model under their Hugging Face names; the linear ones are [out, in]."""
    codes = token_codes(len(vocabulary.ids), seed)
    rows = padded_vocabulary_size(vocabulary)
    gain = np.full(HIDDEN, CODE_GAIN, np.float32)
    gain[CONSTANT:] = MARK_GAIN
    tensors = {
        "model.embed_tokens.weight": _embeddings(vocabulary, codes, rows),
        "model.norm.weight": gain,
        "lm_head.weight": _output_head(codes, rows),
    }
    layers = (
        {**_first_attention(), **_first_mlp(vocabulary, codes, meanings)},
        {**_second_attention(), **_second_mlp(vocabulary, codes, rules)},
    )
    for index, layer in enumerate(layers):
        norms = {"input_layernorm.weight": gain, "post_attention_layernorm.weight": gain}
        tensors |= {f"model.layers.{index}.{name}": tensor for name, tensor in {**norms, **layer}.items()}
    return tensors


def padded_vocabulary_size(vocabulary: Vocabulary) -> int:
    """Return the number of rows of the embedding."""
    return math.ceil(len(vocabulary.ids) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _embeddings(vocabulary: Vocabulary, codes: Array, rows: int) -> Array:
    table = np.zeros((rows, HIDDEN), np.float32)
    table[: len(codes), THIS] = codes
    table[:, CONSTANT] = CONSTANT_SIZE
    # A context that names neither topic nor form has those of its beginning.
    table[vocabulary.id_of(BOS), [OWN_TOPIC + TOPICS.index(UNKNOWN), OWN_FORM + FORMS.index(DEFAULT_FORM)]] = MARK_SIZE
    # Padding that is not masked out draws all attention to itself, so that the fault shows.
    table[vocabulary.id_of(PAD), IS_PADDING] = MARK_SIZE
    return table


def _output_head(codes: Array, rows: int) -> Array:
    # Scaled for the case that only a rule without tokens spoke, which is the quietest.
    square = Stream.holding(codes=3, marks=2).rms ** 2 * HIDDEN + CODE_SIZE * RULE_SIZES[0] ** 2
    stream = Stream(math.sqrt(square / HIDDEN))
    table = np.zeros((rows, HIDDEN), np.float32)
    table[: len(codes), SAY] = codes * (DEFAULT_LOGIT / (RULE_SIZES[0] * CODE_SIZE) * stream.code)
    return table


class _Attention:
    """The four projections of one attention layer, empty at first."""

    def __init__(self) -> None:
        self.q = np.zeros((HEADS, HEAD_DIM, HIDDEN), np.float32)
        self.k = np.zeros((KV_HEADS, HEAD_DIM, HIDDEN), np.float32)
        self.v = np.zeros((KV_HEADS, HEAD_DIM, HIDDEN), np.float32)
        self.o = np.zeros((HIDDEN, HEADS, HEAD_DIM), np.float32)

    def look_back(self, head: int, stream: Stream, source: slice, target: slice) -> None:
        """Let a head copy the code in source of the position before into target."""
        key_head = head // GROUP
        share = POSITION_SCORE / POSITION_PLANES
        for plane in range(POSITION_PLANES):
            frequency = ROPE_THETA ** (-2 * plane / HEAD_DIM)
            self.k[key_head, plane, CONSTANT] = KEY_SIZE * stream.constant
            self.query(head, plane, share, -frequency, stream)
        self.v[key_head, range(CODE_SIZE), range(source.start, source.stop)] = stream.code
        self.o[range(target.start, target.stop), head, range(CODE_SIZE)] = 1

    def query(self, head: int, plane: int, score: float, angle: float, stream: Stream) -> None:
        """Let a head score a key of KEY_SIZE in a plane, d positions back, with score × cos(d × frequency + angle)."""
        size = score * math.sqrt(HEAD_DIM) / KEY_SIZE * stream.constant
        self.q[head, plane, CONSTANT] = size * math.cos(angle)
        self.q[head, plane + HEAD_DIM // 2, CONSTANT] = size * math.sin(angle)

    def tensors(self) -> dict[str, Array]:
        """Return the projections in their final shapes."""
        return {
            "self_attn.q_proj.weight": self.q.reshape(-1, HIDDEN),
            "self_attn.k_proj.weight": self.k.reshape(-1, HIDDEN),
            "self_attn.v_proj.weight": self.v.reshape(-1, HIDDEN),
            "self_attn.o_proj.weight": self.o.reshape(HIDDEN, -1),
        }


# The first three are such that a backend that deals query heads out to key-value heads in turn reads an empty one.
_FIRST_LOOK_BACK, _SECOND_LOOK_BACK, _TOPIC_HEAD, _FORM_HEAD = 4, 1, 4, 5
_MARK_KEY_HEAD = 1


def _first_attention() -> dict[str, Array]:
    attention = _Attention()
    attention.look_back(_FIRST_LOOK_BACK, Stream.holding(codes=1, marks=0), THIS, BEFORE)
    return attention.tensors()


def _second_attention() -> dict[str, Array]:
    attention = _Attention()
    here = Stream.holding(codes=2, marks=0)
    attention.look_back(_SECOND_LOOK_BACK, here, BEFORE, BEFORE_THAT)
    marked = Stream.holding(codes=2, marks=2)
    for dimension, planes in (
        (IS_TOPIC, (TOPIC_PLANE, TOPIC_AGE_PLANE)),
        (IS_FORM, (FORM_PLANE, FORM_AGE_PLANE)),
        (OWN_TOPIC + TOPICS.index(UNKNOWN), (BOS_PLANE,)),
        (IS_PADDING, (PADDING_PLANE,)),
    ):
        attention.k[_MARK_KEY_HEAD, planes, dimension] = KEY_SIZE * marked.mark
    for head, plane, age_plane, value, own, target, count in (
        (_TOPIC_HEAD, TOPIC_PLANE, TOPIC_AGE_PLANE, 0, OWN_TOPIC, TOPIC, len(TOPICS)),
        (_FORM_HEAD, FORM_PLANE, FORM_AGE_PLANE, len(TOPICS), OWN_FORM, FORM, len(FORMS)),
    ):
        attention.query(head, plane, MARK_SCORE, 0, here)
        attention.query(head, age_plane, AGE_SCORE, math.pi / 2, here)
        attention.query(head, BOS_PLANE, BOS_SCORE, 0, here)
        attention.query(head, PADDING_PLANE, PADDING_SCORE, 0, here)
        for index in range(count):
            attention.v[_MARK_KEY_HEAD, value + index, own + index] = marked.mark
            attention.o[target + index, head, value + index] = MARK_SIZE
    return attention.tensors()


class _Mlp:
    """A SwiGLU layer of AND gates: a neuron writes only if all that it asks for is there."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.gate = np.zeros((INTERMEDIATE, HIDDEN), np.float32)
        self.up = np.zeros((INTERMEDIATE, HIDDEN), np.float32)
        self.down = np.zeros((HIDDEN, INTERMEDIATE), np.float32)
        self.used = 0

    def add(self, asked_codes: Mapping[int, Array], asked_marks: Sequence[int], written: Mapping[int, float]) -> None:
        """Add a neuron that asks for a code at each given start and for marks, and writes sizes into the stream."""
        if self.used == INTERMEDIATE:
            raise ValueError(f"more than {INTERMEDIATE} rules; the intermediate size must grow")
        gate, steepness = self.gate[self.used], OPEN / SLACK
        for start, code in asked_codes.items():
            gate[start : start + CODE_SIZE] = steepness / CODE_SIZE * self.stream.code * code
        gate[list(asked_marks)] = steepness * self.stream.mark
        gate[CONSTANT] = -steepness * (len(asked_codes) + len(asked_marks) - SLACK) * self.stream.constant
        self.up[self.used, CONSTANT] = self.stream.constant
        for dimension, size in written.items():
            self.down[dimension, self.used] = size / OPEN
        self.used += 1

    def tensors(self) -> dict[str, Array]:
        """Return the three projections."""
        return {"mlp.gate_proj.weight": self.gate, "mlp.up_proj.weight": self.up, "mlp.down_proj.weight": self.down}


def _first_mlp(vocabulary: Vocabulary, codes: Array, meanings: Sequence[Meaning]) -> dict[str, Array]:
    mlp = _Mlp(Stream.holding(codes=2, marks=0))
    for meaning in meanings:
        asked = {THIS.start: codes[vocabulary.id_of(meaning.word)]}
        if meaning.after:
            asked[BEFORE.start] = codes[vocabulary.id_of(meaning.after)]
        written: dict[int, float] = {}
        if meaning.topic is not None:
            written |= {IS_TOPIC: MARK_SIZE, OWN_TOPIC + TOPICS.index(meaning.topic): MARK_SIZE}
        if meaning.form is not None:
            written |= {IS_FORM: MARK_SIZE, OWN_FORM + FORMS.index(meaning.form): MARK_SIZE}
        mlp.add(asked, (), written)
    return mlp.tensors()


def _second_mlp(vocabulary: Vocabulary, codes: Array, rules: Sequence[Rule]) -> dict[str, Array]:
    mlp = _Mlp(Stream.holding(codes=3, marks=2))
    places = (THIS.start, BEFORE.start, BEFORE_THAT.start)
    for rule in rules:
        newest_first = [codes[vocabulary.id_of(word)] for word in reversed(rule.recent)]
        said = codes[vocabulary.id_of(rule.following)] * RULE_SIZES[len(rule.recent)]
        mlp.add(
            dict(zip(places, newest_first, strict=False)),
            (TOPIC + TOPICS.index(rule.topic), FORM + FORMS.index(rule.form)),
            {SAY.start + place: float(size) for place, size in enumerate(said)},
        )
    return mlp.tensors()
