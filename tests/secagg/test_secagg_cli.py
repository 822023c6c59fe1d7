"""The `secagg` command: what it writes, what it says, and one sentence with a non-zero status where it cannot."""

import copy
import dataclasses
import json
import pickle
import re
import stat
import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import secagg
from secagg import ConfigError, Field, Layout, Policy, ServerSession, SigningKey, Suite, accept_exposure, wire
from secagg.cli import app
from secagg.cli.cost import Cost
from secagg.cli.policy import explanation, traffic
from secagg.files import load_policy, load_roster, policy_text, roster_text, secret_text
from secagg.messages import Attestation
from secagg.sqlite import SqliteStore
from secagg.transcript_files import Recorder
from secagg.writing import PRIVATE, write_new
from tests.support.cohort import SERVER_KEY, Cohort, Play
from tests.support.forge import changed, forge, replace, written

WIDE = {"COLUMNS": "200", "TERM": "dumb"}


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env=WIDE)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


def refused(*arguments: str, says: str) -> None:
    output = run(*arguments, status=1)
    assert says in output
    assert output.startswith("secagg: ")
    assert output.count("\n") == 1


def test_keys_become_a_roster(tmp_path):
    for name in ("bern", "amsterdam", "st.gallen"):
        run("keygen", name, "--folder", str(tmp_path))
    secret = tmp_path / "bern.signing"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    key = SigningKey.from_bytes(bytes.fromhex(tomllib.loads(secret.read_text())["signing_key"]))
    out = tmp_path / "roster.toml"
    assert "3 clients" in run("roster", *map(str, tmp_path.glob("*.pub")), "--out", str(out))
    clients = tomllib.loads(out.read_text())["clients"]
    assert list(clients) == ["amsterdam", "bern", "st.gallen"]
    assert clients["bern"] == key.verify_key.hex()
    assert key.export().hex() not in out.read_text() + (tmp_path / "bern.pub").read_text()


def test_keygen_prints_no_key_and_overwrites_nothing(tmp_path):
    output = run("keygen", "bern", "--folder", str(tmp_path))
    secret = tomllib.loads((tmp_path / "bern.signing").read_text())["signing_key"]
    assert secret not in output
    refused("keygen", "bern", "--folder", str(tmp_path), says="exists already")
    assert tomllib.loads((tmp_path / "bern.signing").read_text())["signing_key"] == secret
    refused("keygen", "two words", "--folder", str(tmp_path), says="client id 'two words'")
    refused("keygen", "bern", "--folder", str(tmp_path / "nowhere"), says="No such file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bern.pub", "bern.signing"]


def test_a_roster_of_doubtful_files_is_refused(tmp_path):
    run("keygen", "bern", "--folder", str(tmp_path))
    public, out = tmp_path / "bern.pub", tmp_path / "roster.toml"
    twin = tmp_path / "twin.pub"
    twin.write_text(public.read_text().replace("bern", "twin"))
    (tmp_path / "broken.pub").write_text("id = 3")
    (tmp_path / "short.pub").write_text('id = "x"\nverify_key = "00"\n')
    (tmp_path / "binary.pub").write_bytes(b"\xff\xfe")
    for arguments, says in (
        (["bern.signing"], "SECRET key"),
        (["bern.pub", "bern.pub"], "second key of bern"),
        (["bern.pub", "twin.pub"], "share one verify key"),
        (["broken.pub"], "not a public key file"),
        (["binary.pub"], "not a public key file"),
        (["short.pub"], "verify key of x"),
        (["nowhere.pub"], "No such file"),
    ):
        refused("roster", *[str(tmp_path / name) for name in arguments], "--out", str(out), says=says)
    assert not out.exists()


def test_a_policy_is_explained_in_words():
    output = run("policy", "--clients", "10", "--max-corrupt", "2")
    for words in ("the server and 4 clients must collude", "7 of 10", "at least 7 inputs", "at least 5 are honest"):
        assert words in output
    assert "20 are needed" in output
    refused("policy", "--clients", "2", says="clients = 2")
    refused("policy", "--clients", "10", "--max-corrupt", "9", says="max_corrupt = 9")
    refused("policy", "--clients", "10", "--bits", "16", says="bits = 16 can overflow")


