"""A small Llama with chosen weights, whose greedy answers are known, and the oracle that works them out."""

from .oracle import Ablation, Oracle, expected_text, greedy
from .texts import SAMPLES, Sample
from .write import write_model

__all__ = ["SAMPLES", "Ablation", "Oracle", "Sample", "expected_text", "greedy", "write_model"]
