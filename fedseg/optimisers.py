"""From a gradient to the next weights, at every party alike: what an optimiser remembers travels behind the weights.

The state of a model is one vector: its weights, and then whatever the optimiser keeps of earlier steps. It is hashed
and signed as a whole, so a site that comes late goes on as if it had been there. Only sums, products, quotients and
square roots of float64, in a fixed order, and one rounding to float32: every machine gets the same bits. Sources:
Kingma and Ba 2015 (Adam), Tang and others 2024 (its correction for the noise of private gradients).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

MOMENTUM = 0.9
"""Of SGD, as within a site's local steps."""

BETAS = 0.9, 0.999
FLOOR = 0.1
"""Adam divides by no less than the square root of this share of the noise's variance, which its estimate cannot see."""


class Optimiser(NamedTuple):
    """How a gradient moves the weights.

    Attributes:
        kept: of d weights, how many values are kept behind them.
        parameters: d, of a state of this length.
        step: (state, gradient, learning rate, variance of the gradient's noise) to the next state, a fresh vector.
    """

    kept: Callable[[int], int]
    parameters: Callable[[int], int]
    step: Callable[[NDArray[np.float32], NDArray[np.float64], float, float], NDArray[np.float32]]


def sgd(state: NDArray[np.float32], gradient: NDArray[np.float64], lr: float, noise: float) -> NDArray[np.float32]:
    """SGD with momentum: velocity is the sum of gradients, each step before counts `MOMENTUM` of the one after.

    Args:
        state: (2d,) weights and velocity.
        gradient: (d,).
        lr: learning rate.
        noise: not looked at.
    """
    weights, velocity = np.split(state.astype(np.float64), 2)
    velocity = MOMENTUM * velocity + gradient
    return np.concatenate([weights - lr * velocity, velocity]).astype(np.float32)


def adam(state: NDArray[np.float32], gradient: NDArray[np.float64], lr: float, noise: float) -> NDArray[np.float32]:
    """Adam, with the noise's own variance taken from the second moment, where it would drown everything else.

    Args:
        state: (3d + 1,) weights, both moments, and the number of steps so far.
        gradient: (d,).
        lr: learning rate.
        noise: variance of each value's noise, public.
    """
    d = len(gradient)
    weights, mean, square = state[: 3 * d].astype(np.float64).reshape(3, d)
    done = float(state[-1]) + 1
    mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
    unbiased = [1 - power(beta, int(done)) for beta in BETAS]
    spread = np.sqrt(np.maximum(square / unbiased[1] - noise, FLOOR * noise))
    moved = weights - lr * (mean / unbiased[0]) / np.maximum(spread, np.finfo(np.float32).tiny)
    return np.concatenate([moved, mean, square, [done]]).astype(np.float32)


def power(base: float, exponent: int) -> float:
    """By multiplication alone: a library's power may differ in its last bit between machines."""
    result = 1.0
    for _ in range(exponent):
        result *= base
    return result


class CorrectedAdam(torch.optim.Optimizer):
    """Adam at a site, on gradients with noise of a known size, which is taken from the second moment.

    Adam alone takes the noise for the size of every gradient, and steps as plain SGD would (Tang and others 2024,
    DP-AdamBC). The variance is public, so that nothing of it costs privacy.

    Args:
        parameters: what is stepped.
        lr: learning rate.
        noise: variance of the noise in each value of a gradient, above 0.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, noise: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self._noise, self._done = noise, 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step by the gradients that the parameters hold."""
        self._done += 1
        unbiased = [1 - power(beta, self._done) for beta in BETAS]
        for group in self.param_groups:
            for values in group["params"]:
                kept = self.state[values]
                if not kept:
                    kept["mean"], kept["square"] = torch.zeros_like(values), torch.zeros_like(values)
                kept["mean"].mul_(BETAS[0]).add_(values.grad, alpha=1 - BETAS[0])
                kept["square"].mul_(BETAS[1]).addcmul_(values.grad, values.grad, value=1 - BETAS[1])
                seen = (kept["square"] / unbiased[1] - self._noise).clamp_min(FLOOR * self._noise)
                values.sub_(kept["mean"] / seen.sqrt(), alpha=group["lr"] / unbiased[0])


OPTIMISERS = {
    "sgd": Optimiser(lambda d: d, lambda n: n // 2, sgd),
    "adam": Optimiser(lambda d: 2 * d + 1, lambda n: n // 3, adam),
}
"""By `[study] optimizer`."""
