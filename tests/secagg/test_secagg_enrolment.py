"""Enrolment by files and a telephone: who comes in, who does not, and that nothing but files is needed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from secagg.audit import AUDIT, entries
from secagg.cli import app
from secagg.enrolment import site as sites
from secagg.enrolment.office import FEDERATION, REVOKED, Office
from secagg.enrolment.papers import Request, token_key
from secagg.errors import ConfigError
from secagg.files import load_key, read_federation
from secagg.rpc.pem import certificates_in, revoked_in
from secagg.rpc.tls import ClientTls, ServerTls

NAMES = ("site-a", "site-b", "site-c")


class Post:
    """A coordinator, its sites, and the folder through which they send each other files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.coordinator, self.carried = folder, folder / "coordinator", folder / "carried"
        self.carried.mkdir()
        self.office = Office.init(self.coordinator, ["coordinator.example.org", "192.0.2.7"], 50051)

    def asked(self, name: str) -> Path:
        invitation, token = self.office.invite(name, self.carried)
        state = self.folder / f"{name}-state"
        return sites.request(invitation, self.folder / name, token, self.carried, state)[1]

    def enrol(self, *names: str) -> None:
        for name in names:
            _, (approval,) = self.office.approve(self.asked(name), self.carried)
            sites.accept(approval, self.folder / name, name)


@pytest.fixture
def post(tmp_path) -> Post:
    return Post(tmp_path)


def tls(post: Post, name: str) -> ClientTls:
    files = [post.folder / name / file for file in ("authority.pem", f"{name}.pem", f"{name}.key")]
    return ClientTls.load(*files, roster=NAMES)


def test_from_empty_folders_to_a_roster_that_everybody_pins(post):
    post.enrol(*NAMES)
    published = post.office.publish("first")
    for name in NAMES:
        assert "roster 1 of run first accepted" in sites.accept(post.coordinator / FEDERATION, post.folder / name, name)
        assert read_federation(post.folder / name / FEDERATION) == published
        assert published.pinned[name] == load_key(post.folder / name / f"{name}.signing")[1].verify_key
        assert tls(post, name).name == name
        state = Path(sites.Enrolment.of(post.folder / name, name).state)
        assert state.is_absolute()
        assert state.is_dir()
    ServerTls.load(*(post.coordinator / file for file in ("authority.pem", "coordinator.pem", "coordinator.key")))
    names = certificates_in(post.coordinator / "coordinator.pem", "")[0].extensions
    names = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example.org", "localhost"]
    assert "192.0.2.7" in map(str, names.get_values_for_type(x509.IPAddress))


def test_no_secret_is_carried_or_kept_where_it_is_not_needed(post):
    invitation, token = post.office.invite("site-a", post.carried)
    sites.request(invitation, post.folder / "site-a", token, post.carried)
    assert {path.name: path.stat().st_mode & 0o77 for path in post.folder.rglob("*.key*")} == {
        "authority.key": 0,
        "coordinator.key": 0,
        "site-a.key.pending": 0,
    }
    secrets = [token, token_key(token, "site-a").export().hex()]
    for path in post.folder.rglob("*.signing"):
        assert path.stat().st_mode & 0o77 == 0
        secrets.append(load_key(path)[1].export().hex())
    for path in [*post.carried.iterdir(), post.coordinator / "office/register.toml"]:
        text = path.read_text()
        assert "PRIVATE" not in text
        assert not any(secret in text for secret in secrets)


# --- Who does not come in ---------------------------------------------------------------------------------------------


def test_a_token_is_good_once_for_one_site_and_not_for_ever(post):
    asked = post.asked("site-a")
    post.office.approve(asked, post.carried)
    with pytest.raises(ConfigError, match="no token of site-a is open"):
        post.office.approve(asked, post.carried)
    invitation, token = post.office.invite("site-b", post.carried)
    text = invitation.read_text()
    with pytest.raises(ConfigError, match="is approved already"):
        post.office.invite("site-a", post.carried)
    post.office.invite("site-b", post.carried)  # the earlier token is worth nothing now
    invitation.write_text(text)
    _, path = sites.request(invitation, post.folder / "site-b", token, post.carried)
    with pytest.raises(ConfigError, match="was not made with the token of site-b"):
        post.office.approve(path, post.carried)
    late, token = post.office.invite("site-c", post.carried, days=-1)
    with pytest.raises(ConfigError, match=r"site-c.invitation: expired on"):
        sites.request(late, post.folder / "site-c", token, post.carried)


