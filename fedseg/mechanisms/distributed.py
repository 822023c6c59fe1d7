"""Mechanism "distributed": only the sum of all sites is private, with the noise of one trusted party and without one.

Every gradient step is one secure aggregation. A site adds up the clipped integers of its patients and a share of the
noise (`fedseg.privacy.shares`); the sum alone is unmasked, and every party steps the same optimiser by it. Noise is
counted from as few sites as a sum can have, less those that may side with the coordinator and know their own shares.
Any more of it only hides more, and stays, or with `[privacy] excess_noise` is taken off (`fedseg.privacy.excess`).
`docs/privacy.md` has the argument.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from dp_accounting.dp_event import DpEvent
from numpy.typing import NDArray

from fedseg.ledger import Entry, NoisySum
from fedseg.mechanisms.mechanism import MOST_BITS, Encoding, Keys, Losses, Mechanism, Said, Steps, Terms
from fedseg.optimisers import OPTIMISERS
from fedseg.privacy.accounting import noise_multiplier_for
from fedseg.privacy.excess import Layers
from fedseg.privacy.shared_noise import Kind, SharedNoise, plan_noise
from fedseg.privacy.shares import Grid, NoiseShare, noise_share
from fedseg.privacy.trust import NO_CLAIM_SEEDED, Trust
from fedseg.sharing.sending import Owed
from fedseg.sharing.space import Space
from fedseg.sharing.table import METHODS
from fedseg.update import NoiseShared, moving
from secagg.encoding import digest
from secagg.layout import Field, Layout
from secagg.policy import Policy
from secagg.prg import Stream

KINDS: dict[str, Kind] = {"skellam": "skellam", "discrete-gaussian": "gaussian"}
"""By `[privacy] noise`."""

LOCAL = ("local_optimizer", "weight_decay", "schedule", "warm_up", "batch")
"""Fields of `Terms` that shape a site's own steps."""

WITHIN = ("full", *(name for name, method in METHODS.items() if method.within))
"""Methods of `[sharing]` that go with it."""

DEVIATION = 1 << 13
"""Of a site's share of the noise, about: it makes the grid so fine that rounding adds next to nothing to it."""


def honest(terms: Terms) -> int:
    """Sites in every sum at least that do not side with the coordinator: so many shares of the noise count."""
    return terms.min_survivors - terms.max_corrupt


@lru_cache(maxsize=16)
def noise_of(terms: Terms) -> SharedNoise:
    """Each site's share of the noise of every step, and what one patient can change: the same for any model.

    Raises:
        ConfigError: no reasonable noise meets the budget.
    """
    budget, delta = terms.epsilon or 0.0, terms.delta or 0.0
    about = noise_multiplier_for(budget, delta, terms.sample_rate, terms.steps)
    sensitivity = min(DEVIATION, int(DEVIATION * math.sqrt(honest(terms)) / about))
    return plan_noise(
        KINDS[terms.noise],
        budget=budget,
        delta=delta,
        sample_rate=terms.sample_rate,
        steps=terms.steps,
        honest=honest(terms),
        length=sensitivity**2,  # of whole numbers none is larger than its square: longer vectors have no larger L1 norm
        sensitivity=sensitivity,
    )


@lru_cache(maxsize=16)
def layers_of(terms: Terms) -> Layers | None:
    """What each share of the noise is made of, where the excess is removed; None where it stays."""
    if terms.excess_noise == "stays":
        return None
    return Layers(noise_of(terms), len(terms.weights), terms.min_survivors, terms.max_corrupt)