def test_the_seconds_of_a_policy_are_measured_and_grow_with_what_there_is_to_do():
    output = run("policy", "--clients", "10", "--length", "100")
    assert "Seconds per client" in output
    assert "without dropouts" in output
    assert "estimated from primitives measured just now" in output

    small = Cost(Policy(project="p", clients=10, length=100, clip_range=1.0, suite=Suite.X25519))
    assert small.client() > 0
    assert small.server(0) > 0
    for primitive in vars(small).keys() - {"_policy"}:  # each takes a second: no clock decides what follows
        setattr(small, primitive, 1.0)
    client, server = small.client(), small.server(0)
    assert small.server(3) > server
    for more in ({"clients": 20}, {"length": 200}):
        larger = copy.copy(small)
        larger._policy = replace(small._policy, min_survivors=0, bits=0, **more)
        assert larger.client() > client
        assert larger.server(0) > server


@pytest.mark.parametrize("n", [3, 10, 256])
def test_who_must_collude_is_never_fewer_than_the_policy_says(n):
    for c in range(1, n - 1):
        explained = dict(explained_of(n, c))
        assert int(explained["To read one input"].split()[3]) > c
        if n == 256 and c > 2:
            break


def explained_of(n: int, c: int):
    return explanation(Policy(project="p", clients=n, length=1, clip_range=1.0, max_corrupt=c, suite=Suite.X25519))


@pytest.mark.parametrize("suite", list(Suite))
def test_the_bytes_of_a_policy_are_those_on_the_wire(suite):
    up, down = {}, {}
    cohort = Cohort(5, suite=suite)

    def count(book):
        def hook(step, who, message):
            book[who] = book.get(who, 0) + len(wire.encode(message))
            return message

        return hook

    play = cohort.play(up=count(up), down=count(down))
    told_up, told_down = traffic(cohort.policy)
    vector = 4 * (cohort.length + cohort.policy.slots)
    assert isinstance(play.server, ServerSession)
    assert abs(up["site-c"] - vector - told_up) < 300
    assert abs(down["site-c"] - vector - told_down) < 200


@pytest.mark.parametrize("suite", [suite.value for suite in Suite])
def test_the_demonstration_adds_exactly_and_says_who_dropped_out(suite):
    output = run("demo", "--clients", "5", "--drop", "1", "--length", "50", "--suite", suite)
    assert "Dropped out after ShareKeys: site-5." in output
    assert "The sum of 4 vectors equals the plain sum of the same quantised vectors, bit for bit." in output
    for words in ("AdvertiseKeys", "MaskedInputCollection", "Unmasking", "An eavesdropper learns sizes and times"):
        assert words in output


def test_the_transcript_of_a_demonstration_can_be_verified(tmp_path):
    path = tmp_path / "round.transcript"
    beside = ["--roster", str(tmp_path / "round.roster.toml"), "--policy", str(tmp_path / "round.policy.toml")]
    shape = ["--clients", "5", "--drop", "1", "--length", "50", "--suite", "X25519"]
    arguments = ["demo", *shape, "--transcript", str(path)]
    assert f"secagg verify-transcript {path} {' '.join(beside)}" in run(*arguments)
    assert "Everything holds." in run("verify-transcript", str(path), *beside)
    refused(*arguments, says="exists already")


@pytest.fixture
def cohort(tmp_path):
    cohort = Cohort(5)
    (tmp_path / "roster.toml").write_text(roster_text(cohort.roster))
    (tmp_path / "policy.toml").write_text(policy_text(cohort.policy))
    return cohort


def own(tmp_path) -> list[str]:
    return ["--roster", str(tmp_path / "roster.toml"), "--policy", str(tmp_path / "policy.toml")]


