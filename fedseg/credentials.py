"""What a party of a federation keeps in its credentials folder, and how a demonstration makes all of it on the spot.

`federation.toml` pins the training run, the coordinator's signing key and every site's; `authority.pem`, `NAME.pem` and
`NAME.key` are for TLS; `NAME.signing` is the party's Ed25519 identity. A private key is readable by its owner only and
is never shown.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedseg.errors import ConfigError
from fedseg.study import Study
from secagg.errors import ConfigError as SecAggConfigError
from secagg.files import Federation, federation_text, load_key, read_federation, secret_text
from secagg.keys import SigningKey
from secagg.policy import PinnedRoster
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.tls import AUTHORITY, COORDINATOR, ClientTls, ServerTls
from secagg.writing import PRIVATE, PUBLIC, write_whole

FEDERATION, REVOKED = "federation.toml", "revoked.pem"
_Read = TypeVar("_Read")


def load_federation(folder: Path, study: Study) -> Federation:
    """Read `federation.toml`.

    Raises:
        ConfigError: missing or malformed, or its sites are not the study's; names the file and the remedy.
    """
    path = folder / FEDERATION
    federation = _read(path, read_federation, "ask the coordinator for it, or give --credentials")
    pinned = federation.pinned
    if set(pinned) != set(study.site_ids):
        raise ConfigError(
            f"{path}: lists {', '.join(pinned)} and the study has {', '.join(study.site_ids)}; use its own"
        )
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


def site_tls(folder: Path, site: str, federation: Federation) -> ClientTls:
    """A site's TLS credentials; raises secagg's ConfigError with the file and the remedy."""
    paths = (folder / f"{AUTHORITY}.pem", folder / f"{site}.pem", folder / f"{site}.key")
    return ClientTls.load(*paths, roster=list(federation.pinned))


def coordinator_tls(folder: Path) -> ServerTls:
    """The coordinator's TLS credentials; raises secagg's ConfigError with the file and the remedy."""
    names = (f"{AUTHORITY}.pem", f"{COORDINATOR}.pem", f"{COORDINATOR}.key", REVOKED)
    return ServerTls.load(*(folder / name for name in names))


def make_credentials(folder: Path, study: Study, training_run: str) -> None:
    """Everything that a demonstration needs, for all parties, in one folder; certificates are valid for 30 days.

    Raises:
        ConfigError: the folder cannot be written.
    """
    make_certificates(folder, study.site_ids)
    keys = {name: SigningKey.generate() for name in (COORDINATOR, *study.site_ids)}
    for name, key in keys.items():
        write_whole(folder / f"{name}.signing", secret_text(name, key), PRIVATE)
    pinned = PinnedRoster({site: keys[site].verify_key for site in study.site_ids})
    federation = Federation(training_run, keys[COORDINATOR].verify_key, pinned)
    write_whole(folder / FEDERATION, federation_text(federation), PUBLIC)