class SharedSteps(Steps):
    """The one step of a round: nothing of it is applied at the site before the sum is there."""

    def __init__(self, model: torch.nn.Module, terms: Terms, grid: Grid, noise: SharedNoise) -> None:
        super().__init__(model, terms)
        self._grid, self._noise = grid, noise
        self._rotation = rotation(self._weights)
        self._share: NoiseShare | None = None
        self._excess_seeds: tuple[bytes, ...] = ()

    def step(self, losses: Losses, keys: Keys) -> None:
        """See `Steps.step`."""
        stream, layers = Stream(keys("noise")), layers_of(self._terms)
        if layers is not None:
            self._excess_seeds = tuple(keys(f"noise {sites}") for sites in list(layers.needed)[1:])

        def noise(n: int) -> NDArray[np.int64]:
            """A share, of layers where the excess is removed."""
            if layers is None:
                return self._noise.draw(n, stream)
            return layers.draw(n, stream, self._excess_seeds)

        self._share = noise_share(
            self._parameters,
            losses,
            self._grid,
            self._rotation,
            keys("rounding"),
            noise,
            self._within,
        )

    @property
    def diverged(self) -> bool:
        """Never: a gradient that is not finite adds nothing."""
        return False

    def update(self, site: str, event_id: str, keys: Keys, owed: Owed | None = None) -> NoiseShared:
        """See `Steps.update`."""
        if self._share is None:
            raise TypeError("no step was made, so there is nothing to share")
        return NoiseShared(self._share, self._terms.bits, site, event_id, self._excess_seeds)


