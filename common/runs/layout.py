"""Where the files of a run are on disk. No other module builds a path into a run.

    data/runs/<run>/
      recipe.toml  child_of.json  prompts/  policies/0000 …  references/0001 …  trainer/0001 …
      iterations/0001/{rollout,score,…}/  evaluations/0000 …  metrics.jsonl  judge/

Iteration N samples policy N - 1 and writes policy N.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.console import python
from common.errors import UserError
from common.runs.stages import BY_NAME, SIDE_STAGES, STAGES, StageName

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_RECIPE = REPOSITORY / "workflows" / "recipes" / "arithmetic.toml"

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RUN_NAME_RULE = (
    "a run's name is 1 to 64 of the characters A-Z a-z 0-9 . _ - "
    "and begins with a letter or a digit"
)


@dataclass(frozen=True)
class Output:
    """Output of one stage: a directory that exists only when it is complete.

    It is made as `partial`, next to its place, and renamed once its manifest is written.
    """

    run: Path
    """Root of the run."""
    name: str
    """Path within the run, which is also the name by which manifests list it as an input."""
    stage: StageName
    iteration: int

    @property
    def path(self) -> Path:
        return self.run / self.name

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def replaced(self) -> Path:
        """Return where a former output is kept for the moment between two renames."""
        return self.path.with_name(self.path.name + ".old")

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def command(self) -> str:
        """Return the command line that makes this output again."""
        number = f" --iteration {self.iteration}" if BY_NAME[self.stage].has_number else ""
        return f"{python()} -m stages.{self.stage} --run {self.run.name}{number} --overwrite"

    @property
    def make_command(self) -> str:
        """Return the command line that makes this output, and all that it lacks, if it is missing.

        An output that no other is made from has a target of its own, and needs its iteration.
        """
        run, stage = Run(self.run), BY_NAME[self.stage]
        if stage.per == "run":
            return f"make prepare RUN={run.name}"
        if stage.name not in SIDE_STAGES:
            return run.make(self.iteration)
        own = f"make {stage.name} N={self.iteration} RUN={run.name}"
        trained = run.last_policy() >= self.iteration
        return own if trained else f"{run.make(self.iteration)} && {own}"


@dataclass(frozen=True)
class Run:
    """A run directory and the paths inside it."""

    root: Path

    @classmethod
    def named(cls, name: str, runs_directory: Path | None = None) -> Run:
        """Return the run called `name`; it need not exist yet.

        Raises:
            UserError: the name could escape the runs directory or confuse a shell.
        """
        if not _RUN_NAME.fullmatch(name):
            raise UserError(f"--run {name!r}: {RUN_NAME_RULE}")
        return cls((runs_directory or default_runs_directory()) / name)

    @property
    def name(self) -> str:
        return self.root.name

    def make(
        self,
        iteration: int,
        *,
        remake_from: int | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> str:
        """Return the make command that brings the run to an iteration.

        Args:
            remake_from: make this iteration and later ones again.
            settings: values of keys of the recipe.
        """
        again = [f"FROM={remake_from}"] if remake_from else []
        words = [f"N={iteration}", *again, f"RUN={self.name}"]
        if settings:
            words.append("SET=" + " ".join(f"{key}={value}" for key, value in settings.items()))
        return shlex.join(["make", "iteration", *words])

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def recipe_folder(self) -> Path:
        """Return the file that says in which folder the recipe lay that was put in force."""
        return self.root / "recipe_folder.txt"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def judge(self) -> Path:
        """Folder of the scores that the verify type JUDGE has been given, for all stages."""
        return self.root / "judge"

    @property
    def child_of(self) -> Path:
        """Return the file that says from which run and iteration a child was made; see `child`."""
        return self.root / "child_of.json"

    @property
    def making(self) -> Run:
        """Return where a child run is made until it is complete; no run can have this name."""
        return Run(self.root.with_name(f".{self.name}.making"))

    def of(self, stage: StageName, number: int = 0) -> Output:
        """Return the output whose manifest says that a stage is complete.

        Args:
            number: the iteration, or the policy that is evaluated.

        Raises:
            UserError: the number is that of an iteration, and below 1.
        """
        if BY_NAME[stage].per == "iteration" and number < 1:
            raise UserError(f"--iteration {number}: iterations are counted from 1")
        return Output(self.root, BY_NAME[stage].path.format(number), stage, number)

    @property
    def prompts(self) -> Output:
        return self.of("prepare")

    def rollout(self, iteration: int) -> Output:
        return self.of("rollout", iteration)

    def score(self, iteration: int) -> Output:
        return self.of("score", iteration)

    def logprobs(self, iteration: int) -> Output:
        return self.of("logprobs", iteration)

    def train(self, iteration: int) -> Output:
        """Return the metrics of an iteration's training, whose manifest completes the iteration."""
        return self.of("train", iteration)

    def tokens(self, iteration: int) -> Output:
        """Return an iteration's per-token records, which `stages.tokens` makes on request."""
        return self.of("tokens", iteration)

    def evaluation(self, policy: int) -> Output:
        return self.of("evaluate", policy)

    def companion(self, name: str, number: int) -> Output:
        """Return an output that is committed together with a stage's own, such as `trainer`."""
        stage: StageName = "train" if number else "prepare"
        return Output(self.root, BY_NAME["train"].companions[name].format(number), stage, number)

    def policy(self, number: int) -> Output:
        return self.companion("policies", number)

    def reference(self, number: int) -> Output:
        """Return the average of policies up to `number`; only with `reference.update = "ema"`."""
        return self.companion("references", number)

    def trainer(self, number: int) -> Output:
        """Return the trainer state (optimizer, masters, schedule) after iteration `number`."""
        return self.companion("trainer", number)

    def output(self, name: str) -> Output:
        """Return the output that manifests call `name`, such as `iterations/0003/rollout`.

        Raises:
            UserError: no stage makes an output of that name.
        """
        number = next((int(part) for part in name.split("/") if part.isdecimal()), 0)
        for stage in STAGES:
            if stage.path.format(number) == name:
                return self.of(stage.name, number)
            for companion, path in stage.companions.items():
                if path.format(number) == name:
                    return self.companion(companion, number)
        raise UserError(f"{self.root / name}: no stage makes such an output")

    def last_policy(self) -> int:
        """Return the number of the newest complete policy; -1 before `prepare`."""
        return max((int(p.parent.name) for p in self._manifests("policies")), default=-1)

    def evaluations(self) -> list[int]:
        """Return the numbers of the policies that have been evaluated, ascending."""
        return sorted(int(p.parent.name) for p in self._manifests("evaluations"))

    def iterations(self) -> list[int]:
        """Return the numbers of the iterations that have anything on disk, ascending."""
        folders = (self.root / "iterations").glob("[0-9]*")
        return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())

    def _manifests(self, folder: str) -> list[Path]:
        return [
            path
            for path in (self.root / folder).glob("*/manifest.json")
            if path.parent.name.isdecimal()
        ]


def no_such_run(run: Run) -> UserError:
    """Return the error about a run that does not exist, or is not prepared."""
    there = ", ".join(run_names(run.root.parent))
    others = f"there are {there} (RUN=…)" if there else "there is none yet"
    return UserError(f"{run.root}: no such run; {others}; begin it with: {run.make(1)}")


def run_names(runs_directory: Path) -> list[str]:
    """Return the names of the runs in a directory, in alphabetical order."""
    return sorted(
        path.parent.name
        for path in runs_directory.glob("*/recipe.toml")
        if _RUN_NAME.fullmatch(path.parent.name)
    )


def default_runs_directory() -> Path:
    """Return `$STAGED_GRPO_RUNS` if it is set, else `data/runs` of this repository."""
    return Path(os.environ.get("STAGED_GRPO_RUNS") or REPOSITORY / "data" / "runs").absolute()


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"
