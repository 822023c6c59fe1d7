"""Public transcripts: what is recorded verifies, every lie is refused by its own check, and no file holds a secret.

The lies are whole rounds in which a lying server and its clients tell each other everything (`secagg_forge`), so that
whatever can be made consistent with the lie is.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secagg_cohort import RUN, SENDING, SERVER_KEY, Cohort, Play
from secagg_forge import changed, forge, written
from secagg_lies import LIES, plus_one, put, told

from secagg import ConfigError, IllegalTransitionError, MemoryStore, PinnedRoster, SecAggError, ServerSession, Suite
from secagg import client as secagg_client
from secagg.encoding import encode
from secagg.messages import (
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Header,
    ShareReport,
)
from secagg.state import GENESIS
from secagg.transcript import Recorder, Verdict, ViolationError, accept, checks, reading, verify
from secagg.transcript.record import (
    KINDS,
    Block,
    Opening,
    PublishedBundle,
    decode_record,
    encode_record,
    records,
)

KEYS, SHARES, REPORT, MASKED, ATTEST, UNMASK = SENDING
CHECKS = [
    "T-01",
    "T-02",
    "T-03",
    "T-04",
    "T-05",
    "T-06",
    "T-07",
    "T-08",
    "T-09",
    "T-10",
    "T-11",
    "T-12",
    "T-13",
    "T-14",
]
CHECKS += ["T-18", "T-19", "T-20"]
DROPOUTS = [
    {},
    {"site-b": KEYS},
    {"site-a": SHARES},
    {"site-f": REPORT},
    {"site-c": MASKED},
    {"site-c": ATTEST},
    {"site-c": UNMASK},
    {"site-a": MASKED, "site-f": MASKED},
    {"site-b": MASKED, "site-c": UNMASK},  # the dropped one dealt their pair secret
    {"site-b": MASKED, "site-d": UNMASK},  # the silent one did: only its envelope holds the secret
    {"site-a": SHARES, "site-e": MASKED},
]


# --- What a session records --------------------------------------------------------------------------------------


def recorded(
    path: Path,
    cohort: Cohort,
    silent: Mapping[str, str] | None = None,
    number: int = 1,
    head: bytes = GENESIS,
    **options,
) -> Play:
    """A real round with a recorder, published."""
    context, key = cohort.context(number, head=head), SERVER_KEY if cohort.signed else None
    with Recorder(path, cohort.policy, cohort.roster, context, signing_key=key, **options) as recorder:
        play = Play(cohort, silent or {}, context=context)
        play.server = ServerSession(cohort.policy, cohort.roster, context, key, record=recorder)
        play.to_the_end()
    return play


@pytest.mark.parametrize("suite", list(Suite))
@pytest.mark.parametrize("silent", DROPOUTS)
def test_a_recorded_round_holds(tmp_path, suite, silent):
    cohort = Cohort(6, suite=suite, bits=23)
    play = recorded(tmp_path / "t", cohort, silent)
    assert play.failure is None
    verdict = verify([tmp_path / "t"], cohort.roster)
    assert (verdict.status, verdict.violation) == ("holds", None)
    (report,) = verdict.rounds
    assert (report.included, report.dropped) == (play.server.included, play.server.dropped)
    assert report.next_head == play.server.head
    assert set(verdict.items) == set(CHECKS)


@pytest.mark.parametrize("bits", [20, 21, 32, 40, 64])
@pytest.mark.parametrize("signed", [True, False])
def test_weights_widths_and_a_missing_server_key_hold(tmp_path, bits, signed):
    weights = {"site-a": 0.25, "site-b": 1.5, "site-c": 2.0}
    cohort = Cohort(5, bits=bits, weights=weights, signed=signed, length=70_001)
    cohort.updates = {u: np.sign(update) for u, update in cohort.updates.items()}  # at the ends of the range
    recorded(tmp_path / "t", cohort, {"site-e": MASKED})
    verdict = verify([tmp_path / "t"], cohort.roster)
    assert (verdict.status, verdict.violation) == ("holds", None)
    assert any("no server key" in note for note in verdict.notes) is not signed


def test_vectors_by_hash_leave_the_sum_unchecked(tmp_path):
    cohort = Cohort(5, length=3000)
    recorded(tmp_path / "t", cohort, {"site-a": MASKED}, vectors=False)
    verdict = verify([tmp_path / "t"], cohort.roster)
    assert (verdict.status, verdict.exit_code) == ("no power", 2)
    assert set(CHECKS) - set(verdict.items) == {"T-13"}
    assert (tmp_path / "t").stat().st_size < 2 * 4 * 3000 + 20_000  # the sum, and no vector


@pytest.mark.parametrize("silent", [{"site-a": MASKED, "site-b": MASKED}, {"site-a": UNMASK, "site-b": UNMASK}])
def test_of_a_burned_round_only_headers_are_published(tmp_path, silent):
    cohort = Cohort(5)
    assert recorded(tmp_path / "t", cohort, silent).failure is not None
    with open(tmp_path / "t", "rb") as file:
        kinds = [type(decode_record(record)).__name__ for record in records(file)]
    assert kinds == ["Opening", *["Header"] * 5, "Closing"]
    verdict = verify([tmp_path / "t"], cohort.roster)
    assert (verdict.status, verdict.exit_code) == ("no power", 2)
    assert set(verdict.items) == {"T-01", "T-03", "T-04", "T-05", "T-19", "T-20"}
    assert not verdict.rounds[0].finished


def test_an_attempt_that_died_before_its_headers_leaves_nothing(tmp_path):
    assert recorded(tmp_path / "t", Cohort(5), dict.fromkeys(["site-a", "site-b"], KEYS)).failure is not None
    assert list(tmp_path.iterdir()) == []


def test_rounds_follow_one_another_over_burned_ones(tmp_path):
    cohort, paths = Cohort(5), [tmp_path / name for name in "abc"]
    head = recorded(paths[0], cohort).server.head
    recorded(paths[1], cohort, dict.fromkeys(["site-a", "site-b"], UNMASK), number=2, head=head)
    recorded(paths[2], cohort, {"site-a": MASKED}, number=3, head=head)
    verdict = verify(paths, cohort.roster)
    assert (verdict.status, verdict.violation) == ("no power", None)
    assert [report.finished for report in verdict.rounds] == [True, False, True]
    assert verify([paths[0], paths[2]], cohort.roster).status == "holds"
    assert verify([paths[2], paths[0]], cohort.roster).violation.check == "T-19"


def test_a_pair_secret_that_its_dropped_dealer_spoiled_is_a_note(tmp_path):
    """The server did all that it could and the sum is right: a corrupt client must not spoil the transcript."""
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    honest = forge(cohort, {"site-a": MASKED})
    assert verify([written(tmp_path / "t", honest)], cohort.roster).notes == ()
    play = spoiling(tmp_path / "u", cohort)
    assert play.exact
    verdict = verify([tmp_path / "u"], cohort.roster)
    assert verdict.status == "holds"
    assert any("site-a dealt site-b a pair secret" in note for note in verdict.notes)


def spoiling(path: Path, cohort: Cohort) -> Play:
    """site-a seals r = 9...9 to site-b, commits to it, and drops out after sharing."""
    with pytest.MonkeyPatch.context() as patch:
        honest = secagg_client.MaskKey.pair_secret

        def pair_secret(key, peer):
            return bytes([9]) * 32 if (peer, key in spoilt) == ("site-b", True) else honest(key, peer)

        patch.setattr(secagg_client.MaskKey, "pair_secret", pair_secret)
        context = cohort.context()
        with Recorder(path, cohort.policy, cohort.roster, context, signing_key=SERVER_KEY) as recorder:
            play = Play(cohort, {"site-a": MASKED}, context=context)
            spoilt = {play.clients["site-a"]._state.mask_key}
            play.server = ServerSession(cohort.policy, cohort.roster, context, SERVER_KEY, record=recorder)
            return play.to_the_end()


# --- The recorder ------------------------------------------------------------------------------------------------


def test_a_transcript_appears_whole_or_not_at_all(tmp_path):
    cohort, path = Cohort(5), tmp_path / "t"
    recorder = Recorder(path, cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY)
    play = Play(cohort)
    play.server = ServerSession(cohort.policy, cohort.roster, cohort.context(), SERVER_KEY, record=recorder)
    play.until(UNMASK)
    assert list(tmp_path.iterdir()) == []  # what is spooled has no name, so that a crash takes it along
    path.write_text("an older transcript")
    play.to_the_end()
    assert path.read_text() == "an older transcript"
    assert recorder.publish() == path
    assert verify([path], cohort.roster).status == "holds"
    assert list(tmp_path.iterdir()) == [path]
    for again in (recorder.publish, lambda: recorder(play.out["site-a"])):
        with pytest.raises(IllegalTransitionError):
            again()


def test_a_transcript_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    cohort = Cohort(5)
    recorder = Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY)
    play = Play(cohort)
    play.server = ServerSession(cohort.policy, cohort.roster, cohort.context(), SERVER_KEY, record=recorder)
    play.to_the_end()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        recorder.publish()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_the_transcript_and_not_the_round(tmp_path):
    cohort = Cohort(5)
    recorder = Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY)
    recorder._spool = FullAfter(3, recorder._spool)
    play = Play(cohort)
    play.server = ServerSession(cohort.policy, cohort.roster, cohort.context(), SERVER_KEY, record=recorder)
    assert play.to_the_end().exact
    with pytest.raises(OSError, match="No space"):
        recorder.publish()
    assert recorder._spool.closed
    assert list(tmp_path.iterdir()) == []


class FullAfter:
    """A file on a disk that is full after so many writes."""

    def __init__(self, writes: int, file) -> None:
        self._writes, self._file = writes, file

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self._file.__enter__()

    def __exit__(self, *why):
        return self._file.__exit__(*why)

    def write(self, data: bytes) -> int:
        self._writes -= 1
        if self._writes < 0:
            raise OSError(28, "No space left on device")
        return self._file.write(data)


def test_a_recorder_needs_the_servers_key_and_a_vector_that_fits(tmp_path):
    cohort = Cohort(5)
    with pytest.raises(ConfigError, match="server_key"):
        Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context())
    long = replace(cohort.policy, length=1 << 30)
    with pytest.raises(ConfigError, match="4 GiB"):
        Recorder(tmp_path / "t", long, cohort.roster, cohort.context(), signing_key=SERVER_KEY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suite", list(Suite))
@pytest.mark.parametrize(
    ("silent", "finishes"),
    [({"site-a": MASKED, "site-d": UNMASK}, True), (dict.fromkeys(["site-a", "site-b"], UNMASK), False)],
)
def test_no_secret_is_in_any_file(tmp_path, suite, silent, finishes):
    """Planted: every envelope, s_u of the included, b_u of the dropped; and of a burned round every s_u, b_u and y."""
    cohort = Cohort(6 if finishes else 5, suite=suite)
    mask_keys, self_seeds, envelopes, inputs = {}, {}, [], []

    def watch(step, client_id, message):
        state = play.clients[client_id]._state
        if step == SHARES:
            mask_keys[client_id], self_seeds[client_id] = state.mask_key.seed, state.self_seed
            envelopes.extend(e for bundle in message.bundles for e in (bundle.shares, bundle.pair) if e)
        elif step == MASKED:
            inputs.append(bytes(message.y))
        return message

    recorder = Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY)
    play = Play(cohort, silent, up=watch)
    play.server = ServerSession(cohort.policy, cohort.roster, cohort.context(), SERVER_KEY, record=recorder)
    play.to_the_end()
    assert (play.failure is None) is finishes
    with open(os.dup(recorder._spool.fileno()), "rb") as spool:  # what a crash could leave on the disk
        spool.seek(0)
        spooled = spool.read()
    recorder.publish()
    published = (tmp_path / "t").read_bytes()
    included, dropped = play.server.included, play.server.dropped
    secrets_of_round = [mask_keys[u] for u in included] + [self_seeds[w] for w in dropped]
    assert len(envelopes) >= 20
    for secret in envelopes + secrets_of_round:
        for piece in (secret[:16], secret[-16:]):
            assert piece not in published + spooled
    if finishes:
        assert all(self_seeds[u] in published for u in included if u not in silent)  # the search can find something
        assert all(y in published for y in inputs)
    else:
        for secret in [*mask_keys.values(), *self_seeds.values(), *inputs]:
            assert secret[:16] not in published


# --- Lies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIES)
def test_every_lie_is_refused_by_its_check(tmp_path, name):
    paths, roster = told(tmp_path, name)
    verdict = verify(paths, roster)
    assert verdict.violation is not None, "the lie passed"
    assert verdict.violation.check == LIES[name].check, str(verdict.violation)
    assert (verdict.status, verdict.exit_code) == ("violated", 1)
    assert verdict.state(LIES[name].check) == "violated"
    assert verdict.violation.path == paths[-1]
    assert "\n" not in str(verdict.violation)


def turned_off(monkeypatch, check: str) -> None:
    if check in checks.CHECKS:
        monkeypatch.setitem(checks.CHECKS, check, lambda round: 0)
    for name in ("t18_packing", "t19_order", "t20_schema"):
        if name.startswith(check.lower().replace("-", "")):
            monkeypatch.setattr(reading, name, lambda *_: None)


@pytest.mark.parametrize("name", [name for name, told_lie in LIES.items() if told_lie.alone])
def test_without_its_check_the_lie_passes(tmp_path, monkeypatch, name):
    """So that no check is idle: nothing else in the verifier does its work."""
    paths, roster = told(tmp_path, name)
    turned_off(monkeypatch, LIES[name].check)
    assert verify(paths, roster).violation is None


def test_every_check_has_a_lie_that_only_it_refuses():
    assert {told_lie.check for told_lie in LIES.values() if told_lie.alone} == set(CHECKS) == set(checks.WHAT)
    assert len(LIES) >= 40


def test_the_first_thing_wrong_is_named_with_record_and_sender(tmp_path):
    honest = forge(Cohort(5))
    path = put(tmp_path, changed(honest, Attestation, "site-b", lambda a: replace(a, signature=bytes(64))))
    violation = verify([path], Cohort(5).roster).violation
    number = next(i for i, r in enumerate(honest) if isinstance(r, Attestation) and r.client_id == "site-b")
    assert (violation.record, violation.sender) == (number, "site-b")
    assert (
        str(violation)
        == f"[T-04] {path}: record {number} of site-b: the attestation carries no signature of its sender"
    )


# --- Damage ------------------------------------------------------------------------------------------------------


@dataclass(repr=False)
class Small:
    """The bytes of a file, and a place to write them damaged."""

    whole: bytes
    path: Path
    roster: PinnedRoster


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small transcript with everything in it."""
    cohort = Cohort(6, suite=Suite.MLKEM768_X25519, bits=23, length=3)
    folder = tmp_path_factory.mktemp("small")
    recorded(folder / "t", cohort, {"site-b": MASKED, "site-d": UNMASK})
    return Small((folder / "t").read_bytes(), folder / "damaged", cohort.roster)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_any_flipped_byte_is_refused(small, data):
    whole, path, roster = small.whole, small.path, small.roster
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[at] ^ data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    assert verify([path], roster).status == "violated"


