"""Which tokens of which prompt were clipped: the per-token records of an iteration as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from common.config import ObjectiveConfig
from common.errors import UserError
from common.reporting.terminal import Table, first_rows
from common.runs.columns import join, polars_frame
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_shards

CONTEXT = 8
"""How many tokens are shown on each side of one."""

WIDTH = 16
"""How many characters of them are shown on the terminal."""

NOT_SHOWN = ("old_logprob", "new_logprob", "entropy", "completions")
"""Columns that are in the JSON only."""

PER_TOKEN = ["token_text", "old_logprobs", "new_logprobs", "ratio", "clipped", "entropy"]

LOW, HIGH = pl.col("clipped") < 0, pl.col("clipped") > 0
COUNTS = (pl.len().alias("tokens"), LOW.sum().alias("low"), HIGH.sum().alias("high"))
CLIPPED = pl.col("low") + pl.col("high")


def token_tables(
    run: Run, iteration: int, *, prompt: str = "", every: bool = False, limit: int | None = 20
) -> list[Table]:
    """Return what `stages.show tokens` prints.

    At the sequence ratio levels, all tokens of a completion are clipped or none. Then clipped
    completions are listed, by their first token, and there is no table by token.

    Args:
        run: the run.
        iteration: which of its iterations.
        prompt: only this prompt's completions.
        every: list all tokens in their order, not only those that are clipped.
        limit: rows of each table; None for all.

    Raises:
        UserError: there are no records, they are stale, or no such prompt.
    """
    overall = pl.DataFrame([_facts(run, iteration)])
    whole = _objective(run, iteration).ratio_level != "token"
    found = _gather(run, iteration, prompt, every, whole, limit)
    chosen = pl.lit(True) if every else CLIPPED > 0
    prompts = found.prompts.filter(chosen).sort(CLIPPED, descending=True, maintain_order=True)
    tokens = found.tokens if every else _farthest(found.tokens)
    title = "tokens" if every else f"clipped {'completions' if whole else 'tokens'}"
    tables = [
        Table("overall", "the tokens in the loss", overall),
        first_rows(Table("prompts", "prompts by clipped tokens", prompts), limit),
        first_rows(Table("tokens", title, tokens), limit, found.total),
    ]
    if not whole:
        texts = found.texts.filter(chosen).sort(
            CLIPPED, "tokens", "token_text", descending=[True, True, False]
        )
        tables.append(first_rows(Table("texts", "by token; ratio is the mean", texts), limit))
    return tables


def token_summary(run: Run, iteration: int) -> str:
    """Return a summary of an iteration's records, in three lines.

    Raises:
        UserError: there are no records, or they are stale.
    """
    facts, objective = _facts(run, iteration), _objective(run, iteration)
    low, high = facts["clipped_low"], facts["clipped_high"]
    clips = f"none; the largest ratio is {facts['ratio_max']:.4g}"
    if low + high:
        clips = (
            f"{_tokens_text(low)} from below ({100 * facts['clip_fraction_low']:.2f} %) and "
            f"{high} from above ({100 * facts['clip_fraction_high']:.2f} %)"
        )
    return (
        f"policy {iteration} after its last step, against policy {iteration - 1} that sampled: "
        f"{_tokens_text(facts['tokens'])} in the loss\n"
        f"{_what_is_clipped(objective)}\n"
        f"one more epoch would clip {clips}"
    )


def for_terminal(table: Table) -> Table:
    """Return the table reduced to fit into 80 columns.

    The text around a token is put into one column, single tokens are quoted, and columns for JSON
    alone are dropped.
    """
    frame = table.frame
    if "before" in frame.columns:
        before, token, after = (pl.col(name) for name in ("before", "token", "after"))
        text = pl.concat_str(
            before.str.tail(WIDTH), pl.lit("«"), token, pl.lit("»"), after.str.head(WIDTH)
        ).str.replace_all("\n", "⏎", literal=True)
        frame = frame.insert_column(2, frame.select(text.alias("text"))["text"])
        frame = frame.drop("before", "token", "after")
    if "token_text" in frame.columns:
        quoted = pl.Series("token_text", map(repr, frame["token_text"]), pl.String)
        frame = frame.with_columns(quoted)
    return table._replace(frame=frame.drop(NOT_SHOWN, strict=False))


def _tokens_text(count: float) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _what_is_clipped(objective: ObjectiveConfig) -> str:
    """Return which ratios are clipped, and with which sign of the advantage."""
    if objective.has_own_term:
        return f"no token counts as clipped by {objective.policy_term}, a function of the recipe's"
    clipped = f"clipped are {objective.ratio_level} ratios"
    if objective.policy_term == "cispo":
        return f"{clipped} above {objective.cispo_cap:g}"
    low, high, dual = 1 - objective.clip_low, 1 + objective.clip_high, objective.dual_clip
    said = f"{clipped} below {low:g} (advantage < 0) and above {high:g} (> 0)"
    return said if dual is None else f"{said} and above {dual:g} (< 0)"


def _facts(run: Run, iteration: int) -> dict[str, float]:
    output = run.tokens(iteration)
    facts = read_manifest(output).facts
    status = status_of(run, output)
    if status.state != "fresh":
        raise UserError(f"{output.path} is stale ({status.reason}); make it: {output.command}")
    return facts


def _objective(run: Run, iteration: int) -> ObjectiveConfig:
    recipe = read_manifest(run.tokens(iteration)).recipe
    return ObjectiveConfig.model_validate(recipe["objective"])


class _Found(NamedTuple):
    prompts: pl.DataFrame
    texts: pl.DataFrame
    tokens: pl.DataFrame
    """The tokens to list; at most so many of each shard."""
    total: int
    """How many there are in all shards."""


def _gather(
    run: Run, iteration: int, prompt: str, every: bool, whole: bool, limit: int | None
) -> _Found:
    """Return the frames that the tables are made of, read shard by shard."""
    prompts, texts, listed = list[pl.DataFrame](), list[pl.DataFrame](), list[pl.DataFrame]()
    drawn, trained, count = dict[str, None](), set[str](), 0
    for rows in _rows(run, iteration):
        drawn |= dict.fromkeys(rows["prompt_id"])
        rows = rows.filter("kept")
        trained.update(rows["prompt_id"])
        rows = rows.filter(pl.col("prompt_id") == prompt) if prompt else rows
        tokens = _tokens(rows)
        prompts.append(_by_prompt(tokens))
        texts.append(tokens.group_by("token_text").agg(*COUNTS, pl.col("ratio").sum()))
        chosen = tokens if every else _clipped(tokens, whole)
        count += chosen.height
        listed.append(_with_context(chosen.head(limit or chosen.height), rows))
    if prompt and prompt not in drawn:
        raise UserError(
            f"--prompt {prompt!r}: no such prompt_id among the {len(drawn)} of iteration "
            f"{iteration}, which begin with {', '.join([*drawn][:3])}"
        )
    if prompt and prompt not in trained:
        raise UserError(
            f"--prompt {prompt!r}: dynamic sampling left its groups out of iteration {iteration}"
        )
    by_text = pl.concat(texts).group_by("token_text").sum()
    by_text = by_text.with_columns(pl.col("ratio") / pl.col("tokens"))
    return _Found(pl.concat(prompts), by_text, pl.concat(listed), count)


def _rows(run: Run, iteration: int) -> Iterator[pl.DataFrame]:
    """Yield the shards, with a row per completion."""
    columns = {
        run.rollout(iteration): [KEY, "prompt_id", "question", "kept"],
        run.score(iteration): [KEY, "advantage"],
        run.logprobs(iteration): [KEY, "old_logprobs"],
        run.tokens(iteration): [KEY, *(name for name in PER_TOKEN if name != "old_logprobs")],
    }
    first, *others = columns
    shards = [read_shards(output, names) for output, names in columns.items()]
    for joined, *parts in zip(*shards, strict=True):
        for output, part in zip(others, parts, strict=True):
            joined = join(joined, part, key=KEY, names=(first.name, output.name))
        yield polars_frame(joined)


def _tokens(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a row per token, with its `position` in the completion."""
    positions = pl.int_ranges(pl.col("ratio").list.len()).alias("position")
    return rows.with_columns(positions).explode("position", *PER_TOKEN).drop_nulls("position")


