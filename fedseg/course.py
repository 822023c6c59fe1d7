"""How a study's model goes from round to round, at every party alike, bit for bit.

A sum moves the values that are trained and shared. What is frozen is the start's, and `[federation] personal` stays at
its site. The state of a model is one vector, which is hashed and signed as a whole: all d weights; behind them what the
mechanism or the algorithm remembers of the t values that move; and with `[federation] ema` the running average of
those, which is what is given out while training goes on from the weights themselves. At its end is what a sum of
statistics found, where a study asks for one, which is the first. Everything here is post-processing of public sums.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.study import Study
from fedseg.update import assign, flatten, moving, opened
from secagg.policy import Policy


class Course:
    """The way of one study's model.

    Args:
        study: of all parties.
        model: the study's network, whatever its weights.

    Attributes:
        study: the same.
        parameters: d, all weights.
        moved: t of them that a sum moves.
    """

    def __init__(self, study: Study, model: torch.nn.Module) -> None:
        self.study = study
        self._moves = moving(model, study.federation.personal)
        self.parameters, self.moved = len(self._moves), int(self._moves.sum())

    @property
    def kept(self) -> int:
        """How many values a state has behind the weights."""
        asked = self.study.asked
        found = 0 if asked is None else asked.kept
        return self._remembered + (self.moved + 1 if self.study.federation.ema else 0) + found

    @property
    def _remembered(self) -> int:
        return self.study.kept(self.moved)

    def policy(self, server_key: bytes = b"") -> Policy:
        """The pinned aggregation policy; raises as `Study.policy`."""
        return self.study.policy(self.moved, server_key)

    def opened(self, model: torch.nn.Module) -> NDArray[np.float32]:
        """The state in which a study starts: the model's weights, and behind them zeros."""
        return opened(model, self.kept)

    def following(
        self,
        state: NDArray[np.float32],
        total: NDArray[np.float64],
        included: Sequence[str],
        policy: Policy,
        excess_seeds: Mapping[str, bytes] | None = None,
    ) -> NDArray[np.float32]:
        """The next state.

        Args:
            state: (d + kept,) of the round.
            total: (policy.length,) weighted sum of the included updates.
            included: their sites.
            policy: gives the weights.
            excess_seeds: what sites disclosed for this sum; see `fedseg.privacy.excess`.
        """
        if (asked := self.study.asked) is not None:
            state, found = self._apart(state)
            if asked.read(found) is None:
                return np.concatenate([state, asked.found(total[-asked.length :])])
            trained = self._trained(state, total[: -asked.length], included, policy, excess_seeds)
            return np.concatenate([trained, found])
        return self._trained(state, total, included, policy, excess_seeds)

    def _apart(self, state: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A state without what was found, and that."""
        kept = 0 if (asked := self.study.asked) is None else asked.kept
        return state[: len(state) - kept], state[len(state) - kept :]

    def _trained(
        self,
        state: NDArray[np.float32],
        total: NDArray[np.float64],
        included: Sequence[str],
        policy: Policy,
        excess_seeds: Mapping[str, bytes] | None,
    ) -> NDArray[np.float32]:
        """The next state after a sum of updates."""
        d, end = self.parameters, self.parameters + self._remembered
        own = np.concatenate([state[:d][self._moves], state[d:end]])
        moved = self.study.following(own, total, included, policy, excess_seeds)
        following = state.copy()
        following[:d][self._moves], following[d:end] = moved[: self.moved], moved[self.moved :]
        if ema := self.study.federation.ema:
            # Of the models of all rounds, the start's not: so the sum of what they count is kept beside, and divides.
            seen = np.append(moved[: self.moved], np.float32(1)).astype(np.float64)
            following[end:] = (ema * state[end:].astype(np.float64) + (1 - ema) * seen).astype(np.float32)
        return following

    def weights(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """The (d,) weights that are given out in this state: of the average where there is one."""
        state, _ = self._apart(state)
        found = state[: self.parameters].copy()
        if self.study.federation.ema and state[-1] > 0:
            average = state[-1 - self.moved : -1].astype(np.float64) / float(state[-1])
            found[self._moves] = average.astype(np.float32)
        return found

    def given_out(self, model: torch.nn.Module, state: NDArray[np.float32]) -> torch.nn.Module:
        """The network with these weights; `model` itself, which has the state's, where there is no average."""
        if not self.study.federation.ema:
            return model
        averaged = copy.deepcopy(model)
        assign(averaged, self.weights(state))
        return averaged


@final
class Own:
    """What a site trains for itself and never sends: `[federation] personal`, as in FedBN (Li et al. 2021).

    With an epsilon it is trained by noised gradients like everything else, for it shapes what is sent: so the site's
    own model costs nothing more when it is shown. It is taken over with the round whose sum holds the site's update.

    Args:
        study: of the site.
        model: the study's network.

    Attributes:
        round: number of the round that was trained and is not settled; 0 for none.
    """

    def __init__(self, study: Study, model: torch.nn.Module) -> None:
        self._places = moving(model) & ~moving(model, study.federation.personal)
        self.values: NDArray[np.float32] | None = None
        self._then: NDArray[np.float32] | None = None
        self.round = 0

    def put_into(self, model: torch.nn.Module) -> torch.nn.Module:
        """The same network, with the site's own values in it where there are any yet."""
        if self.values is not None:
            weights = flatten(model)
            weights[self._places] = self.values
            assign(model, weights)
        return model

    def model(self, shared: torch.nn.Module) -> torch.nn.Module:
        """The site's own network: a copy of the shared one, with its own values in it."""
        return self.put_into(copy.deepcopy(shared))

    def then(self, round_number: int, weights: NDArray[np.float32]) -> None:
        """What a round's steps lead to, (d,)."""
        self.round, self._then = round_number, weights[self._places]

    def settle(self, *, included: bool) -> None:
        """The round is over; where its sum is without this site, what was before it stays."""
        if included and self._then is not None:
            self.values = self._then
        self.round, self._then = 0, None

    @property
    def kept(self) -> NDArray[np.float32]:
        """(1 + p,) as it is written down: whether there are any yet, and the values."""
        values = np.zeros(int(self._places.sum()), np.float32) if self.values is None else self.values
        return np.concatenate([np.array([self.values is not None], np.float32), values])

    @kept.setter
    def kept(self, kept: NDArray[np.float32]) -> None:
        """Go on from there; ValueError where it is of another network."""
        if kept.shape != (1 + int(self._places.sum()),):
            raise ValueError(f"{kept.shape} values are not what stays at this site")
        self.values = kept[1:].copy() if kept[0] else None

    @property
    def whole(self) -> NDArray[np.float32]:
        """(2, 1 + p): `kept`, and the number of the round that is not settled, with what it leads to."""
        then = np.zeros(int(self._places.sum()), np.float32) if self._then is None else self._then
        return np.stack([self.kept, np.concatenate([np.array([self.round], np.float32), then])])

    @whole.setter
    def whole(self, whole: NDArray[np.float32]) -> None:
        """Go on from there, or from `kept` alone; ValueError where it is of another network."""
        self.kept, *then = np.atleast_2d(whole)
        for row in then:
            self.round, self._then = int(row[0]), row[1:].copy() if row[0] else None


def own_of(study: Study, model: torch.nn.Module) -> Own | None:
    """None where all that is trained is sent."""
    return Own(study, model) if study.federation.personal != "none" else None
