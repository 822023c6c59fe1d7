"""T-16 (specification, "Runs"): every state of a study, from its start and its sums to the hash that a round names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audits.verifier.encoding import H
from audits.verifier.judge import ViolationError
from audits.verifier.policy import Policy
from audits.verifier.reading import Transcript
from audits.verifier.spaces import Space, block, digits, filled, signs, turned
from audits.verifier.vectors import signed, unpack

Lines = Mapping[tuple[str, int], dict[str, Any]]
"""By kind and number of a round, a line of a ledger."""

RANGES = {"percentiles": (0.0, 1.5), "z-score": (-5.0, 5.0), "ct": (0.0, 1.0)}
"""Of a channel's values."""

MEMORY = {"fedavg": 0, "fedprox": 0, "fedavgm": 1, "fedadam": 2, "fedyogi": 2, "sgd": 1, "adam": 2}
"""Vectors as long as the weights that an algorithm keeps behind them; with two, the number of steps behind those."""


@dataclass(frozen=True)
class Step:
    """The table of steps in the specification, with the numbers of one study; sgd and adam are those of distributed."""

    algorithm: str = "fedavg"
    server_lr: float = 1.0
    momentum: float = 0.9
    betas: Sequence[float] = (0.9, 0.99)
    adaptivity: float = 1e-3
    ema: float = 0.0
    corrected: bool = False

    @classmethod
    def of(cls, study: dict[str, Any]) -> Step:
        """The one of a study."""
        federation = study.get("federation", {})
        own = {name: federation[name] for name in cls.__dataclass_fields__ if name in federation}
        if study["privacy"]["mechanism"] == "distributed":
            about = study["study"]
            fixed = {"momentum": 0.9, "betas": (0.9, 0.999), "server_lr": about["lr"]}
            return cls(**{**own, **fixed, "algorithm": about.get("optimizer", "sgd")})
        default = 0.01 if own.get("algorithm") in ("fedadam", "fedyogi") else 1.0
        return cls(**{"server_lr": default, **own})

    def kept(self, d: int) -> int:
        """Values behind d weights."""
        memory = MEMORY[self.algorithm]
        return memory * d + (memory == 2) + (d + 1 if self.ema else 0)

    def next(self, state: np.ndarray, mean: np.ndarray, noise: float = 0.0) -> np.ndarray:
        """The next state, computed in float64 and rounded once.

        Args:
            state: float32.
            mean: float64 (d,), of the updates, or the gradient.
            noise: its variance in each value.
        """
        d, old = len(mean), state.astype(np.float64)
        w, memory = old[:d], MEMORY[self.algorithm]
        kept: list[np.ndarray] = []
        if memory == 0:
            w = w + self.server_lr * mean
        elif memory == 1:
            kept = [self.momentum * old[d : 2 * d] + mean]
            w = w - self.server_lr * kept[0] if self.algorithm == "sgd" else w + self.server_lr * kept[0]
        else:
            w, kept = self._adaptive(w, old[d : 3 * d + 1], mean, noise)
        if self.ema:
            average, weight = old[-d - 1 : -1], old[-1:]
            newest = w.astype(np.float32).astype(np.float64)
            kept += [self.ema * average + (1 - self.ema) * newest, self.ema * weight + (1 - self.ema)]
        return np.concatenate([w, *kept]).astype(np.float32)

    def _adaptive(
        self, w: np.ndarray, memory: np.ndarray, g: np.ndarray, noise: float
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        d, (one, two) = len(g), self.betas
        u, v, steps = memory[:d], memory[d : 2 * d], memory[2 * d :] + 1
        u = one * u + (1 - one) * g
        unbiased = [1 - math.prod([beta] * int(steps[0])) for beta in self.betas]
        if self.algorithm == "adam":
            v = two * v + (1 - two) * g * g
            root = np.sqrt(np.maximum(v / unbiased[1] - noise, 0.1 * noise))
            return w - self.server_lr * (u / unbiased[0]) / np.maximum(root, 2.0**-126), [u, v, steps]
        square = g * g
        yogi = self.algorithm == "fedyogi"
        v = v - (1 - two) * square * np.sign(v - square) if yogi else two * v + (1 - two) * square
        seen = np.maximum(v - noise * unbiased[1], 0.1 * (noise * unbiased[1])) if self.corrected else v
        return w + self.server_lr * u / (np.sqrt(seen) + self.adaptivity), [u, v, steps]

    def given_out(self, state: np.ndarray, d: int) -> np.ndarray:
        """The weights of the model file: float32 (d,)."""
        if not self.ema:
            return state[:d]
        return np.asarray((state[-d - 1 : -1].astype(np.float64) / float(state[-1])).astype(np.float32))


def hash_of(state: np.ndarray) -> bytes:
    """What stands in the round id."""
    return H("model", "float32", len(state), state.astype("<f4").tobytes())


def unknown(study: dict[str, Any]) -> str:
    """What of a study the specification's text has no step of; nothing where it has all."""
    for there, what in (
        (study["privacy"].get("excess_noise", "stays") != "stays", "noise that is taken off again"),
        (study.get("training", {}).get("trainable", "all") != "all", "updates of some of the weights"),
        (study.get("federation", {}).get("personal", "none") != "none", "norms of the sites' own"),
    ):
        if there:
            return what
    return ""


class Course:
    """From a state and a sum to the next state.

    Args:
        study: its tables.
        policy: of the sums.
        lines: by kind and round, what the ledgers say of the noise: the same at all sites.
        d: weights.
    """

    def __init__(self, study: dict[str, Any], policy: Policy, lines: Lines, d: int) -> None:
        self.study, self.policy, self.lines, self.d = study, policy, lines, d
        self.step, self.space = Step.of(study), Space(study.get("sharing", {}), d)
        self.asked = Asked.of(study)
        self.distributed = study["privacy"]["mechanism"] == "distributed"

    def start(self, weights: np.ndarray) -> np.ndarray:
        """The weights, and zeros for what is remembered and what will be found: float32."""
        behind = self.step.kept(len(weights)) + (1 + self.asked.length if self.asked else 0)
        return np.concatenate([weights, np.zeros(behind, np.float32)])

    def parts(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A state without what was found of all patients, and that."""
        end = len(state) - (1 + self.asked.length if self.asked else 0)
        return state[:end], state[end:]

    def next(self, state: np.ndarray, file: Transcript) -> np.ndarray:
        """The state after the sum of a file."""
        whole = signed(unpack(file.total, self.policy)[: self.policy.length], self.policy.bits)
        own, found = self.parts(state)
        if self.asked is not None:
            whole, last = whole[: -self.asked.length], whole[-self.asked.length :]
            if not found[0]:
                return np.concatenate([own, self.asked.found(last, self.lines.get(("statistics", file.number)))])
        mean, noise = (self._gradient if self.distributed else self._mean)(own[: self.d], whole, file)
        return np.concatenate([self.step.next(own, mean, noise), found])

    def _mean(self, weights: np.ndarray, whole: np.ndarray, file: Transcript) -> tuple[np.ndarray, float]:
        """The mean of the updates, and the variance of its noise where that is needed."""
        included, public = file.of["input"], self.policy.weights
        of_each = [public.get(site, 1.0) for site in included]
        if self.study.get("sharing", {}).get("bits", 0):
            sums = digits(whole, self.space.m, self.policy.clients, len(included), self.study)
        else:
            field = self.policy.fields[0]
            sums = whole * (max(public.values(), default=1.0) * field.number / 2 ** (field.bits - 1))
        mean, noise = self.space.restored(sums, weights) / sum(of_each), 0.0
        line = self.lines.get(("local", file.number))
        if self.step.corrected and line is not None:
            noise = _noise(self.study["study"], line, self.d) * sum((w / sum(of_each)) ** 2 for w in of_each)
        return mean, noise

    def _gradient(self, weights: np.ndarray, whole: np.ndarray, file: Transcript) -> tuple[np.ndarray, float]:
        """The gradient that a sum of whole numbers stands for, and the variance of its noise."""
        line, m, i = self.lines[("distributed", file.number)], self.space.m, len(file.of["input"])
        n, size, sensitivity = filled(m), block(m), line["sensitivity"]
        room = sensitivity**2 - n / 4 - 7.5 * math.sqrt(n) / 2
        rarely = (math.sqrt(7.5 * 7.5 + 4 * room) - 7.5) / 2 if room > 0 else 0.0
        scale = max(rarely, sensitivity - math.sqrt(n), 0.0) / line["clip_norm"]
        divisor = self.study["privacy"]["denominator"] * i
        x = (turned(whole, size) * signs(H("rotation", weights.astype("<f4").tobytes()), n))[:m]
        gradient = self.space.restored(x / (scale * math.sqrt(size)), weights) / divisor
        return gradient, i * line["variance"] / (scale * divisor) ** 2 * (m / self.d)


def _noise(about: dict[str, Any], line: dict[str, Any], d: int) -> float:
    """lr^2 q (s / denominator)^2 V."""
    z, clip = line["noise_multiplier"], line["clip_norm"]
    s = 2.0 ** math.floor(math.log2(clip / min(max(1024, 16 * math.sqrt(d)), math.sqrt(2**29) / z)))
    variance = math.ceil(z**2 * (math.floor((clip / s) ** 2 * (1 - 1e-12)) + 1)) + 9
    r = q = 0.0
    for _ in range(about["local_steps"]):
        r = 1.0 + 0.9 * r
        q += r * r
    return float(about["lr"] ** 2 * ((s / line["denominator"]) ** 2 * variance) * q)


@dataclass(frozen=True)
class Asked:
    """The sum of statistics."""

    names: int
    ranges: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, study: dict[str, Any]) -> Asked | None:
        """What a study asks for; None where it asks for nothing."""
        about, data = study["study"], study.get("data", {})
        if data.get("statistics", "none") != "secure":
            return None
        methods = data.get("normalisation", ["percentiles"])
        methods = methods * len(data["modality"]) if len(methods) == 1 else methods
        return cls(len(about.get("structures") or about["classes"]), [RANGES[method] for method in methods])

    @property
    def length(self) -> int:
        """Whole numbers of the sum."""
        return 2 + self.names + 5 + 2 * len(self.ranges)

    def found(self, total: np.ndarray, line: dict[str, Any] | None) -> np.ndarray:
        """What a state has of it: float32 (1 + length,)."""
        channels = len(self.ranges)
        scale = 2**14 if line is None else math.floor(line["sensitivity"] / math.sqrt(3 + 2 * channels))
        a = total.astype(np.float64) / scale
        low, high = np.array(self.ranges).T
        mean, square = np.clip(a[-2 * channels :] / max(a[0], 1.0), 0, 1).reshape(2, channels)
        sd = np.sqrt(np.maximum(square - mean * mean, 0.05**2))
        others = np.rint(a[: -2 * channels] * scale) / scale
        return np.concatenate([[1.0], others, low + mean * (high - low), sd * (high - low)]).astype(np.float32)


def verify(
    folder: Path, study: dict[str, Any], files: Sequence[Transcript], policy: Policy, start: np.ndarray, lines: Lines
) -> str:
    """Each round began from the state that the one before led to, and the model file is what the last one gives.

    Raises:
        ViolationError: T-16.
    """
    course = Course(study, policy, lines, len(start))
    state, rounds = course.start(start), [file for file in files if file.finished]
    for file in sorted(rounds, key=lambda one: one.number):
        if file.model != hash_of(state):
            raise ViolationError("T-16", f"the model of round {file.number} does not follow from what was before it")
        state = course.next(state, file)
    own, found = course.parts(state)
    scales = found[-2 * len(course.asked.ranges) :] if course.asked else found
    if not holds(folder / "model.safetensors", course.step.given_out(own, len(start)), scales):
        raise ViolationError("T-16", "the model file is not what the last round gives")
    return f"{len(rounds)} rounds of {course.step.algorithm} and the model file follow from the start (T-16)"


def holds(path: Path, weights: np.ndarray, scales: np.ndarray) -> bool:
    """Whether a model file's tensors are these weights: each lies in a place of its own, and together they are all.

    Mean and deviation of the inputs, which are no weights, are `scales`, where there are any.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    about, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    about.pop("__metadata__", None)
    said = [body[slice(*one["data_offsets"])] for name in ("input_mean", "input_sd") if (one := about.pop(name, None))]
    if len(scales) and b"".join(said) != scales.astype("<f4").tobytes():
        return False
    wanted, taken = weights.astype("<f4").tobytes(), np.zeros(len(weights), bool)
    for tensor in sorted(about.values(), key=lambda one: one["data_offsets"][0] - one["data_offsets"][1]):
        values = body[slice(*tensor["data_offsets"])]
        at = wanted.find(values)
        while at >= 0 and (at % 4 or taken[at // 4 : (at + len(values)) // 4].any()):
            at = wanted.find(values, at + 1)
        if at < 0:
            return False
        taken[at // 4 : (at + len(values)) // 4] = True
    return bool(taken.all())
