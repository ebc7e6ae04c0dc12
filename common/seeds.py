"""Random numbers that depend on which sample they are for, not on where or in which batch it runs.

Each sample has a seed: the hash of run seed, iteration, prompt and sample index. The seed keys a
counter-based generator (Philox 4x64-10, "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
whose t-th uniform number draws the sample's t-th token.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def sample_seed(run_seed: int, iteration: int, prompt_id: str, sample_index: int) -> int:
    """Return the seed of one completion, in [0, 2^63)."""
    identity = json.dumps([run_seed, iteration, prompt_id, sample_index]).encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "little") >> 1


def revisit_seed(run_seed: int, iteration: int) -> int:
    """Return the seed that decides which prompts an iteration draws again, in [0, 2^64)."""
    return _seed_of("revisit", run_seed, iteration)


def shuffle_seed(run_seed: int, iteration: int) -> int:
    """Return the seed for shuffling an iteration's advantages (a control), in [0, 2^64)."""
    return _seed_of("shuffle", run_seed, iteration)


def uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """Return a seed's first `count` numbers in [0, 1); a larger `count` only adds to them."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of `count` items in an epoch, a shuffle without repetition."""
    identity = hashlib.sha256(json.dumps(["order", seed, epoch]).encode()).digest()
    key = int.from_bytes(identity[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).permutation(count)


def _seed_of(purpose: str, run_seed: int, iteration: int) -> int:
    identity = json.dumps([purpose, run_seed, iteration]).encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "little")
