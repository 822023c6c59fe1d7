"""Between the rounds: a server that wants a second sum of the same updates, without one site, and subtracts.

Five sites of fedseg train for real, without noise, and keep their marks on disk; the server lies over the wire. Every
attack is played twice: as the product is, where a site refuses it and names the check, and with that check taken out,
where the difference of the two sums is one site's update, value by value. An update is rounded the same way in both
sums here; in a run it may differ by one step of the rounding.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from audits.attacks.common import patients, scratch, study_of, update_of
from audits.attacks.desk import RUN, Desk
from audits.base import Result, Task, Verdict
from fedseg import parties
from fedseg.budget.charge import charge
from fedseg.errors import FedSegError
from fedseg.exposure import MARKS
from fedseg.ledger.home import Home
from fedseg.models import build_model
from fedseg.parties import Agreed, Party
from fedseg.update import NoisedUpdate, Update, flatten, model_hash
from secagg import (
    IllegalTransitionError,
    OpenRound,
    PinnedRoster,
    Policy,
    SecAggError,
    ServerSession,
    SigningKey,
    open_round,
    wire,
)
from secagg.client import _Held as Held
from secagg.context import GENESIS, RoundContext
from secagg.messages import FromClient, FromServer, RoundStart
from secagg.packing import modulo
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.steps import CONSISTENCY_CHECK, MASKED_INPUT_COLLECTION, UNMASKING, State
from secagg.store import Marks, Store

SITES = 5
Values = NDArray[Any]


class Played(NamedTuple):
    """How an attack ended.

    Attributes:
        refusal: what a site said; empty where none refused.
        stolen: what the server reads of the victim: integers modulo 2^b; None where it reads nothing.
    """

    refusal: str = ""
    stolen: Values | None = None


class Federation:
    """Five real sites and a server's key.

    Args:
        folder: marks and ledgers lie here.
        seed: of the patients.
        private: whether sites take their updates for private alone, so that C-05 and C-26 are off.
    """

    def __init__(self, folder: Path, seed: int, private: bool = False) -> None:
        self.folder, self.study = folder, study_of(sites=SITES, size=16)
        self.model: torch.nn.Module = build_model(self.study)
        self.ids = self.study.site_ids
        self.victim, self.others = self.ids[0], self.ids[1:]
        self.server = SigningKey.generate()
        self.policy = self.study.policy(len(flatten(self.model)), self.server.verify_key)
        keys = {site: SigningKey.generate() for site in self.ids}
        self.keys, self.pinned = keys, PinnedRoster({site: key.verify_key for site, key in keys.items()})
        self.model_hash = model_hash(flatten(self.model))
        self.private = private
        pool = patients(self.study, SITES, seed)
        self.updates: dict[str, NDArray[np.float32]] = {
            site: np.array(update_of(self.study, self.model, [case], site, folder / "training").vector)
            for site, case in zip(self.ids, pool, strict=True)
        }
        (folder / "marks").mkdir(parents=True)
        self.parties = {site: self.party(site) for site in self.ids}

    def party(self, site: str, run: str = RUN) -> Party:
        """A site's process on its marks, which may be there already."""
        agreed = Agreed(self.policy, self.pinned, run, self.study.hash(), self.private)
        return Party(site, agreed, self.keys[site], self.folder / "marks", _rounded_alike)

    def again(self, run: str = RUN) -> None:
        """Every site's process ends and starts again, maybe with another run's name."""
        self.close()
        self.parties = {site: self.party(site, run) for site in self.ids}

    def train(self, site: str) -> Update:
        """What it would send of this model, whichever round it is called."""
        return NoisedUpdate.unprotected(self.updates[site], site, self.study.trust)

    def start(self, number: int = 1, run: str = RUN, head: bytes = GENESIS) -> RoundStart:
        """A signed round on the one model there is, in which no round before it was missed."""
        return RoundStart(run, number, 0, self.model_hash, self.study.hash(), head, ()).sign(self.server)

    def quantised(self, *sites: str) -> Values:
        """The exact sum of these sites' integers modulo 2^b: what the server may not know of one of them."""
        parts = [quantize(self.updates[site], self.policy, site, _rounded_alike(site, 1))[0] for site in sites]
        return modulo(np.sum(parts, axis=0, dtype=parts[0].dtype), self.policy.bits)

    def close(self) -> None:
        """Close every site's marks."""
        for party in self.parties.values():
            party.close()