class Distributed(Mechanism):
    """See the module."""

    name = "distributed"
    trust = Trust(
        claims_epsilon=True,
        each_update_private=False,
        trusted="the threshold of secure aggregation",
        because="only the sum has all of the noise, and at most {c} of the sites may side with the coordinator",
        short="the sum of all sites is private",
    )
    needs = ("epsilon", "delta", "clip_norm")

    def refusal(self, terms: Terms) -> str:
        """See `Mechanism.refusal`."""
        if (algorithm := terms.federation.algorithm) != "fedavg" or terms.federation.server_lr != 1:
            return (
                f"[federation] algorithm = '{algorithm}' with mechanism = 'distributed': each sum is a gradient, by "
                "which [study] optimizer steps with [study] lr; leave algorithm and server_lr out"
            )
        if terms.local_steps != 1:
            return (
                f"[study] local_steps = {terms.local_steps}: with mechanism = 'distributed' every step is a sum of its "
                "own; set local_steps to 1 and rounds to the number of steps"
            )
        if said := next(
            (name for name in LOCAL if getattr(terms, name) != Terms.__dataclass_fields__[name].default), ""
        ):
            field = said.removeprefix("local_")
            return (
                f"[training] {field} = {getattr(terms, said)!r}: with mechanism = 'distributed' no site steps by "
                "itself; leave it away, and choose [study] optimizer and lr"
            )
        if terms.federation.personal != "none":
            return (
                f"[federation] personal = '{terms.federation.personal}' with mechanism = 'distributed': only a sum is "
                "private, and what stays at a site is in none, but shapes its gradients; leave it away, or use 'local'"
            )
        if set(terms.weights) != {1.0}:
            return "[[sites]] weight: with mechanism = 'distributed' every patient counts the same; leave weights out"
        if terms.sharing.method not in WITHIN:
            return (
                f"[sharing] method = '{terms.sharing.method}' with mechanism = 'distributed': its noise covers what is "
                f"sent where patients' gradients are reduced first; use {' or '.join(map(repr, WITHIN))}"
            )
        if terms.sharing.bits:
            return "[sharing] bits with mechanism = 'distributed': sites add whole numbers already; lower [secagg] bits"
        if terms.bits > MOST_BITS:
            return f"[secagg] bits = {terms.bits}: at most {MOST_BITS} with mechanism = 'distributed'; leave it at 32"
        if terms.bits < (needed := self._bits_needed(terms)):
            return f"[secagg] bits = {terms.bits}: the noisy sum of these sites needs {needed}; leave it at 32"
        return ""

    def _bits_needed(self, terms: Terms) -> int:
        """So that the sum wraps less often than once in 2^100 values, with twice as many patients as expected."""
        sites = len(terms.weights)
        patients = 2 * sites * terms.denominator
        return math.ceil(DEVIATION * (patients + 12 * math.sqrt(sites))).bit_length() + 1

    def encoding(self, parameters: int, terms: Terms) -> Encoding:
        """See `Mechanism.encoding`: whole numbers as they are, modulo 2^bits."""
        length = Grid(METHODS[terms.sharing.method].length(parameters, terms.sharing), 1.0, DEVIATION).length
        layout = Layout({"gradient": Field.integers(length, bits=terms.bits)})
        return Encoding(layout=layout, excess_seeds=terms.excess_noise == "removed")

    def noise_multiplier(self, terms: Terms) -> float:
        """See `Mechanism.noise_multiplier`."""
        return noise_of(terms).noise_multiplier(honest(terms))

    def released(self, terms: Terms, steps: int) -> DpEvent:
        """See `Mechanism.released`."""
        return noise_of(terms).event(honest(terms), terms.sample_rate, steps)

    def achieved(self, terms: Terms, steps: int, honest: int, sites: int) -> DpEvent | None:
        """See `Mechanism.achieved`: every share counts, and of it what stays."""
        layers = layers_of(terms)
        share = noise_of(terms) if layers is None or sites not in layers.needed else layers.kept(sites)
        return share.event(honest, terms.sample_rate, steps) if honest > 0 else None

    def entry(self, said: Said, terms: Terms) -> Entry:
        """See `Mechanism.entry`."""
        noise, survivors, layers = noise_of(terms), terms.min_survivors, layers_of(terms)
        if layers is not None:  # a sum of all sites keeps least, to whoever knows less of it than was planned for
            survivors, noise = layers.sites, layers.kept(layers.sites)
        return NoisySum(
            **said,
            sample_rate=terms.sample_rate,
            noise=noise.kind,
            variance=noise.variance,
            sensitivity=noise.sensitivity,
            shares=survivors - terms.max_corrupt,
            survivors=survivors,
            clip_norm=terms.clip_norm or 0.0,
            denominator=terms.denominator,
            generator=NO_CLAIM_SEEDED if terms.seeded else "os",
        )

    def begin(self, model: torch.nn.Module, terms: Terms) -> Steps:
        """See `Mechanism.begin`."""
        grid = self._grid(terms, int(moving(model).sum()))
        return SharedSteps(model, terms, grid, noise_of(terms))

    def kept(self, parameters: int, terms: Terms) -> int:
        """See `Mechanism.kept`: what the optimiser remembers."""
        return OPTIMISERS[terms.optimizer].kept(parameters)

    def following(
        self,
        state: NDArray[np.float32],
        total: NDArray[np.float64],
        included: Sequence[str],
        policy: Policy,
        terms: Terms,
        excess_seeds: Mapping[str, bytes],
    ) -> NDArray[np.float32]:
        """See `Mechanism.following`: the sum is turned back, divided by a public constant, and stepped by."""
        optimiser = OPTIMISERS[terms.optimizer]
        parameters = optimiser.parameters(len(state))
        grid = self._grid(terms, parameters)
        divisor = terms.denominator * len(included)
        weights = state[:parameters]
        space = Space.of(weights, terms.sharing)
        integers, variance = total.astype(np.int64), len(included) * noise_of(terms).variance
        if (layers := layers_of(terms)) is not None:
            integers -= layers.excess(len(integers), excess_seeds, len(included))
            variance = layers.left(excess_seeds, len(included))
        gradient = space.restored(grid.gradient(integers, rotation(weights))) / divisor
        # Of the values that a space holds; on average over all rounds it falls on each value alike.
        noise = variance / (grid.scale * divisor) ** 2 * (space.length / parameters)
        return optimiser.step(state, gradient, terms.lr, noise)

    def _grid(self, terms: Terms, parameters: int) -> Grid:
        length = METHODS[terms.sharing.method].length(parameters, terms.sharing)
        return Grid(length, terms.clip_norm or 0.0, noise_of(terms).sensitivity)


def rotation(weights: NDArray[np.float32]) -> bytes:
    """The public 32 bytes by which a step on these weights is rotated: other ones in every step."""
    return digest("rotation", np.ascontiguousarray(weights, dtype="<f4").tobytes())
