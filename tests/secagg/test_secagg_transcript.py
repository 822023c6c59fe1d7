"""Public transcripts: what is recorded verifies, every lie is refused by its own check, and no file holds a secret.

The lies are whole rounds in which a lying server and its clients tell each other everything (`tests.support.forge`), so
that whatever can be made consistent with the lie is.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import (
    ClientSession,
    ConfigError,
    ExposureError,
    IllegalTransitionError,
    MemoryStore,
    SecAggError,
    ServerSession,
    Suite,
    accept_exposure,
    open_round,
)
from secagg import client as secagg_client
from secagg.context import GENESIS
from secagg.encoding import encode
from secagg.messages import (
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Header,
    Receipt,
    RoundStart,
    ShareReport,
    SlotMasks,
)
from secagg.prg import Stream
from secagg.roster import session_id
from secagg.service.exposed import replay
from secagg.store import Marks
from secagg.transcript import Verdict, ViolationError, accept, checks, facts, judging, reading, vectors
from secagg.transcript.record import (
    FORMAT,
    KINDS,
    Block,
    Opening,
    PublishedBundle,
    PublishedShares,
    decode_record,
    encode_record,
    records,
)
from secagg.transcript_files import Recorder, verify
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort, Play
from tests.support.forge import changed, forge, written
from tests.support.hostile import believe_own_lie, headed, lying, rebundled
from tests.support.lies import LIES, claiming, plus_one, put, told

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
CHECKS += ["T-18", "T-19", "T-20", "T-21", "T-22"]
OF_ALL_FILES = "T-21"
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
    run: str = RUN,
    **options,
) -> Play:
    """A real round with a recorder, published."""
    context, key = replace(cohort.context(number, head=head), training_run=run), SERVER_KEY if cohort.signed else None
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
    verdict = verify([tmp_path / "t"], cohort.policy, cohort.roster)
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
    verdict = verify([tmp_path / "t"], cohort.policy, cohort.roster)
    assert (verdict.status, verdict.violation) == ("holds", None)
    assert any("no server key" in note for note in verdict.notes) is not signed


def test_vectors_by_hash_leave_the_sum_unchecked(tmp_path):
    cohort = Cohort(5, length=3000)
    recorded(tmp_path / "t", cohort, {"site-a": MASKED}, vectors=False)
    verdict = verify([tmp_path / "t"], cohort.policy, cohort.roster)
    assert (verdict.status, verdict.exit_code) == ("no power", 2)
    assert set(CHECKS) - set(verdict.items) == {"T-13"}
    assert (tmp_path / "t").stat().st_size < 2 * 4 * 3000 + 20_000  # the sum, and no vector


@pytest.mark.parametrize("silent", [{"site-a": MASKED, "site-b": MASKED}, {"site-a": UNMASK, "site-b": UNMASK}])
def test_of_a_burned_round_only_headers_are_published(tmp_path, silent):
    cohort = Cohort(5)
    assert recorded(tmp_path / "t", cohort, silent).failure is not None
    with open(tmp_path / "t", "rb") as file:
        kinds = [type(decode_record(record)).__name__ for record in records(file.read)]
    assert kinds == ["Opening", *["Header"] * 5, "Closing"]
    verdict = verify([tmp_path / "t"], cohort.policy, cohort.roster)
    assert (verdict.status, verdict.exit_code) == ("incomplete", 2)
    assert set(verdict.items) == {"T-01", "T-03", "T-04", "T-05", "T-19", "T-20"}
    assert not verdict.rounds[0].finished


def test_an_attempt_that_died_before_its_headers_leaves_nothing(tmp_path):
    assert recorded(tmp_path / "t", Cohort(5), dict.fromkeys(["site-a", "site-b"], KEYS)).failure is not None
    assert list(tmp_path.iterdir()) == []


def test_rounds_of_a_run_follow_one_another(tmp_path):
    cohort, paths = Cohort(5, private=True), [tmp_path / name for name in "ab"]
    head = recorded(paths[0], cohort).server.head
    recorded(paths[1], cohort, {"site-a": MASKED}, number=3, head=head)
    assert verify(paths, cohort.policy, cohort.roster).status == "holds"
    assert verify(paths[::-1], cohort.policy, cohort.roster).violation.check == "T-19"


def test_a_pair_secret_that_its_dropped_dealer_spoiled_is_a_note(tmp_path):
    """The server did all that it could and the sum is right: a corrupt client must not spoil the transcript."""
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    honest = forge(cohort, {"site-a": MASKED})
    assert verify([written(tmp_path / "t", honest)], cohort.policy, cohort.roster).notes == ()
    play = spoiling(tmp_path / "u", cohort)
    assert play.exact
    verdict = verify([tmp_path / "u"], cohort.policy, cohort.roster)
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
    assert verify([path], cohort.policy, cohort.roster).status == "holds"
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
    recorder._spool._file = FullAfter(3, recorder._spool._file)
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


@pytest.mark.parametrize(
    ("silent", "lie", "check"),
    [
        ("site-e", headed(self_commitment=bytes(32)), None),  # a lie that spoils nothing: the others are seen to refuse
        ("site-e", lambda cohort, m: headed(self_commitment=m.bundles[0].mask_key_commitment)(cohort, m), "S-08"),
        ("site-b", rebundled(lambda b: (b[0], replace(b[1], shares=b[0].shares), *b[2:])), "S-08"),
        ("site-b", rebundled(lambda b: (b[0], replace(b[1], mask_key_commitment=bytes(32)), *b[2:])), None),
        (
            "site-b",
            rebundled(lambda b: (b[0], replace(b[1], mask_key_commitment=b[0].self_seed_commitment), *b[2:])),
            "S-08",
        ),
    ],
)
def test_a_liar_that_falls_silent_or_deals_to_a_silent_site_spoils_no_transcript(tmp_path, silent, lie, check):
    """Nobody opens these commitments in the round, so only the server can refuse what T-05 and T-08 would."""
    cohort, liar = Cohort(6), "site-e"
    with Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY) as recorder:
        play = Play(cohort, silent={silent: MASKED if silent == liar else SHARES})
        play.server = cohort.server(record=recorder)
        lying(play, SHARES, liar, lie).to_the_end()
    assert [error.check for error in play.refusals.values()] == ([check] if check else [])
    assert play.exact
    assert verify([tmp_path / "t"], cohort.policy, cohort.roster).status == "holds"


@pytest.mark.parametrize("step", [KEYS, MASKED])
def test_two_liars_that_say_the_same_spoil_no_transcript(tmp_path, step):
    cohort, said = Cohort(7, c=2), {}
    copied = "nonce" if step == KEYS else "y"

    def up(at, who, message):
        if at != step or who not in ("site-f", "site-g"):
            return message
        message = replace(message, **{copied: said.setdefault(copied, getattr(message, copied))}).sign(cohort.keys[who])
        believe_own_lie(play.clients[who], message)
        return message

    with Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY) as recorder:
        play = Play(cohort, up=up)
        play.server = cohort.server(record=recorder)
        play.to_the_end()
    assert {who: error.check for who, error in play.refusals.items()} == {"site-g": "S-05" if step == KEYS else "S-11"}
    assert play.exact
    assert verify([tmp_path / "t"], cohort.policy, cohort.roster).status == "holds"


def test_slot_masks_enter_no_transcript(tmp_path):
    cohort = Cohort(5)
    recorder = Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY)
    with pytest.raises(IllegalTransitionError, match="enter no transcript"):
        recorder(SlotMasks(bytes(32), bytes(32), "site-a", {"site-b": bytes(32)}))
    assert recorder.publish() is None


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
    with open(os.dup(recorder._spool._file.fileno()), "rb") as spool:  # what a crash could leave on the disk
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
    paths, policy, roster = told(tmp_path, name)
    verdict = verify(paths, policy, roster)
    assert verdict.violation is not None, "the lie passed"
    assert verdict.violation.check == LIES[name].check, str(verdict.violation)
    assert (verdict.status, verdict.exit_code) == ("violated", 1)
    assert verdict.state(LIES[name].check) == "violated"
    assert verdict.violation.file == str(paths[-1])
    assert "\n" not in str(verdict.violation)


def turned_off(monkeypatch, check: str) -> None:
    if check in checks.CHECKS:
        monkeypatch.setitem(checks.CHECKS, check, lambda round: 0)
    for name in ("t03_opening", "t18_packing", "t19_order", "t20_schema"):
        if name.startswith(check.lower().replace("-", "")):
            monkeypatch.setattr(vectors if name == "t18_packing" else reading, name, lambda *_: None)


@pytest.mark.parametrize("name", [name for name, told_lie in LIES.items() if told_lie.alone])
def test_without_its_check_the_lie_passes(tmp_path, monkeypatch, name):
    """So that no check is idle: nothing else in the verifier does its work."""
    paths, policy, roster = told(tmp_path, name)
    turned_off(monkeypatch, LIES[name].check)
    assert verify(paths, policy, roster).violation is None


def test_every_check_has_a_lie_that_only_it_refuses():
    alone = {told_lie.check for told_lie in LIES.values() if told_lie.alone}
    assert alone | {OF_ALL_FILES} == set(CHECKS) == set(checks.WHAT)
    assert len(LIES) >= 40


def test_the_first_thing_wrong_is_named_with_record_and_sender(tmp_path):
    honest = forge(Cohort(5))
    path = put(tmp_path, changed(honest, Attestation, "site-b", lambda a: replace(a, signature=bytes(64))))
    violation = verify([path], Cohort(5).policy, Cohort(5).roster).violation
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
    cohort: Cohort

    def verdict(self) -> str:
        """Of the damaged file; 'none' where it is no transcript."""
        try:
            return verify([self.path], self.cohort.policy, self.cohort.roster).status
        except ConfigError:
            return "none"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small transcript with everything in it."""
    cohort = Cohort(6, suite=Suite.MLKEM768_X25519, bits=23, length=3)
    folder = tmp_path_factory.mktemp("small")
    recorded(folder / "t", cohort, {"site-b": MASKED, "site-d": UNMASK})
    return Small((folder / "t").read_bytes(), folder / "damaged", cohort)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_any_flipped_byte_is_refused(small, data):
    whole, path = small.whole, small.path
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[at] ^ data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    assert small.verdict() == ("none" if no_opening(path) else "violated")


