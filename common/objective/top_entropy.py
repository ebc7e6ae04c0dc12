"""Which tokens the policy term is kept on: those that the old policy was least sure of.

Of all tokens in the loss of an optimizer batch, over all dp ranks, the share `top_entropy_quantile`
with the highest entropy (arXiv 2506.01939). The entropy is the stored one, of the policy
that sampled, so the selection needs no second forward and is the same in every division of the
work. KL, entropy bonus and all denominators keep every token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def entropy_threshold(entropy: NDArray[np.floating], top_quantile: float) -> float:
    """The entropy from which on a token is kept: the quantile 1 − `top_quantile`, interpolated.

    Args:
        entropy: of all tokens in the loss of the optimizer batch, nats.
        top_quantile: the share to keep; 1 keeps every token.

    Returns:
        −inf where everything is kept; not a number if an entropy is.
    """
    if top_quantile == 1 or not len(entropy):
        return -np.inf
    return float(np.quantile(entropy.astype(np.float64), 1 - top_quantile))


def in_policy_term(
    entropy: NDArray[np.floating], threshold: float | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which tokens are kept: all but those below the threshold (of all, or one a token)."""
    return ~(entropy.astype(np.float64) < threshold)
