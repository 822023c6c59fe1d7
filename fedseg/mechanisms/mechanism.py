"""What every mechanism has to say and do."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
import torch
from dp_accounting.dp_event import DpEvent
from numpy.typing import NDArray

from fedseg.averaging import mean_of
from fedseg.federation.algorithm import Rules
from fedseg.federation.draw import rounds_of_a_site
from fedseg.federation.table import ALGORITHMS
from fedseg.ledger import Entry
from fedseg.privacy.trust import Trust
from fedseg.sharing.levels import Levels
from fedseg.sharing.method import Sharing
from fedseg.sharing.sending import Owed, Sending
from fedseg.sharing.space import Space, Within
from fedseg.sharing.table import METHODS
from fedseg.update import Update, flatten, moving
from secagg.layout import Field, Layout
from secagg.policy import Policy
from secagg.prg import Stream

VALUE_BITS = 20
"""Bits of an update's float."""

MOST_BITS = 48
"""Of a sum of whole numbers, so that turning it back is exact in 64."""

MOMENTUM = 0.9
"""Of SGD, which keeps a site's pull proportional to its patients. Adam normalises it away: the noise of a site with one
patient would pull as hard as forty patients elsewhere."""

Losses: TypeAlias = Iterable[tuple[str, torch.Tensor]]
"""Each drawn patient with its loss, made one by one so that one graph lives at a time."""

Keys: TypeAlias = Callable[[str], bytes]
"""A fresh 32-byte key of this step, or of this update, for each purpose that is named."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The public numbers of a study: all that a mechanism knows of it.

    Attributes:
        epsilon, delta, sample_rate, clip_norm, denominator, noise, released, threshold: of `[privacy]`.
        rounds, spare_rounds, local_steps, lr, optimizer: of `[study]`.
        local_optimizer, weight_decay, schedule, warm_up, batch, trainable: of `[training]`.
        seeded: whether the study has a seed, so that nothing is claimed.
        weights: public weights of all sites.
        min_survivors, max_corrupt: of the aggregation policy.
        clip_range, bits: of `[secagg]`.
        federation: of `[federation]`.
        excess_noise: of `[privacy]`.

    """

    epsilon: float | None
    delta: float | None
    sample_rate: float
    clip_norm: float | None
    denominator: int
    noise: Literal["skellam", "discrete-gaussian"]
    rounds: int
    spare_rounds: int = 0
    local_steps: int
    lr: float
    optimizer: str
    local_optimizer: str = "sgd"
    weight_decay: float = 0.0
    schedule: str = "constant"
    warm_up: int = 0
    batch: int = 0
    trainable: str = "all"
    seeded: bool
    weights: tuple[float, ...]
    min_survivors: int
    max_corrupt: int
    clip_range: float | None
    bits: int
    released: float | None = None
    threshold: float = 0.0
    sharing: Sharing = field(default_factory=Sharing)
    federation: Rules = field(default_factory=Rules)
    excess_noise: Literal["stays", "removed"] = "stays"

    @property
    def levels(self) -> Levels | None:
        """How values become whole numbers of few bits; None where the study does not say so."""
        if not self.sharing.bits:
            return None
        return Levels(self.sharing.bits, len(self.weights), self.bits, self.clip_range or 0.0)

    @property
    def own_steps(self) -> dict[str, Any]:
        """How a site steps by itself, as `fedseg.update` takes it."""
        return {
            "adaptive": self.local_optimizer == "adamw",
            "decay": self.weight_decay,
            "pull": self.pull,
            "personal": self.federation.personal,
        }

    @property
    def steps(self) -> int:
        """Of one site at most, that the noise is planned for; those of spare rounds included."""
        rounds = self.rounds + self.spare_rounds
        return rounds_of_a_site(rounds, len(self.weights), self.federation.participation) * self.local_steps

    @property
    def pull(self) -> float:
        """See `Algorithm.pull`."""
        return ALGORITHMS[self.federation.algorithm].pull(self.federation)

    def rate(self, round_number: int, step: int) -> float:
        """Learning rate of local step `step`, from 1, of a round: by its place among the steps of all rounds.

        A round number beyond the planned ones, after burned rounds, has the last step's rate.
        """
        number, planned = (round_number - 1) * self.local_steps + step, self.rounds * self.local_steps
        grown = min(1.0, number / (self.warm_up + 1))
        if self.schedule == "constant":
            return self.lr * grown
        return self.lr * min(grown, 0.5 + 0.5 * math.cos(math.pi * (min(number, planned) - 1) / planned))


