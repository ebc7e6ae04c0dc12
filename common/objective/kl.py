"""Estimators of the KL divergence from the policy to the reference, one number a token.

With d = ref − logp of a sampled token (Schulman, "Approximating KL divergence", 2020):

    k1  −d              unbiased; as a loss on-policy its gradient vanishes in expectation
    k2  d²/2            biased; its gradient on-policy is reverse KL's
    k3  exp(d) − d − 1  unbiased and never negative; its gradient on-policy is forward KL's

Times the ratio of policy and sampler, gradient through it included, the gradient of k1 and k3 is
that of reverse KL (arXiv 2512.02556).
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.config import KlKind

# Said to whoever chooses it.
UNWEIGHTED_K1 = (
    "objective.kl_kind = 'k1' without kl_importance_weight: its gradient vanishes in expectation, "
    "so it adds noise and holds nothing back; use k2 or k3, or kl_importance_weight = true"
)


def kl_term(kind: KlKind, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimate for each token, in the shape of `logprobs`, with gradient to it."""
    d = ref_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    return torch.exp(d) - d - 1
