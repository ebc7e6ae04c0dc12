"""The commands of the chain: bring a run to an iteration, or run one stage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing.process import BaseProcess
from typing import Annotated

import typer

from common.command import Debug, Json, Overrides, Quiet, RecipePath, RunName
from common.command import launch as launch_commands
from common.config import Recipe
from common.console import duration_text, print_json, say
from common.errors import UserError
from common.runs.freshness import PlannedStage, inputs_of, plan
from common.runs.layout import Run
from common.runs.recipe import made_otherwise, recipe_in_force
from common.runs.stages import BY_NAME
from common.tasks.outside import changed_files, what_to_do
from workflows.chain.durations import Durations
from workflows.chain.launch import Command, exit_code, first_ended, start, stop

Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Of each stage that runs a model.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the commands.")]
UnderMake = Annotated[
    bool, typer.Option("--under-make", help="Take -n and -j from make's options, and end with it.")
]


def iteration(
    run: RunName,
    to: Annotated[int, typer.Option("--to", min=0, help="Iteration that is to be complete.")],
    remake_from: Annotated[
        int | None, typer.Option("--from", min=1, help="Make this iteration and later ones again.")
    ] = None,
    recipe: RecipePath = None,
    overrides: Overrides = None,
    processes: Processes = 1,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Stages at a time.")] = 1,
    fork: Annotated[bool, typer.Option(help="Import once for all stages.")] = True,
    dry_run: DryRun = False,
    under_make: UnderMake = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a run to an iteration, doing only what is missing."""
    quiet = quiet or as_json
    place = Run.named(run)
    in_force = recipe_in_force(place, recipe, overrides)
    given = recipe is not None or bool(overrides)
    if changed := changed_files(place, in_force.data):
        raise UserError(what_to_do(place, changed))
    steps = plan(place, in_force, to=to, remake_from=remake_from, prepare=given)
    if given and not quiet:
        for line in _keep_their_values(place, in_force, steps, to):
            say(line)
    # A recipe that was given is written into the run by `prepare`, so the others need not see it.
    given_options = ["--recipe", str(recipe)] if recipe else []
    given_options += [word for override in overrides or () for word in ("--set", override)]
    commands = {
        step: _command(place, step, given_options, processes, again=remake_from, quiet=quiet)
        for step in steps
    }
    make = _MakeOptions.of_environment() if under_make else _MakeOptions()
    if dry_run or make.dry_run:
        lines = [str(command) for command in commands.values()]
        if as_json:
            print_json({"commands": lines})
        else:
            print("\n".join(lines) or "nothing to do")
        return
    end_with = os.getppid() if under_make else None
    chain = _Chain(place, in_force, max(jobs, make.jobs), fork, quiet, end_with)
    if code := chain.run(commands):
        if as_json:
            message = f"{chain.failed} ended with exit code {code}; why is on standard error"
            print_json({"error": message, "exit_code": code})
        raise typer.Exit(code)
    if as_json:
        print_json({"run": place.name, "iteration": to, "made": list(map(str, steps))})
    elif not quiet:
        done = f"run {place.name} is complete up to iteration {to}"
        print(done if steps else f"{done}; nothing to do")


def _command(
    place: Run,
    step: PlannedStage,
    given: list[str],
    processes: int,
    *,
    again: int | None,
    quiet: bool,
) -> Command:
    """Return the command of a planned stage.

    Args:
        given: options of the recipe, for the stage that has no number.
        again: from which number on a stage is made again though it is fresh.
    """
    options = ["--run", place.name]
    options += ["--iteration", str(step.number)] if step.stage.has_number else given
    options += ["--overwrite"] if again and step.number >= again else []
    options += ["--quiet"] if quiet else []
    return command_of(step.stage.name, options, processes)


def _keep_their_values(
    place: Run, recipe: Recipe, steps: list[PlannedStage], to: int
) -> Iterator[str]:
    """Yield what a changed recipe does not change: finished iterations keep their values."""
    remade = {place.of(step.stage.name, step.number).name for step in steps}
    kept: dict[tuple[str, str, str], list[int]] = {}
    for output, key, then, now in made_otherwise(place, recipe):
        if output.iteration <= to and output.name not in remade:
            kept.setdefault((key, repr(then), repr(now)), []).append(output.iteration)
    for (key, then, now), numbers in kept.items():
        first, last = numbers[0], numbers[-1]
        one = first == last
        which = f"iteration {first} was" if one else f"iterations {first} to {last} were"
        stay = "stays so" if one else "stay so"
        yield f"{which} made with {key} = {then} and {stay}; {now} holds for what is new"
    if kept:
        first = min(numbers[0] for numbers in kept.values())
        again = place.make(to, remake_from=first)
        yield f"  to make them again with the recipe as it is now: {again}"