def verifying(tmp_path, *files: str, status: int, options=()) -> str:
    return run("verify-transcript", *[str(tmp_path / name) for name in files], *own(tmp_path), *options, status=status)


def test_a_transcript_that_holds(tmp_path, cohort):
    written(tmp_path / "t", forge(cohort, {"site-e": "MaskedInputCollection"}))
    output = verifying(tmp_path, "t", status=0)
    assert output.count(" held ") == 19
    members = "4 included (site-a, site-b, site-c, site-d), dropped: site-e."
    assert f"Round 1, attempt 0 of run run-1: {members}" in output
    assert f"Your project test, policy {cohort.policy.hash().hex()}, suite X25519, session " in output
    assert f"  model {bytes(32).hex()}, task {bytes(32).hex()}.\n" in output
    assert "Not shown: run run-1 after round 1: nothing is known of what came later.\n" in output
    assert output.endswith("Everything holds.\n")
    answer = json.loads(verifying(tmp_path, "t", status=0, options=["--json"]))
    assert (answer["status"], answer["exit_code"], answer["violation"]) == ("holds", 0, None)


def test_a_transcript_that_lies(tmp_path, cohort):
    lie = changed(forge(cohort), Attestation, "site-b", lambda a: replace(a, signature=bytes(64)))
    written(tmp_path / "t", lie)
    output = verifying(tmp_path, "t", status=1)
    (told,) = [line for line in output.splitlines() if line.startswith("Violated: ")]
    assert told.startswith(f"Violated: [T-04] {tmp_path / 't'}: record ")
    assert told.endswith(" of site-b: the attestation carries no signature of its sender.")
    answer = json.loads(verifying(tmp_path, "t", status=1, options=["--json"]))
    assert (answer["violation"]["check"], answer["violation"]["sender"]) == ("T-04", "site-b")


def test_a_file_that_is_no_transcript_is_no_verdict(tmp_path, cohort):
    output = verifying(tmp_path, "roster.toml", status=3)
    assert output.startswith(f"secagg: {tmp_path / 'roster.toml'} is no transcript of protocol version 2")
    assert output.count("\n") == 1


def test_a_transcript_that_could_not_be_checked(tmp_path, cohort):
    written(tmp_path / "t", forge(cohort, vectors=False))
    assert "could not be checked: T-13." in verifying(tmp_path, "t", status=2)
    written(tmp_path / "u", forge(cohort, only_headers=True))
    output = verifying(tmp_path, "u", status=2)
    assert "no sum is published; headers of site-a, site-b" in output
    assert "Not shown: round 1, attempt 0 of run run-1: whether its sum was taken;" in output


def test_a_set_that_is_not_complete(tmp_path, cohort):
    written(tmp_path / "t", forge(cohort, released={"site-b": bytes([7]) * 32}))
    output = verifying(tmp_path, "t", status=2)
    gone = f"round {'07' * 32}, for which site-b released unmasking shares: it is not among these files."
    assert f"Not shown: {gone}" in output
    assert output.count(" incomplete ") == 1
    answer = json.loads(verifying(tmp_path, "t", status=2, options=["--json"]))
    assert answer["missing"] == [{"round_id": "07" * 32, "said_by": ["site-b"], "name": ""}]
    assert answer["status"] == "incomplete"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["t", "--policy", "policy.toml"], "Missing option"),
        (["t", "--roster", "roster.toml"], "Missing option"),
        (["--roster", "roster.toml", "--policy", "policy.toml"], "Missing argument"),
        (["t", "--roster", "roster.toml", "--policy", "policy.toml", "--fast"], "No such option"),
        (["t", "--roster", "t", "--policy", "policy.toml"], "t is not text"),
        (["t", "--roster", "roster.toml", "--policy", "roster.toml"], "is not a policy"),
        (["t", "--roster", "six.toml", "--policy", "policy.toml"], "the roster lists 6 clients"),
        (["t", "--roster", "nowhere", "--policy", "policy.toml"], "No such file"),
        (["t", "--roster", "roster.toml", "--policy", "nowhere"], "No such file"),
        (["nowhere", "--roster", "roster.toml", "--policy", "policy.toml"], "No such file"),
        ([".", "--roster", "roster.toml", "--policy", "policy.toml"], ". is a folder: name the transcripts in it"),
    ],
)
def test_a_verification_that_cannot_run_is_never_taken_for_a_verdict(tmp_path, cohort, monkeypatch, arguments, says):
    written(tmp_path / "t", forge(cohort))
    (tmp_path / "six.toml").write_text(roster_text(Cohort(6).roster))
    monkeypatch.chdir(tmp_path)
    assert says in run("verify-transcript", *arguments, status=3)


