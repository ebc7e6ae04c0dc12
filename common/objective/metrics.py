"""Metrics of an optimizer step from sums, which microbatches and dp ranks add up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MAXIMA = frozenset({"ratio_max", "sampler_gap_max"})
"""Sums that combine by maximum; all others add."""

MEANS = (
    "kl",
    "entropy",
    "clip_fraction_low",
    "clip_fraction_high",
    "ratio_mean",
    "approx_kl",
    "sampler_gap_mean",
    "sampler_weight_mean",
)
"""Sums over tokens that become means."""


def masked_sums(
    mask: Tensor, totals: Mapping[str, Tensor], token_values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Detached float64 scalars of one microbatch.

    Args:
        mask: [B, T] bool, tokens in the loss.
        totals: scalars that are this microbatch's part already.
        token_values: [B, T] values to be summed over the mask; a name in `MAXIMA`: the maximum.
    """
    sums = {"tokens": mask.sum(dtype=torch.float64)}
    sums |= {name: value.detach().double() for name, value in totals.items()}
    for name, values in token_values.items():
        inside = values.detach().double().where(mask, 0.0)
        sums[name] = _largest(inside) if name in MAXIMA else inside.sum()
    return sums


def merge_sums(total: dict[str, Tensor] | None, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Combine the sums of two parts of an optimizer batch; None is the empty part."""
    if total is None:
        return dict(part)
    return {
        name: torch.maximum(total[name], value) if name in MAXIMA else total[name] + value
        for name, value in part.items()
    }


def metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The loss's metrics of a whole optimizer batch; every mean over no token is 0.

    Token means over the loss's mask: `kl` of the estimator (unweighted), `entropy`,
    `clip_fraction_low`, `clip_fraction_high`, `ratio_mean` (of the ratio level in use), `approx_kl`
    (mean of r − 1 − log r of the token's ratio), `sampler_gap_mean` (|old − sampler_full|) and
    `sampler_weight_mean`. `loss` and `policy_loss` are aggregated as the recipe says. Tokens of
    completions that were left out of the compute, having no gradient, are in no mean.
    """
    tokens = max(float(sums["tokens"]), 1.0)
    totals = {name: float(sums[name]) for name in ("loss", "policy_loss", *sorted(MAXIMA))}
    return totals | {name: float(sums[name]) / tokens for name in MEANS}


def _largest(values: Tensor) -> Tensor:
    """The maximum of values that are never negative; 0 of none."""
    return torch.cat((values.flatten(), values.new_zeros(1))).amax()
