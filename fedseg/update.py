"""Models as flat vectors, and the two kinds of update that may leave a site.

The wall is a proof: a `NoisedUpdate` is made of `NoisedSteps`, which take nothing but `NoisedGradient`, which only
`fedseg.privacy.dpsgd` makes; a `NoiseShared` is made of a `NoiseShare`, which only `fedseg.privacy.shares` makes. None
of them can be copied or pickled, and the aggregator takes nothing else: an unprotected update that leaves a site is a
type error first and a `TypeError` second. Mechanism "none" has a door of its own, which asks what it claims.
"""

from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedseg.errors import ConfigError
from fedseg.optimisers import CorrectedAdam
from fedseg.privacy.counted import Counted
from fedseg.privacy.dpsgd import NoisedGradient, Unsent
from fedseg.privacy.shares import NoiseShare
from fedseg.privacy.sparse_vector import Release
from fedseg.privacy.trust import Trust
from fedseg.sharing.sending import Sending
from secagg.encoding import digest
from secagg.layout import Values
from secagg.policy import Policy


def flatten(model: torch.nn.Module) -> NDArray[np.float32]:
    """All parameters in definition order: a fresh (d,) float32 array."""
    with torch.no_grad():
        vector = parameters_to_vector(model.parameters()).to("cpu", torch.float32)
    return np.array(vector.numpy(), dtype=np.float32)


def assign(model: torch.nn.Module, vector: NDArray[np.float32]) -> None:
    """Set all parameters from a (d,) vector, in the order of `flatten`.

    Raises:
        ConfigError: the vector's length is not the model's.
    """
    parameters = list(model.parameters())
    expected = sum(parameter.numel() for parameter in parameters)
    if vector.shape != (expected,):
        raise ConfigError(f"the model has {expected} parameters and the vector has shape {vector.shape}; same study?")
    values = torch.from_numpy(np.array(vector, dtype=np.float32)).to(parameters[0].device)
    with torch.no_grad():
        vector_to_parameters(values, parameters)


def opened(model: torch.nn.Module, kept: int) -> NDArray[np.float32]:
    """The state in which a study starts: the model's weights, and behind them `kept` zeros."""
    return np.concatenate([flatten(model), np.zeros(kept, np.float32)])


def moving(model: torch.nn.Module, personal: str = "") -> NDArray[np.bool_]:
    """Which values a sum moves, (d,) in the order of `flatten`: what is trained, less what stays at its site.

    Args:
        model: of which some parameters may be frozen.
        personal: as `[federation] personal`: "norm" for scale and shift of every norm, of which a network has GroupNorm
            only; "none" or "" for nothing.
    """
    own = {id(one) for layer in model.modules() if isinstance(layer, torch.nn.GroupNorm) for one in layer.parameters()}
    own = own if personal == "norm" else set()
    each = [
        (parameter.requires_grad and id(parameter) not in own, parameter.numel()) for parameter in model.parameters()
    ]
    return np.repeat([moves for moves, _ in each], [size for _, size in each])


def adopt(model: torch.nn.Module, state: NDArray[np.float32]) -> None:
    """Set all parameters from the beginning of a state; what else an optimiser keeps lies behind them."""
    assign(model, state[: sum(parameter.numel() for parameter in model.parameters())])


def model_hash(vector: NDArray[np.float32]) -> bytes:
    """Digest over dtype, length and little-endian bytes of a state, 32 bytes: what is hashed and signed of a model."""
    return digest("model", "float32", len(vector), np.ascontiguousarray(vector, dtype="<f4").tobytes())