def test_an_expired_token_is_refused_at_the_office_too(post):
    asked = post.asked("site-a")
    post.office.register.invited["site-a"].expires = "2020-01-01T00:00:00+00:00"
    with pytest.raises(ConfigError, match="the token of site-a expired on 2020"):
        post.office.approve(asked, post.carried)


def test_an_invitation_of_somebody_else_does_not_go_with_the_token(post, tmp_path):
    _, token = post.office.invite("site-a", post.carried)
    (tmp_path / "mallory").mkdir()
    mallory = Post(tmp_path / "mallory")
    forged, _ = mallory.office.invite("site-a", mallory.carried)
    with pytest.raises(ConfigError, match="does not go with this token"):
        sites.request(forged, tmp_path / "site-a", token, post.carried)
    assert not (tmp_path / "site-a").exists()


@pytest.mark.parametrize("field", ["verify_key", "csr", "own_signature", "token_signature"])
def test_a_request_that_was_changed_on_the_way_is_refused(post, field):
    asked = post.asked("site-a")
    other = Request.read(post.asked("site-b"))
    mine = Request.read(asked)
    asked.write_text(mine.text.replace(getattr(mine, field).split("\n")[0], getattr(other, field).split("\n")[0]))
    if field == "csr":
        asked.write_text(mine.text.replace(repr(mine.csr)[1:-1], repr(other.csr)[1:-1]))
    with pytest.raises(ConfigError, match=r"was changed after|was not made with the token"):
        post.office.approve(asked, post.carried)
    assert "site-a" not in post.office.register.approved


def test_a_fingerprint_that_was_heard_is_compared(post):
    asked = post.asked("site-a")
    heard = Request.read(asked).fingerprint
    with pytest.raises(ConfigError, match="somebody else made this file"):
        post.office.approve(asked, post.carried, heard="0000 0000 0000 0000 0000 0000")
    assert post.office.approve(asked, post.carried, heard=heard.upper().replace(" ", ""))


def test_a_site_takes_nothing_that_its_coordinator_did_not_sign(post, tmp_path):
    post.enrol(*NAMES)
    post.office.publish("first")
    (tmp_path / "mallory").mkdir()
    mallory = Post(tmp_path / "mallory")
    mallory.enrol(*NAMES)
    mallory.office.publish("first")
    own = post.folder / "site-a"
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(ConfigError, match="was not signed by the coordinator that site-a pinned"):
        sites.accept(mallory.coordinator / FEDERATION, own, "site-a")
    with pytest.raises(ConfigError, match="is not the pinned coordinator's approval"):
        sites.accept(mallory.carried / "site-a.approval", own, "site-a")
    changed = tmp_path / "changed.toml"
    changed.write_text((post.coordinator / FEDERATION).read_text().replace("first", "other"))
    with pytest.raises(ConfigError, match="was changed after the coordinator signed it"):
        sites.accept(changed, own, "site-a")
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_an_older_roster_is_not_taken_again(post):
    post.enrol(*NAMES, "site-d")
    post.office.publish("first")
    old = post.folder / "old.toml"
    shutil.copy(post.coordinator / FEDERATION, old)
    post.office.publish("second", without=["site-d"])
    sites.accept(post.coordinator / FEDERATION, post.folder / "site-a", "site-a")
    with pytest.raises(ConfigError, match="is roster 1, and 2 was accepted before"):
        sites.accept(old, post.folder / "site-a", "site-a")
    with pytest.raises(ConfigError, match="does not list site-d with its own key"):
        sites.accept(post.coordinator / FEDERATION, post.folder / "site-d", "site-d")


# --- Between studies --------------------------------------------------------------------------------------------------


