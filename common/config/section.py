"""The base class of every table of the recipe, and views with only some of a table's keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """A table of the recipe. It is immutable, refuses unknown keys and keeps field docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def restricted_to(self, keys: Iterable[str]) -> Self:
        """Return a view with the given keys only; reading another one raises `AttributeError`.

        Args:
            keys: names of this table's keys, or dotted names below them: `rollout`, `model.dtype`.
        """
        below: dict[str, set[str]] = {}
        for key in keys:
            name, _, rest = key.partition(".")
            below.setdefault(name, set()).add(rest)
        view = self.model_copy()
        for name in type(self).model_fields:
            if name not in below:
                view.__dict__.pop(name, None)
            elif "" not in below[name]:
                view.__dict__[name] = getattr(self, name).restricted_to(below[name])
        return view

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise AttributeError(
                    f"{type(self).__name__}.{name} is not among the recipe keys that this stage "
                    "declares in common/runs/stages.py"
                )
            return super().__getattr__(name)
