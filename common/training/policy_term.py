"""The recipe's own policy term: found by its name, and tried before anything is trained with it.

`objective.policy_term = "module:function"` names a function in place of a built-in term; its
contract is in `common/objective/README.md`. Most of it can be checked on a few tokens, so the
function is called with some before models are loaded: a fault then costs seconds, not a policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.config import ObjectiveConfig
from common.errors import UserError
from common.functions import find_function, source_file, source_hash
from common.objective.loss import PolicyTerm, token_ratio

KEY = "objective.policy_term"
CALL = "(ratio, logprobs, advantages, config)"

LOG_RATIOS = (-20.0, -1.0, -0.2, -0.05, 0.0, 0.05, 0.2, 1.0, 20.0)
"""Log ratios of the tokens that a term is tried on: usual ones, and the bounds verl clamps to."""

ADVANTAGES = (-2.0, -0.5, 0.0, 0.5, 2.0)


def load_policy_term(
    objective: ObjectiveConfig, device: torch.device | str = "cpu"
) -> PolicyTerm | None:
    """Return the recipe's own policy term, tried on a few tokens; None if it names a built-in one.

    Args:
        objective: the recipe's objective.
        device: where the term is going to be used.

    Raises:
        UserError: the function cannot be found or imported, raises, or breaks its contract. The
            message names the first fault, the file and the remedy.
    """
    if not objective.has_own_term:
        return None
    term = find_function(objective.policy_term, KEY)
    file = source_file(objective.policy_term)
    where = f"{KEY} = {objective.policy_term!r}" + (f" ({file})" if file else "")
    try:
        _try(term, objective, device)
    except UserError as fault:
        raise UserError(f"{where}: {fault}") from None
    except Exception as error:
        raise UserError(
            f"{where}: {type(error).__name__} when called with {CALL}: {str(error).rstrip('.')}; "
            "mend the function"
        ) from error
    return term


def policy_term_versions(objective: ObjectiveConfig) -> dict[str, str]:
    """Return the hash of the file with the recipe's own policy term; nothing if it has none."""
    name = objective.policy_term
    return {f"policy_term: {name}": source_hash(name)} if objective.has_own_term else {}


def _try(term: PolicyTerm, config: ObjectiveConfig, device: torch.device | str) -> None:
    """Call a term with a token for each log ratio and advantage, then with each token alone.

    Raises:
        UserError: the term breaks its contract.
    """
    log_ratio, advantages = torch.meshgrid(
        torch.tensor(LOG_RATIOS, device=device),
        torch.tensor(ADVANTAGES, device=device),
        indexing="ij",
    )
    old = -0.5 - log_ratio.clamp(min=0)  # so that no logprob is above 0
    tokens = (old + log_ratio, old, advantages)
    loss, gradient = _loss_and_gradient(term, tokens, config)
    _check_finite(loss, "loss")
    _check_finite(gradient, "gradient to logprobs")
    _check_signs(loss, gradient)
    for row in range(len(LOG_RATIOS)):
        for column in range(len(ADVANTAGES)):
            token = tuple(values[row : row + 1, column : column + 1] for values in tokens)
            alone = _loss_and_gradient(term, token, config)
            for among, found in zip((loss, gradient), alone, strict=True):
                _check_same(among[row, column], found)


def _loss_and_gradient(
    term: PolicyTerm, tokens: tuple[Tensor, ...], config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, and the gradient of their sum to the logprobs: [B, T] each.

    Raises:
        UserError: the term returns something else, changes its arguments, or has no gradient.
    """
    logprobs, old, advantages = tokens
    logprobs = logprobs.clone().requires_grad_()
    ratio = token_ratio(logprobs, old)
    given = (ratio, logprobs, advantages.clone())
    before = [values.detach().clone() for values in given]
    loss = term(*given, config)
    if not isinstance(loss, Tensor) or _form(loss) != _form(ratio):
        found = _form(loss) if isinstance(loss, Tensor) else repr(loss)[:80]
        raise UserError(
            f"gives {found} for tokens of {_form(ratio)}; return the loss of each token, in their "
            "shape and dtype and on their device"
        )
    if not all(torch.equal(a, b.detach()) for a, b in zip(before, given, strict=True)):
        raise UserError("changes a tensor that it was given; write no operation in place")
    if not loss.requires_grad:
        raise UserError("has no gradient to logprobs; leave ratio or logprobs undetached")
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.detach(), gradient


def _form(values: Tensor) -> str:
    return f"{values.dtype} {list(values.shape)} on {values.device}"


def _check_finite(values: Tensor, what: str) -> None:
    for row, column in (~values.isfinite()).nonzero().tolist():
        raise UserError(
            f"a {what} of {values[row, column]} at ratio exp({LOG_RATIOS[row]:g}) and advantage "
            f"{ADVANTAGES[column]:g}, for which an optimizer step would be left out; bound the "
            "ratio before powers, roots and divisions"
        )


def _check_signs(loss: Tensor, gradient: Tensor) -> None:
    """Check the signs at ratio 1, which all tokens have at the first step, and at advantage 0.

    Raises:
        UserError: a step would make good tokens less likely or bad ones more likely, nothing would
            be learned, or tokens with advantage 0 have a loss or a gradient.
    """
    advantages = torch.tensor(ADVANTAGES, device=loss.device)
    towards = gradient[LOG_RATIOS.index(0.0)] * advantages
    if (towards > 0).any():
        raise UserError(
            "at ratio 1 a step down its gradient makes a token with positive advantage less likely "
            "or one with negative advantage likelier; return a loss, such as -ratio * advantages"
        )
    if not towards.any():
        raise UserError(
            "has no gradient to logprobs at ratio 1, where every iteration begins; nothing would "
            "be learned"
        )
    without = ADVANTAGES.index(0.0)
    if loss[:, without].any() or gradient[:, without].any():
        raise UserError(
            "a token with advantage 0 has a loss or a gradient, but completions with advantage 0 "
            "are left out of the compute; multiply by advantages, and take objective.kl_coef or "
            "entropy_coef for what pulls at every token"
        )


def _check_same(among: Tensor, alone: Tensor) -> None:
    """Check that a token's number among others is that of the token alone.

    Raises:
        UserError: they differ.
    """
    # Vectorised and scalar functions of a library may differ in the last digits.
    if not torch.allclose(among, alone, rtol=1e-4, atol=1e-6):
        raise UserError(
            f"a token alone comes to {alone.item():g} and among others to {among.item():g}, so "
            "that training would depend on how tokens are put into microbatches; use no mean, sum, "
            "maximum, position or random number over tokens"
        )