def _rounded_alike(site: str, number: int) -> Stream:
    return Stream.seeded(1, "rounding", site)


class Lying:
    """One attempt of a server that holds back what it likes.

    Args:
        federation: whose sites are asked.
        start: what they are asked with.
        sites: who is asked.
        own: the hash of the model that a site computed itself; by default everybody has the right one.

    Attributes:
        refusals: by site, why it goes no further.
    """

    def __init__(
        self,
        federation: Federation,
        start: RoundStart,
        sites: Collection[str],
        own: Callable[[str], bytes] | None = None,
    ) -> None:
        self.federation, self.start = federation, start
        self.session = _server(federation, start)
        self.refusals: dict[str, str] = {}
        self.waiting: dict[str, FromClient] = {}
        self.heard: Mapping[str, FromServer] = {}
        for site in sites:
            computed = federation.model_hash if own is None else own(site)
            self._ask(site, partial(federation.parties[site].open, _wired(start), computed))

    def until(self, step: str) -> "Lying":
        """Go on until the server is about to collect this step, or there is no sum to be had."""
        while not self.session.finished and self.session.step != step:
            self.collect()
            if not self.close():
                break
            self.answer()
        return self

    def collect(self) -> None:
        """The server hears what the sites have said."""
        for site, message in self.waiting.items():
            self.session.receive(site, wire.decode_from_client(wire.encode(message)))
        self.waiting = {}

    def close(self) -> bool:
        """The server closes a step; whether it goes on."""
        try:
            self.heard = dict(self.session.close_step())
        except SecAggError:  # too few sites are left
            return False
        return True

    def answer(self) -> None:
        """The sites hear the server."""
        for site, message in self.heard.items():
            if site in self.federation.parties:
                self._ask(site, partial(self.federation.parties[site].hear, _wired(message), self.federation.train))

    def silently(self) -> Values | None:
        """Take the sum, and tell nobody."""
        self.until(UNMASKING)
        self.collect()
        self.close()
        return self.session.result

    def openly(self) -> Values | None:
        """Take the sum, and tell everybody."""
        total = self.silently()
        self.answer()
        return total

    def _ask(self, site: str, saying: Callable[[], FromClient | None]) -> None:
        try:
            said = saying()
        except SecAggError as error:
            self.refusals[site] = str(error)
            return
        if said is not None:
            self.waiting[site] = said


def _server(federation: Federation, start: RoundStart) -> ServerSession:
    hashes = (start.model_hash, start.task_hash, start.previous_head)
    context = RoundContext(start.training_run, start.round_number, start.attempt, *hashes)
    return ServerSession(federation.policy, federation.pinned, context, federation.server)


def _wired(message: FromServer) -> FromServer:
    return wire.decode_from_server(wire.encode(message))


def _difference(federation: Federation, first: Values | None, second: Lying) -> Played:
    """What two sums of the same updates give, the second without the victim."""
    total = second.silently()
    return _apart(federation, next(iter(second.refusals.values()), ""), first, total)


def _apart(federation: Federation, refusal: str, first: Values | None, second: Values | None) -> Played:
    if first is None or second is None:
        return Played(refusal)
    return Played(refusal, modulo(first - second, federation.policy.bits))


# --- The attacks --------------------------------------------------------------------------------------------------


def rerun(federation: Federation) -> Played:
    """Round 1 is summed and called burned; round 2 is about the same model, without the victim."""
    first = Lying(federation, federation.start(), federation.ids).silently()
    return _difference(federation, first, Lying(federation, federation.start(2), federation.others))