def test_a_revoked_site_is_in_no_roster_and_its_certificates_stay_revoked_when_it_comes_back(post):
    post.enrol(*NAMES, "site-d")
    serial = x509.load_pem_x509_certificate(tls(post, "site-c").certificate).serial_number
    post.office.revoke("site-c")
    authority = certificates_in(post.coordinator / "authority.pem", "")
    assert revoked_in(post.coordinator / REVOKED, authority) == {serial}
    assert list(post.office.publish("next").pinned) == ["site-a", "site-b", "site-d"]
    with pytest.raises(ConfigError, match="site-c is not approved"):
        post.office.publish("next", ["site-a", "site-b", "site-c"])
    with pytest.raises(ConfigError, match="no token of site-c is open"):
        post.office.approve(sites.renew(post.folder / "site-c", "site-c", post.carried)[1], post.carried)
    post.enrol("site-c")
    assert revoked_in(post.coordinator / REVOKED, authority) == {serial}
    assert "site-c" in post.office.publish("last").pinned
    assert x509.load_pem_x509_certificate(tls(post, "site-c").certificate).serial_number != serial


def test_a_revocation_beside_an_approval_is_not_written_over(post):
    """Two operators, two commands: each read the register before the other one wrote it."""
    post.enrol(*NAMES)
    asked = post.asked("site-d")
    other = Office(post.coordinator)
    other.revoke("site-c")
    with pytest.raises(ConfigError, match="another command changed it meanwhile; nothing was done"):
        post.office.approve(asked, post.carried)
    assert not (post.carried / "site-d.approval").exists()
    assert set(Office(post.coordinator).register.approved) == {"site-a", "site-b"}
    Office(post.coordinator).approve(asked, post.carried)
    assert set(Office(post.coordinator).register.approved) == {"site-a", "site-b", "site-d"}


def test_what_was_approved_renewed_and_revoked_is_in_the_audit_log(post):
    post.enrol("site-a")
    post.office.revoke("site-a")
    post.office.renew(["198.51.100.4"])
    found = [entry for entry in entries(post.coordinator / AUDIT) if entry.who.startswith("operator ")]
    assert [(entry.what, entry.about["site"]) for entry in found] == [
        ("renewed", "coordinator"),  # as it was made
        ("approved", "site-a"),
        ("revoked", "site-a"),
        ("renewed", "coordinator"),
    ]
    assert found[1].about["fingerprint"] == post.office.register.members["site-a"].fingerprint
    assert "198.51.100.4" in found[-1].about["hosts"]


def test_a_certificate_is_renewed_by_the_pinned_key_and_the_running_pair_stays_until_then(post):
    post.enrol(*NAMES)
    own = post.folder / "site-a"
    before = tls(post, "site-a")
    _, asked = sites.renew(own, "site-a", post.carried)
    assert tls(post, "site-a").key == before.key
    _, (approval,) = post.office.approve(asked, post.carried)
    sites.accept(approval, own, "site-a")
    assert tls(post, "site-a").key != before.key
    assert not list(own.glob("*.pending"))
    shutil.copy(post.folder / "site-b/site-b.key", own / "site-a.key")
    with pytest.raises(ConfigError, match="does not belong to certificate"):
        sites.accept(approval, own, "site-a")
    assert not list(own.glob("*.pending"))


def test_a_signing_key_is_rotated_from_the_next_roster_on(post):
    post.enrol(*NAMES)
    post.office.publish("first")
    own = post.folder / "site-a"
    sites.accept(post.coordinator / FEDERATION, own, "site-a")
    earlier = load_key(own / "site-a.signing")[1].verify_key
    _, asked = sites.renew(own, "site-a", post.carried, signing=True)
    assert load_key(own / "site-a.signing")[1].verify_key == earlier
    _, (approval,) = post.office.approve(asked, post.carried)
    sites.accept(approval, own, "site-a")
    post.office.publish("second")
    sites.accept(post.coordinator / FEDERATION, own, "site-a")
    assert (
        read_federation(own / FEDERATION).pinned["site-a"] == load_key(own / "site-a.signing")[1].verify_key != earlier
    )