def no_opening(path: Path) -> bool:
    """Whether the first record of a file is none that opens a transcript of this version."""
    try:
        with open(path, "rb") as file:
            opening = decode_record(next(records(file.read)))
    except (StopIteration, ValueError):
        return True
    return not isinstance(opening, Opening) or opening.format != FORMAT


@FUZZ
@given(data=st.data())
def test_any_truncation_is_refused(small, data):
    whole, path = small.whole, small.path
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert small.verdict() == ("none" if no_opening(path) else "violated")


@FUZZ
@given(data=st.data())
def test_damage_that_the_server_seals_gives_a_verdict(small, data):
    """A server that changes a record and chains and seals the file again: refused or not, never a crash."""
    whole, path = small.whole, small.path
    path.write_bytes(whole)
    with open(path, "rb") as file:
        *sealed, _ = records(file.read)
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
    verdict = small.verdict()
    assert verdict == "none" if no_opening(path) else verdict == "violated" or change == "drop"


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


def read(path: Path, reader: facts.Reader, past: facts.Past) -> facts.Transcript:
    with open(path, "rb") as file:
        return reading.read_transcript(str(path), records(file.read), reader, past)


def test_a_file_does_not_choose_how_much_memory_is_taken(tmp_path):
    """Its opening says a vector of gigabytes, the reader's policy does; strangers and promises are not kept."""
    path = put(tmp_path, forge(Cohort(5), opening=lambda _, o: replace(o, length=1 << 60)))
    assert verify([path], Cohort(5).policy, Cohort(5).roster).violation.check == "T-03"
    many = lambda sent: replace(sent, bundles=sent.bundles * 9)  # noqa: E731
    path = put(tmp_path, changed(forge(Cohort(5)), PublishedShares, "site-b", many))
    assert "for more clients than your roster" in str(verify([path], Cohort(5).policy, Cohort(5).roster).violation)
    cohort = Cohort(9)
    for d, set_aside in (((1 << 29) - 100, False), (1 << 60, False), (5, True)):
        reader = facts.Reader(replace(cohort.policy, length=d), cohort.roster)
        path, past = put(tmp_path, forge(cohort, opening=lambda _, o, d=d: replace(o, length=d))), facts.Past()
        if set_aside:
            transcript = read(path, reader, past)
            assert checks.t05_fresh(transcript) > 2 * cohort.n * (cohort.n - 1)
            assert len(past.seen) == 5 * cohort.n  # two keys, a nonce, b_u and y of each, whatever it dealt
        else:
            with pytest.raises(ViolationError, match="T-18"):
                read(path, reader, past)