def _by_prompt(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the counts of each prompt; `mean_advantage` is over its clipped tokens."""
    return tokens.group_by("prompt_id", maintain_order=True).agg(
        pl.col("question").first(),
        pl.col(KEY).n_unique().alias("completions"),
        *COUNTS,
        pl.col("advantage").filter(LOW | HIGH).mean().alias("mean_advantage"),
    )


def _clipped(tokens: pl.DataFrame, whole: bool) -> pl.DataFrame:
    """Return the clipped tokens; of whole completions that are clipped, the first token."""
    clipped = tokens.filter((LOW | HIGH) & ((pl.col("position") == 0) | (not whole)))
    return _farthest(clipped)


def _farthest(tokens: pl.DataFrame) -> pl.DataFrame:
    """Sort tokens by how far the ratio is from 1."""
    return tokens.sort(pl.col("ratio").log().abs(), descending=True, maintain_order=True)


def _with_context(tokens: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the columns to show, with the text before and after each token."""
    texts = dict(zip(rows[KEY], rows["token_text"], strict=True))
    around = [
        (
            "".join(texts[key][max(0, position - CONTEXT) : position]),
            "".join(texts[key][position + 1 : position + 1 + CONTEXT]),
        )
        for key, position in tokens.select(KEY, "position").iter_rows()
    ]
    return tokens.select(
        KEY,
        "position",
        pl.Series("before", [before for before, _ in around], pl.String),
        pl.col("token_text").alias("token"),
        pl.Series("after", [after for _, after in around], pl.String),
        pl.when(LOW).then(pl.lit("low")).when(HIGH).then(pl.lit("high")).alias("clipped"),
        "ratio",
        "advantage",
        pl.col("old_logprobs").alias("old_logprob"),
        pl.col("new_logprobs").alias("new_logprob"),
        "entropy",
    )
