"""A site's side of enrolment: its keys are made here, and what the coordinator sends back is checked against them.

In the site's folder of credentials lie `SITE.signing`, `SITE.key`, `SITE.pem`, `authority.pem`, `federation.toml`, and
`SITE.enrolment.toml`: whom it pinned, and where its state lies for good. A key of which the certificate is not back yet
waits as `SITE.key.pending`, so that a running site keeps the pair that it has. Must never: let a private key leave, or
take a coordinator, a roster or a certificate that the pinned key did not sign.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from secagg.enrolment.office import FEDERATION
from secagg.enrolment.papers import Approval, Invitation, Request, as_bytes, coordinator_fingerprint, token_key
from secagg.enrolment.register import past
from secagg.enrolment.requests import new_csr, new_key
from secagg.errors import ConfigError
from secagg.files import load_key, public_text, read_federation, secret_text
from secagg.keys import SigningKey
from secagg.rpc.pem import key_pem, private_key_in
from secagg.rpc.tls import AUTHORITY, ClientTls
from secagg.text import read_text
from secagg.toml import from_toml, to_toml
from secagg.writing import PRIVATE, PRIVATE_FOLDER, PUBLIC, write_whole


@dataclass(frozen=True)
class Enrolment:
    """What a site fixed when it enrolled: `SITE.enrolment.toml`.

    Attributes:
        site: its id.
        server_key: the coordinator's verify key, pinned, hexadecimal.
        address: where the coordinator listens, as it said.
        state: absolute path of the folder with what this site's data must not forget; "" where none was fixed.
        number: of the last roster that was accepted; none with a lower one is.
    """

    site: str
    server_key: str
    address: str
    state: str
    number: int = 0

    @classmethod
    def of(cls, folder: Path, site: str) -> "Enrolment | None":
        """A site's enrolment; None where its credentials were made in another way.

        Raises:
            ConfigError: it is damaged.
        """
        path = _file(folder, site)
        if not path.is_file():
            return None
        try:
            return cls(**from_toml(read_text(path)))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is not the record of an enrolment; bring it back from a backup") from None

    def write(self, folder: Path) -> None:
        """Write it in one piece."""
        write_whole(_file(folder, self.site), to_toml(asdict(self)), PUBLIC)


def request(invitation: Path, folder: Path, token: str, out: Path, state: Path | None = None) -> tuple[Request, Path]:
    """Make a site's keys and what it asks the coordinator for. Again: the same keys, a new request.

    Args:
        invitation: `SITE.invitation`, as it came.
        folder: the site's credentials; made where it is missing.
        token: as the coordinator's operator told it.
        out: where `SITE.request` goes.
        state: where the marks and the ledger of this site's data are to lie, for good; None fixes nothing.

    Raises:
        ConfigError: the token does not fit the invitation, which then came from somebody else, or is expired; or a file
            or folder cannot be used. Nothing was made.
    """
    paper = Invitation.read(invitation)
    key = token_key(token, paper.site)
    if not paper.holds("token_signature", key.verify_key):
        raise ConfigError(
            f"{invitation}: does not go with this token; read the token again, or ask the coordinator whether it sent "
            "this file"
        )
    if past(paper.expires):
        raise ConfigError(f"{invitation}: expired on {paper.expires}; ask for a new one")
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    known = Enrolment.of(folder, paper.site)
    fixed = str(_usable(state)) if state is not None else known.state if known is not None else ""
    if known is not None and known.state and fixed != known.state:
        raise ConfigError(f"{state}: the state of {paper.site} has been fixed to {known.state}; leave --state away")
    signing = folder / f"{paper.site}.signing"
    if not signing.exists():
        fresh = SigningKey.generate()
        write_whole(signing, secret_text(paper.site, fresh), PRIVATE)
        write_whole(signing.with_suffix(".pub"), public_text(paper.site, fresh), PUBLIC)
    _, own = load_key(signing)
    number = known.number if known is not None and known.server_key == paper.server_key else 0
    Enrolment(paper.site, paper.server_key, paper.address, fixed, number).write(folder)
    write_whole(folder / f"{AUTHORITY}.pem", paper.authority, PUBLIC)
    made = _request(folder, paper.site, paper.server_key, own).signed(own_signature=own, token_signature=key)
    return made, write_whole(out / f"{paper.site}.request", made.text, PUBLIC)


def renew(folder: Path, site: str, out: Path, *, signing: bool = False) -> tuple[Request, Path]:
    """A request for a new certificate, on a new key; the pinned signing key speaks for it, so that it needs no token.

    Args:
        folder: the site's credentials.
        site: its id.
        out: where `SITE.request` goes.
        signing: make a new signing key as well. It is used from the next roster on, so accept that one with it.

    Raises:
        ConfigError: the site was never enrolled here.
    """
    known = Enrolment.of(folder, site)
    if known is None:
        raise ConfigError(f"{folder}: {site} was not enrolled here; begin with enrol request and an invitation")
    _, earlier = load_key(folder / f"{site}.signing")
    own = earlier
    if signing:
        pending = folder / f"{site}.signing.pending"
        if not pending.exists():
            write_whole(pending, secret_text(site, SigningKey.generate()), PRIVATE)
        _, own = load_key(pending)
    made = _request(folder, site, known.server_key, own).signed(own_signature=own, earlier_signature=earlier)
    return made, write_whole(out / f"{site}.request", made.text, PUBLIC)


def accept(path: Path, folder: Path, site: str) -> str:
    """Take an approval or a roster that came back.

    Args:
        path: `SITE.approval` or `federation.toml`.
        folder: the site's credentials.
        site: its id.

    Returns:
        A sentence on what was accepted.

    Raises:
        ConfigError: the pinned coordinator did not sign it, it is not for this site's keys, or it is older than what
            was accepted; nothing was changed.
    """
    known = Enrolment.of(folder, site)
    if known is None:
        raise ConfigError(f"{folder}: {site} was not enrolled here; begin with enrol request and an invitation")
    if from_toml_kind(path) == f"enrolment {Approval.kind}":
        return _approved(Approval.read(path), path, folder, known)
    return _pinned(path, folder, known)


def fingerprint(folder: Path, site: str) -> str:
    """The fingerprint of the coordinator that a site pinned, to be compared by telephone."""
    known = Enrolment.of(folder, site)
    authority = (folder / f"{AUTHORITY}.pem").read_text(encoding="ascii")
    return coordinator_fingerprint(as_bytes(known.server_key if known else ""), authority)


def _approved(paper: Approval, path: Path, folder: Path, known: Enrolment) -> str:
    site = known.site
    if paper.site != site or not paper.holds("signature", as_bytes(known.server_key)):
        raise ConfigError(f"{path}: is not the pinned coordinator's approval of {site}; ask for the file again")
    pending, key = folder / f"{site}.key.pending", folder / f"{site}.key"
    new, signing = folder / f"{site}.signing.pending", folder / f"{site}.signing"
    rotated = new.exists() and load_key(new)[1].verify_key.hex() == paper.verify_key
    if not rotated and load_key(signing)[1].verify_key.hex() != paper.verify_key:
        raise ConfigError(f"{path}: is for another signing key of {site}; send the last request, and use its approval")
    certificate = folder / f"{site}.pem.pending"
    write_whole(certificate, paper.certificate, PUBLIC)
    try:
        ClientTls.load(folder / f"{AUTHORITY}.pem", certificate, pending if pending.exists() else key, roster=[site])
    except BaseException:
        certificate.unlink()
        raise
    if pending.exists():
        os.replace(pending, key)
    os.replace(certificate, folder / f"{site}.pem")
    if rotated:
        os.replace(new, signing)
        write_whole(signing.with_suffix(".pub"), public_text(site, load_key(signing)[1]), PUBLIC)
    return f"certificate of {site} accepted" + (", with its new signing key" if rotated else "")


def _pinned(path: Path, folder: Path, known: Enrolment) -> str:
    federation = read_federation(path)
    if not federation.signature or federation.server_key.hex() != known.server_key:
        raise ConfigError(f"{path}: was not signed by the coordinator that {known.site} pinned; ask for the file again")
    if federation.number < known.number:
        raise ConfigError(
            f"{path}: is roster {federation.number}, and {known.number} was accepted before; ask for the latest one"
        )
    own = load_key(folder / f"{known.site}.signing")[1].verify_key
    if federation.pinned.get(known.site) != own:
        raise ConfigError(f"{path}: does not list {known.site} with its own key; ask the coordinator who takes part")
    write_whole(folder / FEDERATION, read_text(path), PUBLIC)
    replace(known, number=federation.number).write(folder)
    others = ", ".join(site for site in federation.pinned if site != known.site)
    return f"roster {federation.number} of run {federation.training_run} accepted: {known.site} with {others}"


def from_toml_kind(path: Path) -> str:
    """What a paper says that it is; "" where it says nothing."""
    try:
        return str(from_toml(read_text(path)).get("kind", ""))
    except ValueError:
        return ""


def _request(folder: Path, site: str, server_key: str, own: SigningKey) -> Request:
    pending = folder / f"{site}.key.pending"
    if not pending.exists():
        write_whole(pending, key_pem(new_key()), PRIVATE)
    key = private_key_in(pending)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{pending}: is no key that was made here; remove it")
    return Request(site=site, server_key=server_key, verify_key=own.verify_key.hex(), csr=new_csr(site, key))


def _usable(state: Path) -> Path:
    """The absolute path of a state folder, which is made where it is missing."""
    try:
        state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{state}: is a file or below one; give a folder for this site's state") from None
    if not os.access(state, os.W_OK | os.X_OK):
        raise ConfigError(f"{state}: cannot be written to; give a folder of this user for this site's state")
    return state.resolve()


def _file(folder: Path, site: str) -> Path:
    return folder / f"{site}.enrolment.toml"
