"""What each variant changes about the default recipe, one factor at a time."""

from __future__ import annotations

FACTORS: dict[str, tuple[str, ...]] = {
    "default": (),
    # Objectives as their papers have them.
    "grpo": ("preset=grpo",),
    "dapo": ("preset=dapo",),
    "dr_grpo": ("preset=dr_grpo",),
    "gspo": ("preset=gspo",),
    "cispo": ("preset=cispo",),
    "rloo": ("preset=rloo",),
    # The pull towards the reference.
    "kl-0": ("objective.kl_coef=0",),
    "kl-0.04": ("objective.kl_coef=0.04",),
    # The same number of completions, in smaller and in larger groups.
    "group-4": (
        "rollout.group_size=4",
        "rollout.prompts_per_iteration=128",
        "rollout.groups_per_shard=32",
    ),
    "group-64": (
        "rollout.group_size=64",
        "rollout.prompts_per_iteration=8",
        "rollout.groups_per_shard=2",
    ),
    # Use of a batch: in several smaller steps, and several times over.
    "steps-4": ("train.prompts_per_step=8",),
    "epochs-10": ("train.epochs=10",),
    # The project that this one grew from: std of numpy, ε = 0.125, β = 0.001, 10 epochs.
    "predecessor": (
        "advantages.ddof=0",
        "objective.clip_low=0.125",
        "objective.clip_high=0.125",
        "objective.kl_coef=0.001",
        "train.epochs=10",
    ),
    # The default on two processes, each with half of the layers.
    "pipeline-2": ("mesh.pp_degree=2",),
    # The control: each group's advantages dealt out at random.
    "shuffled": ("advantages.shuffle=true",),
}
"""Keys that each variant changes in the recipe; others are compared with the first that runs."""