def test_a_stranger_can_bring_neither_roster_nor_policy(tmp_path, cohort):
    other = written(tmp_path / "t", forge(Cohort(6)), signing_key=SERVER_KEY)
    assert "[T-03]" in verifying(tmp_path, other.name, status=1)
    brain = Cohort(5)
    brain.policy = replace(brain.policy, project="brain")
    other = written(tmp_path / "u", forge(brain), signing_key=SERVER_KEY)
    assert "the transcript is of project 'brain' and yours is 'test'" in verifying(tmp_path, other.name, status=1)


# --- Policy files ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_a_policy_file_makes_the_same_policy_to_the_last_bit(data):
    clients = data.draw(st.integers(4, 256))
    value_bits = data.draw(st.integers(14, 20))
    weights = st.floats(2.0**-6, 2.0**6)  # the smallest range is more than one step of the largest
    policy = Policy(
        project=data.draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        clients=clients,
        length=data.draw(st.integers(1, 10**9)),
        clip_range=data.draw(st.floats(1e-6, 1e6)),
        max_corrupt=data.draw(st.integers(1, max(clients - 2, 1))),
        suite=data.draw(st.sampled_from(list(Suite))),
        bits=data.draw(st.integers(30, 64)),
        value_bits=value_bits,
        weights=data.draw(st.dictionaries(st.sampled_from(["site-a", "b.c", "D"]), weights)),
        server_key=data.draw(st.sampled_from([b"", bytes(range(32))])),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.toml"
        path.write_text(policy_text(policy))
        read = load_policy(path)
    assert (read, read.hash(), read.suite) == (policy, policy.hash(), policy.suite)


def test_a_policy_file_holds_every_field_of_a_policy():
    policy = dataclasses.replace(Cohort(5, weights={"site-a": 2.0}).policy, excess_seeds=True)
    written_fields = tomllib.loads(policy_text(policy))["policy"]
    assert written_fields.keys() == {field.name for field in dataclasses.fields(Policy)} - {"layout"}


def test_a_policy_with_fields_travels_and_is_explained(tmp_path):
    layout = Layout.weighted_mean(
        {
            "a.b": Field.floats((2, 3), clip_range=0.1 + 0.2, value_bits=20),
            "in": {"n": Field.counts(largest=10**6), "x": Field.integers(4, bits=20, step=0.1)},
        },
        largest_weight=300,
    )
    policy = Policy(project="p", clients=5, layout=layout)
    for back in (
        Policy.from_toml(policy.to_toml()),
        Policy.from_json(policy.to_json()),
        pickle.loads(pickle.dumps(policy)),
    ):
        assert (back, back.hash()) == (policy, policy.hash())
        assert back.layout == layout
        assert list(back.layout) == ["weight", "a.b", "in/n", "in/x"]
    (tmp_path / "policy.toml").write_text(policy.to_toml())
    rows = json.loads(run("policy", "--file", str(tmp_path / "policy.toml"), "--json"))
    assert rows["Field a.b"].startswith("6 floats within 0.3, weighted by up to 300, each client right to 0.00017;")
    assert rows["Field in/n"] == "1 counts of 0 to 1000000, exact; 24 bits"
    assert rows["Field in/x"] == "4 integers as they are, each worth 0.1; 20 bits"
    assert rows["Field weight"].endswith("18 bits")
    assert rows["Bits"].startswith("24 on the wire; 24 are needed")


def test_bits_are_what_is_needed_unless_said():
    assert json.loads(run("policy", "--clients", "10", "--json"))["Bits"].startswith("20 on the wire; 20 are needed")
    told = json.loads(run("policy", "--clients", "10", "--bits", "32", "--json"))["Bits"]
    assert told.startswith("32 on the wire; 20 are needed")


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ('kind = "float"', "the layout's 'x': a field of kind 'float' has nothing; it takes shape, clip_range and"),
        ('kind = "flat"', "the layout's 'x': kind = 'flat': use 'float', 'count', 'weight', 'integer'"),
        ('kind = "count"\nshape = [3]\nlargest = 2.5', "the layout's 'x': largest = 2.5: give a whole number"),
        ('kind = "float"\nshape = 3\nclip_range = -1.0', "the layout's 'x': clip_range = -1.0: must be a positive"),
    ],
)
def test_a_doubtful_field_in_a_policy_file_is_named(tmp_path, field, says):
    path = tmp_path / "policy.toml"
    path.write_text(f'[policy]\nproject = "p"\nclients = 5\n[[policy.layout]]\nname = "x"\n{field}\n')
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_policy(path)


