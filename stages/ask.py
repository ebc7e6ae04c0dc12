"""ask: talk with a policy in the terminal. It samples as `rollout` does, by the recipe's prompt.

Reads   policies/N
Writes  nothing

A question is given by `--question`, or piped in, or typed; each stands for itself, as in training.
What is shown is the completion as it is, behind the assistant prefix and without control
characters.

    python -m stages.ask --run demo
    python -m stages.ask --run demo --iteration 0 --question "What is 12 * 3?" --samples 4
    echo "What is 12 * 3?" | python -m stages.ask --run demo --temperature 0 --json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from common.command import Debug, Json, RunName, launch, open_run
from common.config import MeshConfig, Recipe
from common.console import clean, print_json
from common.errors import UserError
from common.runs.layout import Run
from common.runs.policies import open_policy
from common.seeds import sample_seed

PolicyNumber = Annotated[
    int | None, typer.Option("--iteration", min=0, help="Which policy; the newest by default.")
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0, help="0: greedy; by default rollout.temperature."),
]
Answer = dict[str, Any]
"""One completion: `assistant_prefix`, `completion_text`, `tokens` and `finish_reason`."""


def ask(
    run: RunName = "demo",
    iteration: PolicyNumber = None,
    question: Annotated[str, typer.Option("--question", help="Ask this, and end.")] = "",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers to a question.")] = 1,
    temperature: Temperature = None,
    seed: Annotated[int, typer.Option("--seed", help="Other answers for another seed.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a policy, and show what it answers."""
    place, recipe = open_run(run)
    number = _policy_number(place, iteration)
    typed = not question and sys.stdin.isatty()
    if as_json and typed:
        raise UserError('--json answers one question: add --question "…", or pipe one in')
    text = question if question or typed else sys.stdin.read().strip()
    if not typed and not text.strip():
        raise UserError('there is no question; add --question "…"')
    settings = recipe.rollout
    if temperature is not None:
        settings = settings.model_copy(update={"temperature": temperature})
    recipe = recipe.model_copy(update={"rollout": settings})
    answers_to = load(place, recipe, number, samples, seed)
    if as_json:
        print_json({"policy": number, "question": text, "answers": answers_to(text, 0)})
        return
    if not typed:
        show(answers_to(text, 0))
        return
    print(f"policy {number} of {place.name}; each question stands for itself; Ctrl-D ends")
    for turn, line in enumerate(typed_lines()):
        try:
            show(answers_to(line, turn))
        except UserError as error:
            print(clean(f"error: {error}"), file=sys.stderr)


def load(
    run: Run, recipe: Recipe, number: int, samples: int, seed: int
) -> Callable[[str, int], list[Answer]]:
    """Load a policy, and return a function that answers a question.

    The function's arguments are the question and the turn, a number from 0: asked again, a question
    is answered with other seeds.

    Raises:
        UserError: the policy is missing, pruned or damaged.
    """
    from common.engines.engine import Request, SamplingParams
    from common.parallel.mesh import Mesh
    from common.rollout.prompts import SamplingPolicy

    policy = SamplingPolicy(open_policy(run, number), recipe.prompt)
    with Mesh.from_environment(MeshConfig()) as mesh:
        engine = policy.engine(recipe, mesh.device)
    settings = recipe.rollout
    # Greedy completions have no seed; their temperature has no effect, but must not be 0.
    params = SamplingParams(settings.max_completion_tokens, settings.temperature or 1.0)

    def answers(question: str, turn: int) -> list[Answer]:
        row = {"messages": [{"role": "user", "content": question}]}
        prompt = policy.render(row)
        seeds = [sample_seed(seed, turn, question, index) for index in range(samples)]
        drawn = seeds if settings.temperature else [None] * samples
        ((*found,),) = engine.generate([Request(prompt.ids, drawn)], params)
        return [
            {
                "assistant_prefix": prompt.prefix,
                "completion_text": policy.text(sample),
                "tokens": len(sample.completion_ids),
                "finish_reason": sample.finish_reason,
            }
            for sample in found
        ]

    return answers


def show(answers: list[Answer]) -> None:
    """Print answers, and under each how long it is and whether it was cut off."""
    for answer in answers:
        prefix = typer.style(clean(answer["assistant_prefix"]), dim=True)
        typer.echo(prefix + clean(answer["completion_text"]))
        cut = "; cut off (rollout.max_completion_tokens)"
        end = cut if answer["finish_reason"] == "length" else ""
        typer.secho(f"[{answer['tokens']} tokens{end}]", dim=True)


def typed_lines() -> Iterator[str]:
    """Yield what is typed, line by line; lines without text are passed over."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` the arrow keys
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip():
            yield line


def _policy_number(run: Run, wanted: int | None) -> int:
    newest = run.last_policy()
    if newest < 0:
        raise UserError(f"{run.root}: no policy yet; make iteration N=1 RUN={run.name}")
    if wanted is not None and wanted > newest:
        raise UserError(
            f"--iteration {wanted}: the newest policy of {run.name} is {newest}; make policy "
            f"{wanted} with: make iteration N={wanted} RUN={run.name}"
        )
    return newest if wanted is None else wanted


if __name__ == "__main__":
    launch(ask)
