"""Who goes after complaints: smallest sets in counted steps, drawn by lot, and what liars gain over many rounds."""

import itertools
import json
import random
import secrets
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import (
    ComplaintError,
    ConfigError,
    ProtocolError,
    RoundBook,
    ShareError,
    TooFewClientsError,
    leave_out,
    wire,
)
from secagg.complaints import BUDGET, Choose, LeaveOut
from secagg.messages import Roster
from secagg.steps import SHARE_REPORT
from tests.support.cohort import RUN, SERVER_KEY, Cohort

Pairs = list[tuple[str, str]]

# --- A smallest set, by the definition ---------------------------------------------------------------------------


def smallest_size(pairs: Pairs) -> int:
    names = sorted({name for pair in pairs for name in pair})
    return next(
        size
        for size in range(len(names) + 1)
        if any(all(set(pair) & set(who) for pair in pairs) for who in combinations(names, size))
    )


@st.composite
def graphs(draw) -> Pairs:
    names = [f"site-{i}" for i in range(draw(st.integers(2, 8)))]
    return draw(st.lists(st.sampled_from(list(combinations(names, 2))), unique=True, max_size=20))


@settings(deadline=None, max_examples=300)
@given(graphs(), st.integers(0, 8), st.integers(0, 2**32))
def test_a_smallest_set_meets_every_complaint_or_more_are_corrupt(pairs, c, seed):
    size, choose = smallest_size(pairs), random.Random(seed).randrange
    if size > c:
        with pytest.raises(ShareError, match="S-20"):
            leave_out(pairs, c, choose)
        return
    found = leave_out(pairs, c, choose)
    assert found.smallest
    assert len(found.clients) == size
    assert all(set(pair) & found.clients for pair in pairs)
    # Proven: in every set that meets all complaints and has at most c members.
    names = sorted({name for pair in pairs for name in pair})
    for k in range(min(c, len(names)) + 1):
        for who in combinations(names, k):
            if all(set(pair) & set(who) for pair in pairs):
                assert found.proven <= set(who)


@settings(deadline=None, max_examples=100)
@given(graphs(), st.integers(0, 2**32))
def test_cut_short_it_says_so_and_leaves_at_most_twice_as_many_out(pairs, seed):
    found = leave_out(pairs, 8, random.Random(seed).randrange, budget=-1)
    size = smallest_size(pairs)
    assert size <= len(found.clients) <= 2 * size
    assert all(set(pair) & found.clients for pair in pairs)
    assert all(any(set(pair) & found.clients == {who} for pair in pairs) for who in found.clients)
    left = set.union(set(), *map(set, pairs)) - found.proven
    assert found.smallest == all(not (set(pair) <= left) for pair in pairs)


def test_every_smallest_set_can_be_drawn():
    path = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "f")]
    size, names = smallest_size(path), "abcdef"
    all_of_them = {frozenset(who) for who in combinations(names, size) if all(set(pair) & set(who) for pair in path)}
    choose = random.Random(1).randrange
    assert {leave_out(path, 5, choose).clients for _ in range(300)} == all_of_them


def test_without_complaints_nobody_goes():
    assert leave_out([], 1) == LeaveOut(frozenset(), frozenset(), True)
    with pytest.raises(ShareError, match="S-20"):
        leave_out([("a", "b")], 0)


# --- Counted steps -----------------------------------------------------------------------------------------------


def triangles(k: int) -> Pairs:
    return [(f"{one}{i}", f"{two}{i}") for i in range(k) for one, two in ("ab", "bh", "ha")]


def crown(m: int) -> Pairs:
    return [(f"x{i}", f"h{j}") for i in range(m) for j in range(m) if i != j]


def dense(n: int, share: float) -> Pairs:
    drawn = random.Random(n)
    return [(f"v{i}", f"v{j}") for i in range(n) for j in range(i) if drawn.random() < share]


