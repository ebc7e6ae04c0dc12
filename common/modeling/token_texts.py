"""Texts of single tokens, read from a policy's tokenizer.json without loading torch.

`tokenizers` is the Rust package with which transformers reads the same file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa


class TokenTexts:
    """What each token of a vocabulary adds to a text."""

    def __init__(self, policy_dir: Path) -> None:
        """Read `tokenizer.json`; if there is none, ids such as `#17` replace texts."""
        from tokenizers import Tokenizer

        path = policy_dir / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else None
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """Return the token's text, or `#17` if the tokenizer has none for id 17.

        Bytes that do not form a whole character appear as U+FFFD.
        """
        if token_id not in self._known:
            self._known[token_id] = self._text(token_id)
        return self._known[token_id]

    def column(self, ids: np.ndarray) -> pa.Array:
        """Return the texts of many ids as strings [len(ids)], decoding each distinct id once."""
        distinct, index = np.unique(ids, return_inverse=True)
        return pa.array([self(i) for i in distinct.tolist()], pa.string()).take(pa.array(index))

    def _text(self, token_id: int) -> str:
        tokenizer = self._tokenizer
        if tokenizer is None or tokenizer.id_to_token(token_id) is None:
            return f"#{token_id}"
        # A decoder may drop a space at the start of a text, but keeps it where the token is second.
        once = tokenizer.decode([token_id], skip_special_tokens=False)
        twice = tokenizer.decode([token_id, token_id], skip_special_tokens=False)
        return twice[len(once) :]
