"""T-16 (specification, "Runs"): every state of a study, from its start and its sums to the hash that a round names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audits.verifier.encoding import H
from audits.verifier.judge import ViolationError
from audits.verifier.policy import Policy
from audits.verifier.reading import Transcript
from audits.verifier.vectors import signed, unpack

MEMORY = {"fedavg": 0, "fedprox": 0, "fedavgm": 1, "fedadam": 2, "fedyogi": 2}
"""Vectors as long as the weights that an algorithm keeps behind them; with two, the number of steps behind those."""


@dataclass(frozen=True)
class Step:
    """The table of steps in the specification, with the numbers of one study."""

    algorithm: str = "fedavg"
    server_lr: float = 1.0
    momentum: float = 0.9
    betas: Sequence[float] = (0.9, 0.99)
    adaptivity: float = 1e-3
    ema: float = 0.0

    @classmethod
    def of(cls, federation: dict[str, Any]) -> Step:
        """The one of a study's table [federation]."""
        own = {name: federation[name] for name in cls.__dataclass_fields__ if name in federation}
        default = 0.01 if own.get("algorithm") in ("fedadam", "fedyogi") else 1.0
        return cls(**{"server_lr": default, **own})

    def start(self, weights: np.ndarray) -> np.ndarray:
        """The weights, and zeros for what is remembered: float32."""
        memory = MEMORY[self.algorithm]
        kept = memory * len(weights) + (memory == 2) + (len(weights) + 1 if self.ema else 0)
        return np.concatenate([weights, np.zeros(kept, np.float32)])

    def next(self, state: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The next state, computed in float64 and rounded once.

        Args:
            state: float32.
            mean: float64 (d,), of the updates.
        """
        d, old = len(mean), state.astype(np.float64)
        w, memory = old[:d], MEMORY[self.algorithm]
        kept: list[np.ndarray] = []
        if memory == 0:
            w = w + self.server_lr * mean
        elif memory == 1:
            kept = [self.momentum * old[d : 2 * d] + mean]
            w = w + self.server_lr * kept[0]
        else:
            u, v, steps = old[d : 2 * d], old[2 * d : 3 * d], old[3 * d : 3 * d + 1]
            (one, two), square = self.betas, mean * mean
            u = one * u + (1 - one) * mean
            yogi = self.algorithm == "fedyogi"
            v = v - (1 - two) * square * np.sign(v - square) if yogi else two * v + (1 - two) * square
            w, kept = w + self.server_lr * u / (np.sqrt(v) + self.adaptivity), [u, v, steps + 1]
        if self.ema:
            average, weight = old[-d - 1 : -1], old[-1:]
            newest = w.astype(np.float32).astype(np.float64)
            kept += [self.ema * average + (1 - self.ema) * newest, self.ema * weight + (1 - self.ema)]
        return np.concatenate([w, *kept]).astype(np.float32)

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
    federation = study.get("federation", {})
    for there, what in (
        (study["privacy"]["mechanism"] == "distributed", "mechanism distributed"),
        (study.get("data", {}).get("statistics") == "secure", "statistics through the sum"),
        (study.get("training", {}).get("trainable", "all") != "all", "updates of some of the weights"),
        (study.get("sharing", {}).get("method", "full") != "full", "updates that are not whole"),
        (federation.get("corrected", False), "corrected FedAdam"),
        (federation.get("personal", "none") != "none", "norms of the sites' own"),
    ):
        if there:
            return what
    return ""


def mean_of(file: Transcript, policy: Policy) -> np.ndarray:
    """The mean of the updates in a sum, by public weights: float64 (d,)."""
    total = signed(unpack(file.total, policy)[: policy.length], policy.bits)
    weights = [policy.weights.get(site, 1.0) for site in file.of["input"]]
    step = max(policy.weights.values(), default=1.0) * policy.clip_range / 2 ** (policy.value_bits - 1)
    return np.asarray(total * step / sum(weights))


def verify(folder: Path, study: dict[str, Any], files: Sequence[Transcript], policy: Policy, start: np.ndarray) -> str:
    """Each round began from the state that the one before led to, and the model file is what the last one gives.

    Raises:
        ViolationError: T-16.
    """
    step = Step.of(study.get("federation", {}))
    state, rounds = step.start(start), [file for file in files if file.finished]
    for file in sorted(rounds, key=lambda one: one.number):
        if file.model != hash_of(state):
            raise ViolationError("T-16", f"the model of round {file.number} does not follow from what was before it")
        state = step.next(state, mean_of(file, policy))
    if not holds(folder / "model.safetensors", step.given_out(state, len(start))):
        raise ViolationError("T-16", "the model file is not what the last round gives")
    return f"{len(rounds)} rounds of {step.algorithm} and the model file follow from the start (T-16)"


def holds(path: Path, weights: np.ndarray) -> bool:
    """Whether a model file's tensors are these weights: each lies in a place of its own, and together they are all."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    about, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    about.pop("__metadata__", None)
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
