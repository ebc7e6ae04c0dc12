"""Every stage, declared once: how often it runs, what it reads and writes, which keys decide it.

Paths, the planner, manifests, child runs, status tables and the commands that start stages all read
this table. A stage sees a view of the recipe that holds only the keys declared here. A key that is
not declared cannot be read, so none can decide the content and be missing from the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from common.config import EvaluateConfig, JudgeEndpoint, Recipe, RewardsConfig, Section
from common.runs import schemas

StageName = Literal["prepare", "rollout", "score", "logprobs", "train", "tokens", "evaluate"]
When = Callable[[Recipe], bool]


def always(recipe: Recipe) -> bool:
    return True


@dataclass(frozen=True)
class Input:
    """An output that a stage is made from."""

    output: str
    """Name of the output: that of a stage for the stage's own output, a name in
    `Stage.companions`, or `reference` for the model that the iteration's KL pulls towards."""
    back: int = 0
    """How many iterations earlier it was made. An input from before iteration 1 is left out, unless
    it is the output of `prepare` or policy 0."""
    part: str = ""
    """Shards whose names begin like this, or a fact of the manifest; empty for the whole output."""
    when: When = always


@dataclass(frozen=True)
class Keys:
    """Keys of the recipe: names of whole tables, or dotted names of keys in them."""

    names: tuple[str, ...]
    when: When = always


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of the pipeline."""

    name: StageName
    per: Literal["run", "iteration", "policy"]
    """The stage has one output per run, per iteration, or per evaluated policy."""
    path: str
    """Path of its output within the run, with `{:04d}` for the number of iteration or policy."""
    inputs: tuple[Input, ...]
    schema: Callable[[Mapping[str, Any]], pa.Schema]
    """Returns the schema of its shards, given the recipe's keys that its manifest records."""
    decides: tuple[Keys, ...]
    """Keys that decide the content of its output; its manifest records them."""
    stops: tuple[str, ...] = ()
    """Keys that decide whether the stage stops with an error, but not what it makes."""
    uses: tuple[Keys, ...] = ()
    """Other keys that it reads, for how it computes or what it prunes. They do not decide what is
    in the output, except for the seed, which the manifest records in a field of its own."""
    processes: Literal["one", "shards", "mesh"] = "one"
    """`one` process; any number of processes, which divide the `shards` among them; or the
    processes of the recipe's `mesh`, which divide the model. All but `one` run a model."""
    companions: Mapping[str, str] = field(default_factory=dict)
    """Names and paths of the outputs that are committed together with its own."""
    planned: Callable[[Recipe, int], bool] = lambda recipe, number: True
    """Whether `make iteration` runs the stage for the iteration or policy of that number."""
    editable: bool = True
    """Whether shards that were edited by hand can be accepted."""

    @property
    def has_number(self) -> bool:
        return self.per != "run"

    def keys(self, recipe: Recipe) -> list[str]:
        """Return all keys that the stage may read under a recipe."""
        used = [name for keys in self.uses if keys.when(recipe) for name in keys.names]
        return [*self.deciding(recipe), *self.stops, *used]

    def deciding(self, recipe: Recipe) -> list[str]:
        """Return the keys that decide the content of its output under a recipe."""
        return [name for keys in self.decides if keys.when(recipe) for name in keys.names]

    def view(self, recipe: Recipe) -> Recipe:
        """Return the recipe as the stage sees it, with only the keys that it may read."""
        return recipe.restricted_to(self.keys(recipe))

    def recorded(self, recipe: Recipe) -> dict[str, Any]:
        """Return the part of the recipe that the stage's manifest records."""
        return recipe.restricted_to(self.deciding(recipe)).model_dump(mode="json")


def _below(table: str, section: type[Section], *, without: Iterable[str]) -> tuple[str, ...]:
    """Return the dotted names of all keys of a table but those in `without`."""
    return tuple(f"{table}.{name}" for name in section.model_fields if name not in without)


def _has_kl(recipe: Recipe) -> bool:
    return recipe.objective.kl_coef != 0


def keeps_average(recipe: Recipe) -> bool:
    """Return whether `train` writes a moving average of the policies."""
    return _has_kl(recipe) and recipe.reference.update == "ema"


_OF_THE_JUDGE = ("url", "model", "rubric", "correct_from", "extra")
"""Keys of [rewards.judge] that decide a score; the others say how it is asked for."""
_JUDGE = tuple(f"rewards.judge.{name}" for name in _OF_THE_JUDGE)
_ASKING = _below("rewards.judge", JudgeEndpoint, without=_OF_THE_JUDGE)
_REWARDS = (*_below("rewards", RewardsConfig, without=["workers", "judge"]), *_JUDGE)
_JUDGING = ("rewards.workers", *_ASKING)
_VERIFY = (
    *("rewards.math", "rewards.code", "rewards.similarity", "rewards.reasoning_gym"),
    *("rewards.numeric", "rewards.json_schema", "rewards.sql", "rewards.ifeval"),
    *_JUDGE,
)
"""Tables of [rewards] that verify types depend on."""
_ANY_PROCESSES = ("mesh.timeout_seconds",)

