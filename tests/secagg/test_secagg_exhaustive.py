"""Every run of the real sessions for n <= 5, and an attacker made of linear algebra who looks at each of them.

Two drivers. `overhear` runs real clients against the real server under every pattern of silence. `Liar` is the server
and a corrupt client at once: it builds every message that the bytes at hand allow, separately for every honest client,
and goes on from each that a real session accepts. What the honest clients said is held against one rule: per round
number, of everything about their inputs nothing is determined but the sum over the honest members of one U3 of at least
min_survivors. `tests.support.attacker` says what the attacker knows, and what this model leaves out.

Every defence that the rule rests on is also taken out, and then the same search has to find the leak.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import combinations, combinations_with_replacement, permutations, product
from typing import Any

import numpy as np
import pytest

import secagg.client
import secagg.messages
import tests.support.attacker
from secagg import (
    ClientSession,
    MemoryStore,
    Policy,
    RoundContext,
    SecAggError,
    Suite,
    accept_exposure,
    open_round,
    unchecked_round,
)
from secagg.client import Attested
from secagg.context import GENESIS, next_head
from secagg.encoding import digest
from secagg.keys import Secret as HeldSecret
from secagg.messages import (
    AcceptedInput,
    Attestation,
    Attestations,
    IncludedSet,
    MaskedInput,
    Receipt,
    Reports,
    Result,
    Roster,
    RoundStart,
    ShareInbox,
    ShareReport,
    SlotsFailed,
    UnmaskingShares,
)
from secagg.prg import keystream
from secagg.quantize import Quantised
from secagg.roster import session_id
from secagg.shamir import PRIME, split
from secagg.steps import State
from secagg.store import Marks
from tests.support.attacker import (
    PUBLIC,
    Attacker,
    Secret,
    Share,
    View,
    dealt,
    eliminate,
    key_of,
    masked,
    rank,
    released,
    seed_of,
    shown,
    spans,
    within,
)
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort, Play

# The policy's own points: n with c = 1. t and min_survivors are repeated here, so that a variant of the policy with
# smaller ones is still held against these.
SIZES = {3: (3, 3), 4: (3, 3), 5: (4, 4)}


@pytest.fixture(autouse=True)
def _remembered_signatures(monkeypatch):
    """The same few signatures and keys are verified in thousands of runs: both are pure functions of their bytes."""
    monkeypatch.setattr(secagg.messages, "verify", cache(secagg.messages.verify))
    monkeypatch.setattr(secagg.client, "check_public", cache(secagg.client.check_public))


class SmallCohort(Cohort):
    """One value each, a multiple of the quantisation step, so that rounding is exact whatever its randomness."""

    def __post_init__(self) -> None:
        self.length = 1
        super().__post_init__()
        steps = {client_id: 1009 * (i + 2) ** 3 % 30011 - 15000 for i, client_id in enumerate(self.ids)}
        self.updates = {client_id: np.array([step / self.policy.largest_value]) for client_id, step in steps.items()}
        self.inputs = {client_id: step % (1 << self.bits) for client_id, step in steps.items()}


# --- The linear algebra itself -----------------------------------------------------------------------------------


def test_elimination_finds_every_combination_that_vanishes():
    """Against brute force over Z/8, where even pivots and zero divisors abound."""
    k, modulus = 3, 8
    draw = np.random.default_rng(0)
    for _ in range(60):
        rows = draw.integers(0, modulus, (3, 4)).tolist()
        rows[draw.integers(3)] = [2 * entry % modulus for entry in rows[draw.integers(3)]]
        left = eliminate(rows, 2, 2, k)
        reached = {
            tuple(sum(f * row[j] for f, row in zip(factors, left, strict=True)) % modulus for j in range(4))
            for factors in product(range(modulus), repeat=len(left))
        }
        sought = {
            combined
            for factors in product(range(modulus), repeat=3)
            for combined in [
                tuple(sum(f * row[j] for f, row in zip(factors, rows, strict=True)) % modulus for j in range(4))
            ]
            if combined[:2] == (0, 0)
        }
        assert reached == sought
        for vector in sought:
            assert spans(left, vector, 2, k)
        for vector in product((0,), (0,), range(modulus), range(modulus)):
            assert spans(left, vector, 2, k) == (vector in sought)


def test_an_even_pivot_is_not_taken_for_a_unit():
    assert not spans([[2, 0]], [1, 0], 2, 32)
    assert spans([[2, 0], [3, 0]], [1, 0], 2, 32)
    # 2x + m and 2m: neither gives x, but together they give 4x.
    assert eliminate([[1, 2], [2, 0]], 1, 2, 32) == [[0, 2**32 - 4]]
    assert eliminate([[2, 1]], 1, 2, 32) == [[0, 2**31]]
    assert rank([[1, 1], [1, 3]], 2) == 1
    assert rank([[1, 1], [1, 3]], PRIME) == 2


def test_shares_determine_a_secret_from_the_threshold_on_and_not_before():
    secret = Secret("s", "site-a", b"", secagg.keys.MaskKey(Suite.X25519, bytes([9]) * 32).dh_public)
    points = [
        Share(secret, b"header", x, int.from_bytes(share))
        for x, share in enumerate(split(bytes([9]) * 32, 3, range(1, 6)), start=1)
    ]
    attacker = Attacker(3, 32, {})
    for size in range(6):
        for held in combinations(points, size):
            assert (secret in attacker.secrets(View(shares=frozenset(held)))) == (size >= 3)
    # Two polynomials with two points each: as many equations as one has unknowns, and yet nothing is known.
    other = [
        Share(secret, b"another", x, int.from_bytes(share))
        for x, share in enumerate(split(bytes([9]) * 32, 3, (1, 2)), start=1)
    ]
    assert secret not in attacker.secrets(View(shares=frozenset(points[:2] + other)))
    with pytest.raises(AssertionError, match="committed"):
        attacker.secrets(View(shares=frozenset([points[0]._replace(y=1), *points[1:3]])))


# --- The honest server: every pattern of silence -----------------------------------------------------------------


@dataclass
class Overheard:
    """All that was said in one attempt, delivered or not, in the form that the attacker wants.

    Attributes:
        said: client to the view of those who hear what it says.
        read: (dealer, holder) to what the holder can read of the shares sealed for it.
        own: client to its own two secrets.
        unmasked: who sent its last message.
    """

    play: Play
    said: dict[str, View] = field(default_factory=dict)
    read: dict[tuple[str, str], View] = field(default_factory=dict)
    own: dict[str, frozenset[Secret]] = field(default_factory=dict)
    unmasked: set[str] = field(default_factory=set)

    def view(self, corrupt: frozenset[str] = frozenset()) -> View:
        """The server's, together with `corrupt`."""
        honest = [client_id for client_id in self.play.cohort.ids if client_id not in corrupt]
        views = [self.said.get(client_id, View()) for client_id in honest]
        views += [self.read.get((dealer, holder), View()) for dealer in honest for holder in sorted(corrupt)]
        own = frozenset[Secret]().union(*(self.own.get(client_id, frozenset()) for client_id in corrupt))
        return sum(views, View(secrets=own))


