"""Figures of an evaluation: pass@k, maj@k and accuracy by task, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Return the probability that one of k samples is right, estimated without bias from n of them.

    It is 1 - C(n-c, k) / C(n, k), computed as a product (Chen et al., arXiv 2107.03374, section
    2.1).

    Args:
        correct: c, how many of the n samples are right.
        samples: n.
        k: at most n.
    """
    assert 0 <= correct <= samples and 1 <= k <= samples, (correct, samples, k)
    wrong = samples - correct
    if wrong < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(wrong + 1, samples + 1)))


def powers_up_to(samples: int) -> list[int]:
    """Return the values of k that are reported for n samples: 1, 2, 4, ... and n."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples}) if samples else []


def maj_at_k(answers: Sequence[str | None], rewards: Sequence[float]) -> float:
    """Return maj@k: the reward of the answer that a question's k samples give most often.

    Samples without an answer have no vote. Where answers tie, the value is the one to expect when
    one of them is chosen at random.

    Args:
        answers: the text that the rule read in each sample; equal texts are equal answers.
        rewards: one for each sample; an answer counts with the mean over the samples that gave it.
    """
    by_answer: dict[str, list[float]] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            by_answer.setdefault(answer, []).append(reward)
    if not by_answer:
        return 0.0
    most = max(map(len, by_answer.values()))
    winners = [float(np.mean(given)) for given in by_answer.values() if len(given) == most]
    return sum(winners) / len(winners)


def mean_over_tasks(values: Mapping[str, ArrayLike]) -> float:
    """Return the mean of the tasks' means: a task with more questions weighs no more."""
    return float(np.mean([np.mean(np.asarray(v, dtype=np.float64)) for v in values.values()]))


def bootstrap_interval(
    values: Mapping[str, ArrayLike], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of `mean_over_tasks`; questions are resampled by task.

    The interval has no width where all values are equal: for n questions that are all wrong, an
    exact interval would reach up to 3.7 / n.

    Args:
        values: one number per question, by task; no task is empty.
        level: coverage probability of the interval.
        resamples: number of bootstrap samples.
        seed: seeds the resampling.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for task in values.values():
        total += _resampled_means(np.asarray(task, dtype=np.float64), resamples, generator)
    tail = (1 - level) / 2
    low, high = np.quantile(total / len(values), [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(pairs: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> dict[str, float]:
    """Return after - before on the same questions: the mean over tasks and its 95 % interval.

    The differences are resampled question by question, which takes the difficulty of the questions
    out of the comparison.

    Args:
        pairs: by task, a value for each question before, and a value for each one after, in the
            same order.
    """
    before = {task: np.asarray(b, dtype=np.float64) for task, (b, _) in pairs.items()}
    after = {task: np.asarray(a, dtype=np.float64) for task, (_, a) in pairs.items()}
    difference = {task: after[task] - before[task] for task in pairs}
    low, high = bootstrap_interval(difference)
    return {
        "questions": sum(map(len, difference.values())),
        "before": mean_over_tasks(before),
        "after": mean_over_tasks(after),
        "difference": mean_over_tasks(difference),
        "low": low,
        "high": high,
    }


def _resampled_means(
    values: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mean of each of `resamples` draws with replacement, float64 [resamples].

    Equal values are drawn together, by a multinomial. Rewards take few values, so this costs
    resamples × distinct values instead of resamples × questions.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(len(values), counts / len(values), size=resamples)
    return drawn @ distinct / len(values)


GREEDY = -1
"""`sample_index` of the greedy completion."""

JUDGED = pl.col("verdict") != "infra_error"
"""Selects the rows whose rule did not fail. The others count neither as right nor as wrong."""

Figures = dict[str, float | int | None]


def figures_by_task(judged: pl.DataFrame) -> dict[str, Figures]:
    """Return the accuracy of each task.

    `greedy` is the greedy completions' pass@1 with its 95 % bootstrap interval, `pass@k` the
    unbiased estimate from the sampled ones, `maj@k` the majority over all k of them. Completions
    whose rule failed (`infra_error`) count neither as right nor as wrong.

    Args:
        judged: columns of `schemas.EVALUATION`.
    """
    valid = judged.filter(JUDGED).with_columns(
        correct=pl.col("verdict") == "correct", tokens=pl.col("completion_ids").list.len()
    )
    return {
        str(task): _figures(rows) for (task,), rows in valid.group_by(["task"], maintain_order=True)
    }


def greedy_mean_over_tasks(judged: pl.DataFrame) -> Figures:
    """Return greedy accuracy as the mean over the tasks, with its interval."""
    greedy = judged.filter(JUDGED, pl.col("sample_index") == GREEDY).with_columns(
        correct=pl.col("verdict") == "correct"
    )
    by_task = {
        str(task): rows["correct"].to_numpy()
        for (task,), rows in greedy.group_by(["task"], maintain_order=True)
    }
    low, high = bootstrap_interval(by_task)
    mean = mean_over_tasks(by_task)
    return {"questions": greedy.height, "greedy": mean, "greedy_low": low, "greedy_high": high}


def _figures(rows: pl.DataFrame) -> Figures:
    greedy = pl.col("sample_index") == GREEDY
    return {
        **greedy_mean_over_tasks(rows),
        **_sampled(rows.filter(~greedy)),
        "tokens": _mean(rows["tokens"]),
        "truncated": _mean(rows["finish_reason"] == "length"),
    }


def _sampled(rows: pl.DataFrame) -> Figures:
    """Return pass@k for k = 1, 2, 4, … and maj@k, over questions that have all their samples."""
    questions = rows.group_by("prompt_id", maintain_order=True).agg("correct", "extracted_answer")
    correct: list[list[bool]] = questions["correct"].to_list()
    answers: list[list[str | None]] = questions["extracted_answer"].to_list()
    samples = max(map(len, correct), default=0)
    if not samples:
        return {}
    whole = [pair for pair in zip(answers, correct, strict=True) if len(pair[1]) == samples]
    figures: Figures = {
        f"pass@{k}": _mean(pass_at_k(sum(right), samples, k) for _, right in whole)
        for k in powers_up_to(samples)
    }
    return figures | {f"maj@{samples}": _mean(maj_at_k(*pair) for pair in whole)}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