def renamed(federation: Federation) -> Played:
    """The same, and the second time it is another training run."""
    first = Lying(federation, federation.start(), federation.ids).silently()
    federation.again("another-run")
    return _difference(federation, first, Lying(federation, federation.start(run="another-run"), federation.others))


def second_sum(federation: Federation) -> Played:
    """One round, one set of masked inputs, and a second list of who is in the sum: all without the victim."""
    play = Lying(federation, federation.start(), federation.ids)
    shadow = _server(federation, play.start)  # hears what the first one hears, but for the victim's masked input
    states: dict[str, Any] = {}
    included: Mapping[str, FromServer] = {}
    while play.session.step != CONSISTENCY_CHECK:
        for site, message in play.waiting.items():
            if (site, play.session.step) != (federation.victim, MASKED_INPUT_COLLECTION):
                shadow.receive(site, wire.decode_from_client(wire.encode(message)))
        play.collect()
        play.close()
        included = shadow.close_step()
        states = {site: federation.parties[site]._session._state for site in federation.others}  # type: ignore[union-attr]
        play.answer()
    try:
        second = {site: state.attest(_wired(included[site])) for site, state in states.items()}
    except IllegalTransitionError as error:  # the states are used up, and this is what a session says to it
        play.heard = included
        play.answer()
        return Played(next(iter(play.refusals.values()), str(error)))
    first = play.silently()
    for site, (_, message) in second.items():
        shadow.receive(site, message)
    for site, quorum in shadow.close_step().items():
        shadow.receive(site, second[site][0].unmask(quorum)[1])
    shadow.close_step()
    return _apart(federation, "", first, shadow.result)


def hidden(federation: Federation) -> Played:
    """Round 1 is finished and everybody saw it; round 2 is opened as if there had been none, without the victim."""
    first = Lying(federation, federation.start(), federation.ids).openly()
    return _difference(federation, first, Lying(federation, federation.start(2), federation.others))


def two_models(federation: Federation) -> Played:
    """One signed hash; all but the victim are sent a model on which their update is zero."""
    for site in federation.others:
        federation.updates[site] = np.zeros_like(federation.updates[site])
    dead = bytes([1]) * 32
    own = {site: federation.model_hash if site == federation.victim else dead for site in federation.ids}
    play = Lying(federation, federation.start(), federation.ids, own.__getitem__)
    total = play.silently()
    return Played(next(iter(play.refusals.values()), ""), total)


def restored(federation: Federation) -> Played:
    """The marks of before are put back from a backup; then round 1 is run again, without the victim."""
    marks, backup = federation.folder / "marks", federation.folder / "backup"
    federation.again()
    shutil.copytree(marks, backup)
    first = Lying(federation, federation.start(), federation.ids).silently()
    federation.close()
    shutil.rmtree(marks)
    shutil.copytree(backup, marks)
    federation.again()
    return _difference(federation, first, Lying(federation, federation.start(2), federation.others))


def old_marks_at_a_site(folder: Path) -> str:
    """What a real site says as it starts on marks from a backup: its ledger and the record in its home know of more."""
    images, home = folder / "images", folder / "home"
    images.mkdir()
    with mock.patch.dict(os.environ, {"FEDSEG_HOME": str(home)}):
        study = study_of(sites=SITES, size=16, rounds=2)
        name = study.site_ids[0]
        desk = Desk(study, folder, Home().state_of(name, images, None, folder / "state"))
        marks, backup = desk.state(name) / MARKS, folder / "backup"
        for number in (1, 2):
            site = desk.site(name)
            charge(site.ledger, study, name, RUN, number)
            site.store.close()
            if number == 1:
                shutil.copy(marks, backup)
        shutil.copy(backup, marks)
        try:
            desk.site(name).store.close()
        except FedSegError as error:
            return str(error)
    return ""