def overhear(cohort: SmallCohort, silent: Mapping[str, str], quantum: bool = False) -> Overheard:
    """Play one attempt. Who falls silent in a step still prepares its message, which everybody but the server hears."""
    heard: dict[tuple[str, type], Any] = {}

    def note(step, client_id, message):
        heard[client_id, type(message)] = message
        return message

    play = Play(cohort, silent=silent, down=note)
    overheard = Overheard(play)
    for step in SENDING[1:]:
        play.until(step)
        if play.failure or play.server.finished:
            break
        for who, message in play.out.items():
            roster = heard[who, Roster]
            if step == "ShareKeys":
                overheard.own[who] = frozenset([key_of(roster.by_id[who]), seed_of(message.header)])
                for holder in roster.others(who):
                    channel_key = play.clients[holder]._state.channel_key
                    overheard.read[who, holder] = dealt(channel_key, holder, roster, message)
            if step not in ("MaskedInputCollection", "Unmasking"):
                continue
            headers, view = heard[who, ShareInbox].by_dealer, overheard.said.get(who, View())
            if step == "Unmasking":
                overheard.unmasked.add(who)
                overheard.said[who] = view + released(message, roster, headers)
                overheard.said[who] += asked_for_words(play.clients[who], message, view, cohort.policy)
            else:
                state, peers, value = play.clients[who]._state, heard[who, Reports].by_id, cohort.inputs[who]
                overheard.said[who] = view + masked(
                    state, roster, headers, peers, message, value, name=who, quantum=quantum
                )
    if not play.server.finished:
        play.to_the_end()
    return overheard


def asked_for_words(session: ClientSession, shares: UnmaskingShares, view: View, policy: Policy) -> View:
    """What a client that released says in Blame, for which a server may always ask. The session itself goes on."""
    answer = fork(session, MemoryStore()).receive(SlotsFailed(shares.round_id, shares.attested))
    return shown(answer, view.equations, policy)


def judge_silence(cohort: SmallCohort, silent: Mapping[str, str], quantum: bool = False) -> list[dict]:
    """Whatever one corrupt client and the server learn is the one sum, and they learn it if a quorum stays.

    Returns:
        What is determined by the server's view and that of the last client, for tests that expect a leak.
    """
    overheard = overhear(cohort, silent, quantum)
    server, policy = overheard.play.server, cohort.policy
    attacker = Attacker(policy.threshold, policy.bits, cohort.inputs)
    for size in (0, 1):
        for corrupt in map(frozenset, combinations(cohort.ids, size)):
            view = overheard.view(corrupt)
            found = attacker.sums(view)
            group = set(server.included) - corrupt
            if overheard.unmasked - corrupt:
                assert len(server.included) >= SIZES[cohort.n][1]
            else:
                group = set()
            assert within(found, [group], policy.bits), (silent, corrupt, found)
            known = attacker.secrets(view)
            for client_id in set(cohort.ids) - corrupt:
                assert not overheard.own.get(client_id, {None}) <= known, "both secrets of one client"
            if server.result is not None and size == 0:
                assert overheard.play.exact
                assert found == [dict.fromkeys(server.included, 1)]
    return found


def patterns(n: int, points, symmetric: bool = True) -> Iterator[dict[str, str]]:
    """Who falls silent in which step ('never' is one): every pattern, or one of those that differ by names only."""
    ids = SmallCohort(n).ids
    for steps in combinations_with_replacement(points, n) if symmetric else product(points, repeat=n):
        yield {client_id: step for client_id, step in zip(ids, steps, strict=True) if step != "never"}


POINTS = (*SENDING, "never")


@pytest.mark.parametrize(("n", "runs"), [(3, 84), (4, 210), pytest.param(5, 462, marks=pytest.mark.slow)])
def test_whoever_falls_silent_wherever_nothing_but_the_sum_is_determined(n, runs):
    cases = list(patterns(n, POINTS))
    assert len(cases) == runs
    for silent in cases:
        judge_silence(SmallCohort(n), silent)


