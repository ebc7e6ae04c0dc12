"""What all commands have in common: options, errors, and opening the run that they work on.

Exit codes: 0 done or nothing to do, 2 an error the user can fix, 3 a program or package is missing,
4 no learning signal, 5 sampler and trainer disagree, 6 the model's numbers are not finite.

With `--json` a command prints one JSON object (or list) to standard output, whatever happens: its
result, or `{"error": message, "exit_code": number}`. The message is on standard error as well.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import Recipe
from common.config.recipe_file import preset_remark, read_recipe_text
from common.console import answered, clean, print_json, say
from common.errors import UserError
from common.process import keep_freed_memory, leave_pandas_out, wait_briefly
from common.runs.layout import Run, no_such_run
from common.runs.recipe import look_beside_recipe, recipe_in_force

wait_briefly(os.environ)  # before torch is loaded

JSON_OPTION = "--json"
RunName = Annotated[str, typer.Option("--run", help="Name of the run under data/runs.")]
Iteration = Annotated[int, typer.Option("--iteration", help="Which iteration, from 1.")]
RecipePath = Annotated[
    Path | None, typer.Option("--recipe", help="Recipe to put in force for the run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, written into the run's recipe; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make again though it is fresh.")]
Shards = Annotated[str, typer.Option("--shards", help="Make only these, as 0-3; all by default.")]
AcceptEdits = Annotated[
    bool, typer.Option("--accept-edits", help="Take shards edited by hand as this stage's output.")
]
Quiet = Annotated[bool, typer.Option("--quiet/--verbose", help="Say only what went wrong.")]
Json = Annotated[bool, typer.Option(JSON_OPTION, help="Print the result as JSON, errors too.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def open_run(
    name: str,
    *,
    recipe: Path | None = None,
    overrides: list[str] | None = None,
    write: bool = False,
    create: bool = False,
) -> tuple[Run, Recipe]:
    """Return the run called `name` and its recipe in force, changed by `recipe` and `overrides`.

    Args:
        write: store the recipe in the run, on rank 0.
        create: accept a run that does not exist yet.

    Raises:
        UserError: the name is not allowed, the run does not exist, or the recipe is faulty or names
            another model or other data than the run began with.
    """
    run = Run.named(name)
    if not create and not run.root.is_dir():
        raise no_such_run(run)
    writes = write and rank() == 0
    in_force = recipe_in_force(run, recipe, overrides or [], write=writes)
    look_beside_recipe(run, recipe)
    if writes and (recipe or overrides):
        remark = preset_remark(read_recipe_text(run.recipe))
        if remark:
            say(remark)
    return run, in_force


def tell_result(facts: dict[str, Any], line: str, *, as_json: bool) -> None:
    """Print a command's result on rank 0: one line for people, or JSON when asked for."""
    if rank() != 0:
        return
    if as_json:
        print_json(facts)
    else:
        say(line)


def refuse_besides(context: typer.Context, option: str, *allowed: str) -> None:
    """Refuse options that have no effect together with `option`.

    Args:
        option: one that keeps a command from training, such as `--read`.
        allowed: names of the parameters that do have an effect with it.

    Raises:
        UserError: such an option was given; the message names the first.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise UserError(f"with {option} nothing is trained: leave {parameter.opts[0]} out")


def chosen_shards(text: str, count: int) -> range:
    """Return the indices of the shards that `--shards` names: `0-3`, `2`, or all if it is empty.

    Raises:
        UserError: the text is not a range of existing shards.
    """
    if not text:
        return range(count)
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    if match is not None:
        first = int(match[1])
        last = int(match[2] or first)
        if first <= last < count:
            return range(first, last + 1)
    raise UserError(f"--shards {text!r}: write it as 0-{count - 1} or 0; there are {count} shards")


def rank() -> int:
    """Return the rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(*commands: Callable[..., None], about: str = "") -> None:
    """Run one function as a Typer command, or several as subcommands.

    With several, the help shows `about` above the list of them. A `UserError` becomes a message on
    standard error, and the process ends with its exit code.
    """
    keep_freed_memory()
    leave_pandas_out()
    app = typer.Typer(
        help=about or None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )
    for command in commands:
        app.command(help=_help(command))(_guarded(command))
    try:
        if JSON_OPTION in sys.argv[1:]:
            raise SystemExit(_answering(app))
        app()
    except SystemExit as end:
        _leave(end.code)


def _answering(app: typer.Typer) -> int:
    """Run the command; what is wrong with the command line becomes JSON too. Return the exit code.

    Such an error is click's `UsageError`, for which typer has no public name.
    """
    try:
        return app(standalone_mode=False) or 0
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _tell_error(error.format_message(), UserError.exit_code)


def _tell_error(message: str, exit_code: int) -> int:
    """Print an error for people, and with `--json` as JSON unless there is a result already.

    Returns:
        `exit_code`.
    """
    where = f"rank {rank()}: " if world_size() > 1 else ""
    print(f"{where}error: {clean(message)}", file=sys.stderr, flush=True)
    _answer_error(message, exit_code)
    return exit_code


def _answer_error(message: str, exit_code: int) -> None:
    if JSON_OPTION in sys.argv[1:] and not answered():
        print_json({"error": message, "exit_code": exit_code})


def _help(command: Callable[..., None]) -> str:
    """Return a command's docstring without the sections for readers of the code."""
    return re.split(r"\n\n(?:Args|Raises|Returns):", inspect.getdoc(command) or "")[0]


def _leave(code: object) -> None:
    """End the process at once, without the usual clean-up: everything that counts is on disk.

    At a regular exit the threads of native libraries are torn down in no particular order, which
    has aborted processes whose work was done and committed. A child process of multiprocessing
    already ends at once, after it has reported to its parent.
    """
    if multiprocessing.parent_process() is not None:
        raise SystemExit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            if "--debug" in sys.argv:
                _answer_error(str(error), error.exit_code)
                raise
            raise typer.Exit(_tell_error(str(error), error.exit_code)) from None
        except OSError as error:
            if "--debug" in sys.argv:
                raise
            raise typer.Exit(_tell_error(str(error), UserError.exit_code)) from None
        except KeyboardInterrupt:
            line = "interrupted; run the same command again to go on"
            print(line, file=sys.stderr)
            _answer_error(line, 130)
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception as error:
            _answer_error(f"{type(error).__name__}: {error}", 1)
            raise

    return guarded