# --- Participation, and a client that accepts --------------------------------------------------------------------


def test_isolated_clients_are_a_note_and_no_violation(tmp_path):
    cohort = Cohort(5, private=True)
    head = recorded(tmp_path / "a", cohort).server.head
    recorded(tmp_path / "b", cohort, {"site-b": MASKED}, number=2, head=head)
    verdict = verify([tmp_path / "a", tmp_path / "b"], cohort.policy, cohort.roster)
    assert verdict.status == "holds"
    assert [note for note in verdict.notes if "isolate" in note] == [
        "the sums isolate site-b (+ 1 x round 1 - 1 x round 2); where updates change slowly that is close to its own"
    ]


def test_whom_the_sums_isolate_for_a_coalition_is_a_note_too(tmp_path):
    """Seven clients, c = 2, sets that differ by one honest and two corrupt clients."""
    cohort = Cohort(7, c=2, private=True)
    head = recorded(tmp_path / "a", cohort, {"site-f": MASKED}).server.head
    accept(verify([tmp_path / "a"], cohort.policy, cohort.roster), cohort.stores["site-f"])  # which missed the result
    recorded(tmp_path / "b", cohort, {"site-b": MASKED, "site-g": MASKED}, number=2, head=head)
    verdict = verify([tmp_path / "a", tmp_path / "b"], cohort.policy, cohort.roster)
    assert verdict.status == "holds"
    assert [note.split(" (")[0] for note in verdict.notes if "isolate" in note] == [
        "the sums isolate site-b with what site-f, site-g would tell",
        "the sums isolate site-f with what site-b, site-g would tell",
        "the sums isolate site-g with what site-b, site-f would tell",
    ]


def test_isolation_over_files_of_two_runs_is_seen_as_well(tmp_path):
    cohort = Cohort(5, private=True)
    recorded(tmp_path / "a", cohort)
    recorded(tmp_path / "b", cohort, {"site-b": MASKED}, run="run-2")
    verdict = verify([tmp_path / "a", tmp_path / "b"], cohort.policy, cohort.roster)
    assert verdict.status == "holds"
    assert any("isolate site-b (+ 1 x round 1 of run run-1 - 1 x round 1 of run run-2)" in n for n in verdict.notes)