@pytest.mark.parametrize("n", [3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_just_enough_survivors_open_what_is_needed_because_each_sends_its_own_seed(n):
    """Rank over GF(p) on the shares that arrive: nobody holds a share of its own secrets, so t live ones have t - 1."""
    exact = 0
    for silent in patterns(n, ("MaskedInputCollection", "ConsistencyCheck", "Unmasking", "never")):
        overheard = overhear(SmallCohort(n), silent)
        play, threshold = overheard.play, overheard.play.cohort.policy.threshold
        if play.server.result is None:
            continue
        live = [client_id for client_id in play.server.included if client_id not in silent]
        view = sum((overheard.said[client_id] for client_id in live), View())
        attacker = Attacker(threshold, 32, play.cohort.inputs)
        included, dropped = play.server.included, play.server.dropped
        needed = {s for u in included for s in overheard.own[u] if s.kind == "b"}
        needed |= {s for w in dropped for s in overheard.own[w] if s.kind == "s"}
        assert attacker.secrets(view) - {PUBLIC} == needed
        if len(live) == threshold:
            exact += 1
            without = attacker.secrets(replace(view, secrets=frozenset()))
            assert {s.client for s in needed - without} == set(live)
    assert exact > 0


# --- The lying server: every message that it can put together, to every client on its own ------------------------

START, ROSTER, INBOX, REPORTS, INCLUDED, ATTESTED, RESULT, TRANSCRIPT = KINDS = (
    "RoundStart",
    "Roster",
    "ShareInbox",
    "Reports",
    "IncludedSet",
    "Attestations",
    "Result",
    "Transcript",
)
BEFORE = {**dict(zip(KINDS[1:], KINDS, strict=False)), RESULT: INCLUDED}

TOLD = (ROSTER, INBOX, REPORTS, INCLUDED)
"""Where a client is told who is in something: there an option says whose entries it was shown, in order of the ids."""

Phase = tuple[int, str]
"""An attempt, by its place in `Liar.starts`, and the kind of message that clients are told in it."""


def attempt(place: int, *kinds: str) -> list[Phase]:
    """Phases of one attempt: these, or all in which somebody learns something."""
    return [(place, kind) for kind in kinds or KINDS[:-2]]


def start_of(number: int = 1, attempt: int = 0, model: int = 0, run: str = RUN) -> RoundStart:
    return RoundStart(run, number, attempt, bytes([model]) * 32, bytes(32), GENESIS).sign(SERVER_KEY)


HOLDERS = (ClientSession, State, HeldSecret, Quantised, secagg.client._Own)
"""What a session is made of that changes, or leads to something that does; all else in it can be shared."""


def fork(value: Any, store: MemoryStore, memo: dict[int, Any] | None = None) -> Any:
    """A snapshot of a live session on another store.

    Sessions refuse to be copied, so their insides are carried over by hand, one for one.
    """
    memo = {} if memo is None else memo
    kind = type(value)
    if kind is MemoryStore:
        return store
    if kind is bytearray:
        return bytearray(value)
    if kind is dict:
        return {key: fork(item, store, memo) for key, item in value.items()}
    if kind in (list, tuple):
        return kind([fork(item, store, memo) for item in value])
    if not isinstance(value, HOLDERS):
        return value
    if id(value) not in memo:
        memo[id(value)] = copy = object.__new__(kind)
        for name, item in vars(value).items():
            vars(copy)[name] = item if type(item) in (bytes, str, int, bool) else fork(item, store, memo)
    return memo[id(value)]


def context_of(start: RoundStart) -> RoundContext:
    hashes = (start.model_hash, start.task_hash, start.previous_head)
    return RoundContext(start.training_run, start.round_number, start.attempt, *hashes)


def releases_of(store: MemoryStore) -> Collection[bytes]:
    with store.transaction() as marks:
        return marks.releases.keys()


def fork_store(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    copy._entries = dict(store._entries)
    return copy


NOTHING = View()


@dataclass(frozen=True, eq=False)
class Site:
    """An honest client in one of its possible pasts. It is never changed, only forked.

    Attributes:
        client: its id.
        store: its durable marks, onto which a session is forked whenever it is told something.
        sessions: one per attempt that it joined.
        used: by phase, the state that answered, used up, with the update that it had.
        starts: by attempt, the round start that it accepted.
        heard, said: by phase, the messages that it accepted and its replies.
        past: what it was told, in the order of the phases: (phase, option).
        view: what it gave away.
        opened: U3 of every release, with its attempt.
    """

    client: str
    store: MemoryStore
    sessions: Mapping[int, ClientSession] = field(default_factory=dict)
    used: Mapping[Phase, Any] = field(default_factory=dict)
    starts: Mapping[int, RoundStart] = field(default_factory=dict)
    heard: Mapping[Phase, Any] = field(default_factory=dict)
    said: Mapping[Phase, tuple] = field(default_factory=dict)
    past: tuple = ()
    view: View = NOTHING
    opened: frozenset = frozenset()


Node = tuple[Site, ...]
"""One past of every honest client, all of which can have happened together."""


@dataclass
class Liar:
    """A server that lies, with a corrupt client, and everything that they can do to the honest ones.

    Level by level: in a phase every honest client is told nothing, or any message of that kind that can be made of what
    honest clients said before and of what the corrupt client signs for the occasion. That loses no run: what a client
    is told in a phase never depends on what others say in that phase or later. A client whose session refuses is as
    good as silent. Runs that differ by the names of honest clients, or by which of the corrupt client's two stories
    comes first, are followed once (`symmetric`). A client that fell silent before it masked leaves nothing but what the
    pasts of the others name: of its shares the corrupt client holds one, and nobody else will ever release another.

    Attributes:
        cohort: with the real policy, keys and stores.
        corrupt: one client, or none.
        starts: for each attempt, every round start that the server may sign. To one that follows a round which some
            client holds for completed it adds the same with that round's receipt.
        stories: how many different things the corrupt client signs where it may sign different things.
        together: tell all clients that are told anything the same, for runs that are long rather than wide.
        mixed: with `together`, also clients whose pasts differ: some released in the round before, some did not.
        replay: offer what was said in other attempts too.
        quantum: the attacker reads every X25519 secret.
        crafted: models made so that the attacker knows every update to them.
        acceptors: sites whose operators accept by name whatever exposes an attempt, as often as they are asked.
        runs: how many runs were judged; `opened`, in how many of them somebody released shares; `refused`, how often a
            session refused a message.
        sums: how many independent combinations of inputs were determined in how many runs.
        widest: the allowed sums of a run with the most of them, and what was determined.
        leaks: runs in which something forbidden is determined, with what is.
    """

    cohort: SmallCohort
    corrupt: str | None = None
    starts: tuple[tuple[RoundStart, ...], ...] = ()
    stories: int = 2
    together: bool = False
    mixed: bool = False
    replay: bool = False
    symmetric: bool = True
    quantum: bool = False
    crafted: frozenset[bytes] = frozenset()
    acceptors: frozenset[str] = frozenset()
    runs: int = 0
    opened: int = 0
    refused: int = 0
    sums: Counter = field(default_factory=Counter)
    widest: tuple[list, list] = ([], [])
    leaks: list = field(default_factory=list)

    def __post_init__(self) -> None:
        cohort = self.cohort
        self.starts = self.starts or ((start_of(),),)
        self.symmetric = self.symmetric and not self.acceptors  # their names make a difference
        self.honest = [client_id for client_id in cohort.ids if client_id != self.corrupt]
        self.corrupt_sessions: dict[bytes, ClientSession] = {}
        self.rosters: dict[int, Roster] = {}
        self.cached: dict[tuple, Any] = {}
        self.progress: dict[int, Phase] = {}
        self.alive: list[Site] = []  # every site ever made: what lives keeps its id, by which it is remembered
        models = {start.model_hash for starts in self.starts for start in starts}
        inputs = {(client_id, model): cohort.inputs[client_id] for client_id in self.honest for model in models}
        self.attacker = Attacker(cohort.policy.threshold, cohort.policy.bits, inputs)
        if self.corrupt is not None:
            for place, starts in enumerate(self.starts):
                self.cached[START, place] = [self._join_corrupt(s) for s in starts for _ in range(self.stories)]

    # what the corrupt client contributes

    def _join_corrupt(self, start: RoundStart):
        cohort, me = self.cohort, self.corrupt
        context = unchecked_round(context_of(start), private=True)  # it claims nothing, whatever others do is fine
        session = ClientSession(cohort.policy, me, cohort.keys[me], cohort.roster, context, MemoryStore())
        advertisement = session.start()
        self.corrupt_sessions[advertisement.mask_dh_pk] = session
        self.attacker.given |= {key_of(advertisement)}
        return advertisement

    def _invented(self, site: Site, phase: Phase) -> list:
        """What the corrupt client says to this client, given what this client was told before."""
        me, (place, kind) = self.corrupt, phase
        if kind == ROSTER:
            return self.cached[START, place]
        roster, key = site.heard.get((place, ROSTER)), self.cohort.keys[me]
        if kind == INBOX:
            own = roster.by_id.get(me)
            if own is None:
                return []
            if (kind, roster.hash) not in self.cached:
                self.cached[kind, roster.hash] = dealings = []
                for _ in range(self.stories):
                    dealings.append(fork(self.corrupt_sessions[own.mask_dh_pk], MemoryStore()).receive(roster))
                    self.rosters[id(dealings[-1])] = roster
            return self.cached[kind, roster.hash]
        report = site.said[place, INBOX][0]
        if kind == REPORTS:
            makers = [lambda: ShareReport(report.slot, report.roster1, report.roster2, me)]
        elif kind == INCLUDED:
            y = site.said[place, REPORTS][0]
            hashes = (y.round_id, y.roster1, y.roster2, y.sharers_hash)
            makers = [partial(AcceptedInput, *hashes, me, digest("story", story)) for story in range(self.stories)]
        else:
            attested = [said.attested for said in site.said[place, INCLUDED]]
            makers = [partial(Attestation, statement, me) for statement in attested]
        entries = []
        for make in makers:
            entry = make()
            entries.append(self.cached.setdefault(entry.statement(), None) or entry.sign(key))
            self.cached[entry.statement()] = entries[-1]
        return entries

    # what a client can be told

    def messages(self, node: Node, site: Site, phase: Phase) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Every message of a kind that can be put together for this client, and which entry of whom is in it."""
        place, kind = phase
        if kind == RESULT:
            yield (0,), self._result(site, place)
            return
        said = [
            [entry for at in self._places(place) for entry in other.said.get((at, BEFORE[kind]), ())] for other in node
        ]
        if self.corrupt is not None:
            said.append(self._invented(site, phase))
        senders = [*self.honest, *filter(None, [self.corrupt])]
        for picks in product(*[range(-1, len(entries)) for entries in said]):
            picked = {who: said[i][pick] for i, (who, pick) in enumerate(zip(senders, picks, strict=True)) if pick >= 0}
            message = self._message(site.client, kind, dict(sorted(picked.items())))
            if message is not None:
                yield picks, message

    def _places(self, place: int) -> list[int]:
        return [place, *(at for at in range(len(self.starts)) if at != place and self.replay)]

    def _message(self, reader: str, kind: str, picked: Mapping[str, Any]) -> Any:
        key = (reader, kind, *map(id, picked.values()))
        if key not in self.cached:
            self.cached[key] = self._assemble(reader, kind, picked)
        return self.cached[key]

    def _assemble(self, reader: str, kind: str, picked: Mapping[str, Any]) -> Any:
        entries = tuple(picked.values())
        if kind == INBOX:
            headers, bundles, paths = tuple(dealing.header for dealing in entries), [], []
            for dealer, dealing in picked.items():
                others = self.rosters[id(dealing)].others(dealer)
                if dealer != reader and reader not in others:
                    return None
                if dealer != reader:
                    bundles.append(dealing.bundles[others.index(reader)])
                    paths.append(dealing.tree[1][others.index(reader)])
            return ShareInbox(headers, tuple(bundles), tuple(paths))
        if kind == INCLUDED:
            accepted = [
                self.cached.setdefault(id(e), e.acceptance()) if isinstance(e, MaskedInput) else e for e in entries
            ]
            return IncludedSet(tuple(accepted)) if accepted else None
        return {ROSTER: Roster, REPORTS: Reports, ATTESTED: Attestations}[kind](entries)

    def _result(self, site: Site, place: int) -> Result:
        """A receipt that this client will take for its own round, over whatever sum the server likes."""
        included, start = site.heard[place, INCLUDED], site.starts[place]
        hashes = (included.inputs[0].round_id, included.attested, Result.hash_of(b""))
        if hashes not in self.cached:
            head = next_head(start.previous_head, *hashes)
            receipt = Receipt(start.training_run, start.round_number, *hashes, start.previous_head, head).sign(
                SERVER_KEY
            )
            self.cached[hashes] = Result(b"", receipt)
        return self.cached[hashes]

    # what a client does when told

    def futures(self, node: Node, site: Site, phase: Phase) -> list[Site]:
        """The site as it is, and after every message that its real session accepts."""
        place, kind = phase
        if kind == START:
            exposing = {round_id for other in node for round_id in releases_of(other.store)}
            starts = self._starts(node, place)
            return [site, *filter(None, (self._join(site, place, *which, exposing) for which in starts))]
        if (place, BEFORE[kind]) not in site.said:
            return [site]
        if kind == TRANSCRIPT:
            return [site, self._replay(site, phase)]
        found: dict[Hashable, Site] = {}
        for option, message in self.messages(node, site, phase):
            # Which quorum of attestations a client saw changes nothing that it says.
            option = (0,) if kind == ATTESTED else option
            key = (id(site), phase, id(message))
            if key not in self.cached:
                self.cached[key] = self._tell(site, phase, option, message)
            for i, future in enumerate(self.cached[key]):
                found.setdefault((option, i), future)
        return [site, *found.values()]

    def _starts(self, node: Node, place: int) -> Iterator[tuple[tuple, RoundStart]]:
        completed = {r for site in node for (_, kind), m in site.heard.items() if kind == RESULT for r in [m.receipt]}
        for which, start in enumerate(self.starts[place]):
            yield (which,), start
            for receipt in completed:
                follows = replace(start, previous_head=receipt.head, missed=(receipt,)).sign(SERVER_KEY)
                yield (which, receipt.attested), follows

    def _replay(self, site: Site, phase: Phase) -> Site:
        """The server gives the site a transcript of its own round, which holds: `secagg.transcript.accept`."""
        store, place = fork_store(site.store), phase[0]
        slot = context_of(site.starts[place]).at(session_id(self.cohort.policy, self.cohort.roster))
        with store.transaction() as marks:
            marks.replay(slot, site.heard[place, INCLUDED].inputs[0].round_id)
        self.alive.append(replace(site, store=store, past=(*site.past, (phase, (0,)))))
        return self.alive[-1]

    def _join(
        self, site: Site, place: int, option: tuple, start: RoundStart, exposing: Collection[bytes]
    ) -> Site | None:
        cohort, me = self.cohort, site.client
        store = fork_store(site.store)
        for round_id in exposing if me in self.acceptors else ():
            accept_exposure(store, cohort.keys[me], me, round_id)
        own = {"model_hash": start.model_hash, "task_hash": start.task_hash}
        try:
            opened = open_round(cohort.policy, cohort.roster, start.training_run, start, store, **own)
            session = ClientSession(cohort.policy, me, cohort.keys[me], cohort.roster, opened, store)
            advertisement = session.start()
        except SecAggError:
            self.refused += 1
            return None
        cohort.provide(session, me)
        phase = (place, START)
        joined = replace(
            site,
            store=store,
            sessions={**site.sessions, place: session},
            starts={**site.starts, place: start},
            said={**site.said, phase: (advertisement,)},
            past=(*site.past, (phase, option)),
        )
        self.alive.append(joined)
        return joined

    def _tell(self, site: Site, phase: Phase, option, message) -> list[Site]:
        """The pasts that follow: one where the session accepts, none where it refuses.

        Where the phase was answered before, the session is asked again, both as it is and led back to the used state.
        """
        again = phase in site.said
        futures = []
        for led_back in (False, True) if again else (False,):
            store = fork_store(site.store)
            session, used = fork((site.sessions[phase[0]], site.used.get(phase)), store)
            first = session._state
            if led_back:
                session._state, session._update = used
            asked = session._state, session._update
            try:
                reply = session.receive(message)
            except SecAggError:
                self.refused += 1
                continue
            except AttributeError:  # a used state's secrets were wiped
                assert led_back
                self.refused += 1
                continue
            if again and reply in site.said[phase]:  # a repeat is answered with what was said before
                continue
            told = replace(
                site,
                store=store,
                sessions={**site.sessions, phase[0]: session},
                used={**site.used, phase: asked},
                heard={**site.heard, phase: message},
                said={**site.said, phase: (*site.said.get(phase, ()), reply)},
                past=(*site.past, (phase, option)),
            )
            futures.append(self._gave_away(told, phase, message, reply, session._state))
            if led_back:
                futures.append(self._back(futures[-1], phase[0], first))
        self.alive += futures
        return futures

    def _back(self, site: Site, place: int, first: State) -> Site:
        """The same, but the session goes on from its first answer."""
        session, state = fork((site.sessions[place], first), site.store)
        session._state = state
        past = (*site.past, ((place, "goes on from its first answer"), ()))
        return replace(site, sessions={**site.sessions, place: session}, past=past)

    def _gave_away(self, site: Site, phase: Phase, message, reply, state) -> Site:
        place, kind = phase
        roster, view, opened = site.heard[place, ROSTER], View(), site.opened
        if kind == ROSTER:
            self.rosters[id(reply)] = roster
            own = roster.by_id.get(self.corrupt)
            if own is not None:
                view = dealt(self.corrupt_sessions[own.mask_dh_pk]._state.channel_key, self.corrupt, roster, reply)
        elif kind == REPORTS:
            headers, name = site.heard[place, INBOX].by_dealer, (site.client, site.starts[place].model_hash)
            value = self.cohort.inputs[site.client]
            view = masked(state, roster, headers, message.by_id, reply, value, name=name, quantum=self.quantum)
        elif kind == ATTESTED:
            view = released(reply, roster, site.heard[place, INBOX].by_dealer)
            view += asked_for_words(site.sessions[place], reply, site.view, self.cohort.policy)
            opened |= {(place, site.starts[place], frozenset(site.heard[place, INCLUDED].by_id))}
        return replace(site, view=site.view + view, opened=opened)

    # every run

    def explore(self, phases: list[Phase], until_leak: bool = False) -> "Liar":
        """Go through every run of these phases, or until the first leak."""
        level = {(): tuple(Site(client_id, MemoryStore()) for client_id in self.honest)}
        for phase in phases:
            self.progress[phase[0]] = phase
            following: dict[tuple, Node] = {}
            for node in level.values():
                for successor in product(*(self.futures(node, site, phase) for site in node)):
                    if (
                        self.together
                        and len(
                            {
                                s.past[-1 if self.mixed else 0 :]
                                for s, old in zip(successor, node, strict=True)
                                if s is not old
                            }
                        )
                        > 1
                    ):
                        continue
                    self._judge(successor)
                    if self.leaks and until_leak:
                        return self
                    following.setdefault(self._key(successor), successor)
            level = following
        return self

    def _judge(self, node: Node) -> None:
        self.runs += 1
        opened = frozenset[tuple]().union(*(site.opened for site in node))
        self.opened += bool(opened)
        view = sum((site.view for site in node), View())
        found = self.attacker.sums(view)
        if not found:
            return
        unknown = {e.input for e in view.equations if e.input[1] not in self.crafted}
        found = [row for row in ({name: c for name, c in row.items() if name in unknown} for row in found) if row]
        independent = rank([[row.get(name, 0) for name in sorted(unknown)] for row in found], 2)
        self.sums[independent] += 1
        size, corrupt = SIZES[self.cohort.n][1], self.corrupt is not None
        # A burned round is followed by one with the same head: together they may open one sum.
        by_head: dict[bytes, list[set]] = {}
        for place, start, included in opened:
            group = {(s.client, s.starts[place].model_hash) for s in node if s.client in included} & unknown
            if len(included) >= size and len(group) >= size - corrupt:
                by_head.setdefault(start.previous_head, []).append(group)
        explained = [groups for groups in product(*by_head.values()) if within(found, groups, self.attacker.bits)]
        if not explained:
            self.leaks.append((tuple(site.past for site in node), found))
        elif independent == max(self.sums):
            self.widest = (list(explained[0]), found)

    # symmetry

    def _key(self, node: Node) -> tuple:
        statuses = [self._status(site) for site in node]
        return min(self._renamed(statuses, order) for order in self._orders(statuses))

    def _orders(self, statuses: list[tuple]) -> Iterator[tuple[int, ...]]:
        """Of all orders of the honest clients those that sort something which is the same under any names."""
        if not self.symmetric:
            yield tuple(range(len(statuses)))
            return
        alike: dict[tuple, list[int]] = {}
        for i, status in enumerate(statuses):
            nameless = (
                (phase, option if phase[1] not in TOLD else len(option) - option.count(-1)) for phase, option in status
            )
            alike.setdefault(tuple(nameless), []).append(i)
        for parts in product(*(permutations(alike[kind]) for kind in sorted(alike))):
            yield sum(parts, ())

    def _status(self, site: Site) -> tuple:
        """What of a client's past still matters: of an attempt that it fell out of, only that it masked."""
        status: list[tuple] = []
        for place, latest in self.progress.items():
            past = [(phase, option) for phase, option in site.past if phase[0] == place]
            kinds = [phase[1] for phase, _ in past]
            if latest[1] not in kinds and not {ATTESTED, RESULT} & set(kinds):  # those have left marks for later
                past = past[: kinds.index(REPORTS) + 1] if REPORTS in kinds else []
            status += past
        return tuple(status)

    def _renamed(self, statuses: list[tuple], order) -> tuple:
        """The statuses under other names of the honest clients, and with stories numbered as they first appear."""
        first: dict[tuple, dict[int, int]] = {}
        renamed = []
        for i in order:
            status = []
            for phase, option in statuses[i]:
                if phase[1] in TOLD:
                    option = (*(option[j] for j in order), *option[len(order) :])
                    if self.corrupt is not None and phase[1] in (ROSTER, INBOX, INCLUDED) and option[-1] >= 0:
                        seen = first.setdefault(phase, {})
                        option = (*option[:-1], seen.setdefault(option[-1], len(seen)))
                status.append((phase[0], KINDS.index(phase[1]) if phase[1] in KINDS else -1, option))
            renamed.append(tuple(status))
        return tuple(renamed)


# --- With every defence in place ---------------------------------------------------------------------------------

CRAFTED = bytes([1]) * 32
OTHER_MODEL = {"starts": ((start_of(), start_of(model=1)),), "stories": 1, "crafted": frozenset([CRAFTED])}
TWO_ATTEMPTS = {"starts": ((start_of(),), (start_of(attempt=1),)), "stories": 1}
TWO_ROUNDS = {"starts": ((start_of(),), (start_of(number=2),)), "stories": 1}
NEW_RUN = {"starts": ((start_of(),), (start_of(run="run-2"),)), "stories": 1}
ONE_BY_ONE = attempt(0, *KINDS) + attempt(1)
BURNED = attempt(0) + attempt(1)
SIDE_BY_SIDE = [
    phase
    for kinds in ((START,), (ROSTER, INBOX), (REPORTS,), (INCLUDED, ATTESTED))
    for place in (0, 1)
    for phase in attempt(place, *kinds)
]
TWICE = [attempt(0)[0], *(phase for phase in attempt(0)[1:] for _ in range(2))]
HYBRID = {"suite": Suite.MLKEM768_X25519, "quantum": True}


def lied_to(n: int, **options) -> Liar:
    cohort = SmallCohort(n, **{name: options.pop(name) for name in ("suite", "bits") if name in options})
    return Liar(cohort, **{"corrupt": cohort.ids[-1], **options})


def holds(liar: Liar, phases: list[Phase], runs: int, sums: int = 1) -> Liar:
    """Nothing leaks, in so many runs at least, and the attacker was not blind: so many sums were his to see."""
    liar.explore(phases, until_leak=True)
    print(f"{liar.runs} runs, {liar.opened} with a release, {liar.refused} refusals, sums {dict(liar.sums)}")
    assert not liar.leaks
    assert liar.runs >= runs
    assert liar.refused
    assert max(liar.sums) == sums
    return liar


@pytest.mark.parametrize(("n", "runs"), [(3, 54), (4, 2300), pytest.param(5, 33000, marks=pytest.mark.slow)])
def test_a_lying_server_with_a_corrupt_client_learns_one_sum(n, runs):
    holds(lied_to(n), attempt(0), runs)


@pytest.mark.parametrize(("n", "bits", "runs"), [(3, 32, 60), (4, 20, 2500), (4, 64, 2500)])
def test_a_lying_server_alone_learns_one_sum(n, bits, runs):
    liar = lied_to(n, bits=bits, corrupt=None).explore(attempt(0))
    assert not liar.leaks
    assert liar.runs >= runs
    assert liar.opened > 0


@pytest.mark.slow
def test_the_names_of_clients_make_no_difference():
    followed_once = holds(lied_to(4), attempt(0), 2300)
    for corrupt in ("site-a", "site-b"):
        every = holds(lied_to(4, corrupt=corrupt, symmetric=False), attempt(0), 4000)
        assert every.opened > followed_once.opened


@pytest.mark.parametrize("n", [3, 4])
def test_no_session_answers_twice(n):
    once, twice = holds(lied_to(n), attempt(0), 54), holds(lied_to(n), TWICE, 54)
    assert twice.refused > 2 * once.refused
    assert all(len(replies) == 1 for site in twice.alive for replies in site.said.values())


def test_two_attempts_at_once_learn_one_sum():
    holds(lied_to(4, **TWO_ATTEMPTS), SIDE_BY_SIDE, 2000)


def test_what_was_said_in_another_attempt_is_refused():
    holds(lied_to(3, **TWO_ATTEMPTS, replay=True), SIDE_BY_SIDE, 100)


def test_a_model_for_each_client_opens_nothing():
    holds(lied_to(4, **OTHER_MODEL), attempt(0), 5000)


@pytest.mark.slow
def test_two_rounds_are_two_sums_and_no_more():
    """With the same updates in both, whose difference says something about one site: that is what noise is for."""
    groups, found = holds(lied_to(4, **TWO_ROUNDS, together=True), ONE_BY_ONE, 5000, sums=2).widest
    assert len(groups) == 2
    assert groups[0] != groups[1]
    names = sorted(groups[0] | groups[1])
    rows = [[row.get(name, 0) for name in names] for row in found]
    assert all(spans(rows, [int(name in group) for name in names], 2, 32) for group in groups)


def test_a_burned_round_is_not_run_again():
    holds(lied_to(4, **TWO_ROUNDS, together=True), BURNED, 2600)


@pytest.mark.slow
@pytest.mark.parametrize("starts", [TWO_ROUNDS, NEW_RUN])
@pytest.mark.parametrize("acceptor", [None, "site-b", "site-a"])
def test_a_burned_round_is_not_run_again_where_fewer_than_t_minus_c_operators_accept(starts, acceptor):
    """Some may have heard the attestations, some not: whoever released says so to all."""
    holds(lied_to(4, **starts, together=True, mixed=True, acceptors=frozenset(filter(None, [acceptor]))), BURNED, 2000)


@pytest.mark.slow
def test_a_run_that_starts_over_learns_nothing_more():
    holds(lied_to(4, **NEW_RUN, together=True), ONE_BY_ONE, 4000)


def test_the_hybrid_suite_holds_where_x25519_is_broken():
    holds(lied_to(4, **HYBRID), attempt(0), 2300)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4, 5])
def test_whoever_falls_silent_wherever_under_every_name(n):
    runs = 0
    for silent in patterns(n, POINTS, symmetric=False):
        judge_silence(SmallCohort(n), silent)
        runs += 1
    assert runs == len(POINTS) ** n


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "phases", "runs"),
    [
        ({"n": 5, "corrupt": "site-a"}, attempt(0), 33000),
        ({"n": 5, "corrupt": "site-c"}, attempt(0), 33000),
        ({"n": 5, "corrupt": None}, attempt(0), 32000),
        ({"n": 5, **HYBRID}, attempt(0), 33000),
        ({"n": 5, **OTHER_MODEL}, attempt(0), 73000),
        ({"n": 5}, TWICE, 60000),
        ({"n": 4, **TWO_ATTEMPTS, "replay": True}, SIDE_BY_SIDE, 2000),
        ({"n": 5, **TWO_ATTEMPTS, "together": True}, SIDE_BY_SIDE, 500),
    ],
)
def test_a_lying_server_learns_one_sum_at_length(options, phases, runs):
    holds(lied_to(**options), phases, runs)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "runs"), [({"n": 4}, 64000), ({"n": 5, "together": True}, 6500)])