@FUZZ
@given(data=st.data())
def test_any_truncation_is_refused(small, data):
    whole, path, roster = small.whole, small.path, small.roster
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert verify([path], roster).violation.check == "T-20"


@FUZZ
@given(data=st.data())
def test_damage_that_the_server_seals_gives_a_verdict(small, data):
    """A server that changes a record and chains and seals the file again: refused or not, never a crash."""
    whole, path, roster = small.whole, small.path, small.roster
    path.write_bytes(whole)
    with open(path, "rb") as file:
        *sealed, _ = records(file)
    i = data.draw(st.integers(0, len(sealed) - 1))
    change = data.draw(st.sampled_from(["flip", "drop", "again", "cut"]))
    match change:
        case "flip":
            at = data.draw(st.integers(0, len(sealed[i]) - 1))
            flipped = bytes([sealed[i][at] ^ data.draw(st.integers(1, 255))])
            sealed[i] = sealed[i][:at] + flipped + sealed[i][at + 1 :]
        case "drop":
            del sealed[i]
        case "again":
            sealed.insert(data.draw(st.integers(0, len(sealed))), sealed[i])
        case "cut":
            sealed[i] = sealed[i][: data.draw(st.integers(0, len(sealed[i]) - 1))]
    written(path, sealed)
    # What a server may leave out: an attestation or a confirmation above the quorum.
    assert verify([path], roster).status == "violated" or change == "drop"


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), kind=st.sampled_from(sorted(KINDS)))
def test_any_bytes_are_a_record_or_none(data, kind):
    for attempt in (data, encode(f"transcript-{kind}") + data):
        with contextlib.suppress(ValueError):
            decode_record(attempt)


