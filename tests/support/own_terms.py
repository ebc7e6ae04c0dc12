"""Policy terms that a recipe may name as its own, and some that it may not."""

from __future__ import annotations

import torch


def soft_gate(ratio, logprobs, advantages, config):
    """Return SAPO's term (arXiv 2511.20347) with TRL's default temperatures."""
    # From two numbers `where` would make a float32 tensor, whose 1.05 differs from float64's.
    temperature = torch.where(advantages > 0, 1.0, torch.full_like(ratio, 1.05))
    return -4 / temperature * torch.sigmoid(temperature * (ratio - 1)) * advantages


def clip_again(ratio, logprobs, advantages, config):
    """Compute the formula of `clip` with none of its code."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return -torch.minimum(ratio * advantages, torch.clamp(ratio, low, high) * advantages)


def cispo_again(ratio, logprobs, advantages, config):
    """Compute the formula of `cispo` with none of its code."""
    return -torch.clamp(ratio.detach(), max=config.cispo_cap) * advantages * logprobs


def over_batch(ratio, logprobs, advantages, config):
    return -ratio * advantages / ratio.detach().mean()


def by_position(ratio, logprobs, advantages, config):
    return -ratio * advantages / (1 + torch.arange(ratio.shape[1]))


def at_random(ratio, logprobs, advantages, config):
    return -ratio * advantages * torch.rand_like(ratio)


def mean(ratio, logprobs, advantages, config):
    return -(ratio * advantages).mean()


def in_float64(ratio, logprobs, advantages, config):
    return -ratio.double() * advantages


def nothing(ratio, logprobs, advantages, config):
    pass


def detached(ratio, logprobs, advantages, config):
    return -ratio.detach() * advantages


def flat_at_one(ratio, logprobs, advantages, config):
    return (ratio - 1).square() * advantages


def objective(ratio, logprobs, advantages, config):
    """Return something to be maximised, which is no loss."""
    return ratio * advantages


def infinite(ratio, logprobs, advantages, config):
    return -ratio.pow(5) * advantages


def steep(ratio, logprobs, advantages, config):
    """Return a finite value with a gradient that is not finite, since sqrt has none at 0."""
    return -ratio * advantages * (1 + (ratio - 1).abs().sqrt())


def without_advantage(ratio, logprobs, advantages, config):
    return -ratio * advantages + (ratio - 1).square()


def in_place(ratio, logprobs, advantages, config):
    advantages *= 2
    return -ratio * advantages


def three_arguments(ratio, advantages, config):
    return -ratio * advantages


NUMBER = 3