def test_two_rounds_are_two_sums_at_length(options, runs):
    holds(lied_to(**options, **TWO_ROUNDS), ONE_BY_ONE, runs, sums=2)


# --- With a defence taken out ------------------------------------------------------------------------------------


def leaks(liar: Liar, phases: list[Phase]) -> Liar:
    """The search that finds nothing above finds a forbidden sum here."""
    liar.explore(phases, until_leak=True)
    assert liar.leaks
    return liar


def test_without_the_consistency_check_the_search_finds_one_input(monkeypatch):
    signed = lambda self, shown: {self.own.me: self.attestation.signature}  # noqa: E731
    monkeypatch.setattr(Attested, "_verify_attestations", signed)
    # Nobody has to be corrupt: each client is told its own U3, the victim one with itself, the others one without it.
    for corrupt in ("site-d", None):
        liar = lied_to(4, corrupt=corrupt).explore(attempt(0))
        assert any(len(row) == 1 for _, found in liar.leaks for row in found)


@pytest.mark.parametrize(("n", "t", "least"), [(3, 2, 2), (4, 2, 3), pytest.param(5, 3, 3, marks=pytest.mark.slow)])
def test_a_smaller_threshold_or_sum_leaks(monkeypatch, n, t, least):
    monkeypatch.setattr(Policy, "threshold", property(lambda _: t))
    monkeypatch.setattr(Policy, "smallest_safe_sum", property(lambda _: least))
    leaks(lied_to(n, stories=1), attempt(0))


