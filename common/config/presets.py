"""Presets: the settings of a paper, as the part of a recipe that they decide.

`preset = "dapo"` at the top of a recipe gives it these values, except for keys that the recipe (or
`--set`) sets itself. Learning rates, batch sizes and lengths belong to an experiment and not to an
objective, so no preset has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

PresetName = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"]

PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300, eq. 3 and section 4.2. It makes one update for each rollout,
    # so its clip range has no effect and is not stated; 0.2 is PPO's (arXiv 1707.06347).
    # DeepSeek-R1 (Nature 645, 633, methods) used kl_coef 0.001, a clip range of 10 and a new
    # reference every 400 steps.
    "grpo": {
        "advantages": {"kind": "group"},
        "objective": {
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl_kind": "k3",
            "kl_coef": 0.04,
            "aggregation": "sequence_mean",
        },
    },
    # arXiv 2503.14476, section 4.1. Its rewards are 1 and -1 (eq. 7) and ours 1 and 0, so the
    # length penalty is half of its own. The buffer is a fifth of the limit (4,096 of 20,480), as it
    # is by default. According to the authors (verl's documentation), the best run was without
    # overlong filtering (`mask_truncated`).
    "dapo": {
        "rollout": {"dynamic_sampling": True},
        "rewards": {"length": {"weight": 0.5}},
        "advantages": {"kind": "group"},
        "objective": {
            "clip_low": 0.2,
            "clip_high": 0.28,
            "kl_coef": 0.0,
            "aggregation": "token_mean",
        },
    },
    # arXiv 2503.20783, section 3.2 and table 6: it divides neither by the std of the group nor by
    # the length of the completion.
    "dr_grpo": {
        "advantages": {"kind": "none"},
        "objective": {
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl_coef": 0.0,
            "aggregation": "constant",
        },
    },
    # arXiv 2507.18071, section 5.1, with four minibatches per rollout. It leaves the KL out of its
    # formulas "for brevity"; kl_coef is 0 as in TRL's documentation.
    "gspo": {
        "advantages": {"kind": "group"},
        "objective": {
            "ratio_level": "sequence",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "kl_coef": 0.0,
            "aggregation": "sequence_mean",
        },
    },
    # MiniMax-M1, arXiv 2506.13585, section 3.1: weights are capped from above only, there is no KL,
    # and dynamic sampling and length penalty are those of DAPO. The paper does not state its cap; 5
    # is the recommendation of TRL's documentation, and arXiv 2510.13786 (appendix) finds little
    # difference between caps.
    "cispo": {
        "rollout": {"dynamic_sampling": True},
        "rewards": {"length": {"weight": 0.5}},
        "advantages": {"kind": "group"},
        "objective": {
            "policy_term": "cispo",
            "cispo_cap": 5.0,
            "kl_coef": 0.0,
            "aggregation": "token_mean",
        },
    },
    # arXiv 2402.14740, section 3 and appendix C (kl_coef 0.03 for its TL;DR task, 0.1 for HH).
    # There the KL of the whole completion is subtracted from the reward. Here rewards are given
    # before any logprob exists, so the KL is a term of the loss: k2, whose gradient is that of the
    # reverse KL. It is averaged over the tokens of a completion, so it is weaker than a sum, by a
    # factor of the completion's length. The paper does not clip; 0.2 is TRL's, and has no effect
    # while each rollout is trained in one step.
    "rloo": {
        "advantages": {"kind": "leave_one_out"},
        "objective": {
            "ratio_level": "sequence_sum",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl_kind": "k2",
            "kl_coef": 0.03,
            "aggregation": "sequence_mean",
        },
    },
}


def with_preset(document: Any) -> Any:
    """Return a recipe's document with its preset's values for all keys that it does not set.

    An unknown preset is ignored here; the validation of the recipe refuses it.
    """
    if not isinstance(document, Mapping):
        return document
    preset = document.get("preset")
    values = PRESETS.get(preset) if isinstance(preset, str) else None
    return document if values is None else _over(values, document)


def overruled(document: Mapping[str, Any]) -> list[str]:
    """Return the keys in which a recipe overrules its preset, as `key = own (preset: other)`."""
    preset = document.get("preset")
    values = PRESETS.get(preset) if isinstance(preset, str) else None
    return [
        f"{key} = {own!r} ({preset}: {other!r})"
        for key, own, other in _differences(document, values or {})
    ]


def _differences(
    own: Mapping[str, Any], other: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name, value in other.items():
        mine = own.get(name, value)
        if isinstance(value, Mapping) and isinstance(mine, Mapping):
            yield from _differences(mine, value, f"{above}{name}.")
        elif mine != value:
            yield f"{above}{name}", mine, value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` with the keys that only `below` has, table by table."""
    merged = dict(above)
    for key, value in below.items():
        own = above.get(key)
        if key not in above:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(own, Mapping):
            merged[key] = _over(value, own)
    return merged
