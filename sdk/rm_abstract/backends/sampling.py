"""Chooses a token from logits."""

from collections import Counter

import numpy as np
import numpy.typing as npt

from rm_abstract.core.session import GenerationRequest, ScoredToken


class Sampler:
    """Chooses the tokens of one generation; the same seed and logits give the same tokens, whatever else is running."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._random = np.random.default_rng(None if request.seed is None else request.seed % (1 << 64))
        self._counts: Counter[int] = Counter()

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token, from logits of shape [vocabulary]."""
        request = self._request
        scores = logits.astype(np.float64)
        if self._counts and (request.presence_penalty or request.frequency_penalty):
            tokens = np.fromiter(self._counts.keys(), np.int64)
            counts = np.fromiter(self._counts.values(), np.float64)
            scores[tokens] -= request.presence_penalty + request.frequency_penalty * counts
        token = int(scores.argmax()) if request.temperature == 0 else self._draw(scores / request.temperature)
        self._counts[token] += 1
        return token if request.logprobs is None else _scored(token, logits, request.logprobs)

    def _draw(self, scores: npt.NDArray[np.float64]) -> int:
        order = np.argsort(-scores, kind="stable")
        weights = np.exp(scores[order] - scores[order[0]])
        if self._request.top_k is not None:
            weights[self._request.top_k :] = 0
        weights /= weights.sum()
        # The smallest set that reaches top_p: a token stays while those before it do not reach it.
        weights[np.concatenate(([0.0], np.cumsum(weights)[:-1])) >= self._request.top_p] = 0
        return int(order[self._random.choice(len(order), p=weights / weights.sum())])


def _scored(token: int, logits: npt.NDArray[np.float32], most: int) -> ScoredToken:
    raw = logits.astype(np.float64)
    scores = raw - raw.max()
    scores -= np.log(np.exp(scores).sum())
    best = np.argsort(-scores, kind="stable")[:most]
    return ScoredToken(token, float(scores[token]), [(int(each), float(scores[each])) for each in best])