# --- What a set of files shows, and what it does not -------------------------------------------------------------


def learned_in_secret(cohort: Cohort, number: int, head: bytes, silent=()) -> Play:
    """A round whose sum the server takes; it tells nobody and says that the round burned."""
    play = Play(cohort, dict.fromkeys(silent, KEYS), context=cohort.context(number, head=head)).until(UNMASK)
    play.collect()
    play.server.close_step()
    assert play.server.result is not None
    return play


def headers_of(path: Path, cohort: Cohort, number: int, head: bytes, **options) -> Path:
    return written(path, forge(cohort, context=cohort.context(number, head=head), only_headers=True, **options))


@pytest.mark.parametrize("as_burned", [False, True])
@pytest.mark.parametrize("undefended", [False, True])
def test_a_round_whose_sum_was_taken_cannot_be_hidden(tmp_path, monkeypatch, as_burned, undefended):
    """Left out, or shown as burned: the sites of the next round say that they released shares in it (T-21)."""
    cohort = Cohort(5, private=True)
    head = recorded(tmp_path / "1", cohort).server.head
    hidden = learned_in_secret(cohort, 2, head, silent=["site-a"])
    recorded(tmp_path / "3", cohort, number=3, head=head)
    files = [tmp_path / "1", tmp_path / "3"]
    if as_burned:
        files.insert(1, headers_of(tmp_path / "2", cohort, 2, head))
    if undefended:  # as in version 1
        monkeypatch.setattr(judging, "_missing", lambda *_: ())
        monkeypatch.setattr(judging, "_denied_by", lambda *_: ("anybody",))
    verdict = verify(files, cohort.policy, cohort.roster)
    assert verdict.violation is None
    if undefended:
        assert verdict.status == "holds"
        return
    assert (verdict.status, verdict.exit_code, verdict.state("T-21")) == ("incomplete", 2, "incomplete")
    (missing,) = verdict.missing
    assert missing.said_by == tuple(cohort.ids[1:])
    assert missing.round_id == hidden.server.receipt.round_id
    assert all(verdict.items[check] for check in ("T-04", "T-13"))  # the other rounds' checks still held
    told = " ".join(verdict.not_shown)
    assert f"round {missing.round_id.hex()}, for which site-b, site-c, site-d, site-e released unmasking shares" in told
    if as_burned:
        assert verdict.rounds[1].sum == "not shown"
        assert "round 2, attempt 0 of run run-1: whether its sum was taken" in told
    else:
        assert "round 2 of run run-1: there is no file, and whether a sum was taken is open" in told


def test_a_missing_round_is_named_where_a_site_tells_which_it_is(tmp_path):
    cohort = Cohort(5)
    claim = claiming(cohort, cohort.ids[:4])
    twist = {"advertisement": lambda u, a: replace(claim(u, a), released=claim(u, a).exposing[0].round_id)}
    only_b = {"advertisement": lambda u, a: twist["advertisement"](u, a) if u == "site-b" else a}
    verdict = verify([put(tmp_path, forge(cohort, **only_b))], cohort.policy, cohort.roster)
    (missing,) = verdict.missing
    assert (missing.said_by, missing.name) == (("site-b",), "round 7, attempt 0 of run run-1")
    assert verdict.items["T-22"] == 1


def test_a_round_that_a_site_released_before_its_last_one_is_missing_as_well(tmp_path):
    """An operator accepted it by name, and the site released again since: it is not the last one any more."""
    cohort = Cohort(5)
    claim = claiming(cohort, cohort.ids[:4])
    verdict = verify([put(tmp_path, forge(cohort, advertisement=claim))], cohort.policy, cohort.roster)
    (missing,) = verdict.missing
    assert (missing.said_by, missing.name) == (("site-b",), "round 7, attempt 0 of run run-1")
    assert verdict.status == "incomplete"


def test_a_release_in_another_session_is_a_note(tmp_path):
    cohort = Cohort(5)

    def elsewhere(who, advertised):
        claimed = claiming(cohort, cohort.ids[:1])(who, advertised)
        return replace(claimed, exposing=tuple(replace(c, session=bytes(32)) for c in claimed.exposing))

    verdict = verify([put(tmp_path, forge(cohort, advertisement=elsewhere))], cohort.policy, cohort.roster)
    assert verdict.status == "holds"
    assert any("site-b released shares in another session (round 7" in note for note in verdict.notes)


