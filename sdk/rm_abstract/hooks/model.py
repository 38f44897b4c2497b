"""What ``from_pretrained`` returns for a device: a model of transformers whose text is generated elsewhere.

PyTorch and transformers are the script's; they are imported when the first model is loaded, and never before.
"""

import logging
import os
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import new_class
from typing import Any, Protocol

from rm_abstract.core.errors import BadInput
from rm_abstract.core.session import Session
from rm_abstract.hooks import generation

_log = logging.getLogger("rm_abstract")


class Runner(Protocol):
    """Where a model is loaded. Its device may change between two calls."""

    @property
    def device(self) -> str:
        """The device, for messages."""
        ...

    @property
    def at_once(self) -> int:
        """How many generations are started at a time."""
        ...

    def use(self) -> Any:
        """A context manager with the session, which stays open inside."""
        ...


class DeviceModel:
    """The methods of a model that runs on a device. ``device_model`` mixes them into transformers' own base class."""

    _runner: Runner
    _directory: Path
    config: Any
    generation_config: Any

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.name_or_path!r} on {self._runner.device}, through rm_abstract)"

    @classmethod
    def can_generate(cls) -> bool:
        """True: it is all that it can do."""
        return True

    @property
    def device(self) -> Any:
        """Where its inputs and outputs are: in the memory of the CPU, whatever it runs on."""
        return import_module("torch").device("cpu")

    @property
    def dtype(self) -> Any:
        """The number format of the model's weights as its authors gave them."""
        torch = import_module("torch")
        wanted = getattr(self.config, "dtype", None) or "float32"
        return getattr(torch, wanted) if isinstance(wanted, str) else wanted

    def to(self, *args: Any, **kwargs: Any) -> "DeviceModel":
        """Itself: it stays where it runs."""
        _log.info("%r stays on %s: .to() and the like do not move it", self.config.name_or_path, self._runner.device)
        return self

    def cuda(self, *args: Any, **kwargs: Any) -> "DeviceModel":
        """Itself: it stays where it runs."""
        return self.to()

    def cpu(self) -> "DeviceModel":
        """Itself: it stays where it runs."""
        return self.to()

    def half(self) -> "DeviceModel":
        """Itself: its number format was chosen when it was compiled."""
        return self.to()

    def float(self, *args: Any) -> "DeviceModel":
        """Itself: its number format was chosen when it was compiled."""
        return self.to()

    def bfloat16(self) -> "DeviceModel":
        """Itself: its number format was chosen when it was compiled."""
        return self.to()

    def eval(self) -> "DeviceModel":
        """Itself: it only ever infers."""
        return self

    def train(self, mode: bool = True) -> "DeviceModel":
        """Itself. Raises BadInput where training is wanted."""
        if mode:
            raise BadInput(f"a model on {self._runner.device} cannot be trained; load it after rm_abstract.shutdown()")
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises BadInput: a device generates tokens and gives no logits."""
        raise BadInput(
            f"a model on {self._runner.device} generates text, and gives no logits; call generate(), or load the model "
            "after rm_abstract.shutdown()"
        )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Raises BadInput: the weights are in the device's own form."""
        raise BadInput(f"a model on {self._runner.device} cannot be saved; its files are in {self._directory}")

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        streamer: Any = None,
        **arguments: Any,
    ) -> Any:
        """As ``generate`` of transformers: prompts as a tensor of [batch, tokens]; the result has them and the answers.

        Raises BadInput for what the device cannot do, naming it, and ToolchainFailure where its engine fails.
        """
        torch = import_module("torch")
        device = self._runner.device
        given = dict(generation_config.to_diff_dict()) if generation_config is not None else {}
        options, left_out = generation.options_of(_values(self.generation_config), {**given, **arguments}, device)
        if left_out:
            _log.warning("the model's authors recommend %s, which %s does not do", ", ".join(left_out), device)
        rows = _rows(inputs if input_ids is None else input_ids, options)
        prompts = generation.prompts_of(rows, None if attention_mask is None else attention_mask.tolist(), options)
        with self._runner.use() as session:
            plan = self._plan(torch, session, prompts, len(rows[0]), options)
            if streamer is not None and len(plan.requests) > 1:
                raise BadInput("generate(streamer=…) shows one answer; give it one prompt and num_return_sequences=1")
            if streamer is not None:
                streamer.put(torch.tensor(rows, dtype=torch.long))

            def show(_row: int, token: int) -> None:
                if streamer is not None:
                    streamer.put(torch.tensor([token], dtype=torch.long))

            answers = generation.run(session, plan.requests, plan.ends, at_once=self._runner.at_once, token=show)
        if streamer is not None:
            streamer.end()
        longest = max(map(len, answers))
        sequences = torch.tensor(
            [
                [*rows[number // plan.copies], *answer, *[plan.pad] * (longest - len(answer))]
                for number, answer in enumerate(answers)
            ],
            dtype=torch.long,
        )
        if not plan.as_dict:
            return sequences
        return import_module("transformers.generation").GenerateDecoderOnlyOutput(sequences=sequences)

    def _plan(
        self, torch: Any, session: Session, prompts: list[list[int]], width: int, options: Mapping[str, Any]
    ) -> generation.Plan:
        plan = generation.plan(
            prompts,
            width,
            options,
            model_ends=generation.token_set(self.generation_config.eos_token_id),
            longest=session.max_sequence_length,
            # From PyTorch's generator, so that a script's own seed decides, as it does without us.
            new_seed=lambda: int(torch.randint(1 << 62, (1,)).item()),
        )
        if plan.clamped:
            _log.warning("%s; fewer are generated", plan.clamped)
        return plan


def _values(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if not name.startswith("_")}


def _rows(ids: Any, options: Mapping[str, Any]) -> list[list[int]]:
    if ids is None:
        begin = generation.token_set(options.get("bos_token_id"))
        if not begin:
            raise BadInput("generate() was given no input_ids, and the model has no token to begin with")
        return [[min(begin)]]
    rows = ids.tolist()
    if not rows or not isinstance(rows[0], list):
        raise BadInput("generate() wants input_ids of shape [batch, tokens]; for one prompt, ids.unsqueeze(0)")
    return [[int(token) for token in row] for row in rows]


def device_model(directory: Path, name: str | os.PathLike[str], runner: Runner) -> Any:
    """A model whose configuration is that in ``directory``. Needs PyTorch and transformers."""
    transformers = import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    config.name_or_path = str(name)
    architectures = getattr(config, "architectures", None) or ["Model"]
    model = _model_class(str(architectures[0]), type(config))(config)  # type: ignore[arg-type]
    with suppress(OSError):  # without recommendations, those of its configuration stand
        model.generation_config = transformers.GenerationConfig.from_pretrained(directory, local_files_only=True)
    model._runner = runner
    model._directory = directory
    model.training = False
    return model


@cache
def _model_class(architecture: str, config_class: Hashable) -> Callable[[Any], Any]:
    """A class with the name of the model's own, by which pipelines know what it can do."""
    transformers = import_module("transformers")

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(__module__=__name__, __doc__=DeviceModel.__doc__, config_class=config_class)
        namespace["_supports_sdpa"] = namespace["_supports_flash_attn"] = (
            True  # asked for by scripts; the device decides
        )

    bases = (DeviceModel, transformers.PreTrainedModel, transformers.GenerationMixin)
    return new_class(architecture, bases, exec_body=fill)