def accusations(c: int, each: int) -> Pairs:
    """Every one of c liars accuses `each` of as many honest clients."""
    drawn = random.Random(c)
    return [(f"x{i}", f"h{j}") for i in range(c) for j in drawn.sample(range(c), each)]


def among_themselves(c: int) -> Pairs:
    drawn = random.Random(c)
    return [(f"x{i}", f"x{j}") for i, j in (drawn.sample(range(c), 2) for _ in range(c // 2))]


SOLVED = {
    **{f"{2 * k} corrupt in triangles": (triangles(k), 2 * k) for k in (20, 40, 64)},
    **{f"crown of {m}": (crown(m), m) for m in (40, 64, 128)},
    **{f"{c} liars, 3 each": (accusations(c, 3), c) for c in (40, 64, 80)},
    **{f"{c} liars, 3 each and themselves": (accusations(c, 3) + among_themselves(c), c) for c in (40, 64)},
    "255 in a circle": ([(f"v{i}", f"v{(i + 1) % 255}") for i in range(255)], 254),
}
CUT_SHORT = {f"{n} at random, {share}": (dense(n, share), n) for n in (128, 256) for share in (0.05, 0.3)}


@pytest.mark.parametrize("name", SOLVED)
def test_what_liars_can_file_is_solved_in_few_steps(name):
    pairs, c = SOLVED[name]
    found = leave_out(pairs, c, random.Random(1).randrange)
    assert found.smallest
    assert len(found.clients) <= c
    assert found.steps <= BUDGET
    assert all(set(pair) & found.clients for pair in pairs)


@pytest.mark.parametrize("name", [*CUT_SHORT, *SOLVED])
def test_steps_are_bounded_for_every_graph(name):
    pairs, c = (CUT_SHORT | SOLVED)[name]
    n = len({end for pair in pairs for end in pair})
    budget = 20_000
    found = leave_out(pairs, c, random.Random(1).randrange, budget)
    assert found.steps <= budget + 6 * n**2  # one node of the search and what completes it
    assert all(set(pair) & found.clients for pair in pairs)
    if name in CUT_SHORT:
        assert not found.smallest


def test_more_corrupt_than_c_is_said_where_a_bound_shows_it_whatever_the_budget():
    with pytest.raises(ShareError, match="S-20"):
        leave_out(triangles(40), 79, budget=-1)
    undecided = leave_out(dense(128, 0.05), 75, random.Random(1).randrange)
    assert not undecided.smallest
    assert len(undecided.clients) > 75


# --- A liar over many rounds -------------------------------------------------------------------------------------


def book(c: int = 1, choose: Choose = secrets.randbelow) -> RoundBook:
    return RoundBook(RUN, bytes(32), SERVER_KEY, c, choose=choose)


def complain(rounds: RoundBook, *pairs: tuple[str, str]) -> tuple[str, ...]:
    return rounds.failed(ComplaintError(SHARE_REPORT, pairs), burned=False)


def play_rounds(cohort: Cohort, rounds: RoundBook, lies: dict[int, dict[str, str]]) -> list[tuple[str, ...]]:
    """An honest server with its book; who was in each sum. `lies`: whom each liar accuses in a round number."""
    sums, last = [], max(lies)
    while rounds.number <= last:
        number, accused = rounds.number, lies[rounds.number]

        def up(step, who, message, accused=accused, rounds=rounds):
            victim = accused.get(who, "")
            if step != SHARE_REPORT or not victim or victim in rounds.leave_out:
                return message
            return replace(message, complaint=victim).sign(cohort.keys[who])

        context = rounds.context(bytes(32))
        play = cohort.play(context=context, leave_out=tuple(rounds.leave_out), up=up)
        if play.failure is not None:
            rounds.failed(play.failure, play.server.burned)
            continue
        assert play.exact
        sums.append(play.server.included)
        rounds.completed(play.server.receipt)
        assert number < rounds.number
    return sums


LIAR = "site-e"


def test_a_liar_that_always_accuses_the_same_client_keeps_it_out_of_half_of_the_rounds():
    """The first draw is which of the two to look at, the second whether it goes: the lot falls on them in turn."""
    cohort, sides = Cohort(5, private=True), itertools.cycle([0, 0, 1, 0])
    rounds = book(choose=lambda _: next(sides))
    sums = play_rounds(cohort, rounds, {number: {LIAR: "site-a"} for number in range(1, 9)})
    assert [tuple(sorted({"site-a", LIAR} & set(included))) for included in sums] == [(LIAR,), ("site-a",)] * 4
    assert rounds.convicted == frozenset()
    assert rounds.returned == {("site-a", LIAR): tuple(range(1, 9))}


def test_with_the_first_in_bytewise_order_it_would_be_out_of_all_of_them():
    rounds = book(choose=lambda _: 0)
    sums = play_rounds(Cohort(5, private=True), rounds, {number: {LIAR: "site-a"} for number in range(1, 5)})
    assert all("site-a" not in included for included in sums)


def test_the_lot_is_fair():
    """Fails by chance with probability 2.4e-10: the tail of 2,000 fair coins beyond 141.5, 6.3 standard deviations."""
    out = 0
    for _ in range(2_000):
        rounds = book()
        complain(rounds, (LIAR, "site-a"))
        out += "site-a" in rounds.leave_out
    assert abs(out - 1_000) <= 141


def test_a_liar_that_accuses_two_is_left_out_for_good_where_c_is_1():
    cohort, rounds = Cohort(5, private=True), book()
    sums = play_rounds(cohort, rounds, {1: {LIAR: "site-a"}, 2: {LIAR: "site-b"}, 3: {}, 4: {}})
    assert rounds.convicted == {LIAR}
    assert all(included == tuple(cohort.ids[:4]) for included in sums[1:])


def test_a_complaint_of_an_earlier_round_makes_nobody_go_again():
    rounds = book(c=2)
    complain(rounds, ("site-x", "site-a"))
    rounds.failed(ProtocolError("S-19", "slots"), burned=True)
    complain(rounds, ("site-y", "site-b"))
    assert rounds.leave_out <= {"site-y", "site-b"}


def test_where_complaints_are_forgotten_it_stays():
    cohort, rounds = Cohort(5, private=True), book(choose=lambda _: 0)
    for number, victim in enumerate(["site-a", "site-b", "site-c"], 1):
        rounds.complaints = ()
        assert victim not in play_rounds(cohort, rounds, {number: {LIAR: victim}})[0]
    assert not rounds.convicted


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_honest_clients_are_never_convicted_and_at_most_as_many_go_as_liars_stay(data):
    """c liars say what they like, about whom they like, in every attempt of twelve rounds."""
    n = data.draw(st.integers(4, 12))
    c = data.draw(st.integers(1, (n - 1) // 3 or 1))
    names = [f"site-{i:02d}" for i in range(n)]
    corrupt = frozenset(data.draw(st.permutations(names))[:c])
    rounds = book(c, random.Random(data.draw(st.integers(0, 2**32))).randrange)
    for _ in range(12):
        before, number = rounds.leave_out, rounds.number
        present = [name for name in names if name not in before]
        lies = [(one, other) for one in present for other in present if one != other and corrupt & {one, other}]
        said = data.draw(st.lists(st.sampled_from(lies), unique_by=lambda pair: pair[0], max_size=4)) if lies else []
        if not said:
            rounds.failed(ProtocolError("S-19", "slots"), burned=True)
            continue
        told = complain(rounds, *said)
        assert rounds.number == number
        assert rounds.convicted <= corrupt
        out = rounds.leave_out
        assert all(set(pair) & out for pair in said)
        assert len(out) <= c
        assert len(out - corrupt) <= len(corrupt - out)
        for pair, numbers in rounds.returned.items():
            if set(pair) in map(set, said):
                assert any(f"{pair[0]} and {pair[1]} had" in sentence for sentence in told)
                assert len(numbers) > 1


def test_what_remains_two_liars_that_accuse_one_client_keep_it_out_and_are_named():
    """Claim 6: the smallest set is that client alone; each of the two complaints that come back is named."""
    rounds, told = book(c=2), ()
    for _ in range(4):
        told = complain(rounds, ("site-x", "site-a"), ("site-y", "site-a"))
        assert rounds.leave_out == {"site-a"}
        assert not rounds.convicted
        rounds.failed(ProtocolError("S-19", "slots"), burned=True)
    assert [sentence.split(" had")[0] for sentence in told] == ["site-a and site-x", "site-a and site-y"]
    assert "rounds 1, 2, 3, 4" in told[0]
    complain(rounds, ("site-x", "site-b"), ("site-y", "site-c"))
    assert rounds.leave_out <= {"site-x", "site-y", "site-b", "site-c"}


# --- The book over attempts, rounds and processes ----------------------------------------------------------------


def test_the_lot_is_drawn_once_an_attempt():
    rounds = book()
    complain(rounds, (LIAR, "site-a"))
    drawn = rounds.leave_out
    assert len(drawn) == 1
    for _ in range(50):
        assert rounds.leave_out == drawn
        assert rounds.failed(TooFewClientsError(SHARE_REPORT, 2, 3), burned=False) == ()
    assert rounds.attempt == 51
    rounds.failed(ProtocolError("S-19", "slots"), burned=True)
    assert rounds.leave_out == frozenset()  # one lie costs an honest client no more than one round


def restarted(rounds: RoundBook, choose: Choose = secrets.randbelow) -> RoundBook:
    again = book(rounds.max_corrupt, choose)
    again.restore(json.loads(json.dumps(rounds.saved())))
    return again


def test_a_restart_forgets_no_complaint_and_draws_no_other_lot():
    rounds = book(c=3)
    complain(rounds, (LIAR, "site-a"), ("site-b", "site-c"))
    again = restarted(rounds, choose=lambda below: pytest.fail("a restart draws again"))
    assert (again.leave_out, again.complaints, again.number) == (rounds.leave_out, rounds.complaints, rounds.number)
    assert again.attempt > rounds.attempt  # the attempt that was open may have been joined
    again.failed(ProtocolError("S-18", "shares", ["site-d"]), burned=True)
    last = restarted(again)
    assert last.convicted == {"site-d"}
    told = complain(last, ("site-a", LIAR))
    assert f"site-a and {LIAR} had complaints in rounds 1, 2" in told[0]
    assert last.returned == {("site-a", LIAR): (1, 2)}


def test_a_study_with_more_than_c_corrupt_stays_stopped_after_a_restart():
    rounds = book()
    with pytest.raises(ShareError, match="S-20"):
        complain(rounds, ("site-a", "site-b"), ("site-c", "site-d"))
    with pytest.raises(ShareError, match="S-20"):
        restarted(rounds)


def test_a_conviction_counts_towards_c():
    rounds = book(c=1)
    rounds.failed(ProtocolError("S-18", "shares", ["site-d"]), burned=True)
    with pytest.raises(ShareError, match="S-20"):
        complain(rounds, ("site-a", "site-b"))


def test_a_set_that_is_not_known_to_be_smallest_is_named():
    rounds = book(c=126)
    told = complain(rounds, *dense(128, 0.1))
    assert not rounds.drawn.smallest
    assert f"{len(rounds.leave_out)} clients are left out of round 1" in told[-1]
    assert not restarted(rounds).drawn.smallest


def test_a_saved_book_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="is no saved book of rounds"):
        book().restore({**book().saved(), "receipts": [wire.encode(Roster(())).hex()]})
    with pytest.raises(ConfigError, match=r"of another version of secagg: .* with the version that began it"):
        book().restore({"start": "00", "convicted": [], "complaints": [], "drawn": [], "smallest": False})  # of 0.10