class Encoding(NamedTuple):
    """How an update becomes integers: the fields of `secagg.Policy` that say so."""

    length: int = 0
    clip_range: float = 0.0
    value_bits: int = 0
    layout: Layout | None = None
    excess_seeds: bool = False


class Said(TypedDict):
    """What every entry of a ledger says; see `fedseg.ledger`."""

    study_hash: str
    study: str
    site: str
    training_run: str
    round_number: int
    unit: str


class Steps(ABC):
    """A site's part of one round: its steps, on weights of its own that begin at a model's.

    Args:
        model: the round's; it follows the steps, so that gradients do.
        terms: of the study.
    """

    def __init__(self, model: torch.nn.Module, terms: Terms) -> None:
        self._terms = terms
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        moves, tensors, start = moving(model, terms.federation.personal), list[tuple[str, int]](), 0
        for name, parameter in model.named_parameters():
            if moves[start]:
                tensors.append((name, parameter.numel()))
            start += parameter.numel()
        self._begun = flatten(model)
        self._weights = self._begun[moves]
        self._space = Space.of(self._weights, terms.sharing, tensors)
        self._within = Within(self._space) if METHODS[terms.sharing.method].within else None

    def at(self, rate: float) -> None:  # noqa: B027  where the sum is stepped by, no site chooses the rate
        """Set the learning rate of the next step, where the site steps by itself."""

    @abstractmethod
    def step(self, losses: Losses, keys: Keys) -> None:
        """One step by what the drawn patients give, who may be nobody."""

    @property
    @abstractmethod
    def diverged(self) -> bool:
        """Whether the steps have left the numbers."""

    @property
    def weights(self) -> NDArray[np.float32]:
        """(d,) that a site's own steps lead to: those of the round, where it makes none."""
        return self._begun

    @abstractmethod
    def update(self, site: str, event_id: str, keys: Keys, owed: Owed | None = None) -> Update:
        """What leaves the site, of all steps together.

        Args:
            site: whose.
            event_id: what was charged for the steps.
            keys: of this update; see `Keys`.
            owed: what earlier updates owe; None without error feedback.
        """

    def _sending(self, keys: Keys, owed: Owed | None) -> Sending:
        return Sending(self._space, self._terms.levels, Stream(keys("levels")), owed)


