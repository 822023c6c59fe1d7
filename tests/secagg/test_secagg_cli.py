"""The `secagg` command: what it writes, what it says, and one sentence with a non-zero status where it cannot."""

import stat
import tomllib

import pytest
from secagg_cohort import Cohort
from typer.testing import CliRunner

from secagg import Policy, ServerSession, SigningKey, Suite, wire
from secagg.cli import _explanation, app, traffic

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


@pytest.mark.parametrize("n", [3, 10, 256])
def test_who_must_collude_is_never_fewer_than_the_policy_says(n):
    for c in range(1, n - 1):
        explained = dict(_explanation_of(n, c))
        assert int(explained["To read one input"].split()[3]) > c
        if n == 256 and c > 2:
            break


def _explanation_of(n: int, c: int):
    return _explanation(Policy(project="p", clients=n, length=1, clip_range=1.0, max_corrupt=c, suite=Suite.X25519))


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


def test_a_demonstration_that_cannot_work_says_so_in_one_sentence():
    refused(
        "demo", "--clients", "4", "--drop", "2", "--suite", "X25519", says="2 clients are left and the policy needs 3"
    )
    refused("demo", "--clients", "4", "--drop", "5", says="--drop 5: there are only 4 clients")
    refused("demo", "--clients", "2", "--drop", "0", says="clients = 2")
    refused("demo", "--length", "0", says="length = 0")


def test_a_wrong_sum_would_not_go_unnoticed(monkeypatch):
    monkeypatch.setattr("secagg.cli._Demo.wrong", 3)
    assert "differs in 3 places" in run("demo", "--clients", "4", "--drop", "0", "--length", "9", status=1)


def test_the_version_is_the_distributions():
    assert run("--version").startswith("secagg 0.")
    assert "demo" in run("--help")