def test_a_burned_round_is_proven_unopened_by_what_sites_sign_later(tmp_path):
    """And the checks of the other rounds hold as if it were not there."""
    cohort, paths = Cohort(5, private=True), [tmp_path / name for name in "abc"]
    head = recorded(paths[0], cohort).server.head
    recorded(paths[1], cohort, dict.fromkeys(["site-a", "site-b"], MASKED), number=2, head=head)
    recorded(paths[2], cohort, {"site-a": MASKED}, number=3, head=head)
    verdict = verify(paths, cohort.policy, cohort.roster)
    assert (verdict.status, verdict.exit_code) == ("holds", 0)
    assert [report.sum for report in verdict.rounds] == ["published", "not taken", "published"]
    assert len(verdict.rounds[1].denied_by) >= 3
    assert set(verdict.items) == set(CHECKS)
    assert verdict.not_shown == ("run run-1 after round 3: nothing is known of what came later",)
    without = verify([paths[0], paths[2]], cohort.policy, cohort.roster)
    assert without.status == "holds"  # proven without the file as well
    assert without.not_shown == verdict.not_shown
    last = verify(paths[:2], cohort.policy, cohort.roster)
    assert (last.status, last.rounds[1].sum) == ("incomplete", "not shown")
    assert set(last.items) == set(CHECKS)


def test_shares_that_were_released_in_a_burned_round_leave_it_open(tmp_path):
    """An honest server that lost the second half of its shares: nobody can tell it from one that kept the sum."""
    cohort, paths = Cohort(5, private=True), [tmp_path / name for name in "abc"]
    head = recorded(paths[0], cohort).server.head
    recorded(paths[1], cohort, dict.fromkeys(["site-a", "site-b"], UNMASK), number=2, head=head)
    recorded(paths[2], cohort, number=3, head=head)
    verdict = verify(paths, cohort.policy, cohort.roster)
    assert verdict.status == "incomplete"
    assert verdict.missing[0].said_by == tuple(cohort.ids)


@pytest.mark.parametrize("deny", [1, 2, 3, 4])
def test_so_many_sites_prove_that_no_sum_was_taken(tmp_path, deny):
    """n - t + c + 1 = 3 of five; where one fewer would do, t - 1 honest ones and a liar could have opened the sum."""
    cohort = Cohort(5)
    said = {u: bytes([9]) * 32 for u in cohort.ids[deny:4]}
    files = [headers_of(tmp_path / "burned", cohort, 1, GENESIS)]
    files.append(put(tmp_path, forge(cohort, {"site-e": KEYS}, context=cohort.context(2), released=said)))
    verdict = verify(files, cohort.policy, cohort.roster)
    assert verdict.violation is None
    assert (verdict.rounds[0].sum == "not taken") is (deny >= 3)
    assert bool(verdict.missing) is (deny < 4)


@given(n=st.integers(3, 256), data=st.data())
def test_no_coalition_can_deny_a_sum_that_was_taken_and_the_next_round_always_can_one_that_was_not(n, data):
    c = data.draw(st.integers(1, max(n - 2, 1)))
    t = (n + c) // 2 + 1
    need = n - t + c + 1
    honest_releasers = t - c  # at least, where t released shares; they say so
    assert n - honest_releasers < need
    assert need <= t  # U1 of one finished round, of which each member says something


def of_site(report, said: Mapping[str, bytes], place: tuple[int, int], name: bytes, run: str = RUN):
    """A report of a finished round in which sites said this."""
    return replace(report, training_run=run, round_number=place[0], attempt=place[1], released=said, round_id=name)


def test_only_the_next_statement_of_a_site_in_this_run_denies(tmp_path):
    """What a site says after it spoke once is about later rounds; and the order of two runs is nobody's to know."""
    cohort = Cohort(5)
    (report,) = verify([put(tmp_path, forge(cohort))], cohort.policy, cohort.roster).rounds
    first, hidden, third = (bytes([i]) * 32 for i in (1, 2, 3))
    zero = bytes(32)

    def denied(*reports) -> tuple[str, ...]:
        return judging._denied_by(RUN, (2, 0), reports, cohort.policy)

    before = of_site(report, {}, (1, 0), first)
    everybody = dict.fromkeys(cohort.ids, first)
    assert denied(before, of_site(report, everybody, (3, 0), third)) == tuple(cohort.ids[:5])
    assert denied(before, of_site(report, {**everybody, "site-a": zero}, (3, 0), third))
    released = dict.fromkeys(cohort.ids, hidden)
    taken = of_site(report, released, (3, 0), third)
    assert not denied(before, taken)
    assert not denied(before, taken, of_site(report, everybody, (4, 0), hidden))  # too late to take it back
    assert not denied(of_site(report, everybody, (1, 0), first))  # said before the round
    assert not denied(before, of_site(report, everybody, (3, 0), third, run="run-2"))  # maybe signed before it
    elsewhere = of_site(report, {}, (1, 0), hidden, run="run-2")
    assert not denied(before, elsewhere, taken)  # a round of another run may be later than this one
    parts = [of_site(report, dict.fromkeys(ids, zero), (3 + i, 0), third) for i, ids in enumerate(["ab", "c"])]
    assert not denied(before, *parts[:1])
    assert denied(before, *parts) == ("a", "b", "c")