def test_polynomials_of_a_lower_degree_are_noticed(monkeypatch):
    monkeypatch.setattr(secagg.client, "split", lambda secret, t, positions: split(secret, t - 2, positions))
    with pytest.raises(AssertionError, match="site-a"):
        judge_silence(SmallCohort(4), {})
    leaks(lied_to(4), attempt(0))


def test_without_one_shot_states_two_sets_are_attested(monkeypatch):
    monkeypatch.setattr(State, "_leave", lambda _: None)
    leaks(lied_to(4, stories=1), attempt(0, START, ROSTER, INBOX, REPORTS, INCLUDED, INCLUDED, ATTESTED))


def test_without_a_self_mask_an_input_that_came_too_late_is_read(monkeypatch):
    monkeypatch.setattr(secagg.client, "self_mask_seed", lambda *_: tests.support.attacker.NO_SEED)
    leaks(lied_to(4), attempt(0))
    with pytest.raises(AssertionError, match="MaskedInputCollection"):
        judge_silence(SmallCohort(4), {"site-a": "MaskedInputCollection"})


@pytest.mark.parametrize(
    "shows", [lambda seed, _: seed, lambda seed, policy: keystream(seed, 0, 4 * policy.slots)], ids=["seed", "values"]
)
def test_where_blame_shows_words_of_the_values_every_input_is_read(monkeypatch, shows):
    monkeypatch.setattr(secagg.client, "slot_mask", shows)
    for corrupt in ("site-d", None):
        liar = lied_to(4, corrupt=corrupt).explore(attempt(0), until_leak=True)
        assert any(len(row) == 1 for _, found in liar.leaks for row in found)
    with pytest.raises(AssertionError, match="site-a"):
        judge_silence(SmallCohort(4), {})