class Mechanism(ABC):
    """One way to protect patients.

    Attributes:
        name: as `[privacy] mechanism`.
        trust: what it claims, and whom one trusts for it.
        needs: fields of `[privacy]` without which a study of it is none.
        asks: whether statistics can be asked for beside it.
        largest_epsilon: that a study may ask for. From 100 on even one patient's presence is as good as shown, whatever
            delta; what reproduces a published setting of that kind may go beyond, and says what it spends.
    """

    name: ClassVar[str]
    trust: ClassVar[Trust]
    needs: ClassVar[tuple[str, ...]]
    largest_epsilon: ClassVar[float] = 100.0
    asks: ClassVar[bool] = True

    def refusal(self, terms: Terms) -> str:
        """Why there can be no such study, as one sentence that begins with section and field; empty where it can.

        Here of a mechanism whose sites send differences of weights.
        """
        if terms.clip_range is None:
            needs = f"[secagg] clip_range is missing and mechanism = '{self.name}' needs it"
            return f"{needs}; add clip_range: bound of every value of an update"
        if terms.optimizer != "sgd":
            return f"[study] optimizer = '{terms.optimizer}' goes with mechanism = 'distributed' only; remove it"
        if terms.federation.corrected and (terms.schedule, terms.warm_up) != ("constant", 0):
            return (
                "[federation] corrected with [training] schedule or warm_up: the noise of an update is another one in "
                "each round; leave either out"
            )
        if terms.federation.corrected and terms.sharing.method != "full":
            return (
                f"[federation] corrected with [sharing] method = '{terms.sharing.method}': the noise of a value is "
                "another one in each round; leave either out"
            )
        if terms.federation.personal != "none" and METHODS[terms.sharing.method].within:
            return (
                f"[federation] personal = '{terms.federation.personal}' with [sharing] method = "
                f"'{terms.sharing.method}': a site trains within what is sent, and what stays there is not; leave "
                "either out"
            )
        return self._own_steps(terms) or self._few_bits(terms)

    def _own_steps(self, terms: Terms) -> str:
        """Why a site cannot step as it should; empty where it can."""
        if self.trust.claims_epsilon and terms.batch:
            return (
                f"[training] batch = {terms.batch} with mechanism = '{self.name}': epsilon holds for patients that "
                "[privacy] sample_rate draws; leave it at 0"
            )
        return ""

    def _few_bits(self, terms: Terms) -> str:
        """Why values cannot become whole numbers of few bits; empty where they can, or stay as they are."""
        if not (bits := terms.sharing.bits):
            return ""
        if set(terms.weights) != {1.0}:
            return (
                f"[[sites]] weight: with [sharing] bits = {bits} every site counts the same; leave weights or bits out"
            )
        sites, word = len(terms.weights), terms.bits
        if word > MOST_BITS:
            return f"[secagg] bits = {word}: at most {MOST_BITS} with [sharing] bits; leave it at 32"
        if sites * ((1 << bits) - 1) >= 1 << word:
            return (
                f"[sharing] bits = {bits}: the sum of {sites} sites does not fit into [secagg] bits = {word}; lower it"
            )
        return ""

    def encoding(self, parameters: int, terms: Terms) -> Encoding:
        """How what is sent of an update of so many parameters becomes integers: a float each, or levels in words."""
        length = METHODS[terms.sharing.method].length(parameters, terms.sharing)
        if (levels := terms.levels) is None:
            return Encoding(length, terms.clip_range or 0.0, VALUE_BITS)
        return Encoding(layout=Layout({"update": Field.integers(levels.words(length), bits=terms.bits)}))

    @abstractmethod
    def noise_multiplier(self, terms: Terms) -> float:
        """Standard deviation of a step's noise over what one patient can change, 0 where there is none.

        Raises:
            ConfigError: no reasonable noise meets the budget.
        """

    @abstractmethod
    def released(self, terms: Terms, steps: int) -> DpEvent:
        """What so many steps show of a site's patients.

        Raises:
            ConfigError: no reasonable noise meets the budget.
        """

    def achieved(self, terms: Terms, steps: int, honest: int, sites: int) -> DpEvent | None:
        """The same to somebody for whom `honest` of the sites in each sum add unknown noise; None where none is left.

        An update that is private alone needs no other site's noise.
        """
        return self.released(terms, steps)

    @abstractmethod
    def entry(self, said: Said, terms: Terms) -> Entry:
        """What one round costs, as the ledger has it.

        Raises:
            ConfigError: no reasonable noise meets the budget.
        """

    @abstractmethod
    def begin(self, model: torch.nn.Module, terms: Terms) -> Steps:
        """A site's steps of one round, from this model on."""

    def kept(self, parameters: int, terms: Terms) -> int:
        """How many values are kept from round to round behind so many that a sum moves, all 0 at the start."""
        return ALGORITHMS[terms.federation.algorithm].kept(parameters)

    def noise_in_mean(self, parameters: int, included: Sequence[str], policy: Policy, terms: Terms) -> float:
        """Variance of the noise in each value of the mean of these sites' updates, as far as it is public."""
        return 0.0

    def following(
        self,
        state: NDArray[np.float32],
        total: NDArray[np.float64],
        included: Sequence[str],
        policy: Policy,
        terms: Terms,
        excess_seeds: Mapping[str, bytes],
    ) -> NDArray[np.float32]:
        """The next state, which every party computes bit for bit: here the study's algorithm moves by the mean.

        Args:
            state: of the round: d weights that a sum moves, and behind them what is kept.
            total: (policy.length,) weighted sum of the included updates.
            included: their sites.
            policy: gives the weights.
            terms: of the study.
            excess_seeds: what sites disclosed for this sum; see `fedseg.privacy.excess`.
        """
        total = self._whole(state, total, len(included), terms)
        algorithm, d = ALGORITHMS[terms.federation.algorithm], len(total)
        noise = self.noise_in_mean(d, included, policy, terms)
        weights, memory = state[:d].astype(np.float64), state[d:].astype(np.float64)
        moved = algorithm.following(weights, memory, mean_of(total, included, policy), terms.federation, noise)
        return np.concatenate(moved).astype(np.float32)

    def _whole(
        self, state: NDArray[np.float32], total: NDArray[np.float64], sites: int, terms: Terms
    ) -> NDArray[np.float64]:
        """The (d,) sum of updates that a sum of what was sent of them stands for.

        Args:
            state: of the round.
            total: (policy.length,) sum.
            sites: how many are in it.
            terms: of the study.
        """
        fixed = self.kept(0, terms)  # so many, and so many for each parameter
        space = Space.of(state[: (len(state) - fixed) // (1 + self.kept(1, terms) - fixed)], terms.sharing)
        if (levels := terms.levels) is not None:
            total = levels.values(levels.unpacked(total.astype(np.int64), space.length), sites)
        return space.restored(total)