def test_what_one_header_shows_is_said(tmp_path):
    """One colluder and the server can make such a file of any round: it proves nothing."""
    cohort = Cohort(5)
    path = headers_of(tmp_path / "t", cohort, 9, GENESIS, header=lambda u, h: h if u == "site-e" else None)
    verdict = verify([path], cohort.policy, cohort.roster)
    assert (verdict.status, verdict.rounds[0].sites, verdict.rounds[0].sum) == ("incomplete", ("site-e",), "not shown")
    told = "the file shows that 1 of 5 sites signed headers (site-e), and nothing else"
    assert any(told in sentence for sentence in verdict.not_shown)


def test_a_round_number_far_away_is_one_gap(tmp_path):
    cohort, far = Cohort(5), 2**62
    path = headers_of(tmp_path / "t", cohort, far, GENESIS)
    told = verify([path], cohort.policy, cohort.roster).not_shown
    assert f"rounds 1 to {far - 1} of run run-1: there is no file, and whether a sum was taken is open" in told


def test_files_of_several_runs_are_one_set(tmp_path):
    """A coordinator that starts a new run: what sites released in the old one belongs to the same session."""
    cohort = Cohort(5, private=True)
    head = recorded(tmp_path / "1", cohort).server.head
    recorded(tmp_path / "2", cohort, run="run-2")
    recorded(tmp_path / "3", cohort, number=2, head=head)
    files = [tmp_path / name for name in "123"]
    assert verify(files, cohort.policy, cohort.roster).status == "holds"
    assert verify(files[1:2], cohort.policy, cohort.roster).status == "incomplete"
    assert verify([files[0], files[2]], cohort.policy, cohort.roster).status == "incomplete"


@pytest.mark.parametrize("made", ["text", "nothing", "another format", "version 1", "no opening", "cut off"])
def test_a_file_that_is_no_transcript_is_no_violation(tmp_path, made):
    cohort, path = Cohort(5), tmp_path / "t"
    match made:
        case "text":
            path.write_text("[clients]\nbern = 3\n" * 99)
        case "nothing":
            path.write_bytes(b"")
        case "another format":
            written(path, forge(cohort, opening=lambda _, o: replace(o, format=3)))
        case "version 1":
            written(path, [b"\0\0\0\x1bsecagg/1 transcript-opening" + bytes(80)])
        case "no opening":
            written(path, forge(cohort)[1:])
        case "cut off":
            path.write_bytes(written(path, forge(cohort)).read_bytes()[:30])
    with pytest.raises(ConfigError, match="is no transcript of protocol version 2"):
        verify([path], cohort.policy, cohort.roster)


# --- A client that accepts ---------------------------------------------------------------------------------------


def waiting(cohort: Cohort, site: str = "site-a") -> bytes | None:
    """The round that a site must replay before it contributes again."""
    with cohort.stores[site].transaction() as marks:
        return marks.open_release and marks.open_release.round_id


def test_a_client_accepts_what_holds_and_is_its_own_log(tmp_path):
    cohort = Cohort(5)
    play = recorded(tmp_path / "t", cohort)
    round_id = play.server.receipt.round_id
    assert waiting(cohort) == round_id
    verdict = verify([tmp_path / "t"], cohort.policy, cohort.roster)
    (report,) = accept(verdict, cohort.stores["site-a"])
    assert report.round_id == round_id
    assert waiting(cohort) is None
    assert waiting(cohort, "site-b") == round_id
    accept(verdict, cohort.stores["site-a"])  # again changes nothing


def test_a_client_refuses_a_history_that_contradicts_its_log_as_a_whole(tmp_path):
    cohort = Cohort(5)
    told = forge(cohort)
    head = next(r.head for r in told if isinstance(r, Receipt))
    files = [put(tmp_path, told), put(tmp_path, forge(cohort, context=cohort.context(2, head=head)))]
    verdict = verify(files, cohort.policy, cohort.roster)
    other = next(r for r in forge(cohort, context=cohort.context(2, head=head)) if isinstance(r, Receipt))
    store = MemoryStore()
    with store.transaction() as marks:
        marks.finish(verdict.session, RUN, [verdict.rounds[0].receipt, other])
    with pytest.raises(ViolationError, match=r"\[T-02\] .*1: round 2, attempt 0 of run run-1 does not follow") as error:
        accept(verdict, store)
    assert error.value.file == str(files[1])
    with store.transaction() as marks:
        assert not marks.replayed(verdict.rounds[0].round_id)
    gap = MemoryStore()
    with pytest.raises(ViolationError, match="does not follow this site's log"):
        accept(verify(files[1:], cohort.policy, cohort.roster), gap)
    assert gap._entries == {}


def test_a_client_that_fell_silent_before_the_result_learns_it_from_the_transcripts(tmp_path):
    cohort = Cohort(5, private=True)
    first = recorded(tmp_path / "1", cohort)
    second = recorded(tmp_path / "2", cohort, number=2, head=first.server.head)
    verdict = verify([tmp_path / "1", tmp_path / "2"], cohort.policy, cohort.roster)
    store = MemoryStore()
    assert len(accept(verdict, store)) == 2
    with store.transaction() as marks:
        assert marks.head(verdict.session, RUN) == (2, second.server.head)
        assert all(marks.replayed(report.round_id) for report in verdict.rounds)


