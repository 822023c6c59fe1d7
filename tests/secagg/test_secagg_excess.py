"""Seeds of noise that a sum does not need: disclosed for the one agreed set, once, and never more than it allows."""

from dataclasses import replace

import pytest

from audits.verifier import study
from audits.verifier.policy import Policy as SecondPolicy
from audits.verifier.reading import Reader
from secagg import ConfigError, wire
from secagg.client import conclude_later
from secagg.context import next_head
from secagg.errors import InconsistentViewError, MalformedMessageError, ProtocolError
from secagg.messages import Attestations, IncludedSet, Result
from secagg.policy import Policy
from secagg.server import Unmasking
from secagg.snapshot import resume, suspend
from secagg.transcript import ViolationError
from secagg.transcript_files import Recorder, published, verify
from tests.support.cohort import SERVER_KEY, Cohort, Disclosing, Play, alone, excess_seed

N, M = 5, 4


def five() -> Disclosing:
    return Disclosing(N, min_survivors=M)


def seven() -> Disclosing:
    return Disclosing(7, min_survivors=5)


@pytest.mark.parametrize("gone", [(), ("site-c",), ("site-c", "site-g")], ids=len)
def test_what_is_disclosed_is_what_the_agreed_sum_does_not_need(gone):
    cohort = seven()
    play = cohort.play(silent=dict.fromkeys(gone, "MaskedInputCollection"))
    left = len(cohort.ids) - len(gone) - cohort.policy.min_survivors
    expected = {me: b"".join(cohort.seeds(me)[-left:]) for me in cohort.ids if me not in gone} if left else {}
    assert play.server.excess_seeds == expected
    assert play.exact
    for me in play.server.included:
        assert play.clients[me].excess_seeds == expected


def test_who_is_silent_at_the_end_keeps_its_seeds():
    play = five().play(silent={"site-b": "Unmasking"})
    assert play.exact
    assert sorted(play.server.excess_seeds) == ["site-a", "site-c", "site-d", "site-e"]


def test_without_the_policy_nothing_is_taken_and_no_byte_differs():
    plain, with_seeds = Cohort(N, min_survivors=M), five()
    assert "excess_seeds" not in plain.policy.to_table()
    assert Policy.from_table(with_seeds.policy.to_table()) == with_seeds.policy
    assert plain.policy.hash() != with_seeds.policy.hash()
    client = plain.client("site-a")
    with pytest.raises(ConfigError, match="this policy takes 0"):
        client.provide(plain.updates["site-a"], excess_seeds=[bytes(32)])
    with pytest.raises(ConfigError, match="2 were given, and this policy takes 1"):
        with_seeds.client("site-a").provide(with_seeds.updates["site-a"], excess_seeds=[bytes(32), bytes(31) + b"x"])
    with pytest.raises(ConfigError, match="32 bytes"):
        with_seeds.client("site-a").provide(with_seeds.updates["site-a"], excess_seeds=[bytes(31)])
    release = plain.play().server._closed.received["site-a"]
    assert release.excess_seeds == ()
    assert len(wire.encode(replace(release, excess_seeds=(bytes(32),)))) == len(wire.encode(release)) + 34


def test_a_server_that_claims_fewer_dropouts_at_one_site_gets_no_seed():
    """It shows site-a five inputs and the others four: site-a would keep less noise than a sum of four needs."""
    cohort = five()

    def fewer(step, me, message):
        if isinstance(message, IncludedSet) and me != "site-a":
            return IncludedSet(tuple(entry for entry in message.inputs if entry.client_id != "site-e"))
        return message

    play = cohort.play(down=fewer)
    assert play.server.result is None
    assert "site-a" not in getattr(play.server._closed, "received", {}) or play.failure is not None
    # What a colluding site-e and the server can show site-a are attestations of another set: C-17.
    play = Play(cohort := five(), down=fewer).until("ConsistencyCheck")
    others = {me: message for me, message in play.out.items() if me not in ("site-a", "site-e")}
    assert len({message.attested for message in others.values()}) == 1
    session = play.clients["site-a"]
    shown = tuple(others[me] for me in sorted(others))
    with pytest.raises(InconsistentViewError, match="C-17"):
        session.receive(Attestations(shown))
    assert session.finished