def test_the_key_that_keygen_writes_is_read_by_an_importer(tmp_path):
    run("keygen", "site-a", "--folder", str(tmp_path))
    run("keygen", "site-b", "--folder", str(tmp_path))
    run(
        "roster",
        *(str(tmp_path / name) for name in ("site-a.pub", "site-b.pub")),
        "--out",
        str(tmp_path / "roster.toml"),
    )
    name, key = secagg.load_key(str(tmp_path / "site-a.signing"))
    pinned = secagg.load_roster(tmp_path / "roster.toml")
    assert (name, pinned["site-a"]) == ("site-a", key.verify_key)


MINIMAL = '[policy]\nproject = "p"\nclients = 5\nlength = 9\nclip_range = 1\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINIMAL + "colour = 3\n", "unknown field 'colour'"),
        (MINIMAL.replace("length = 9\n", ""), "lacks the field 'length'"),
        (MINIMAL.replace("length = 9", "length = 9.0"), "length = 9.0: give a whole number"),
        (MINIMAL.replace("length = 9", "length = true"), "length = True: give a whole number"),
        (MINIMAL.replace("clip_range = 1", "clip_range = true"), "clip_range = True: give a number"),
        (MINIMAL.replace("clip_range = 1", 'clip_range = "1"'), "clip_range = '1': give a number"),
        (MINIMAL.replace("clip_range = 1", "clip_range = nan"), "clip_range"),
        (MINIMAL + 'suite = "ROT13"\n', "field 'suite'"),
        (MINIMAL + 'server_key = "xy"\n', "field 'server_key'"),
        (MINIMAL + "server_key = 3\n", "field 'server_key'"),
        (MINIMAL + "weights = 3\n", "field 'weights'"),
        (MINIMAL + '[policy.weights]\na = "1"\n', "weight of a = '1': give a number"),
        (MINIMAL + "min_survivors = 2\n", "min_survivors = 2"),
        (MINIMAL.replace('"p"', "3"), "project is an int: give a name"),
        ("[clients]\n", "is not a policy"),
        ("policy = 3\n", "the policy is an int: give a table"),
        ("[policy", "is not a policy"),
    ],
)
def test_a_doubtful_policy_file_is_refused_with_a_sentence(tmp_path, text, says):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        load_policy(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_short_policy_file_is_completed_and_may_lie_beside_a_roster(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text(MINIMAL + roster_text(Cohort(5).roster))
    assert load_policy(path) == Policy(project="p", clients=5, length=9, clip_range=1.0)
    assert load_roster(path).hash() == Cohort(5).roster.hash()


# --- The marks of a data set -------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path, cohort):
    """site-a of a cohort that released shares in round 1, its store and key on the disk, and the transcript."""
    context = cohort.context()
    cohort.stores["site-a"] = SqliteStore(tmp_path / "store", "livers")
    with Recorder(tmp_path / "t", cohort.policy, cohort.roster, context, signing_key=SERVER_KEY) as recorder:
        play = Play(cohort, context=context)
        play.server = ServerSession(cohort.policy, cohort.roster, context, SERVER_KEY, record=recorder)
        play.to_the_end()
    cohort.stores["site-a"].close()
    write_new(tmp_path / "key", secret_text("site-a", cohort.keys["site-a"]), mode=PRIVATE)
    return play.server.receipt.round_id.hex()


def kept(tmp_path):
    with SqliteStore(tmp_path / "store", "livers") as store, store.transaction() as marks:
        return marks.open_release, marks.acceptances


def test_the_marks_of_a_data_set_are_shown(tmp_path, released):
    output = run("marks", "show", str(tmp_path / "store"))
    assert "Data set livers." in output
    assert "Open: shares were sent for round 1, attempt 0 of run run-1, and its transcript was not replayed." in output
    assert f"  round id {released}\n" in output
    assert "joined last: round 1, attempt 0; log up to round 1, head " in output


def test_rounds_that_others_followed_are_shown_as_long_as_they_matter(tmp_path, released, cohort):
    """Accepted once and followed by another release, and then replayed late: another run on its model waits for it."""
    run(*accepting(tmp_path, released, "--yes"))
    store = cohort.stores["site-a"] = SqliteStore(tmp_path / "store", "livers")
    for u in cohort.ids[1:]:
        accept_exposure(cohort.stores[u], cohort.keys[u], u, bytes.fromhex(released))
    second = Play(cohort, context=cohort.context(2, head=bytes.fromhex(head_of(store)))).to_the_end()
    store.close()
    assert (second.failure, second.errors) == (None, {})
    output = run("marks", "show", str(tmp_path / "store"))
    told = "and only rounds on its model still wait for its transcript"
    assert f"Passed over: shares were sent for round 1, attempt 0 of run run-1, {told}.\n" in output
    assert f"  round id {released}\n" in output
    assert "Open: shares were sent for round 2, attempt 0 of run run-1" in output
    run("marks", "replay", str(tmp_path / "store"), str(tmp_path / "t"), *own(tmp_path))
    output = run("marks", "show", str(tmp_path / "store"))
    assert "Passed over" not in output
    assert "Replayed: 1 round; only another run on the very model of such a round needs it accepted by name." in output


def head_of(store) -> str:
    with store.transaction() as marks:
        ((session, training_run),) = marks.runs
        return marks.head(session, training_run)[1].hex()


def test_an_operator_replays_a_round(tmp_path, released):
    arguments = [str(tmp_path / "store"), str(tmp_path / "t"), *own(tmp_path)]
    output = run("marks", "replay", *arguments)
    assert f"Replayed: round 1, attempt 0 of run run-1, round id {released}." in output
    assert kept(tmp_path)[0] is None
    assert "No round is open" in run("marks", "show", str(tmp_path / "store"))


def test_a_transcript_of_another_round_replays_nothing_that_is_open(tmp_path, released, cohort):
    other = forge(cohort, context=cohort.context(2, head=bytes(32)))
    written(tmp_path / "u", other)
    refused("marks", "replay", str(tmp_path / "store"), str(tmp_path / "u"), *own(tmp_path), says="does not follow")
    fresh = forge(cohort, context=replace(cohort.context(), training_run="run-2"))
    written(tmp_path / "v", fresh)
    output = run("marks", "replay", str(tmp_path / "store"), str(tmp_path / "v"), *own(tmp_path))
    assert f"Still open: round 1, attempt 0 of run run-1, round id {released}" in output
    lie = changed(forge(cohort), Attestation, "site-b", lambda a: replace(a, signature=bytes(64)))
    written(tmp_path / "w", lie)
    refused("marks", "replay", str(tmp_path / "store"), str(tmp_path / "w"), *own(tmp_path), says="[T-04]")
    assert kept(tmp_path)[0].round_id.hex() == released


def accepting(tmp_path, round_id: str, *options: str) -> list[str]:
    key = ["--id", "site-a", "--key", str(tmp_path / "key")]
    return ["marks", "accept", str(tmp_path / "store"), round_id, *key, *options]


def test_an_operator_accepts_one_round_by_name(tmp_path, released):
    result = CliRunner().invoke(app, accepting(tmp_path, released), env=WIDE, input=f"{released[:8]}\n")
    assert result.exit_code == 0, result.output
    assert "This site sent unmasking shares for round 1, attempt 0 of run run-1" in result.output
    assert kept(tmp_path)[1] == {bytes.fromhex(released): True}
    assert "accepted that, once" in run("marks", "show", str(tmp_path / "store"))


def test_an_acceptance_needs_the_digits_the_round_and_the_key(tmp_path, released, cohort):
    for typed in ("00000000", "", "y"):
        result = CliRunner().invoke(app, accepting(tmp_path, released), env=WIDE, input=f"{typed}\n")
        assert result.exit_code == 1
    other = "ab" * 32
    refused(*accepting(tmp_path, other, "--yes"), says="this data set sent no shares for that round")
    refused(*accepting(tmp_path, "abc", "--yes"), says="64 hexadecimal digits")
    refused(*accepting(tmp_path, released[:16], "--yes"), says="64 hexadecimal digits")
    write_new(tmp_path / "b", secret_text("site-b", cohort.keys["site-b"]), mode=PRIVATE)
    theirs = ["marks", "accept", str(tmp_path / "store"), released, "--id", "site-a", "--key", str(tmp_path / "b")]
    refused(*theirs, "--yes", says="is the key of site-b, not of site-a")
    (tmp_path / "key").chmod(0o644)
    refused(*accepting(tmp_path, released, "--yes"), says="others can read this private key")
    assert kept(tmp_path)[1] == {}


def test_a_round_of_another_site_is_accepted_with_a_word_of_its_own(tmp_path, released):
    other = "ab" * 32
    assert "Another site sent unmasking shares" in run(*accepting(tmp_path, other, "--other", "--yes"))
    assert kept(tmp_path)[1] == {bytes.fromhex(other): True}


def test_a_round_that_was_replayed_can_be_accepted_for_another_run(tmp_path, released):
    run("marks", "replay", str(tmp_path / "store"), str(tmp_path / "t"), *own(tmp_path))
    output = run(*accepting(tmp_path, released, "--yes"))
    assert "unmasking shares for round 1, attempt 0 of run run-1, and its sum is in a transcript.\n" in output
    assert "replay it" not in output
    assert kept(tmp_path)[1] == {bytes.fromhex(released): True}


def test_operators_commands_make_no_store(tmp_path, released):
    refused("marks", "show", str(tmp_path / "nowhere"), says="there is no such file")
    refused("marks", "show", str(tmp_path / "t"), says="not a store of secagg")
    (tmp_path / "empty").touch()
    refused("marks", "show", str(tmp_path / "empty"), says="not a store of secagg")
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "empty").stat().st_size == 0


# --- The demonstration -------------------------------------------------------------------------------------------


def test_a_demonstration_that_cannot_work_says_so_in_one_sentence():
    refused(
        "demo", "--clients", "4", "--drop", "2", "--suite", "X25519", says="2 clients are left and the policy needs 3"
    )
    refused("demo", "--clients", "4", "--drop", "5", says="--drop 5: there are only 4 clients")
    refused("demo", "--clients", "2", "--drop", "0", says="clients = 2")
    refused("demo", "--length", "0", says="length = 0")


def test_a_wrong_sum_would_not_go_unnoticed(monkeypatch):
    monkeypatch.setattr("secagg.cli.demo.Demo.wrong", 3)
    assert "differs in 3 places" in run("demo", "--clients", "4", "--drop", "0", "--length", "9", status=1)


def test_the_version_is_the_distributions():
    assert run("--version").startswith("secagg 0.")
    assert "demo" in run("--help")
