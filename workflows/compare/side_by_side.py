"""Results of compared variants, as tables, files and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from common.reporting.terminal import print_table
from common.runs.child import Frozen
from common.runs.manifest import write_atomically
from common.runs.metrics import finite_row
from common.runs.shards import encode_parquet
from workflows.compare import tables
from workflows.compare.children import VariantResult
from workflows.compare.plot import draw


@dataclass(frozen=True)
class SideBySide:
    """Tables with a row per variant, and one with a row per optimizer step."""

    run: str
    iteration: int
    baseline: str
    results: pl.DataFrame
    steps: pl.DataFrame
    policies: pl.DataFrame
    accuracy: pl.DataFrame
    before: float | None = None
    """Greedy accuracy of the policy that all variants began with, if the parent evaluated it."""

    @classmethod
    def of(cls, frozen: Frozen, outcomes: list[VariantResult]) -> SideBySide:
        """Read what the children have on disk."""
        number, baseline = frozen.iteration, outcomes[0].variant.name
        trained = {o.variant.name: o.child for o in outcomes if o.is_trained}
        columns = {
            "variant": [o.variant.name for o in outcomes],
            "result": [o.result for o in outcomes],
            "run": [o.child.name for o in outcomes],
        }
        return cls(
            run=frozen.run.name,
            iteration=number,
            baseline=baseline,
            results=pl.DataFrame(columns),
            steps=tables.step_table(trained, number),
            policies=tables.policies_table(trained, number, baseline),
            accuracy=tables.accuracy_table(trained, number, baseline),
            before=tables.greedy_accuracy(frozen.run, number - 1),
        )

    @property
    def title(self) -> str:
        return f"{self.run}, iteration {self.iteration}"

    def write(self, *, svg: Path | None, output: Path | None) -> None:
        """Write the files that were asked for."""
        if output is not None:
            write_atomically(output, encode_parquet(self.steps.to_arrow()))
        if svg is not None and self.steps.height:
            title = f"{self.title}: the same completions, several recipes"
            draw(self.steps, self.accuracy, svg, title=title, before=self.before)

    def print(self) -> None:
        """Print results with updates, then metrics and accuracies if there are any.

        Variants are rows, except in the table of metrics, where they are columns.
        """
        means = tables.metrics_table(self.steps)
        taken = means.select("variant", "steps", "seconds")
        results = self.results.drop("run").join(taken, on="variant", how="left")
        results = results.join(self.policies, on="variant", how="left")
        number, against = self.iteration, f"against {self.baseline}"
        print_table(
            results, title=f"{self.title}: policy {number} minus policy {number - 1}, {against}"
        )
        if means.height:
            metrics = means.drop("steps", "seconds").transpose(
                include_header=True, header_name="metric", column_names="variant"
            )
            title = f"{self.title}: means over the optimizer steps; of ratio_max the largest"
            print_table(metrics, title=title, wrap_names=False)
        if self.accuracy.height:
            since = "" if self.before is None else f"; policy {number - 1}: {self.before:.3f}"
            title = f"held-out questions, policy {number}, {against}{since}"
            print_table(self.accuracy, title=title)

    def as_json(self) -> dict[str, Any]:
        """Return everything that is printed, with one row per variant."""
        whole = self.results
        for table in (tables.metrics_table(self.steps), self.policies, self.accuracy):
            whole = whole.join(table, on="variant", how="left") if table.width else whole
        facts = {"run": self.run, "iteration": self.iteration, "baseline": self.baseline}
        facts |= {"greedy_before": self.before}
        return facts | {"variants": [finite_row(row) for row in whole.to_dicts()]}