@pytest.mark.parametrize("suite", list(Suite))
def test_records_have_one_encoding(suite):
    cohort = Cohort(6, suite=suite, weights={"site-a": 0.1})
    made = forge(cohort, {"site-b": MASKED, "site-d": UNMASK}) + forge(cohort, only_headers=True)
    for record in made:
        assert decode_record(encode_record(record)) == record
    assert {type(record) for record in made} >= {Opening, Header, AdvertiseKeys, ShareReport, AcceptedInput, Block}


def test_the_digest_of_a_published_bundle_is_that_of_the_bundle():
    bundles = []
    Cohort(5, suite=Suite.MLKEM768_X25519).play(
        up=lambda step, who, m: bundles.extend(m.bundles) or m if step == SHARES else m
    )
    assert len(bundles) == 20
    for bundle in bundles:
        assert PublishedBundle.of(bundle).digest() == bundle.digest()


def test_a_file_does_not_choose_how_much_memory_is_taken(tmp_path):
    """The policy of the opening says a vector of gigabytes; nothing is set aside before such a file is there."""
    path = put(tmp_path, forge(Cohort(5), opening=lambda _, o: replace(o, length=(1 << 30) - 100)))
    assert verify([path], Cohort(5).roster).violation.check == "T-18"
    path = put(tmp_path, forge(Cohort(5), opening=lambda _, o: replace(o, length=1 << 60)))
    assert verify([path], Cohort(5).roster).violation.check == "T-18"


