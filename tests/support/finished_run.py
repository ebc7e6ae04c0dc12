"""A run of two iterations of a tiny random policy, with every output that a run can have."""

from __future__ import annotations

RECIPE = """\
[model]
path = "{policy}"
[data.sums]
kind = "dataset"
path = "{data}"
eval = 2
verify_type = "LAST_NUMBER"
[rollout]
prompts_per_iteration = 4
group_size = 4
groups_per_shard = 4
max_completion_tokens = 8
max_concurrent = 8
[rewards.format]
weight = 0.1
[objective]
kl_coef = 0.01
[train]
learning_rate = 1e-3
on_no_signal = "keep"
[evaluate]
samples = 2
"""
ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(10)]
