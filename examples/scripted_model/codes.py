"""Nearly orthogonal ±1 codes: the vectors by which the model knows one token from another."""

import hashlib

import numpy as np
import numpy.typing as npt

CODE_SIZE = 64
#: Two codes agree in at most this share more places than they differ in.
MAX_CORRELATION = 0.375


def token_codes(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Return count codes, [count, CODE_SIZE] of ±1, no two of which correlate by more than MAX_CORRELATION.

    They come from SHA-256 and not from a random generator, so a seed means the same codes in every release of NumPy.
    """
    codes = np.empty((count, CODE_SIZE), np.float32)
    accepted = draw = 0
    while accepted < count:
        digest = hashlib.sha256(f"{seed}:{draw}".encode()).digest()[: CODE_SIZE // 8]
        candidate = np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) * 2 - 1
        draw += 1
        if draw > 1000 * count:
            raise ValueError(f"{count} codes of {CODE_SIZE} bits do not fit; the vocabulary must be smaller")
        if accepted and np.abs(codes[:accepted] @ candidate).max() > MAX_CORRELATION * CODE_SIZE:
            continue
        codes[accepted] = candidate
        accepted += 1
    return codes