def stage(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BY_NAME)}.")],
    options: Annotated[list[str] | None, typer.Argument(help="The stage's own, after --.")] = None,
    processes: Processes = 1,
    dry_run: DryRun = False,
    under_make: UnderMake = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run one stage by its own command."""
    if name not in BY_NAME:
        raise UserError(f"no stage is called {name!r}; there are {', '.join(BY_NAME)}")
    command = command_of(name, [*(options or []), *(["--json"] if as_json else [])], processes)
    if not as_json:
        print(command, flush=True)
    if dry_run or (under_make and _MakeOptions.of_environment().dry_run):
        return
    os.environ |= command.environment
    os.execvp(command.words[0], command.words)


def command_of(name: str, options: list[str], processes: int) -> Command:
    one = BY_NAME[name].processes == "one"
    return Command(f"stages.{name}", options, 1 if one else processes)


@dataclass(frozen=True)
class _MakeOptions:
    """Options of the make that has started this process."""

    dry_run: bool = False
    jobs: int = 1

    @classmethod
    def of_environment(cls) -> _MakeOptions:
        """Read what make hands on: `kn -j4 --no-print-directory -- N=3`, letters first."""
        words = os.environ.get("MAKEFLAGS", "").partition("-- ")[0].split()
        letters = words[0] if words and not words[0].startswith("-") else ""
        jobs = [word.removeprefix("-j") for word in words if word.startswith("-j")]
        return cls("n" in letters, int(jobs[-1] or 2) if jobs else 1)


@dataclass
class _Chain:
    """Runs stages in order, each as soon as everything it is made from is complete.

    Two iterations are never made at once: the later one may prune what the earlier one reads.
    """

    place: Run
    recipe: Recipe
    jobs: int
    fork: bool
    quiet: bool
    end_with: int | None
    """Process id of the parent, if the stages must end when it does."""
    failed: PlannedStage | None = None
    """The first stage that failed."""
    _durations: Durations = field(default_factory=Durations)

    def run(self, commands: Mapping[PlannedStage, Command]) -> int:
        """Run the stages and return the exit code of the first that fails, or 0.

        After a stage that fails no other begins. Before each iteration but the only one, a line
        says how long the rest will take, if stages of all its kinds have been timed.
        """
        self._durations = Durations.recorded(self.place, self.recipe)
        left = list(commands)
        for number, steps in groupby(commands, key=lambda step: step.number):
            self._tell_left(number, left)
            made = {step: commands[step] for step in steps}
            if code := self._run_iteration(made):
                return code
            del left[: len(made)]
        return 0

    def _tell_left(self, number: int, left: list[PlannedStage]) -> None:
        """Say how long the stages that are left will take, one after the other."""
        last = left[-1].number
        seconds = self._durations.of(left) if self.jobs == 1 and last > number else None
        if seconds is not None and not self.quiet:
            print(f"iterations {number} to {last} take about {duration_text(seconds)}", flush=True)

    def _run_iteration(self, waiting: dict[PlannedStage, Command]) -> int:
        running: dict[BaseProcess, PlannedStage] = {}
        began: dict[PlannedStage, float] = {}
        code = 0
        try:
            while running or (waiting and not code):
                steps = list(waiting)
                for index, step in enumerate(steps):
                    before = [*running.values(), *steps[:index]]
                    if not code and len(running) < self.jobs and self._may_begin(step, before):
                        began[step] = time.monotonic()
                        running[self._start(waiting.pop(step))] = step
                ended = first_ended(running, seconds=1.0)
                if ended is not None:
                    step = running.pop(ended)
                    self._durations.add(step.stage.name, time.monotonic() - began[step])
                    if not code and exit_code(ended):
                        code, self.failed = exit_code(ended), step
                if self.end_with not in (None, os.getppid()):
                    stop(running)
                    return 1
        except KeyboardInterrupt:
            stop(running)
            return 130
        return code

    def _start(self, command: Command) -> BaseProcess:
        if not self.quiet:
            print(command, flush=True)
        return start(command, fork=self.fork)

    def _may_begin(self, step: PlannedStage, before: list[PlannedStage]) -> bool:
        """Return whether a stage is made from nothing that is still to be made before it."""
        inputs = inputs_of(self.place, step.stage.name, step.number, self.recipe)
        sources = {name.partition(":")[0] for name in inputs}
        return not sources & {made for other in before for made in self._made(other)}

    def _made(self, step: PlannedStage) -> list[str]:
        companions = (self.place.companion(name, step.number) for name in step.stage.companions)
        return [self.place.of(step.stage.name, step.number).name, *(o.name for o in companions)]


if __name__ == "__main__":
    launch_commands(iteration, stage, about=__doc__)
