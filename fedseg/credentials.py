"""What a party of a federation keeps in its credentials folder, and how a demonstration makes all of it on the spot.

`federation.toml` pins the training run, the coordinator's signing key and every site's; `authority.pem`, `NAME.pem` and
`NAME.key` are for TLS; `NAME.signing` is the party's Ed25519 identity; `NAME.enrolment.toml` says whom a site pinned
when it enrolled. A private key is readable by its owner only and is never shown.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from fedseg.errors import ConfigError
from fedseg.study import Study
from secagg.enrolment.office import FEDERATION, REVOKED, Office
from secagg.enrolment.site import Enrolment, accept, request
from secagg.errors import ConfigError as SecAggConfigError
from secagg.files import Federation, load_key, read_federation
from secagg.keys import SigningKey
from secagg.rpc.pem import certificates_in, days_left
from secagg.rpc.proof import MTLS, tls_of
from secagg.rpc.tls import AUTHORITY, COORDINATOR, ClientTls, ServerTls

TRIAL_DAYS = 60.0
WARN_DAYS = 30.0
"""How long before a certificate expires it is said, at the start and once a day."""
_Read = TypeVar("_Read")


def load_federation(folder: Path, study: Study) -> Federation:
    """Read `federation.toml`, and hold it against the keys and enrolments that lie beside it.

    Raises:
        ConfigError: missing or malformed, or its sites are not the study's, or the coordinator that a site pinned did
            not sign it, or a key beside it is not the one that it lists; names the file and the remedy.
    """
    path = folder / FEDERATION
    federation = _read(path, read_federation, "ask the coordinator for it, or give --credentials")
    pinned = federation.pinned
    if set(pinned) != set(study.site_ids):
        raise ConfigError(
            f"{path}: lists {', '.join(pinned)} and the study has {', '.join(study.site_ids)}; use its own"
        )
    for name, key in {COORDINATOR: federation.server_key, **pinned}.items():
        if (folder / f"{name}.signing").exists() and signing_key(folder, name).verify_key != key:
            raise ConfigError(
                f"{folder / name}.signing: is not the key of {name} that {path} lists; use the key that was enrolled, "
                "or accept the roster that lists this one"
            )
        known = Enrolment.of(folder, name)
        if known is not None and (not federation.signature or federation.server_key.hex() != known.server_key):
            raise ConfigError(f"{path}: was not signed by the coordinator that {name} pinned; accept the one that was")
        if known is not None and federation.number < known.number:
            raise ConfigError(f"{path}: is older than roster {known.number}, which {name} accepted; accept it again")
    return federation


def signing_key(folder: Path, name: str) -> SigningKey:
    """The Ed25519 identity of a party.

    Raises:
        ConfigError: `NAME.signing` is missing, malformed, or others can read it.
    """
    path = folder / f"{name}.signing"
    found, key = _read(path, load_key, f"make it with `secagg keygen {name}`")
    if found != name:
        raise ConfigError(f"{path}: is the key of {found!r}, not of {name}; use its own")
    return key


def _read(path: Path, read: Callable[[Path], _Read], remedy: str) -> _Read:
    try:
        return read(path)
    except SecAggConfigError as error:
        told = str(error)
    except FileNotFoundError:
        told = f"{path} is missing; {remedy}"
    except OSError as error:
        told = f"{path} cannot be read ({error.strerror}); {remedy}"
    raise ConfigError(told)


def site_tls(folder: Path, site: str, federation: Federation, mode: str = MTLS) -> ClientTls:
    """A site's TLS credentials, see `secagg.rpc.proof.tls_of`; raises secagg's ConfigError with file and remedy."""
    return tls_of(folder, site, federation.pinned, mode)


def coordinator_tls(folder: Path) -> ServerTls:
    """The coordinator's TLS credentials; raises secagg's ConfigError with the file and the remedy."""
    names = (f"{AUTHORITY}.pem", f"{COORDINATOR}.pem", f"{COORDINATOR}.key", REVOKED)
    return ServerTls.load(*(folder / name for name in names))


def fixed_state(folder: Path, site: str) -> Path | None:
    """The state folder that a site's enrolment fixed; None where none did.

    Raises:
        ConfigError: it is gone, or a file: nothing else says what this site's patients have spent.
    """
    known = Enrolment.of(folder, site)
    if known is None or not known.state:
        return None
    state = Path(known.state)
    if not state.is_dir():
        what = "is a file" if state.exists() else "is not there"
        raise ConfigError(
            f"{state}: the state of {site}, fixed at its enrolment, {what}; mount or bring back the folder that was "
            "used last, never an older copy"
        )
    return state


def expiring(folder: Path, name: str) -> str:
    """One sentence where a certificate in a party's folder expires within `WARN_DAYS`; "" where none does.

    Raises:
        ConfigError: a certificate cannot be read.
    """
    for path in (folder / f"{name}.pem", folder / f"{AUTHORITY}.pem"):
        days = days_left(certificates_in(path, "certificate")[0])
        if days < WARN_DAYS:
            remedy = "renew it now with fedseg enrol renew" if path.stem == name else "a new one makes all enrol again"
            when = f"expires in {days:.0f} days" if days > 0 else "has expired"
            return f"certificate {path} {when}: {remedy}"
    return ""


def make_credentials(
    folder: Path, study: Study, training_run: str, hosts: Sequence[str] = (), port: int = 50051
) -> None:
    """Enrols all parties of a trial in one folder, as they would over a telephone; certificates are valid for 60 days.

    Args:
        folder: new.
        study: names the sites.
        training_run: name of the run.
        hosts: where the coordinator is reached, besides this machine.
        port: on which it listens.

    Raises:
        ConfigError: the folder cannot be written, or a host is no name.
    """
    try:
        office = Office.init(folder, [*hosts, "localhost"], port, days=TRIAL_DAYS)
        with TemporaryDirectory() as carried:
            post = Path(carried)
            for site in study.site_ids:
                invitation, token = office.invite(site, post)
                _, asked = request(invitation, folder, token, post)
                _, (approval,) = office.approve(asked, post, days=TRIAL_DAYS)
                accept(approval, folder, site)
        office.publish(training_run)
        for site in study.site_ids:
            accept(folder / FEDERATION, folder, site)
    except OSError as error:
        raise ConfigError(f"folder {folder}: cannot write credentials ({error.strerror}); choose another") from None
