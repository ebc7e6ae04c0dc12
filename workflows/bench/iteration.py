"""A whole iteration, start-up included, against one step of TRL's GRPOTrainer.

Ours is four commands (rollout, score, logprobs and train), each a process of its own that imports,
loads, verifies and commits; as kl_coef > 0, a reference is computed. TRL's step is timed inside a
process that has started already. So the ratio that has a target leaves TRL's start-up out, and a
second line adds it. The model, the prompts and their order, the reward, and the numbers of samples
and tokens are the same: no token ends a completion on either side. Iteration 1 is the warm-up,
because its reference is the policy itself and ours takes over the policy's logprobs.
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from common.console import say
from common.errors import MissingToolError
from common.runs.stages import OF_AN_ITERATION
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.process import Partner, run_command
from workflows.chain.launch import Command

TARGET = 2.0
KL_COEF = 0.04
LEARNING_RATE = 1e-6
# The repetition of words in a completion is never the same for all samples of a prompt.
REWARDS = {"answer": {"weight": 0.0}, "repetition": {"weight": 1.0, "ngram": 1}}
RUN = "bench"

RECIPE = """\
[model]
path = "{model}"
dtype = "{dtype}"

[prompt]
template = "r1_zero"

[data.multiplication]
kind = "generator"
generator = "multiplication"
train = {questions}
eval = 0

[rollout]
prompts_per_iteration = {prompts}
group_size = {samples}
groups_per_shard = {prompts}
max_completion_tokens = {tokens}
max_concurrent = {concurrent}

[rewards.answer]
weight = 0.0

[rewards.repetition]
weight = 1.0
ngram = 1

[objective]
kl_coef = {kl_coef}

[train]
learning_rate = {learning_rate}

[run]
keep_policies = 2
keep_trainer = 2
"""


def measure(bench: Bench) -> list[Measurement]:
    """Measure the whole against TRL's step, without and with its start-up; then each of our stages.

    Raises:
        MissingToolError: TRL is not installed.
    """
    require_trl()
    iteration = OurIteration(bench)
    prompts, samples, tokens = bench.sizes.iteration
    spec = iteration.spec_for_trl()
    with Partner(Command("workflows.bench.trl", [str(spec)]), bench.threads, bench.device) as trl:
        facts: list[dict[str, Any]] = []

        def step() -> float:
            facts.append(trl.work())
            return float(facts[-1]["seconds"])

        taken = rounds({"ours": iteration.make_next, "trl": step}, bench.pairs)
        startup = trl.ready["startup_seconds"]
    expected = prompts * samples * tokens
    say(f"iteration: {expected} tokens expected, TRL computed {facts[-1]['tokens']}")
    name = f"iteration: {prompts} prompts x {samples} samples x {tokens} tokens, start-up included"
    with_startup = [seconds + startup for seconds in taken["trl"]]
    step_label, whole_label = "TRL's step without start-up", "TRL's step with start-up"
    return [
        Measurement("iteration", name, step_label, "s", taken["ours"], taken["trl"], TARGET),
        Measurement("iteration", name, whole_label, "s", taken["ours"], with_startup),
        *(
            Measurement("iteration", f"{stage} alone", "", "s", seconds[1:], [])
            for stage, seconds in iteration.by_stage.items()
        ),
    ]


def require_trl() -> None:
    """Raise `MissingToolError` if TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise MissingToolError(
            "bench: the whole iteration is measured against TRL, which is not installed: "
            "`pip install -e '.[bench]'`, or leave it out with --only"
        )


class OurIteration:
    """A run in the scratch folder whose iterations are made one after another by commands."""

    def __init__(self, bench: Bench) -> None:
        """Make the run and its prompts; this is not timed."""
        self.by_stage: dict[str, list[float]] = {stage.name: [] for stage in OF_AN_ITERATION}
        self._bench = bench
        self._made = 0
        self._runs = bench.scratch / "runs"
        self._runs.mkdir(exist_ok=True)
        recipe = bench.scratch / "iteration.toml"
        prompts, samples, tokens = bench.sizes.iteration
        recipe.write_text(
            RECIPE.format(
                model=bench.model.resolve(),
                dtype=str(bench.dtype).removeprefix("torch."),
                questions=prompts * (bench.pairs + 1),
                prompts=prompts,
                samples=samples,
                tokens=tokens,
                concurrent=prompts * samples,
                kl_coef=KL_COEF,
                learning_rate=LEARNING_RATE,
            ),
            encoding="utf-8",
        )
        self._run("stages.prepare", "--run", RUN, "--recipe", str(recipe))

    def make_next(self) -> float:
        """Make the next iteration and return the seconds of its four commands."""
        self._made += 1
        started = time.perf_counter()
        for stage in OF_AN_ITERATION:
            module = [f"stages.{stage.name}"]
            if stage.name == "rollout":
                module = ["workflows.bench.stage", "without-stops", "rollout"]
            begun = time.perf_counter()
            self._run(*module, "--run", RUN, "--iteration", str(self._made))
            self.by_stage[stage.name].append(time.perf_counter() - begun)
        return time.perf_counter() - started

    def spec_for_trl(self) -> Path:
        """Write a file with what `trl.py` needs, and return its path.

        The prompts are text, in the order in which ours draws them.
        """
        bench = self._bench
        spec = bench.scratch / "trl.json"
        spec.write_text(
            json.dumps(
                {
                    "model": str(bench.model),
                    "device": bench.device.type,
                    "prompts": self._prompts(),
                    "iteration": bench.sizes.iteration,
                    "rewards": REWARDS,
                    "kl_coef": KL_COEF,
                    "learning_rate": LEARNING_RATE,
                    "scratch": str(bench.scratch),
                }
            ),
            encoding="utf-8",
        )
        return spec

    def _prompts(self) -> list[str]:
        from common.config import PromptConfig
        from common.modeling.chat import load_tokenizer, render
        from common.runs.layout import Run
        from common.runs.shards import read_output
        from common.seeds import permutation

        tokenizer = load_tokenizer(self._bench.model)
        rows = read_output(Run(self._runs / RUN).prompts, ["messages"])["messages"].to_pylist()
        order = permutation(0, 0, len(rows))
        prompt = PromptConfig(template="r1_zero")
        ids = [render(rows[index], tokenizer, prompt)[0] for index in order]
        return [str(tokenizer.decode(each)) for each in ids]

    def _run(self, module: str, *arguments: str) -> None:
        place = {"STAGED_GRPO_RUNS": str(self._runs)}
        run_command(Command(module, arguments), self._bench.threads, self._bench.device, place)
