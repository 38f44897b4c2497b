"""What ``generate`` of transformers is asked for, as requests to a session. Plain numbers; PyTorch is not needed."""

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session

DEFAULT_NEW_TOKENS: Final = 20
"""What transformers generates where nobody says how much."""
DEFAULT_TOP_K: Final = 50
"""What transformers samples from where nobody says so."""

_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (0, 0.0), "repetition_penalty": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0), "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],), "force_words_ids": ([],), "constraints": ([],), "min_length": (0,), "min_new_tokens": (0,),
    "typical_p": (1, 1.0), "min_p": (0, 0.0), "top_h": (), "epsilon_cutoff": (0, 0.0), "eta_cutoff": (0, 0.0),
    "diversity_penalty": (0, 0.0), "guidance_scale": (1, 1.0), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "sequence_bias": ({},),
    "prompt_lookup_num_tokens": (0,), "dola_layers": (), "watermarking_config": (), "max_time": (), "stop_strings": (),
    "assistant_model": (), "assistant_tokenizer": (), "logits_processor": ([],), "stopping_criteria": ([],),
    "prefix_allowed_tokens_fn": (), "negative_prompt_ids": (), "negative_prompt_attention_mask": (),
    "custom_generate": (), "output_scores": (False,), "output_logits": (False,), "output_attentions": (False,),
    "output_hidden_states": (False,), "remove_invalid_values": (False,), "renormalize_logits": (False,),
    "inputs_embeds": (), "past_key_values": (), "position_ids": (), "pixel_values": (), "encoder_outputs": (),
    "decoder_input_ids": (), "cache_position": (), "continuous_batching_config": (), "low_memory": (False,),
}  # fmt: skip
"""What only PyTorch can be asked for, with the values that ask for nothing; None is one of them for each."""

