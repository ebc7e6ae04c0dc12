"""What a user should hear of an objective that is allowed and rarely meant."""

from __future__ import annotations

from common.config import ObjectiveConfig

UNWEIGHTED_K1 = (
    "objective.kl_kind = 'k1' without kl_importance_weight: its gradient vanishes in expectation, "
    "so it adds noise and holds nothing back; use k2 or k3, or kl_importance_weight = true"
)


def remarks(config: ObjectiveConfig) -> list[str]:
    """Sentences for the terminal; none for an objective as its paper has it."""
    said = []
    if config.kl_coef and config.kl_kind == "k1" and not config.kl_importance_weight:
        said.append(UNWEIGHTED_K1)
    if config.ratio_level != "token" and config.aggregation != "sequence_mean":
        said.append(
            f"objective.ratio_level = {config.ratio_level!r} gives all tokens of a completion one "
            f"ratio, but objective.aggregation = {config.aggregation!r} weighs a completion by "
            "its length; 'sequence_mean' goes with it"
        )
    return said
