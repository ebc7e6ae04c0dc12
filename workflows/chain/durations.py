"""How long the stages of a run have taken, and how long those to come will take at that rate."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from statistics import median

from common.config import Recipe
from common.errors import UserError
from common.runs.freshness import PlannedStage
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.recipe import differing_keys
from common.runs.stages import STAGES, StageName

LATEST = 5
"""How many times of a stage are remembered; completions grow, so that older ones say less."""


class Durations:
    """Seconds that each stage has taken, the latest times of each."""

    def __init__(self) -> None:
        self._seconds: dict[StageName, deque[float]] = defaultdict(lambda: deque(maxlen=LATEST))

    @classmethod
    def recorded(cls, run: Run, recipe: Recipe) -> Durations:
        """Return the times in the manifests of a run, of outputs that the recipe would make alike.

        What was made with other values is no measure of what is to come.
        """
        found, now = cls(), recipe.model_dump(mode="json")
        for stage in STAGES:
            numbers = {"run": [0], "iteration": run.iterations(), "policy": run.evaluations()}
            for number in numbers[stage.per]:
                output = run.of(stage.name, number)
                if not has_manifest(output):
                    continue
                try:
                    manifest = read_manifest(output)
                except UserError:
                    continue  # the plan says what is damaged
                seconds = manifest.recorded.get("wall_seconds")
                if seconds and not differing_keys(manifest.recipe, now):
                    found.add(stage.name, seconds)
        return found

    def add(self, stage: StageName, seconds: float) -> None:
        """Remember how long a stage has taken."""
        self._seconds[stage].append(seconds)

    def of(self, steps: Iterable[PlannedStage]) -> float | None:
        """Return the seconds that these stages will take, as those of their kind did in the median.

        Return None if one of them was never timed, so that nobody knows.
        """
        names = [step.stage.name for step in steps]
        if any(not self._seconds[name] for name in names):
            return None
        return sum(median(self._seconds[name]) for name in names)