_UNDERSTOOD: Final = frozenset(
    {
        "max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k", "num_return_sequences",
        "eos_token_id", "pad_token_id", "bos_token_id", "return_dict_in_generate",
    }
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset(
    {
        "use_cache", "cache_implementation", "cache_config", "length_penalty", "early_stopping", "synced_gpus",
        "token_type_ids", "tokenizer", "disable_compile", "compile_config", "transformers_version",
        "return_legacy_cache",
        "decoder_start_token_id", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "assistant_confidence_threshold", "prefill_chunk_size", "max_matching_ngram_size", "target_lookbehind",
        "assistant_early_exit", "assistant_lookbehind", "use_model_defaults", "token_healing", "speculation_type",
    }
)  # fmt: skip
"""Speed, memory and bookkeeping: the same tokens come out."""


@dataclass(frozen=True)
class Plan:
    """One call of ``generate``."""

    requests: tuple[GenerationRequest, ...]
    """For each row, ``copies`` of them in turn."""
    copies: int
    ends: frozenset[int]
    """Tokens that end an answer, and are its last one."""
    pad: int
    as_dict: bool
    clamped: str = ""
    """What was made smaller because the model takes no more; empty if nothing was."""


def options_of(defaults: Mapping[str, Any], given: Mapping[str, Any], device: str) -> tuple[dict[str, Any], list[str]]:
    """What was asked for, and names of what the model's authors recommend and ``device`` cannot do.

    ``given`` counts before ``defaults``, the recommendations. Raises BadInput for what is given and cannot be done, or
    is not known.
    """
    options, left_out = {}, []
    for name in {**defaults, **given}:
        asked = given.get(name)
        value = defaults.get(name) if asked is None else asked
        if name not in _NEUTRAL:
            if asked is not None and name not in _UNDERSTOOD | _WITHOUT_EFFECT:
                raise BadInput(
                    f"generate() got {name}, which means nothing on {device}; it takes input_ids, attention_mask, "
                    f"streamer, generation_config, {', '.join(sorted(_UNDERSTOOD))}"
                )
            options[name] = value
        elif value is not None and not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            if asked is None:
                left_out.append(name)
                continue
            raise BadInput(
                f"generate({name}={_short(value)}) is not possible on {device}: its engine chooses the tokens "
                f"itself, and is not told {name}. Leave it out, or load the model after rm_abstract.shutdown()"
            )
    return options, left_out


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(neutral, list | dict):
        return hasattr(value, "__len__") and len(value) == 0
    return isinstance(value, int | float) and bool(value == neutral)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"<{type(value).__name__}>"


def token_set(value: Any) -> frozenset[int]:
    """Token ids that are given as one number, several, or None."""
    if value is None:
        return frozenset()
    plain = value.tolist() if hasattr(value, "tolist") else value
    return frozenset(int(token) for token in (plain if isinstance(plain, list | tuple | set) else [plain]))


def prompts_of(
    rows: Sequence[Sequence[int]], mask: Sequence[Sequence[int]] | None, options: Mapping[str, Any]
) -> list[list[int]]:
    """The prompts of a padded batch, without the padding. BadInput for an empty one, or a mask of another shape."""
    if mask is not None:
        if [len(row) for row in mask] != [len(row) for row in rows]:
            raise BadInput("attention_mask does not have the shape of input_ids")
        prompts = [[t for t, seen in zip(row, kept, strict=True) if seen] for row, kept in zip(rows, mask, strict=True)]
    else:
        pads = token_set(options.get("pad_token_id")) - token_set(options.get("eos_token_id"))
        prompts = [_without_leading(row, pads) for row in rows]
    if not prompts or not all(prompts):
        raise BadInput("generate() was given a prompt without a token")
    return prompts


def _without_leading(row: Sequence[int], pads: frozenset[int]) -> list[int]:
    first = next((index for index, token in enumerate(row) if token not in pads), len(row))
    return list(row[first:])


def plan(
    prompts: Sequence[Sequence[int]],
    width: int,
    options: Mapping[str, Any],
    *,
    model_ends: frozenset[int],
    longest: int,
    new_seed: Callable[[], int],
) -> Plan:
    """The requests for these prompts. ``width`` is the length of the padded batch, which ``max_length`` counts.

    ``model_ends`` are the tokens at which the engine stops by itself, ``longest`` what it takes at most. Raises
    BadInput where an option's value makes no sense.
    """
    sampled = bool(options.get("do_sample"))
    copies = _whole(options, "num_return_sequences") or 1
    if copies > 1 and not sampled:
        raise BadInput("generate(num_return_sequences>1) wants do_sample=True: greedy answers would all be the same")
    temperature = float(_or(options.get("temperature"), 1.0)) if sampled else 0.0
    top_p = float(_or(options.get("top_p"), 1.0)) if sampled else 1.0
    if sampled and temperature <= 0:
        raise BadInput(
            "generate(temperature=0) does not sample; say do_sample=False for the most likely token each time"
        )
    if not 0 < top_p <= 1:
        raise BadInput(f"generate(top_p={top_p}) must be above 0 and at most 1")
    top_k = int(_or(options.get("top_k"), DEFAULT_TOP_K)) or None
    wanted = _wanted(options, width)
    ends = token_set(options.get("eos_token_id"))
    if max(map(len, prompts)) >= longest:
        raise BadInput(
            f"the prompt has {max(map(len, prompts))} tokens, and the model takes {longest} with the answer; shorten it"
        )
    requests: list[GenerationRequest] = []
    clamped = ""
    for prompt in prompts:
        room = longest - len(prompt)
        if wanted > room:
            clamped = f"{wanted} new tokens were asked for, but the model takes {longest} with the prompt"
        requests.extend(
            GenerationRequest(
                prompt=tuple(prompt),
                max_tokens=min(wanted, room),
                temperature=temperature,
                top_p=top_p,
                top_k=top_k if sampled else None,
                seed=new_seed() if sampled else None,
                # The engine knows the model's own ends only.
                ignore_eos=ends != model_ends,
            )
            for _ in range(copies)
        )
    pads = sorted(token_set(options.get("pad_token_id"))) or sorted(ends) or [0]
    return Plan(tuple(requests), copies, ends, pads[0], bool(options.get("return_dict_in_generate")), clamped)


def _wanted(options: Mapping[str, Any], width: int) -> int:
    new = _whole(options, "max_new_tokens")
    if new is not None:
        return new
    total = _whole(options, "max_length")
    if total is None:
        return DEFAULT_NEW_TOKENS
    if total <= width:
        raise BadInput(f"generate(max_length={total}) counts the prompt, which has {width} tokens; say max_new_tokens")
    return total - width


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise BadInput(f"generate({name}={value!r}) must be a whole number of at least 1")
    return int(value)


def run(
    session: Session,
    requests: Sequence[GenerationRequest],
    ends: frozenset[int],
    *,
    at_once: int,
    token: Callable[[int, int], None],
) -> list[list[int]]:
    """Run the requests, ``at_once`` of them at a time, and return the tokens of each.

    ``token(row, token)`` is called on this thread as they come. Raises ToolchainFailure where the engine fails; then,
    and where ``token`` raises, everything that goes on is cancelled.
    """
    events: queue.SimpleQueue[tuple[int, list[int], FinishReason | None]] = queue.SimpleQueue()
    results: list[list[int]] = [[] for _ in requests]
    running: dict[int, Generation] = {}
    ended: set[int] = set()
    waiting = iter(range(len(requests)))

    def put(row: int, tokens: Sequence[int], finish: FinishReason | None) -> None:
        events.put((row, list(tokens), finish))

    def start_next() -> None:
        row = next(waiting, None)
        if row is not None:
            running[row] = session.execute(requests[row], partial(put, row))

    try:
        for _ in range(at_once):
            start_next()
        while running:
            row, tokens, finish = events.get()
            for one in tokens:
                if row not in ended:
                    results[row].append(one)
                    token(row, one)
                    if one in ends or len(results[row]) >= requests[row].max_tokens:
                        ended.add(row)
                        if finish is None:
                            running[row].cancel()
            if finish is None:
                continue
            generation = running.pop(row)
            if row not in ended and finish not in (FinishReason.STOP, FinishReason.LENGTH):
                why = session.failure or getattr(generation, "error", "") or f"the generation was {finish}"
                raise ToolchainFailure(f"the engine failed: {why}")
            start_next()
    finally:
        for generation in running.values():
            generation.cancel()
    return results
