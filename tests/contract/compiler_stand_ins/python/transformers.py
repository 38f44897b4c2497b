"""Stand-in for what the checks of profiles ask of Hugging Face's transformers: whether it knows a model."""

import json
from pathlib import Path

MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3", "granite"}


class AutoConfig:
    """Knows by its config.json what a model is."""

    @classmethod
    def from_pretrained(cls, directory: str) -> None:
        """Raises OSError where there is no config.json, ValueError for a model that is not known."""
        file = Path(directory) / "config.json"
        if not file.is_file():
            raise OSError(f"{directory} does not appear to have a file named config.json.")
        kind = json.loads(file.read_text())["model_type"]
        if kind not in MODEL_TYPES:
            raise ValueError(
                f"The checkpoint you are trying to load has model type `{kind}` but Transformers does not recognize "
                "this architecture."
            )