# --- The table ----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One attack.

    Attributes:
        does: what the server does.
        check: that refuses it.
        play: the attack.
        out: takes the check out.
        private: see `Federation`.
    """

    does: str
    check: str
    play: Callable[[Federation], Played]
    out: Callable[[], AbstractContextManager[object]]
    private: bool = False


def _without_marks() -> AbstractContextManager[object]:
    return mock.patch.object(Marks, "_refuse", return_value=None)


@contextmanager
def _states_twice() -> Iterator[None]:
    """Three defences stand behind one another: states are used once, secrets are wiped, and C-24 knows the release."""
    with ExitStack() as stack:
        for kind, name in ((State, "_leave"), (Held, "wipe"), (Marks, "release")):
            stack.enter_context(mock.patch.object(kind, name, return_value=None))
        yield


def _no_log() -> AbstractContextManager[object]:
    return mock.patch.object(Marks, "head", return_value=(0, GENESIS))


def _copied_hash() -> AbstractContextManager[object]:
    def believing(
        policy: Policy, pinned: PinnedRoster, run: str, start: RoundStart, store: Store, **own: Any
    ) -> OpenRound:
        """Takes the server's word for the model."""
        return open_round(policy, pinned, run, start, store, **{**own, "model_hash": start.model_hash})

    return mock.patch.object(parties, "open_round", believing)


CASES = (
    Case(
        "takes the sum, says that the round burned, and runs it again without one site", "C-05", rerun, _without_marks
    ),
    Case("the same, under the name of another training run", "C-05", renamed, _without_marks),
    Case("asks for a second sum of the same round, without one site", "C-20, C-24", second_sum, _states_twice),
    Case("hides a finished round, and opens the next as if there had been none", "C-04", hidden, _no_log, private=True),
    Case("sends all sites but one a dead model, under one signed hash", "C-23", two_models, _copied_hash),
    Case("runs a round again once a site put an old backup of its marks back", "ledger", restored, nullcontext),
)


def run(task: Task) -> Result:
    """See the module."""
    return attacked(task, CASES)


def attacked(task: Task, cases: Sequence[Case]) -> Result:
    """The audit, of some of the attacks."""
    rows, wrong, powerless = [], [], []
    for case in cases:
        task.progress(case.does)
        with scratch() as folder:
            refusal, stolen = _as_it_is(case, folder, task.seed)
        with scratch() as folder, case.out():
            without, exact = _played(case, folder, task.seed)
        if stolen or not any(check in refusal for check in case.check.split(", ")):
            wrong.append(case.does)
        if not exact:
            powerless.append(case.does)
        rows.append(
            {
                "the server": case.does,
                "check": case.check,
                "a real site says": refusal or "nothing: it went along",
                "with the check taken out": "the difference of the two sums is one site's update, value by value"
                if exact and case.play is not two_models
                else "the sum is one site's update, value by value"
                if exact
                else f"nothing is stolen ({without})",
            }
        )
    verdict: Verdict = "violated" if wrong else "no power" if powerless else "holds"
    return Result(
        verdict,
        f"{len(cases)} ways to get a second sum were played against real sites over the wire: "
        f"{len(cases) - len(wrong)} are refused by name; with its check taken out each "
        f"of {len(cases) - len(powerless)} gives one site's update exactly.",
        figures={
            "seed": task.seed,
            "sites": SITES,
            "attacks": len(cases),
            "refused": len(cases) - len(wrong),
            "exact without the check": len(cases) - len(powerless),
        },
        rows=tuple(rows),
    )


def _as_it_is(case: Case, folder: Path, seed: int) -> tuple[str, bool]:
    """What the product says, and whether the server has one site's update all the same."""
    if case.play is restored:  # secagg cannot know an old store, so that fedseg has a ledger beside it
        return old_marks_at_a_site(folder), False
    return _played(case, folder, seed)


def _played(case: Case, folder: Path, seed: int) -> tuple[str, bool]:
    federation = Federation(folder, seed, case.private)
    victim = federation.quantised(federation.victim)
    try:
        refusal, stolen = case.play(federation)
    finally:
        federation.close()
    return refusal, stolen is not None and np.array_equal(stolen, victim)