@pytest.mark.parametrize(
    ("wrong", "gone", "why"),
    [
        ([b"x" * 32, b"y" * 32], (), "noise that this sum needs"),
        ([b"x" * 32], ("site-e",), "noise that this sum needs"),
        ([excess_seed("site-a", 0)], (), "a seed of another client"),
    ],
    ids=["too many", "for a layer that is needed", "of another"],
)
def test_a_wrong_disclosure_is_refused_by_name_and_removes_nothing(wrong, gone, why):
    cohort = five()

    def lie(message):
        return replace(message, excess_seeds=tuple(wrong), signature=b"").sign(cohort.keys["site-b"])

    play = cohort.play(up=alone("Unmasking", "site-b", lie), silent=dict.fromkeys(gone, "MaskedInputCollection"))
    refusal = play.refusals["site-b"]
    assert refusal.check == "S-14"
    assert refusal.culprits == ("site-b",) or list(refusal.culprits) == ["site-b"]
    assert why in str(refusal)
    assert "site-b" not in play.server.excess_seeds


def test_a_disclosure_is_signed_and_of_whole_distinct_seeds():
    cohort = five()

    def unsigned(message):
        return replace(message, excess_seeds=(b"z" * 32,))

    play = cohort.play(up=alone("Unmasking", "site-b", unsigned))
    assert play.refusals["site-b"].check == "S-13"
    release = play.server._closed.received["site-a"]
    for seeds in ((b"short",), (b"z" * 32, b"z" * 32)):
        with pytest.raises(MalformedMessageError):
            replace(release, excess_seeds=seeds)


def resealed(result: Result, seeds: dict[str, bytes]) -> Result:
    """The server's own word for the same sum with another list of seeds."""
    told, receipt = Result.hash_of(result.total, seeds), result.receipt
    head = next_head(receipt.previous_head, receipt.round_id, receipt.attested, told)
    return Result(result.total, replace(receipt, total_hash=told, head=head, signature=b"").sign(SERVER_KEY), seeds)


LISTS = {
    "another seed": (lambda seeds: {**seeds, "site-b": b"?" * 32}, False),
    "one of them left out": (lambda seeds: {me: seeds[me] for me in seeds if me != "site-b"}, False),
    "none at all": (lambda seeds: {}, False),
    "of nobody, signed": (lambda seeds: {**seeds, "site-z": bytes(32)}, True),
    "of a reader that did not disclose it, signed": (lambda seeds: {**seeds, "site-a": b"?" * 32}, True),
    "one too many, signed": (lambda seeds: {**seeds, "site-b": seeds["site-b"] + b"?" * 32}, True),
}


@pytest.mark.parametrize(("change", "signed"), LISTS.values(), ids=LISTS)
def test_a_result_with_another_list_of_seeds_is_refused(change, signed):
    def lie(message):
        seeds = dict(sorted(change(message.excess_seeds).items()))
        return resealed(message, seeds) if signed else replace(message, excess_seeds=seeds)

    play = five().play(down=alone("Result", "site-a", lie))
    assert play.errors["site-a"].check == "C-19"


def test_one_who_is_shown_another_list_confirms_another_head():
    """The server may sign two lists that both could be: then there are two heads, which the next round shows (C-04)."""
    cohort = five()

    def lie(message):
        return resealed(message, {**message.excess_seeds, "site-b": b"?" * 32})

    play = cohort.play(down=alone("Result", "site-a", lie))
    assert play.refusals["site-a"].check == "S-21"
    assert len({client.head for client in play.clients.values()}) == 2