class _Steps(Unsent):
    """Steps of SGD with momentum, or of AdamW, away from a model's weights, on values that nobody else holds.

    The model follows. Weights shrink by their own share of the rate, apart from the gradient, with either optimiser
    (Loshchilov and Hutter 2019).

    Args:
        model: where the steps begin; its trained parameters are set anew after each step, so that gradients follow.
        lr: learning rate.
        momentum: share of the last step's velocity that is kept.
        adaptive: AdamW in place of SGD with momentum.
        noise: variance of the noise in each value of a gradient, which AdamW is corrected for; 0 where there is none.
        decay: share of the rate by which weights shrink in a step.
        pull: factor of the way back to the start, which is added to each gradient; see `Algorithm.pull`.
        personal: what stays at the site, see `moving`.

    Attributes:
        rate: learning rate of the next step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        momentum: float,
        pull: float = 0.0,
        *,
        adaptive: bool = False,
        decay: float = 0.0,
        noise: float = 0.0,
        personal: str = "",
    ) -> None:
        self._parameters = list(model.parameters())
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        self._now = [start.clone() for start in self._start]
        pairs = zip(self._parameters, self._now, strict=True)
        self._trained = [now for parameter, now in pairs if parameter.requires_grad]
        starts = zip(self._parameters, self._start, strict=True)
        self._begun = [start for parameter, start in starts if parameter.requires_grad]
        self._pull, self._moves = pull, moving(model, personal)
        self.rate, self._decay = lr, decay
        self._optimiser: torch.optim.Optimizer
        if adaptive and noise:
            self._optimiser = CorrectedAdam(self._trained, lr, noise)
        elif adaptive:
            self._optimiser = torch.optim.AdamW(self._trained, lr=lr, weight_decay=0.0)
        else:
            self._optimiser = torch.optim.SGD(self._trained, lr=lr, momentum=momentum)

    @property
    def difference(self) -> NDArray[np.float32]:
        """(t,) float32, all steps together, of the values that a sum moves, in the order of `flatten`."""
        moved = [(now - start).reshape(-1) for now, start in zip(self._now, self._start, strict=True)]
        return np.array(torch.cat(moved).to("cpu", torch.float32).numpy()[self._moves])

    @property
    def finite(self) -> bool:
        """Whether all weights are numbers, those that stay at the site among them."""
        return all(bool(torch.isfinite(now).all()) for now in self._now)

    @property
    def weights(self) -> NDArray[np.float32]:
        """(d,) float32 that the steps lead to."""
        return np.array(torch.cat([now.reshape(-1) for now in self._now]).to("cpu", torch.float32).numpy())

    def _move(self, gradient: torch.Tensor) -> None:
        sizes = [values.numel() for values in self._trained]
        for values, begun, piece in zip(self._trained, self._begun, torch.split(gradient, sizes), strict=True):
            values.grad = piece.view_as(values)
            if self._pull:
                values.grad = values.grad + self._pull * (values - begun)
            if self._decay:
                values.mul_(1 - self.rate * self._decay)
        self._optimiser.param_groups[0]["lr"] = self.rate
        self._optimiser.step()
        with torch.no_grad():
            for parameter, now in zip(self._parameters, self._now, strict=True):
                parameter.copy_(now)


@final
class NoisedSteps(_Steps):
    """Steps by noised gradients alone: whatever the model looked like meanwhile, epsilon speaks for where they lead."""

    def step(self, gradient: NoisedGradient) -> None:
        """One step.

        Raises:
            TypeError: the gradient is not a noised one.
        """
        if not isinstance(gradient, NoisedGradient):
            raise TypeError(f"a {type(gradient).__name__} is no noised gradient; take it from noisy_gradient")
        self._move(gradient.values)


@final
class PlainSteps(_Steps):
    """Steps that protect nobody, for mechanism "none"."""

    def step(self, gradient: torch.Tensor) -> None:
        """One step by a (d,) gradient."""
        self._move(gradient)


@final
@dataclass(frozen=True, slots=True, eq=False, init=False)
class NoisedUpdate(Unsent):
    """What may be aggregated: a difference of weights made of noised steps only, and what `[sharing]` makes of it.

    Args:
        steps: from the round's model to the site's.
        site: whose.
        event_id: the ledger's event that was charged for them.
        sending: looks at noised differences and public numbers only; None sends all as it is.

    Attributes:
        vector: (t,) float32, in the order of `flatten`, or what is sent of it; read-only.
        site: whose.
        event_id: the ledger's event; empty only where `unprotected` made the update.

    Raises:
        TypeError: made of anything but noised steps.
    """

    vector: NDArray[Any] = field(repr=False)
    site: str
    event_id: str

    def __init__(self, steps: NoisedSteps, site: str, event_id: str, sending: Sending | None = None) -> None:
        if not isinstance(steps, NoisedSteps):
            raise TypeError(f"an update is made of noised steps and of nothing else, and this is a {type(steps)}")
        if not isinstance(sending, Sending | None):
            raise TypeError(f"what is sent of an update is a Sending's to say, and this is a {type(sending)}")
        _fill(self, steps.difference if sending is None else sending(steps.difference), site, event_id)

    @classmethod
    def released(cls, release: Release, site: str, event_id: str) -> Self:
        """What a sparse vector released of a difference of weights.

        Raises:
            TypeError: it is something else.
        """
        if not isinstance(release, Release):
            raise TypeError(f"a release comes from sparse_release and from nowhere else; this is {type(release)}")
        update = object.__new__(cls)
        _fill(update, release.values.astype(np.float32), site, event_id)
        return update

    @classmethod
    def unprotected(cls, vector: NDArray[Any], site: str, trust: Trust) -> Self:
        """Let an update without noise go, where the mechanism claims nothing and every output says so.

        Args:
            vector: what is sent.
            site: whose.
            trust: the row of the study's mechanism.

        Raises:
            TypeError: the mechanism claims an epsilon.
        """
        if trust.claims_epsilon:
            raise TypeError("the mechanism claims an epsilon, so an update without noise does not leave")
        update = object.__new__(cls)
        _fill(update, vector.copy(), site, "")
        return update


@final
@dataclass(frozen=True, slots=True, eq=False, init=False)
class NoiseShared(Unsent):
    """What may be aggregated and nothing else: it has a share of the noise, so that only the sum of many is private.

    Args:
        share: of one step.
        bits: b of the sum, modulo 2^b of which the share is taken as well.
        site: whose.
        event_id: the ledger's event that was charged for it.
        excess_seeds: of layers of the share that the sum may not need; see `fedseg.privacy.excess`.

    Attributes:
        vector: (n,) int64, of which the low b bits are not 0; read-only.
        site: whose.
        event_id: the ledger's event.
        excess_seeds: to be disclosed as far as the agreed sum does not need them, and nowhere else.

    Raises:
        TypeError: made of anything but such a share.
    """

    vector: NDArray[np.int64] = field(repr=False)
    site: str
    event_id: str
    excess_seeds: tuple[bytes, ...] = field(repr=False)

    def __init__(
        self, share: NoiseShare, bits: int, site: str, event_id: str, excess_seeds: tuple[bytes, ...] = ()
    ) -> None:
        if not isinstance(share, NoiseShare):
            raise TypeError(f"a share of the noise comes from noise_share and from nowhere else; this is {type(share)}")
        _fill(self, share.values & np.int64((1 << bits) - 1), site, event_id)
        object.__setattr__(self, "excess_seeds", excess_seeds)


@final
@dataclass(frozen=True, slots=True, eq=False, init=False)
class StatisticsUpdate(Unsent):
    """What may be aggregated where a study asks for statistics before training; no model is in it.

    Args:
        total: of the site's patients.
        site: whose.
        event_id: the ledger's event that was charged for it.
        trust: row of the study's mechanism.
        bits: b of the sum, modulo 2^b of which the total is taken as well.

    Attributes:
        vector: (k,) int64, of which the low b bits are not 0; read-only.
        site: whose.
        event_id: the ledger's event.

    Raises:
        TypeError: it is something else than counted, or has no noise where an epsilon is claimed.
    """

    vector: NDArray[np.int64] = field(repr=False)
    site: str
    event_id: str

    def __init__(self, total: Counted, site: str, event_id: str, trust: Trust, bits: int) -> None:
        if not isinstance(total, Counted):
            raise TypeError(f"statistics come from counted and from nowhere else; this is {type(total)}")
        if trust.claims_epsilon and not total.noised:
            raise TypeError("the mechanism claims an epsilon, so statistics without noise do not leave")
        _fill(self, total.values & np.int64((1 << bits) - 1), site, event_id)


Update: TypeAlias = NoisedUpdate | NoiseShared | StatisticsUpdate
"""What an aggregation takes."""


def values_of(update: Update, policy: Policy) -> Values:
    """What the policy's fields take of an update: where statistics are asked for, they or it, and else zeros."""
    if policy.layout is None or len(policy.layout) == 1:
        return update.vector
    *_, last = policy.layout
    asked = isinstance(update, StatisticsUpdate)
    return {
        name: update.vector
        if (name == last) == asked
        else np.zeros(each.shape, np.float32 if each.kind.value == "float" else np.int64)
        for name, each in policy.layout.items()
    }


def seeds_of(update: Update) -> tuple[bytes, ...]:
    """What `secagg` takes beside the values: seeds of noise that the sum may not need."""
    return update.excess_seeds if isinstance(update, NoiseShared) else ()


def _fill(update: Update, vector: NDArray[Any], site: str, event_id: str) -> None:
    vector.setflags(write=False)
    for name, value in (("vector", vector), ("site", site), ("event_id", event_id)):
        object.__setattr__(update, name, value)
