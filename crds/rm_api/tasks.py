"""What models are for. Only the standard library is imported."""

from enum import StrEnum
from typing import Final


class ModelTask(StrEnum):
    """What a model computes."""

    GENERATE = "Generate"
    """Text, token by token."""
    EMBED = "Embed"
    """One vector of a text."""


FEATURE_EMBEDDINGS: Final = "embeddings"
"""The word of ``capability.features`` for what serves models that embed."""
