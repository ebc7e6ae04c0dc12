"""Per-token records of an iteration: what the objective makes of a policy's logprobs.

Ratio, clipping and KL are computed by the functions of the loss. A token's weight also depends on
the entropy threshold of its optimizer batch, which reaches beyond its shard; the thresholds are
computed once, beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import ObjectiveConfig, TrainConfig
from common.modeling.token_texts import TokenTexts
from common.objective.loss import clipped_tokens, kl_term, policy_ratio
from common.objective.weights import in_policy_term, sampler_weights, tokens_in_loss
from common.parallel.forward import TokenStats
from common.runs.columns import flat_values, list_column, list_lengths
from common.runs.layout import Run
from common.runs.schemas import KEY, TOKEN_RECORDS
from common.training.minibatches import plan_minibatches
from common.training.samples import group_samples, read_samples


@dataclass(frozen=True)
class Recorder:
    """Recorder of an iteration's tokens, shard by shard."""

    objective: ObjectiveConfig
    """The objective that the iteration was trained with."""
    texts: TokenTexts
    entropy_thresholds: dict[int, float] = field(default_factory=dict)
    """Threshold of each group; empty if the policy term is on every token."""

    def table(self, shard: pa.Table, new: TokenStats) -> pa.Table:
        """Return the records of a shard, in its order.

        Args:
            shard: rollout, score and logprobs side by side, `without_rejected`.
            new: logprobs and entropies of the shard's tokens under the trained policy.
        """
        lengths = list_lengths(shard, "completion_ids")
        ids = flat_values(shard, "completion_ids")
        logprobs = torch.from_numpy(new.logprobs)
        ratio = self._ratio(logprobs, torch.from_numpy(_floats(shard, "old_logprobs")), lengths)
        in_loss = np.repeat(self.in_loss(shard), lengths)
        flat = {
            "token_text": self.texts.column(ids),
            "new_logprobs": new.logprobs,
            "ratio": ratio.numpy(),
            "clipped": self._clipped(ratio, shard, lengths) * in_loss,
            "entropy": new.entropy,
            "weight": np.where(in_loss, self._weight(shard, lengths), 0.0),
        }
        columns = {
            name: list_column(pa.array(values, TOKEN_RECORDS.field(name).type.value_type), lengths)
            for name, values in flat.items()
        }
        columns["kl"] = self._kl(logprobs, shard, lengths)
        return pa.table({KEY: shard[KEY]} | columns).select(TOKEN_RECORDS.names)

    def in_loss(self, shard: pa.Table) -> NDArray[np.bool_]:
        """Return [rows] bool: which completions are in the loss.

        A completion is not if it has no tokens, or if it is truncated and `mask_truncated` is set.
        """
        counts = tokens_in_loss(
            list_lengths(shard, "completion_ids").tolist(),
            [reason == "length" for reason in shard["finish_reason"].to_pylist()],
            mask_truncated=self.objective.mask_truncated,
        )
        return counts.numpy() > 0

    def _ratio(self, logprobs: Tensor, old: Tensor, lengths: NDArray[np.int64]) -> Tensor:
        """Return [N] float32 ratios as in the loss, also of completions that are not in it."""
        present = lengths[lengths > 0]
        completion = torch.from_numpy(np.repeat(np.arange(len(present)), present))
        everywhere = torch.ones_like(completion, dtype=torch.bool)
        rows = (logprobs[None], old[None], everywhere[None], completion[None])
        return policy_ratio(self.objective.ratio_level, *rows)[0]

    def _clipped(
        self, ratio: Tensor, shard: pa.Table, lengths: NDArray[np.int64]
    ) -> NDArray[np.int8]:
        advantages = np.repeat(shard["advantage"].to_numpy(), lengths)
        low, high = clipped_tokens(ratio, torch.from_numpy(advantages).float(), self.objective)
        return high.numpy().astype(np.int8) - low.numpy().astype(np.int8)

    def _weight(self, shard: pa.Table, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return [N] sampler corrections, 0 on tokens below the entropy threshold."""
        sampled = _floats(shard, "sampler_logprobs")
        weight = sampler_weights(self.objective, _floats(shard, "old_logprobs"), sampled, lengths)
        if not self.entropy_thresholds:
            return weight
        groups = shard["group_id"].to_pylist()
        thresholds = [self.entropy_thresholds.get(group, -np.inf) for group in groups]
        kept = in_policy_term(_floats(shard, "entropy"), np.repeat(thresholds, lengths))
        return np.where(kept, weight, 0.0)

    def _kl(self, logprobs: Tensor, shard: pa.Table, lengths: NDArray[np.int64]) -> pa.Array:
        kind = TOKEN_RECORDS.field("kl").type
        if shard["ref_logprobs"].null_count:
            return pa.nulls(len(shard), kind)
        reference = torch.from_numpy(_floats(shard, "ref_logprobs"))
        kl = kl_term(self.objective.kl_kind, logprobs, reference)
        return list_column(pa.array(kl.numpy(), kind.value_type), lengths)


def entropy_thresholds(
    run: Run, iteration: int, objective: ObjectiveConfig, train: TrainConfig, seed: int
) -> dict[int, float]:
    """Return the entropy threshold of each group, in its optimizer batch of the last epoch.

    It is empty if every token is in the policy term.

    Args:
        run: the run.
        iteration: which of its iterations.
        objective: the objective that the iteration was trained with.
        train: the section of the recipe that trained; it decides which groups were batched.
        seed: the seed of the run; it decides this too.
    """
    if objective.top_entropy_quantile == 1:
        return {}
    samples = read_samples(run, iteration, with_reference=False, with_entropy=True).samples
    batches = plan_minibatches(
        group_samples(samples),
        objective,
        epochs=train.epochs,
        prompts_per_step=train.prompts_per_step,
        seed=seed,
        iteration=iteration,
        on_no_signal="keep",
    )
    return {
        group.samples[0].group: batch.entropy_threshold
        for batch in batches
        if batch.epoch == train.epochs - 1
        for group in batch.groups
    }


def record_facts(shards: Iterable[tuple[NDArray[np.bool_], pa.Table]]) -> dict[str, float | int]:
    """Return totals and means of an iteration's records, over the tokens in the loss.

    Args:
        shards: for each shard, which completions are in the loss ([rows] bool), and its records.
    """
    tokens, low, high, total, largest = 0, 0, 0, 0.0, 0.0
    for in_loss, records in shards:
        chosen = records.filter(pa.array(in_loss))
        ratio, clipped = _floats(chosen, "ratio"), flat_values(chosen, "clipped")
        tokens += len(ratio)
        low += int((clipped < 0).sum())
        high += int((clipped > 0).sum())
        total += float(ratio.sum(dtype=np.float64))
        largest = max(largest, float(ratio.max(initial=0.0)))
    count = max(tokens, 1)
    return {
        "tokens": tokens,
        "clipped_low": low,
        "clipped_high": high,
        "clip_fraction_low": low / count,
        "clip_fraction_high": high / count,
        "ratio_mean": total / count,
        "ratio_max": largest,
    }


def _floats(table: pa.Table, name: str) -> NDArray[np.float32]:
    # A copy: Arrow's memory is read-only, which torch does not accept.
    return flat_values(table, name).astype(np.float32)