def test_what_blame_shows_is_words_of_the_masks(monkeypatch):
    monkeypatch.setattr(secagg.client, "slot_mask", lambda seed, policy: digest("another", seed)[: 4 * policy.slots])
    with pytest.raises(AssertionError, match="no word of a mask"):
        judge_silence(SmallCohort(4), {})


@pytest.mark.slow
def test_without_marks_two_attempts_differ_by_one_input(monkeypatch):
    for mark in ("contribute", "release", "refuse_claims"):
        monkeypatch.setattr(Marks, mark, lambda *_: None)
    leaks(lied_to(4, **TWO_ATTEMPTS, together=True), SIDE_BY_SIDE)


def test_without_the_mark_of_releases_a_burned_round_is_run_again(monkeypatch):
    monkeypatch.setattr(Marks, "_exposing", lambda *_: [])
    monkeypatch.setattr(Marks, "open_release", None)
    leaks(lied_to(4, **TWO_ROUNDS, together=True), BURNED)


@pytest.mark.slow
def test_where_claims_are_not_looked_at_one_acceptance_of_another_site_exposes_one(monkeypatch):
    monkeypatch.setattr(Marks, "refuse_claims", lambda *_: None)
    leaks(lied_to(4, **TWO_ROUNDS, together=True, mixed=True, acceptors=frozenset(["site-b"])), BURNED)