# --- Participation, and a client that accepts --------------------------------------------------------------------


def test_isolated_clients_are_a_note_and_no_violation(tmp_path):
    cohort = Cohort(5)
    head = recorded(tmp_path / "a", cohort).server.head
    recorded(tmp_path / "b", cohort, {"site-b": MASKED}, number=2, head=head)
    verdict = verify([tmp_path / "a", tmp_path / "b"], cohort.roster)
    assert verdict.status == "holds"
    assert [note for note in verdict.notes if "isolate" in note] == [
        "the sums isolate site-b (+ 1 x round 1 - 1 x round 2); where updates change slowly that is close to its own"
    ]


def test_whom_the_sums_isolate_for_a_coalition_is_a_note_too(tmp_path):
    """Seven clients, c = 2, sets that differ by one honest and two corrupt clients."""
    cohort = Cohort(7, c=2)
    head = recorded(tmp_path / "a", cohort, {"site-f": MASKED}).server.head
    recorded(tmp_path / "b", cohort, {"site-b": MASKED, "site-g": MASKED}, number=2, head=head)
    verdict = verify([tmp_path / "a", tmp_path / "b"], cohort.roster)
    assert verdict.status == "holds"
    assert [note.split(" (")[0] for note in verdict.notes if "isolate" in note] == [
        "the sums isolate site-b with what site-f, site-g would tell",
        "the sums isolate site-f with what site-b, site-g would tell",
        "the sums isolate site-g with what site-b, site-f would tell",
    ]