def test_the_coordinators_certificate_is_renewed_in_place(post):
    paths = [post.coordinator / file for file in ("authority.pem", "coordinator.pem", "coordinator.key")]
    before = ServerTls.load(*paths).certificate
    post.office.renew(["another.example.org"])
    assert ServerTls.load(*paths).certificate != before
    names = certificates_in(paths[1], "")[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "another.example.org" in names.get_values_for_type(x509.DNSName)


def test_the_state_folder_is_fixed_once(post):
    post.enrol("site-a")
    post.office.revoke("site-a")
    invitation, token = post.office.invite("site-a", post.carried)
    own = post.folder / "site-a"
    with pytest.raises(ConfigError, match="has been fixed to"):
        sites.request(invitation, own, token, post.carried, post.folder / "elsewhere")
    (post.folder / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file or below one"):
        sites.request(invitation, post.folder / "new", token, post.carried, post.folder / "file")


# --- Plain openssl ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("-newkey ec -pkeyopt ec_paramgen_curve:P-256", ""),
        ("-newkey rsa:2048", ""),
        ("-newkey ed25519", "for an Ed25519 key, which is refused; use an EC key on P-256"),
        ("-newkey ec -pkeyopt ec_paramgen_curve:brainpoolP256r1", "an EC key on brainpoolP256r1"),
        ("-newkey ec -pkeyopt ec_paramgen_curve:secp521r1", "an EC key on secp521r1"),
        ("-newkey rsa:2048 -subj /CN=site-b", "is for 'site-b' and not for 'site-a'"),
    ],
)
def test_a_plain_request_of_openssl_is_taken_with_the_token_that_was_told(post, kind, refused):
    words = kind if "-subj" in kind else f"{kind} -subj /CN=site-a"
    command = f"openssl req -new -nodes {words} -keyout site-a.key -out site-a.csr"
    subprocess.run(command.split(), cwd=post.folder, check=True, capture_output=True)
    plain = post.folder / "site-a.csr"
    plain.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))  # Notepad looked at it
    assert CliRunner().invoke(app, ["keygen", "site-a", "--folder", str(post.folder)]).exit_code == 0
    _, token = post.office.invite("site-a", post.carried)
    given = {"public": post.folder / "site-a.pub"}
    with pytest.raises(ConfigError, match="was not made with the token"):
        post.office.approve(plain, post.carried, token="AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", **given)
    if refused:
        with pytest.raises(ConfigError, match=refused):
            post.office.approve(plain, post.carried, token=token, **given)
        assert "site-a" in post.office.register.invited  # nothing was used up
        return
    _, files = post.office.approve(plain, post.carried, token=token, **given)
    key = post.folder / "site-a.key"
    assert ClientTls.load(post.coordinator / "authority.pem", files[1], key, roster=NAMES).name == "site-a"


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command_takes_a_token_from_a_file_and_never_says_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["enrol", "init", "coordinator", "--host", "localhost", "--port", "50052"]).exit_code == 0
    said = run(app, ["enrol", "invite", "coordinator", "site-a"]).output
    (token,) = [line.rsplit(": ", 1)[1] for line in said.splitlines() if line.startswith("token")]
    Path("token").write_text(token.lower() + "\r\n")
    asked = run(app, ["enrol", "request", "site-a.invitation", "own", "--state", "state", "--token-file", "token"])
    assert asked.exit_code == 0, asked.exception
    assert token not in asked.output
    fingerprint = asked.output.partition("fingerprint of site-a, to read aloud: ")[2].splitlines()[0]
    approve = ["enrol", "approve", "coordinator", "site-a.request", "--fingerprint", fingerprint]
    assert run(app, approve).exit_code == 0
    assert run(app, ["enrol", "accept", "own", "site-a.approval"]).exit_code == 0
    assert run(app, ["enrol", "show", "coordinator", "--json"]).output.count('"approved"') == 1
    assert run(app, ["enrol", "revoke", "coordinator", "site-a"]).exit_code == 0
    assert "revoked" in run(app, ["enrol", "show", "coordinator"]).output


def test_what_is_wrong_is_told_in_one_sentence(tmp_path):
    command = [sys.executable, "-c", "from secagg.cli import main; main()", "enrol", "show", str(tmp_path / "absent")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("secagg: ")
    assert ended.stderr.endswith("give the coordinator's folder, or begin with enrol init\n")
    assert ended.stderr.count("\n") == 1