def test_what_follows_from_a_round_is_known_before_it_counts_as_replayed(tmp_path):
    """A process killed in between took part again, and knew no more which model may come next."""
    cohort = Cohort(5)
    recorded(tmp_path / "t", cohort)
    store, followed = MemoryStore(), []

    def killed(receipt):
        followed.append(receipt)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(store, cohort.policy, cohort.roster, tmp_path / "t", killed)
    assert store._entries == {}
    assert replay(store, cohort.policy, cohort.roster, tmp_path / "t", followed.append) == followed[0] == followed[1]
    with store.transaction() as marks:
        assert marks.replayed(followed[0].round_id)


def test_a_client_accepts_nothing_less(tmp_path):
    cohort = Cohort(5)
    head = recorded(tmp_path / "t", cohort, vectors=False).server.head
    store, before = cohort.stores["site-a"], dict(cohort.stores["site-a"]._entries)
    with pytest.raises(ViolationError, match=r"\[T-13\] there is no round of which it could be checked"):
        accept(verify([tmp_path / "t"], cohort.policy, cohort.roster), store)
    lied = put(tmp_path, forge(cohort, context=cohort.context(2, head=head), total=plus_one(cohort)))
    with pytest.raises(ViolationError, match=r"\[T-13\]"):
        accept(verify([lied], cohort.policy, cohort.roster), store)
    whole = put(tmp_path, forge(cohort, context=cohort.context(3, head=head)))
    verdict = verify([whole, lied], cohort.policy, cohort.roster)
    assert (len(verdict.rounds), verdict.violation.check) == (1, "T-19")
    with pytest.raises(ViolationError, match=r"\[T-19\]"):
        accept(verdict, MemoryStore())
    burned = headers_of(tmp_path / "burned", cohort, 2, head)
    for files in ([], [burned]):
        with pytest.raises(ViolationError):
            accept(verify(files, cohort.policy, cohort.roster), store)
    assert store._entries == before


def test_only_the_rounds_that_were_checked_are_replayed(tmp_path):
    cohort = Cohort(5, private=True)
    head = recorded(tmp_path / "1", cohort, vectors=False).server.head
    head = recorded(tmp_path / "2", cohort, number=2, head=head).server.head
    verdict = verify([tmp_path / "1", tmp_path / "2"], cohort.policy, cohort.roster)
    assert (verdict.status, verdict.rounds[0].unchecked) == ("no power", ("T-13",))
    assert [report.round_number for report in accept(verdict, cohort.stores["site-a"])] == [2]
    with cohort.stores["site-a"].transaction() as marks:
        assert [marks.replayed(report.round_id) for report in verdict.rounds] == [False, True]


class Federation:
    """Five sites of one project with their stores, through `open_round`; keys and roster are those of `Cohort`."""

    def __init__(self, project: str, length: int = 5) -> None:
        self.cohort = Cohort(5, length=length)
        self.cohort.policy = replace(self.cohort.policy, project=project)

    def start(self, number: int, head: bytes = GENESIS, missed: tuple[Receipt, ...] = (), run: str = RUN) -> RoundStart:
        return RoundStart(run, number, 0, bytes(32), bytes(32), head, missed).sign(SERVER_KEY)

    def play(self, start: RoundStart, sites, path: Path | None = None) -> ServerSession:
        """A round to the sum; with a path the sites are told, and it is published."""
        cohort = self.cohort
        context = replace(cohort.context(start.round_number, head=start.previous_head), training_run=start.training_run)
        recorder = path and Recorder(path, cohort.policy, cohort.roster, context, signing_key=SERVER_KEY)
        server = ServerSession(cohort.policy, cohort.roster, context, SERVER_KEY, record=recorder)
        clients, out = {}, {}
        for u in sites:
            store, hashes = cohort.stores[u], {"model_hash": bytes(32), "task_hash": bytes(32)}
            opened = open_round(cohort.policy, cohort.roster, start.training_run, start, store, **hashes)
            clients[u] = ClientSession(cohort.policy, u, cohort.keys[u], cohort.roster, opened, store)
            clients[u].provide(cohort.updates[u], stream=Stream.seeded(7, u))
            out[u] = clients[u].start()
        while not server.finished:
            for u, message in out.items():
                server.receive(u, message)
            replies = server.close_step()
            if not server.finished or path:
                out = {u: clients[u].receive(reply) for u, reply in replies.items()}
        if path:
            for u, message in out.items():
                server.receive(u, message)
            recorder.publish()
        return server


