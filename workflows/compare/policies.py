"""How far apart policies ended: norms and angles of their updates, read tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 24
"""How many numbers of a tensor are widened to float64 at once."""


@dataclass(frozen=True)
class Update:
    """The change that an iteration made to all weights, and how it compares with the baseline's."""

    norm: float
    """||v||, v = policy N - policy N-1."""
    cosine: float | None
    """Of v and the baseline's change b; None where one of them is zero."""
    relative_difference: float | None
    """||v - b|| / ||b||; None where b is zero."""


def compare_updates(before: Path, baseline: Path, policy: Path) -> Update:
    """Compare two changes of a policy by sums in float64 over the tensors of `policy`.

    Args:
        before: policy N-1, where both started.
        baseline: policy N of the baseline. All three are Hugging Face directories.
        policy: policy N of the variant. Tensors that only the others have do not count.

    Raises:
        UserError: one of the other directories lacks some of the tensors.
    """
    sums = [0.0, 0.0, 0.0, 0.0]
    for start, ours, theirs in _tensors(before, baseline, policy):
        for chunk in zip(*(t.flatten().split(_CHUNK) for t in (start, ours, theirs)), strict=True):
            s, b, v = (part.double() for part in chunk)
            b, v = b - s, v - s
            pairs = ((v, v), (b, b), (v, b), (v - b, v - b))
            sums = [total + float(x @ y) for total, (x, y) in zip(sums, pairs, strict=True)]
    vv, bb, vb, apart = sums
    return Update(
        norm=math.sqrt(vv),
        cosine=vb / math.sqrt(vv * bb) if vv and bb else None,
        relative_difference=math.sqrt(apart / bb) if bb else None,
    )


def _tensors(*folders: Path) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors of the same name, one name at a time, whatever file each is in."""
    from safetensors import safe_open

    with ExitStack() as stack:
        places: list[dict[str, Any]] = []
        for folder in folders:
            files = [
                stack.enter_context(safe_open(path, framework="pt"))
                for path in sorted(folder.glob("*.safetensors"))
            ]
            places.append({name: file for file in files for name in file.keys()})  # noqa: SIM118
        names = set(places[-1])
        for folder, place in zip(folders, places, strict=True):
            if missing := sorted(names - set(place)):
                raise UserError(f"{folder}: no tensors {missing[:5]}, which {folders[-1]} has")
        for name in sorted(names):
            yield tuple(place[name].get_tensor(name) for place in places)