def test_where_all_honest_members_of_the_second_sum_accept_it_is_theirs_to_say():
    """t - c operators: what claim 4 says."""
    leaks(lied_to(4, **TWO_ROUNDS, together=True, acceptors=frozenset(["site-b", "site-c"])), BURNED)


@pytest.mark.slow
def test_where_a_replayed_round_of_another_run_does_not_count_a_run_that_starts_over_leaks(monkeypatch):
    exposing = Marks._exposing
    fresh = lambda marks, *of: [release for release in exposing(marks, *of) if not marks.replayed(release.round_id)]  # noqa: E731
    monkeypatch.setattr(Marks, "_exposing", fresh)
    leaks(lied_to(4, **NEW_RUN, together=True), ONE_BY_ONE)


def test_without_the_model_in_the_round_a_crafted_model_singles_out_a_client(monkeypatch):
    bound = RoundContext.round_id
    monkeypatch.setattr(RoundContext, "round_id", lambda self, *rest: bound(replace(self, model_hash=bytes(32)), *rest))
    leaks(lied_to(4, **OTHER_MODEL), attempt(0))


def test_the_classical_suite_falls_with_x25519():
    leaks(lied_to(4, quantum=True), attempt(0))


def test_a_model_of_the_masks_that_is_not_the_code_is_noticed(monkeypatch):
    honest = secagg.client.masked_input
    monkeypatch.setattr(secagg.client, "masked_input", lambda *args: honest(*args[:3], args[3][1:], *args[4:]))
    with pytest.raises(AssertionError):
        lied_to(3).explore(attempt(0))
