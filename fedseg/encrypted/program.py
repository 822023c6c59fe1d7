"""A network as a list of steps, which all three parties run: what it does is public, what its weights are is not.

It comes from the model's owner, so whoever reads one believes nothing of it: every step is one of `STEPS`, takes what
was computed before it, and uses weights that are listed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedseg.errors import ConfigError

MOST_VALUES = 1 << 28
"""Of one weight or picture: nobody reserves memory without bounds because somebody else said so."""


@dataclass(frozen=True)
class Kind:
    """What a step takes: so many values, so many weights (least and most), and these numbers."""

    takes: int
    weights: tuple[int, int]
    numbers: tuple[str, ...] = ()


STEPS: dict[str, Kind] = {
    "conv": Kind(1, (1, 2), ("stride", "padding")),
    "grow": Kind(1, (1, 2), ("stride", "padding", "more")),
    "norm": Kind(1, (2, 2), ("groups", "small")),
    "relu": Kind(1, (0, 0), ("slope",)),
    "prelu": Kind(1, (1, 1)),
    "pool": Kind(1, (0, 0), ("side", "stride", "padding")),
    "mean": Kind(1, (0, 0)),
    "linear": Kind(1, (1, 2)),
    "add": Kind(2, (0, 0)),
    "join": Kind(2, (0, 0)),
}
"""Every step: convolution, transposed convolution, GroupNorm, (leaky) ReLU, PReLU, largest of each window, mean of each
feature, linear layer, sum, and features beside features."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        does: which of `STEPS`.
        takes: the values that it takes, by number: 0 is the picture, n what step n computed.
        weights: their names.
        numbers: as `STEPS` names them.
    """

    does: str
    takes: tuple[int, ...]
    weights: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Program:
    """A network.

    Attributes:
        picture: (channels, height, width) of what it takes.
        weights: the shape of each.
        steps: in order; the last one's value is the answer.
    """

    picture: tuple[int, int, int]
    weights: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]

    def text(self) -> str:
        """As JSON; the same program is the same text."""
        steps = [[step.does, step.takes, step.weights, step.numbers] for step in self.steps]
        return json.dumps({"picture": self.picture, "weights": dict(self.weights), "steps": steps}, sort_keys=True)

    @classmethod
    def read(cls, text: str) -> "Program":
        """The program in a text that somebody else wrote.

        Raises:
            ConfigError: it is none.
        """
        try:
            found = json.loads(text)
            steps = tuple(
                Step(str(does), _whole(takes), tuple(map(str, weights)), tuple(map(float, numbers)))
                for does, takes, weights, numbers in found["steps"]
            )
            shapes = {str(name): _whole(shape) for name, shape in found["weights"].items()}
            channels, height, width = _whole(found["picture"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ConfigError("what the model's owner sent is no program; use the same version of fedseg") from None
        program = cls((channels, height, width), shapes, steps)
        program._check()
        return program

    def _check(self) -> None:
        for what, shape in (*self.weights.items(), ("the picture", self.picture)):
            if not all(side > 0 for side in shape) or math.prod(shape) > MOST_VALUES:
                raise ConfigError(f"the program's {what!r} has a shape that nobody computes with: {shape}")
        for number, step in enumerate(self.steps):
            kind = STEPS.get(step.does)
            if (
                kind is None
                or len(step.takes) != kind.takes
                or not kind.weights[0] <= len(step.weights) <= kind.weights[1]
                or len(step.numbers) != len(kind.numbers)
                or not all(0 <= value <= number for value in step.takes)
                or not all(name in self.weights for name in step.weights)
                or not all(math.isfinite(value) and value >= 0 for value in step.numbers)
            ):
                raise ConfigError(f"step {number + 1} of the program, {step.does!r}, is none that is known here")
        if not self.steps:
            raise ConfigError("the program has no steps")


def _whole(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise TypeError
    return tuple(values)
