"""Estimators of the KL divergence from the policy to the reference, one number a token.

With d = ref − logp of a sampled token (Schulman, "Approximating KL divergence", 2020):

    k1  −d              unbiased; as a loss on-policy its gradient vanishes in expectation
    k2  d²/2            biased; its gradient on-policy is reverse KL's
    k3  exp(d) − d − 1  unbiased and never negative; its gradient on-policy is forward KL's

Times the ratio of policy and sampler, gradient through it included, the gradient of k1 and k3 is
that of reverse KL (arXiv 2512.02556). That is the ratio of the token, whatever the policy term's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.config import KlKind


def kl_term(kind: KlKind, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimate for each token, in the shape of `logprobs`, with gradient to it."""
    return KL_KINDS[kind](ref_logprobs - logprobs)


def _k1(d: Tensor) -> Tensor:
    return -d


def _k2(d: Tensor) -> Tensor:
    return d.square() / 2


def _k3(d: Tensor) -> Tensor:
    # In float32, exp(d) − 1 of a small d is rounding noise, expm1 is not.
    return torch.expm1(d) - d


KL_KINDS: dict[KlKind, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
