"""What every stage does around its work: open the run, check what is to be done, and commit.

`stage_command` turns the work of a stage into its command. The work is given a `StageRun` and the
stage's own options; the options that all stages have are added here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.command import (
    AcceptEdits,
    Debug,
    Iteration,
    Json,
    Overrides,
    Overwrite,
    Quiet,
    RecipePath,
    RunName,
    open_run,
    rank,
    tell_result,
)
from common.config import MeshConfig, Recipe
from common.console import say, set_quiet
from common.runs.edits import accept_edits as accept
from common.runs.freshness import input_hashes, inputs_of, recover, status_of
from common.runs.layout import Output, Run
from common.runs.manifest import Manifest, has_manifest, read_manifest
from common.runs.shards import OutputWriter
from common.runs.stages import BY_NAME, Stage, StageName
from common.tasks.outside import accept_changed_files

if TYPE_CHECKING:
    from common.parallel.mesh import Mesh

PolicyNumber = Annotated[int, typer.Option("--iteration", min=0, help="Which policy; 0: the base.")]


@dataclass
class StageRun:
    """A stage at work on one output of a run."""

    stage: Stage
    run: Run
    iteration: int
    """Iteration, or number of the evaluated policy; 0 for a stage with one output per run."""
    recipe: Recipe
    """The recipe in force, restricted to the keys that the stage declares."""
    as_json: bool = False
    _mesh: Mesh | None = None

    @property
    def output(self) -> Output:
        return self.run.of(self.stage.name, self.iteration)

    @property
    def mesh(self) -> Mesh:
        """Return the mesh of processes, which only a stage that runs a model has."""
        assert self._mesh is not None, f"{self.stage.name} is declared to run in one process"
        return self._mesh

    def begin(self, *, overwrite: bool) -> bool:
        """Return whether the output must be made; print a line or JSON if it is fresh already.

        First finish the renames that a kill interrupted after the manifest was written.
        """
        output = self.output
        if rank() == 0:
            recover(self.run, output)
        if overwrite or not has_manifest(output):
            return True
        status = status_of(self.run, output)
        if status.state != "fresh":
            say(f"{output.name}: {status.reason}; making it again")
            return True
        line = f"{output.name} is complete and fresh; nothing to do (--overwrite makes it again)"
        self.tell({"fresh": True}, line)
        return False

    def writer(
        self,
        names: list[str],
        *,
        more_inputs: Sequence[str] = (),
        recipe: dict[str, Any] | None = None,
        seed: int | None = None,
        made_by: Mapping[str, str] | None = None,
        extended_by: dict[str, Any] | None = None,
    ) -> OutputWriter:
        """Return the writer of the output; it records everything that decides the content.

        Args:
            names: the names of its shards.
            more_inputs: names of inputs besides those that the stage declares.
            recipe: the keys that decide the content, where they are not those in force.
            seed: the seed that decides the content, where it is not the run's.
            made_by: versions of whatever else decides the content.
            extended_by: see `OutputWriter`.
        """
        recorded = self.stage.recorded(self.recipe) if recipe is None else recipe
        inputs = inputs_of(self.run, self.stage.name, self.iteration, self.recipe)
        return OutputWriter(
            self.output,
            inputs=input_hashes(self.run, [*inputs, *more_inputs]),
            recipe={k: v for k, v in recorded.items() if k not in (extended_by or {})},
            seed=self.recipe.run.seed if seed is None else seed,
            names=names,
            schema=self.stage.schema(recorded),
            made_by=made_by,
            extended_by=extended_by,
        )

    def commit(
        self,
        writer: OutputWriter,
        facts: dict[str, Any],
        line: str,
        recorded: dict[str, Any] | None = None,
    ) -> Manifest:
        """Complete the output and print its result.

        Args:
            facts: results that are a function of the inputs; printed with `--json`.
            line: the result in a sentence.
            recorded: measurements to record besides wall time and memory.
        """
        packages = () if self.stage.processes == "one" else ("torch", "transformers")
        manifest = writer.commit(facts, recorded, packages=packages)
        self.tell(facts | (recorded or {}), line)
        return manifest

    def tell(self, facts: dict[str, Any], line: str) -> None:
        """Print a result: one line for people, or JSON when asked for."""
        tell_result(facts, line, as_json=self.as_json)

    def on_rank_0(self, ask: Callable[[], bool]) -> bool:
        """Return rank 0's answer on every rank: files may change before another rank looks."""
        return ask() if self._mesh is None else self._mesh.broadcast_from_rank0(ask)

    @contextmanager
    def processes(self) -> Iterator[None]:
        """Give the stage its mesh, if it runs a model, for as long as the context lasts."""
        if self.stage.processes == "one":
            yield
            return
        from common.parallel.mesh import Mesh

        mesh = self.recipe.mesh
        if self.stage.processes == "shards":
            # Shards need no pipeline: any number of processes works, whatever the recipe says.
            mesh = MeshConfig(timeout_seconds=mesh.timeout_seconds)
        with Mesh.from_environment(mesh) as self._mesh:
            yield


