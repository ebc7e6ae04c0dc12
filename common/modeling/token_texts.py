"""The text of single tokens, by a policy's tokenizer.json; loads no torch.

`tokenizers` is the Rust package that transformers reads the same file with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa


class TokenTexts:
    """What each token of a vocabulary adds to a text."""

    def __init__(self, policy_dir: Path) -> None:
        """Read `tokenizer.json`; without one, ids stand for texts."""
        from tokenizers import Tokenizer

        path = policy_dir / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else None
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """The token's text; `#17` where the tokenizer has none for id 17.

        Bytes that are no whole character stand as U+FFFD.
        """
        if token_id not in self._known:
            self._known[token_id] = self._text(token_id)
        return self._known[token_id]

    def column(self, ids: np.ndarray) -> pa.Array:
        """Texts of many ids, each decoded once: string [len(ids)]."""
        distinct, index = np.unique(ids, return_inverse=True)
        return pa.array([self(i) for i in distinct.tolist()], pa.string()).take(pa.array(index))

    def _text(self, token_id: int) -> str:
        tokenizer = self._tokenizer
        if tokenizer is None or tokenizer.id_to_token(token_id) is None:
            return f"#{token_id}"
        # A decoder may drop the space that begins a text; it stands where the token comes second.
        once = tokenizer.decode([token_id], skip_special_tokens=False)
        twice = tokenizer.decode([token_id, token_id], skip_special_tokens=False)
        return twice[len(once) :]
