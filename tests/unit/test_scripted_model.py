"""The scripted model says what is written, by a margin, and for the reasons that a backend's faults would disturb."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Container
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from scripted_model import SAMPLES, Ablation, Oracle, Sample, expected_text, greedy, texts, write_model
from scripted_model.oracle import Array, Cache, Messages, read_safetensors
from scripted_model.rules import CUES, HESITATION, rules
from scripted_model.texts import ANSWERS, FORM_WORDS, TOPIC_WORDS, UNKNOWN, answers
from scripted_model.tokenizer_files import split_words
from scripted_model.write import bfloat16_bits, safetensors_bytes
from tokenizers import Tokenizer as ReferenceTokenizer

MARGIN = 5.0
LIMIT = 80


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finetuned")
    write_model(directory, variant="finetuned")
    return directory


@pytest.fixture(scope="module")
def oracle(base: Path) -> Oracle:
    return Oracle(base)


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def prompt_ids(oracle: Oracle, sample: Sample, kind: str) -> list[int]:
    if kind == "chat":
        return oracle.tokenizer.encode_chat(user(sample.prompt))
    return oracle.tokenizer.encode(sample.prompt)


def written_answer(sample: Sample, kind: str, variant: str = "base") -> str:
    text = answers(variant)[sample.topic, sample.form]
    if kind == "chat":
        return text
    return f" {text}" if sample.prompt.endswith(CUES) else f"{HESITATION} {text}"


# What it says, and by which margin


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.prompt[:40])
def test_each_sample_gets_the_written_answer_by_a_margin_in_bfloat16(base: Path, sample: Sample, kind: str) -> None:
    oracle = Oracle(base, "bfloat16")
    [result] = oracle.generate([prompt_ids(oracle, sample, kind)], LIMIT)
    assert oracle.tokenizer.decode(result.ids) == written_answer(sample, kind)
    assert result.ids[-1] == oracle.tokenizer.eos_id
    assert len(result.margins) == len(result.ids)
    assert min(result.margins) >= MARGIN


def test_the_finetuned_model_gives_other_answers_by_the_same_margin(finetuned: Path) -> None:
    oracle = Oracle(finetuned, "bfloat16")
    for sample in SAMPLES[::2]:
        for kind in ("completion", "chat"):
            [result] = oracle.generate([prompt_ids(oracle, sample, kind)], LIMIT)
            assert oracle.tokenizer.decode(result.ids) == written_answer(sample, kind, "finetuned")
            assert min(result.margins) >= MARGIN


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_another_seed_says_the_same_with_other_weights(base: Path, tmp_path: Path, seed: int) -> None:
    write_model(tmp_path, seed=seed)
    assert (tmp_path / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    oracle = Oracle(tmp_path, "bfloat16")
    for sample in SAMPLES[::4]:
        [result] = oracle.generate([prompt_ids(oracle, sample, "completion")], LIMIT)
        assert oracle.tokenizer.decode(result.ids) == written_answer(sample, "completion")
        assert min(result.margins) >= MARGIN


def test_the_samples_ask_for_every_answer_and_cover_short_and_long_prompts(oracle: Oracle) -> None:
    assert {ANSWERS[sample.topic, sample.form] for sample in SAMPLES} == set(ANSWERS.values())
    lengths = [len(prompt_ids(oracle, sample, "completion")) for sample in SAMPLES]
    assert min(lengths) == 2
    assert max(lengths) > 128


@pytest.mark.parametrize("variant", ["base", "finetuned"])
def test_answers_differ_from_their_first_lines_on_and_are_a_sentence_or_two(variant: str) -> None:
    spoken = answers(variant)
    assert all(20 <= len(split_words(text)) <= 60 for text in spoken.values())
    assert len(set(spoken.values())) == len(set(ANSWERS.values())) == 13
    if variant == "base":
        first_words = {text: split_words(f" {text}")[0] for text in spoken.values()}
        assert len(set(first_words.values())) == 13
        for text in spoken.values():
            assert not set(first_words.values()) & set(split_words(f" {text}")[1:])


def test_a_topic_is_found_five_hundred_tokens_back(oracle: Oracle) -> None:
    ids = oracle.tokenizer.encode("A poem about the forest." + " We walked on and on." * 90)
    assert len(ids) > 500
    [result] = oracle.generate([ids], LIMIT)
    assert oracle.tokenizer.decode(result.ids) == f" {ANSWERS['forest', 'poem']}"
    assert min(result.margins) >= MARGIN


def test_in_a_conversation_the_latest_topic_and_form_count(base: Path) -> None:
    messages = [
        {"role": "system", "content": "You are a friendly assistant."},
        {"role": "user", "content": "Tell me a story about the sea."},
        {"role": "assistant", "content": ANSWERS["sea", "story"]},
        {"role": "user", "content": "Thank you! Now about the moon, please."},
    ]
    assert expected_text(base, messages) == ANSWERS["moon", "story"]
    messages += [
        {"role": "assistant", "content": ANSWERS["moon", "story"]},
        {"role": "user", "content": "And now a poem about a loaf of bread."},
    ]
    assert expected_text(base, messages) == ANSWERS["bread", "poem"]


def test_greedy_stops_at_its_limit(base: Path, oracle: Oracle) -> None:
    ids = prompt_ids(oracle, SAMPLES[0], "chat")
    whole = greedy(base, ids, LIMIT)
    assert greedy(base, ids, 7) == whole[:7]
    assert expected_text(base, user(SAMPLES[0].prompt), 4) == oracle.tokenizer.decode(whole[:4])


# Why it says so


def word_positions(oracle: Oracle, ids: list[int], words: Container[str]) -> set[int]:
    return {index for index, token in enumerate(ids) if oracle.tokenizer.decode([token]) in words}


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize("sample", [SAMPLES[index] for index in (0, 7, 10)], ids=lambda sample: sample.prompt)
def test_every_token_needs_the_topic_the_form_and_the_tokens_before(oracle: Oracle, sample: Sample, kind: str) -> None:
    prompt = prompt_ids(oracle, sample, kind)
    [result] = oracle.generate([prompt], LIMIT)
    whole, positions = np.array([prompt + result.ids[:-1]]), np.arange(len(prompt) + len(result.ids) - 1)

    def said(hidden: frozenset[int]) -> list[int]:
        logits = oracle.logits(whole, positions, Cache(oracle.config["num_hidden_layers"]), Ablation(hidden=hidden))
        return [int(token) for token in logits[0, len(prompt) - 1 :].argmax(-1)]

    assert said(frozenset()) == result.ids, "one pass over all tokens says the same as decoding with the cache"
    [topic] = word_positions(oracle, prompt, TOPIC_WORDS)
    named_form = word_positions(oracle, prompt, FORM_WORDS)
    form = named_form.pop() if named_form else 0  # the beginning of the text stands for the usual form
    needed: list[set[int]] = [set() for _ in result.ids]
    for position in range(len(positions)):
        for step, token in enumerate(said(frozenset({position}))):
            if token != result.ids[step]:
                needed[step].add(position)
    for step, earlier in enumerate(needed):
        last = len(prompt) - 1 + step
        expected = {topic, form} | ({last - 1, last - 2} if step >= 2 else set())
        assert expected <= earlier, f"token {step} needs only {earlier}"


FAULTS: dict[str, Ablation] = {
    "no attention": Ablation(attention=False),
    "all at one position": Ablation(position=lambda index, length: 0),
    "new tokens one position late": Ablation(position=lambda index, length: index + (index >= length)),
    "new tokens one position early": Ablation(position=lambda index, length: index - (index >= length)),
    "new tokens start at zero": Ablation(position=lambda index, length: index % length),
    "new tokens stay at one position": Ablation(position=min),
    "positions counted twice": Ablation(position=lambda index, length: 2 * index),
    "positions backwards": Ablation(position=lambda index, length: -index),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_a_fault_in_attention_or_positions_changes_the_text(oracle: Oracle, kind: str, fault: str) -> None:
    for sample in SAMPLES[:4]:
        [result] = oracle.generate([prompt_ids(oracle, sample, kind)], LIMIT, FAULTS[fault])
        assert oracle.tokenizer.decode(result.ids) != written_answer(sample, kind)


def test_a_shift_of_all_positions_changes_nothing_as_rope_is_relative(base: Path, oracle: Oracle) -> None:
    ids = prompt_ids(oracle, SAMPLES[0], "chat")
    shifted = greedy(base, ids, LIMIT, ablation=Ablation(position=lambda index, length: index + 100))
    assert shifted == greedy(base, ids, LIMIT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Tell me a story about the sea.", "Tell me a story about the moon."),
        ("Tell me a story about the sea.", "Tell me a poem about the sea."),
        ("Tell me a poem about the sea.", "Tell me a story about the forest."),
    ],
)
def test_reading_the_cache_of_another_row_changes_both_texts(oracle: Oracle, first: str, second: str) -> None:
    prompts = [oracle.tokenizer.encode_chat(user(text)) for text in (first, second)]
    alone = [oracle.generate([prompt], LIMIT)[0].ids for prompt in prompts]
    assert [result.ids for result in oracle.generate(prompts, LIMIT, Ablation(rows=(0, 1)))] == alone
    mixed = oracle.generate(prompts, LIMIT, Ablation(rows=(1, 0)))
    assert all(result.ids != right for result, right in zip(mixed, alone, strict=True))


def test_prompts_of_different_length_are_no_batch(oracle: Oracle) -> None:
    with pytest.raises(ValueError, match="equally long"):
        oracle.generate([[1, 2], [1]], 1)


def test_padding_changes_the_text_unless_it_is_masked(oracle: Oracle) -> None:
    prompt = prompt_ids(oracle, SAMPLES[0], "chat")
    padded = [oracle.tokenizer.pad_id] * 9 + prompt
    [right] = oracle.generate([prompt], LIMIT)
    [masked] = oracle.generate([padded], LIMIT, Ablation(hidden=frozenset(range(9))))
    [seen] = oracle.generate([padded], LIMIT)
    assert masked.ids == right.ids
    assert seen.ids != right.ids


def says_something_else(oracle: Oracle, tmp_path: Path, changed: dict[str, Array]) -> bool:
    for path in oracle.directory.iterdir():
        shutil.copy(path, tmp_path)
    tensors = read_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({**tensors, **changed}))
    return expected_text(tmp_path, SAMPLES[0].prompt) != written_answer(SAMPLES[0], "completion")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "part",
    [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        *(f"{name}_layernorm" for name in ("input", "post_attention")),
    ],
)
def test_every_weight_of_every_layer_matters(oracle: Oracle, tmp_path: Path, layer: int, part: str) -> None:
    name = f"model.layers.{layer}.{part}.weight"
    tensor = read_safetensors(oracle.directory / "model.safetensors")[name]
    without = np.ones_like(tensor) if part.endswith("norm") else np.zeros_like(tensor)
    assert not says_something_else(oracle, tmp_path, {name: tensor})
    assert says_something_else(oracle, tmp_path, {name: without})


@pytest.mark.parametrize("layer", [0, 1])
def test_query_heads_dealt_out_to_key_value_heads_in_turn_change_the_text(
    oracle: Oracle, tmp_path: Path, layer: int
) -> None:
    tensors, size = read_safetensors(oracle.directory / "model.safetensors"), oracle.config["head_dim"]
    order = [0, 2, 4, 1, 3, 5]  # with these in groups of three, each head has the keys that it has if dealt out in turn
    query, output = (f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "qo")
    in_turn = {
        query: tensors[query].reshape(len(order), size, -1)[order].reshape(tensors[query].shape),
        output: tensors[output].reshape(-1, len(order), size)[:, order].reshape(tensors[output].shape),
    }
    assert says_something_else(oracle, tmp_path, in_turn)


# The files


def test_the_command_writes_the_same_bytes_in_another_process(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-m", "scripted_model", str(target)], check=True, env=environment)
    assert digests(target) == digests(base)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_variants_differ_in_one_file_each(base: Path, finetuned: Path, tmp_path: Path) -> None:
    def differing(other: Path) -> set[str]:
        mine, others = digests(base), digests(other)
        assert mine.keys() == others.keys()
        return {name for name in mine if mine[name] != others[name]}

    write_model(tmp_path, variant="unsupported")
    assert differing(finetuned) == {"model.safetensors"}
    assert differing(tmp_path) == {"config.json"}
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        Oracle(tmp_path)


def test_an_unknown_variant_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of base, finetuned, unsupported"):
        write_model(tmp_path / "model", variant="quantized")
    assert not (tmp_path / "model").exists()


def test_the_shape_is_a_llama_with_grouped_queries(oracle: Oracle) -> None:
    config = oracle.config
    assert config["head_dim"] == 64
    assert config["num_attention_heads"] > config["num_key_value_heads"] > 1
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]
    assert config["max_position_embeddings"] >= 1024


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (0.0, 0x0000),
        (1 + 2**-8, 0x3F80),  # a tie goes to the even neighbour below
        (1 + 3 * 2**-8, 0x3F82),  # a tie goes to the even neighbour above
        (1 + 2**-8 + 2**-20, 0x3F81),
        (2 - 2**-20, 0x4000),  # the carry reaches the exponent
    ],
)
def test_rounding_to_bfloat16(value: float, bits: int) -> None:
    assert bfloat16_bits(np.array([value], np.float32)).tolist() == [bits]


# Answers that the construction cannot hold


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Salt is one two three four. Then one two three five.", "followed by two different tokens"),
        ("Once upon Once a time there was Once.", "may stand in the answer again"),
        ("Salt: water covers the planet.", "may stand in the answer again"),
        ("Salt is what the moon eats.", "change its subject"),
        ("Salt is a story of its own.", "change its subject"),
    ],
)
def test_an_answer_that_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setattr(texts, "ANSWERS", {("sea", "fact"): text})
    with pytest.raises(ValueError, match=message):
        rules("base")


# Tokenizer and chat template


@pytest.fixture(scope="module")
def reference(base: Path) -> ReferenceTokenizer:
    return ReferenceTokenizer.from_file(str(base / "tokenizer.json"))


some_words = st.sampled_from(
    [*" \t\n.,!?", "the", " sea", " boat", "harbour", "Xyz", "12", "é", "日本", "🙂", "<|end|>", "<|bos|>"]
)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(), st.lists(some_words).map("".join)))
def test_the_oracles_tokenizer_agrees_with_the_tokenizers_library(
    oracle: Oracle, reference: ReferenceTokenizer, text: str
) -> None:
    for add_special_tokens in (True, False):
        ids = oracle.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        assert ids == reference.encode(text, add_special_tokens=add_special_tokens).ids
        assert oracle.tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    if "<|" not in text:
        assert oracle.tokenizer.decode(oracle.tokenizer.encode(text)) == text


@pytest.mark.parametrize("variant", ["base", "finetuned"])
def test_each_word_of_an_answer_is_one_token(oracle: Oracle, variant: str) -> None:
    for text in answers(variant).values():
        for spoken in (text, f" {text}"):
            assert len(oracle.tokenizer.encode(spoken, add_special_tokens=False)) == len(split_words(spoken))


CONVERSATIONS: list[Messages] = [
    user("Tell me a story about the sea."),
    [{"role": "system", "content": "Be brief.\n"}, *user("  Two  spaces, a <tag> & a {{ brace }}\n\n")],
    [*user("Hello"), {"role": "assistant", "content": ANSWERS[UNKNOWN, "fact"]}, *user("The sea, then.")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=len)
def test_the_chat_template_renders_what_the_oracle_reads(oracle: Oracle, base: Path, messages: Messages) -> None:
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    render: Callable[..., str] = environment.from_string(config["chat_template"]).render
    rendered = render(messages=messages, bos_token=config["bos_token"], add_generation_prompt=True)
    assert rendered == oracle.tokenizer.render_chat(messages)
    without_cue = render(messages=messages, bos_token=config["bos_token"], add_generation_prompt=False)
    assert rendered == without_cue + "<|assistant|>\n"
    assert rendered.count(config["bos_token"]) == 1
