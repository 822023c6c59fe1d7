"""The `secagg` command: what it writes, what it says, and one sentence with a non-zero status where it cannot."""

import json
import stat
import tomllib

import pytest
from secagg_cohort import SERVER_KEY, Cohort
from secagg_forge import changed, forge, replace, written
from typer.testing import CliRunner

from secagg import Policy, ServerSession, SigningKey, Suite, wire
from secagg.cli import app
from secagg.cli.cost import Cost
from secagg.cli.explain import explanation, traffic
from secagg.messages import Attestation

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

    def cost(n: int, d: int) -> Cost:
        return Cost(Policy(project="p", clients=n, length=d, clip_range=1.0, suite=Suite.X25519))

    # The same primitives, counted for other policies: no clock decides here.
    small = cost(10, 100)
    assert 0 < small.client() < 60
    assert 0 < small.server(0) < small.server(3)
    for larger in (Policy(project="p", clients=20, length=100, clip_range=1.0, suite=Suite.X25519),):
        small_client, small_server = small.client(), small.server(0)
        small._policy = larger
        assert small.client() > small_client
        assert small.server(0) > small_server


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
    path, roster = tmp_path / "round.transcript", tmp_path / "round.roster.toml"
    arguments = (
        "demo",
        "--clients",
        "5",
        "--drop",
        "1",
        "--length",
        "50",
        "--suite",
        "X25519",
        "--transcript",
        str(path),
    )
    assert f"secagg verify-transcript {path} --roster {roster}" in run(*arguments)
    assert "Everything holds." in run("verify-transcript", str(path), "--roster", str(roster))
    refused(*arguments, says="exists already")


@pytest.fixture
def cohort(tmp_path):
    cohort = Cohort(5)
    keys = "".join(f'"{client_id}" = "{key.hex()}"\n' for client_id, key in cohort.roster.items())
    (tmp_path / "roster.toml").write_text(f"[clients]\n{keys}")
    return cohort


def verifying(tmp_path, *files: str, status: int, options=()) -> str:
    paths = [str(tmp_path / name) for name in files]
    return run("verify-transcript", *paths, "--roster", str(tmp_path / "roster.toml"), *options, status=status)


def test_a_transcript_that_holds(tmp_path, cohort):
    written(tmp_path / "t", forge(cohort, {"site-e": "MaskedInputCollection"}))
    output = verifying(tmp_path, "t", status=0)
    assert output.count(" held ") == 17
    assert "Round 1, attempt 0: 4 included, dropped: site-e." in output
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


def test_a_file_that_is_no_transcript_is_violated(tmp_path, cohort):
    assert "[T-20]" in verifying(tmp_path, "roster.toml", status=1)


def test_a_transcript_that_could_not_be_checked(tmp_path, cohort):
    written(tmp_path / "t", forge(cohort, vectors=False))
    assert "could not be checked: T-13." in verifying(tmp_path, "t", status=2)
    written(tmp_path / "u", forge(cohort, only_headers=True))
    assert "did not finish" in verifying(tmp_path, "u", status=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["t"], "Missing option"),
        (["--roster", "roster.toml"], "Missing argument"),
        (["t", "--roster", "roster.toml", "--fast"], "No such option"),
        (["t", "--roster", "t"], "is not a roster"),
        (["t", "--roster", "nowhere"], "No such file"),
        (["nowhere", "--roster", "roster.toml"], "No such file"),
    ],
)
def test_a_verification_that_cannot_run_is_never_taken_for_a_verdict(tmp_path, cohort, monkeypatch, arguments, says):
    written(tmp_path / "t", forge(cohort))
    monkeypatch.chdir(tmp_path)
    assert says in run("verify-transcript", *arguments, status=3)


def test_a_stranger_cannot_bring_the_roster(tmp_path, cohort):
    other = written(tmp_path / "t", forge(Cohort(6)), signing_key=SERVER_KEY)
    assert "[T-03]" in verifying(tmp_path, other.name, status=1)


def test_a_demonstration_that_cannot_work_says_so_in_one_sentence():
    refused(
        "demo", "--clients", "4", "--drop", "2", "--suite", "X25519", says="2 clients are left and the policy needs 3"
    )
    refused("demo", "--clients", "4", "--drop", "5", says="--drop 5: there are only 4 clients")
    refused("demo", "--clients", "2", "--drop", "0", says="clients = 2")
    refused("demo", "--length", "0", says="length = 0")


def test_a_wrong_sum_would_not_go_unnoticed(monkeypatch):
    monkeypatch.setattr("secagg.cli.demonstration.Demo.wrong", 3)
    assert "differs in 3 places" in run("demo", "--clients", "4", "--drop", "0", "--length", "9", status=1)


def test_the_version_is_the_distributions():
    assert run("--version").startswith("secagg 0.")
    assert "demo" in run("--help")