def test_a_client_accepts_what_holds_and_is_its_own_log(tmp_path):
    cohort = Cohort(5)
    recorded(tmp_path / "t", cohort)
    store = cohort.stores["site-a"]
    verdict = verify([tmp_path / "t"], cohort.roster)
    another = MemoryStore()
    another.finish(RUN, 1, bytes([7]) * 32, b"")
    with pytest.raises(ViolationError, match=r"\[T-02\]"):
        accept(verdict, another, RUN)
    with pytest.raises(ViolationError, match=r"\[T-02\]"):
        accept(verdict, store, "another run")
    assert store.replayed(RUN) == 0
    accept(verdict, store, RUN)
    assert store.replayed(RUN) == 1


def test_a_client_that_fell_silent_before_the_result_learns_it_from_the_transcripts(tmp_path):
    cohort = Cohort(5)
    first = recorded(tmp_path / "1", cohort)
    second = recorded(tmp_path / "2", cohort, number=2, head=first.server.head)
    store = MemoryStore()
    store.release(RUN, 1)
    accept(verify([tmp_path / "1", tmp_path / "2"], cohort.roster), store, RUN)
    assert (store.head(RUN), store.replayed(RUN)) == ((2, second.server.head), 2)
    gap = MemoryStore()
    with pytest.raises(ViolationError, match="does not lead"):
        accept(verify([tmp_path / "2"], cohort.roster), gap, RUN)
    assert gap.head(RUN)[0] == gap.replayed(RUN) == 0


def test_a_client_accepts_nothing_less(tmp_path):
    cohort = Cohort(5)
    head = recorded(tmp_path / "t", cohort, vectors=False).server.head
    store = cohort.stores["site-a"]
    with pytest.raises(ViolationError, match=r"\[T-13\] it could not be checked"):
        accept(verify([tmp_path / "t"], cohort.roster), store, RUN)
    lied = put(tmp_path, forge(cohort, context=cohort.context(2, head=head), total=plus_one(cohort)))
    with pytest.raises(ViolationError, match=r"\[T-13\]"):
        accept(verify([lied], cohort.roster), store, RUN)
    with pytest.raises(ViolationError):
        accept(verify([], cohort.roster), store, RUN)
    assert store.replayed(RUN) == 0


def test_a_verdict_is_plain_for_machines(tmp_path):
    cohort = Cohort(5)
    recorded(tmp_path / "t", cohort, {"site-c": UNMASK})
    told_to_machines = verify([tmp_path / "t"], cohort.roster).as_dict()
    assert set(told_to_machines) == {"status", "exit_code", "checks", "violation", "rounds", "notes"}
    assert [check["id"] for check in told_to_machines["checks"]] == CHECKS
    assert told_to_machines["rounds"][0]["unconfirmed"] == ["site-c"]
    assert isinstance(verify([], cohort.roster), Verdict)
    assert verify([], cohort.roster).status == "no power"
    assert issubclass(ViolationError, SecAggError)