@pytest.mark.parametrize("fooled", [False, True])
@pytest.mark.parametrize("undefended", [False, True])
@pytest.mark.parametrize("other", ["project", "run"])
def test_the_transcript_of_another_project_or_run_clears_nothing(tmp_path, monkeypatch, other, fooled, undefended):
    """The sum of one round is taken in secret; sites are shown another's transcript, and the round is done again.

    `fooled`: the sites verify it under the policy of the project that it is of, so that it holds.
    """
    liver = Federation("liver")
    brain = Federation("brain", length=7) if other == "project" else liver
    five = liver.play(liver.start(1), liver.cohort.ids).result.copy()  # nobody is told
    if other == "run":
        honest = forge(liver.cohort, context=replace(liver.cohort.context(), training_run="run-0"))
        path = put(tmp_path, honest)
    else:
        path = tmp_path / "brain"
        brain.play(brain.start(1), brain.cohort.ids, path)
    if undefended:  # whatever is open is cleared by whatever was replayed, as where marks hold names of runs
        replay, told = Marks.replay, lambda marks: (marks.open_release.claim.slot, marks.open_release.round_id)
        monkeypatch.setattr(Marks, "replay", lambda marks, *_: replay(marks, *told(marks)))
    reader = brain if fooled else liver
    verdict = verify([path], reader.cohort.policy, reader.cohort.roster)
    if other == "project" and not fooled:
        assert verdict.violation.check == "T-03"
        assert "project 'brain' and yours is 'liver'" in str(verdict.violation)
    for u in liver.cohort.ids[1:]:
        if verdict.violation is None:
            accept(verdict, liver.cohort.stores[u])
        else:
            with pytest.raises(ViolationError):
                accept(verdict, liver.cohort.stores[u])
    again = liver.start(2)
    if undefended and verdict.violation is None:
        four = liver.play(again, liver.cohort.ids[1:]).result
        assert np.array_equal(five - four, liver.cohort.plain_sum(["site-a"]))  # exact: one site's update
    else:
        with pytest.raises(ExposureError):
            liver.play(again, liver.cohort.ids[1:])
        assert all(waiting(liver.cohort, u) for u in liver.cohort.ids)


def test_the_transcript_of_the_very_round_clears_it(tmp_path):
    liver, path = Federation("liver"), tmp_path / "1"
    first = liver.play(liver.start(1), liver.cohort.ids, path)
    verdict = verify([path], liver.cohort.policy, liver.cohort.roster)
    for u in liver.cohort.ids[1:]:
        accept(verdict, liver.cohort.stores[u])
    second = liver.play(liver.start(2, first.head, (first.receipt,)), liver.cohort.ids[1:], tmp_path / "2")
    assert second.result is not None
    assert verify([path, tmp_path / "2"], liver.cohort.policy, liver.cohort.roster).status == "holds"


@pytest.mark.parametrize("undefended", [False, True])
def test_a_run_that_starts_over_on_the_same_model_needs_an_acceptance_though_all_was_replayed(
    tmp_path, monkeypatch, undefended
):
    """The first sum is public; the same updates without one site, in another run, would be the difference."""
    liver, path = Federation("liver"), tmp_path / "1"
    first = liver.play(liver.start(1), liver.cohort.ids, path)
    verdict, four = verify([path], liver.cohort.policy, liver.cohort.roster), liver.cohort.ids[1:]
    for u in four:
        accept(verdict, liver.cohort.stores[u])
    if undefended:  # a replay clears the round for every run
        monkeypatch.setattr("secagg.store._same_run", lambda claim, slot: True)
    else:
        with pytest.raises(ExposureError) as refused:
            liver.play(liver.start(1, run="run-2"), four)
        assert refused.value.round_ids == (first.receipt.round_id,)
        for u in four:
            accept_exposure(liver.cohort.stores[u], liver.cohort.keys[u], u, first.receipt.round_id)
    again = liver.play(liver.start(1, run="run-2"), four)
    assert np.array_equal(first.result - again.result, liver.cohort.plain_sum(["site-a"]))


def test_a_verdict_is_plain_for_machines(tmp_path):
    cohort = Cohort(5)
    play = recorded(tmp_path / "t", cohort, {"site-c": UNMASK})
    told_to_machines = verify([tmp_path / "t"], cohort.policy, cohort.roster).as_dict()
    assert list(told_to_machines) == [
        *("status", "exit_code", "session", "project", "policy_hash", "suite", "checks", "violation", "rounds"),
        *("missing", "notes", "not_shown"),
    ]
    assert [check["id"] for check in told_to_machines["checks"]] == CHECKS
    assert told_to_machines["session"] == session_id(cohort.policy, cohort.roster).hex()
    assert (told_to_machines["project"], told_to_machines["suite"]) == ("test", "X25519")
    assert told_to_machines["policy_hash"] == cohort.policy.hash().hex()
    (told,) = told_to_machines["rounds"]
    assert told["round_id"] == play.server.receipt.round_id.hex()
    assert (told["model_hash"], told["task_hash"]) == (bytes(32).hex(),) * 2
    assert (told["sites"], told["included"], told["unconfirmed"]) == (cohort.ids, cohort.ids, ["site-c"])
    assert told["released"] == dict.fromkeys(cohort.ids, bytes(32).hex())
    assert json.loads(json.dumps(told_to_machines)) == told_to_machines
    assert isinstance(verify([], cohort.policy, cohort.roster), Verdict)
    assert verify([], cohort.policy, cohort.roster).status == "no power"
    assert issubclass(ViolationError, SecAggError)
