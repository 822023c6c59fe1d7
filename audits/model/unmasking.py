"""The model of one round's end: who attests what, and which shares are then released, against a server that lies.

Honest clients report on one roster each, mask, are told a set U3, attest it, and release once they were shown t
attestations of it: b shares of U3, s shares of the rest of U2. The server may be two servers with two rosters, name
each client another U3, and has c clients that attest and release whatever helps. Corrupt clients hold c shares of
everything. One round is left of `cross_round.pml`, whose box this opens; `unmasking.pml` is the same for spin.

The statement: of no honest client both b and s are known, b by t shares or by its own release; and the sets U3 of which
t clients released are one, within U2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from audits.model.exploring import Explored, explore

ROSTERS = (0, 1)


@dataclass(frozen=True)
class Rules:
    """A cohort, and which defences it has.

    Attributes:
        n, c, t: clients, corrupt among them, threshold and quorum.
        attests_once: a client signs one set.
        one_roster: a client takes one roster in a slot, and what it signs names it.
        quorum: shares are released for t attestations of the own set.
        within: U3 holds sharers of the own roster only.
    """

    n: int = 4
    c: int = 1
    t: int = 3
    attests_once: bool = True
    one_roster: bool = True
    quorum: bool = True
    within: bool = True

    @property
    def honest(self) -> tuple[int, ...]:
        """Their numbers; the corrupt come after them."""
        return tuple(range(self.n - self.c))


@dataclass(frozen=True)
class Ends:
    """What honest clients have said: (client, roster) that masked, (client, roster, U3) attested and released."""

    masked: frozenset[tuple[int, int]] = frozenset()
    attested: frozenset[tuple[int, int, frozenset[int]]] = frozenset()
    released: frozenset[tuple[int, int, frozenset[int]]] = frozenset()


def sharers(state: Ends, roster: int, rules: Rules) -> frozenset[int]:
    """U2 of a roster: who masked in it, and the corrupt."""
    return frozenset({u for u, at in state.masked if at == roster} | set(range(rules.n - rules.c, rules.n)))


@cache
def sets_of(members: frozenset[int], least: int) -> tuple[frozenset[int], ...]:
    """Every subset with at least so many members."""
    return tuple(
        frozenset(chosen) for size in range(least, len(members) + 1) for chosen in combinations(sorted(members), size)
    )


def events(state: Ends, rules: Rules) -> Iterator[tuple[str, Ends]]:
    """What can happen next. Masking comes first: who masks later is a dropout, which the sets U3 stand for."""
    if not state.attested:
        for u in rules.honest:
            taken = {at for who, at in state.masked if who == u}
            for roster in ROSTERS:
                if roster not in taken and not (rules.one_roster and taken):
                    yield f"{u} masks under roster {roster}", replace(state, masked=state.masked | {(u, roster)})
    for u, roster in state.masked:
        mine = [(at, chosen) for who, at, chosen in state.attested if who == u]
        if rules.attests_once and any(at == roster for at, _ in mine):
            continue
        members = sharers(state, roster, rules) if rules.within else frozenset(range(rules.n))
        for chosen in sets_of(members, rules.t):
            if u in chosen and (roster, chosen) not in mine:
                said = f"{u} attests {sorted(chosen)} under roster {roster}"
                yield said, replace(state, attested=state.attested | {(u, roster, chosen)})
    for one in state.attested - state.released:
        u, roster, chosen = one
        if any((who, at) == (u, roster) for who, at, _ in state.released) and rules.attests_once:
            continue
        signed = sum((at, other) == (roster, chosen) for _, at, other in state.attested) + len(
            [v for v in chosen if v not in rules.honest]
        )
        if signed >= rules.t or not rules.quorum:
            yield (
                f"{u} releases for {sorted(chosen)} under roster {roster}",
                replace(state, released=state.released | {one}),
            )


def wrong(state: Ends, rules: Rules) -> str:
    """What the statement forbids."""
    for roster in ROSTERS:
        members = sharers(state, roster, rules)
        of_roster = [(v, chosen) for v, at, chosen in state.released if at == roster]
        for u in rules.honest:
            if u not in members:
                continue
            b = {v for v, chosen in of_roster if u in chosen and v != u}
            s = {v for v, chosen in of_roster if u not in chosen}
            own = any(v == u for v, _ in of_roster)
            if (own or len(b) + rules.c >= rules.t) and len(s) + rules.c >= rules.t:
                return f"both kinds of share of {u} are known under roster {roster}"
    opened = {
        (roster, chosen)
        for _, roster, chosen in state.released
        if sum((at, other) == (roster, chosen) for _, at, other in state.released) + rules.c >= rules.t
    }
    if len(opened) > 1:
        return f"{len(opened)} sums are opened"
    for roster, chosen in opened:
        if not chosen <= sharers(state, roster, rules):
            return "a sum is opened of who did not share"
    return ""


def explored(rules: Rules) -> Explored[Ends]:
    """Every state of a cohort."""
    return explore([("start", Ends())], lambda state: events(state, rules), lambda state: wrong(state, rules))


CASES: dict[str, tuple[Rules, bool]] = {
    "protocol, n=3": (Rules(3, 1, 3), False),
    "protocol, n=4": (Rules(4, 1, 3), False),
    "a client attests two sets": (Rules(4, 1, 3, attests_once=False), True),
    "shares without a quorum": (Rules(4, 1, 3, quorum=False), True),
    "a client is in two rosters": (Rules(4, 1, 3, one_roster=False), True),
    "2t <= n + c": (Rules(4, 1, 2), True),
    "U3 outside U2": (Rules(4, 1, 3, within=False), True),
}
"""Each with whether an attack has to be found."""
LONG: dict[str, tuple[Rules, bool]] = {"protocol, n=5": (Rules(5, 1, 4), False)}