@pytest.mark.parametrize(("change", "signed"), [each for name, each in LISTS.items() if "reader" not in name])
def test_a_site_that_was_killed_looks_at_the_list_of_seeds_later_too(change, signed):
    cohort = five()
    play = cohort.play(down=alone("Result", "site-a", lambda message: None))
    told = play.server._state.result
    seeds = dict(sorted(change(told.excess_seeds).items()))
    mine = (cohort.policy, "site-a", cohort.keys["site-a"], cohort.roster, cohort.stores["site-a"])
    with pytest.raises(InconsistentViewError, match="C-19"):
        conclude_later(*mine, resealed(told, seeds) if signed else replace(told, excess_seeds=seeds))
    assert conclude_later(*mine, told).head == play.server.head


def test_seeds_outlive_a_restart_before_unmasking_and_show_nowhere():
    cohort = five()
    play = Play(cohort).until("ConsistencyCheck")
    session = play.clients["site-b"]
    assert excess_seed("site-b", 0).decode() not in repr(vars(session)) + repr(session._state)
    snapshot = suspend(session)
    assert excess_seed("site-b", 0) not in snapshot
    given = (cohort.policy, "site-b", cohort.keys["site-b"], cohort.roster, cohort.stores["site-b"])
    play.clients["site-b"] = resume(snapshot, *given)
    play.to_the_end()
    assert play.server.excess_seeds["site-b"] == excess_seed("site-b", 0)


def record(cohort, path, **options):
    play = Play(cohort, **options)
    play.server.record = recorder = Recorder(path, cohort.policy, cohort.roster, cohort.context(), True, SERVER_KEY)
    with recorder:
        play.to_the_end()
    return play


def test_the_transcript_holds_what_was_disclosed_and_a_seed_of_an_earlier_attempt_is_found(tmp_path):
    cohort = five()
    play = record(cohort, tmp_path / "1")
    verdict = verify([tmp_path / "1"], cohort.policy, cohort.roster)
    assert verdict.violation is None
    assert published(tmp_path / "1", cohort.policy).excess_seeds == play.server.excess_seeds
    cohort.replay(play)
    head = play.server.head
    second = Play(cohort, context=cohort.context(2, head=head))
    second.server.record = recorder = Recorder(
        tmp_path / "2", cohort.policy, cohort.roster, cohort.context(2, head=head), True, SERVER_KEY
    )
    with recorder:
        second.to_the_end()
    violation = verify([tmp_path / "1", tmp_path / "2"], cohort.policy, cohort.roster).violation
    assert isinstance(violation, ViolationError)
    assert violation.check == "T-05"
    assert "seed of excess noise" in str(violation)


def test_a_transcript_with_seeds_of_needed_noise_is_refused(tmp_path, monkeypatch):
    cohort = five()
    monkeypatch.setattr("secagg.client.Attested._excess_seeds", lambda self: (excess_seed(self.own.me, 0),))
    monkeypatch.setattr("secagg.policy.Policy.excess", lambda self, included: 1)
    play = record(cohort, tmp_path / "1", silent={"site-e": "MaskedInputCollection"})
    assert play.server.excess_seeds
    monkeypatch.undo()
    violation = verify([tmp_path / "1"], cohort.policy, cohort.roster).violation
    assert isinstance(violation, ProtocolError | ViolationError)
    assert violation.check == "T-11"


@pytest.mark.parametrize("left_out", [None, "site-b"])
def test_both_verifiers_hold_the_head_against_the_seeds_that_were_disclosed(tmp_path, monkeypatch, left_out):
    cohort, honest = five(), Unmasking._result

    def lie(self, total):
        told = honest(self, total)
        return resealed(told, {me: seeds for me, seeds in told.excess_seeds.items() if me != left_out})

    monkeypatch.setattr(Unmasking, "_result", lie)
    play = record(cohort, tmp_path / "1")
    assert not play.errors
    first = verify([tmp_path / "1"], cohort.policy, cohort.roster).violation
    table = {name: value for name, value in cohort.policy.to_table().items() if name not in ("server_key", "layout")}
    rules = SecondPolicy(**table | {"server_key": cohort.policy.server_key})
    second = study.verify([tmp_path / "1"], Reader(rules, dict(cohort.roster)))
    assert (first and first.check, second.check) == (("T-02", "T-02") if left_out else (None, "")), second.sentence