def stage_command(
    name: StageName,
    work: Callable[..., None],
    *,
    afterwards: Callable[[StageRun], None] | None = None,
) -> Callable[..., None]:
    """Return the command of a stage, for `launch`, with common options and those of its work.

    Args:
        work: makes the output. It is called on every rank with a `StageRun` and the stage's own
            options, which are the other parameters of its signature.
        afterwards: called on rank 0 in the end, whether or not there was anything to do.
    """
    stage = BY_NAME[name]
    own = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
    signature = inspect.Signature([*_leading_options(stage), *own, *_common_options(stage)])

    def command(*arguments: Any, **options: Any) -> None:
        given = signature.bind(*arguments, **options)
        given.apply_defaults()
        given.arguments.pop("debug")
        run_stage(name, work, afterwards=afterwards, **given.arguments)

    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__doc__ = work.__doc__
    command.__name__ = work.__name__
    return command


def run_stage(
    name: StageName,
    work: Callable[..., None],
    *,
    run: str,
    iteration: int = 0,
    recipe: Path | None = None,
    overrides: list[str] | None = None,
    overwrite: bool = False,
    accept_edits: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    afterwards: Callable[[StageRun], None] | None = None,
    **own: Any,
) -> None:
    """Open the run, do the stage's work if there is anything to do, then call `afterwards`.

    Args:
        own: the stage's own options.

    Raises:
        UserError: there is a fault in the run, the recipe or the inputs.
    """
    stage = BY_NAME[name]
    set_quiet(quiet or as_json)
    place, in_force = open_run(
        run, recipe=recipe, overrides=overrides, write=True, create=stage.per == "run"
    )
    job = StageRun(stage, place, iteration, stage.view(in_force), as_json)
    if accept_edits:
        names = accept(job.output, stage.schema(read_manifest(job.output).recipe))
        if stage.per == "run":
            names += accept_changed_files(place, in_force.data)
        job.tell({"accepted": names}, f"{job.output.name}: accepted {', '.join(names) or 'none'}")
        return
    with job.processes():
        if job.on_rank_0(lambda: job.begin(overwrite=overwrite)):
            work(job, **own)
        if afterwards is not None and rank() == 0:
            afterwards(job)


def _leading_options(stage: Stage) -> list[inspect.Parameter]:
    options = [_option("run", RunName)]
    if stage.per == "iteration":
        options.append(_option("iteration", Iteration))
    elif stage.per == "policy":
        options.append(_option("iteration", PolicyNumber))
    if stage.decides:
        options += [_option("recipe", RecipePath, None), _option("overrides", Overrides, None)]
    return options


def _common_options(stage: Stage) -> list[inspect.Parameter]:
    return [
        _option("overwrite", Overwrite, False),
        *([_option("accept_edits", AcceptEdits, False)] if stage.editable else []),
        _option("quiet", Quiet, False),
        _option("as_json", Json, False),
        _option("debug", Debug, False),
    ]


def _option(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind
    )