STAGES: tuple[Stage, ...] = (
    Stage(
        "prepare",
        per="run",
        path="prompts",
        inputs=(),
        schema=lambda recipe: schemas.PROMPTS,
        decides=(Keys(("model.path", "data")),),
        uses=(
            Keys(("run.seed", "prompt", "rewards", "objective")),
            Keys(("rollout.prompts_per_iteration", "rollout.max_completion_tokens")),
            Keys(("rollout.on_long", "evaluate.every", "evaluate.max_completion_tokens")),
        ),
        companions={"policies": "policies/{:04d}"},
    ),
    Stage(
        "rollout",
        per="iteration",
        path="iterations/{:04d}/rollout",
        inputs=(
            Input("prepare", part="train"),
            Input("policies", back=1),
            Input("rollout", back=1, part="cursor_end"),
        ),
        schema=lambda recipe: schemas.ROLLOUT,
        decides=(
            Keys(("model.dtype", "prompt", "rollout")),
            Keys(_REWARDS, when=lambda recipe: recipe.rollout.dynamic_sampling),
        ),
        uses=(Keys(("run.seed", *_JUDGING, *_ANY_PROCESSES)),),
        processes="shards",
    ),
    Stage(
        "score",
        per="iteration",
        path="iterations/{:04d}/score",
        inputs=(Input("rollout"),),
        schema=lambda recipe: schemas.score_schema(
            RewardsConfig.model_validate(recipe["rewards"]).aux_weights()
        ),
        decides=(Keys((*_REWARDS, "advantages")),),
        stops=("train.on_no_signal",),
        uses=(Keys(("run.seed", *_JUDGING)),),
    ),
    Stage(
        "logprobs",
        per="iteration",
        path="iterations/{:04d}/logprobs",
        inputs=(
            Input("rollout"),
            Input(
                "policies",
                back=1,
                when=lambda recipe: recipe.logprobs.old_logprobs_from == "policy",
            ),
            Input("reference", when=_has_kl),
        ),
        schema=lambda recipe: schemas.LOGPROBS,
        decides=(
            Keys(("model.dtype", "objective.kl_coef")),
            Keys(("logprobs.old_logprobs_from", "logprobs.tokens_per_pack")),
            Keys(("reference",), when=_has_kl),
        ),
        stops=(
            *("logprobs.warn_gap_mean", "logprobs.warn_gap_max"),
            *("logprobs.stop_gap_mean", "logprobs.stop_gap_max"),
            "train.on_no_signal",
        ),
        uses=(Keys(("run.seed", "mesh")),),
        processes="mesh",
    ),
    Stage(
        "train",
        per="iteration",
        path="iterations/{:04d}/train",
        inputs=(
            *(Input("rollout"), Input("score"), Input("logprobs")),
            *(Input("policies", back=1), Input("trainer", back=1)),
            Input("reference", when=keeps_average),
        ),
        schema=lambda recipe: schemas.TRAIN,
        decides=(
            Keys(("model.dtype", "objective", "train")),
            Keys(("reference.ema_alpha",), when=keeps_average),
        ),
        uses=(Keys(("run", "mesh", "reference")),),
        processes="mesh",
        companions={
            "policies": "policies/{:04d}",
            "references": "references/{:04d}",
            "trainer": "trainer/{:04d}",
        },
    ),
    Stage(
        "tokens",
        per="iteration",
        path="iterations/{:04d}/tokens",
        inputs=(
            *(Input("rollout"), Input("score"), Input("logprobs")),
            *(Input("train"), Input("policies")),
        ),
        schema=lambda recipe: schemas.TOKEN_RECORDS,
        decides=(),
        uses=(Keys(("mesh",)),),
        processes="mesh",
        planned=lambda recipe, number: False,
        editable=False,
    ),
    Stage(
        "evaluate",
        per="policy",
        path="evaluations/{:04d}",
        inputs=(Input("prepare", part="eval"), Input("policies")),
        schema=lambda recipe: schemas.EVALUATION,
        decides=(
            Keys(("model.dtype", "prompt")),
            Keys(_below("evaluate", EvaluateConfig, without=["every"])),
            Keys(("rollout.max_concurrent", "rollout.max_completion_tokens", "rollout.on_long")),
            Keys(_VERIFY),
        ),
        uses=(Keys(("run.seed", *_JUDGING, *_ANY_PROCESSES)),),
        processes="shards",
        planned=lambda recipe, number: (
            recipe.evaluate.every > 0 and number % recipe.evaluate.every == 0
        ),
    ),
)
"""The stages in the order in which they run; after each iteration its policy may be evaluated."""

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}

_INPUTS = {found.output for stage in STAGES for found in stage.inputs}
SIDE_STAGES = frozenset(
    stage.name for stage in STAGES if not {stage.name, *stage.companions} & _INPUTS
)
"""Stages whose outputs no other stage reads: the rest of a run is the same without them."""

OF_AN_ITERATION = tuple(
    stage for stage in STAGES if stage.per == "iteration" and stage.name not in SIDE_STAGES
)
"""The stages that make an iteration, from its rollout to its policy."""
