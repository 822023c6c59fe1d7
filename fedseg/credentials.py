"""What a party of a federation keeps in its credentials folder, and how a demonstration makes all of it on the spot.

`federation.toml` pins the training run, the coordinator's signing key and every site's; `authority.pem`, `NAME.pem` and
`NAME.key` are for TLS; `NAME.signing` is the party's Ed25519 identity. A private key is readable by its owner only and
is never shown.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import ConfigError
from fedseg.files import read_text
from fedseg.study import Study
from secagg.errors import ConfigError as SecAggConfigError
from secagg.keys import SigningKey
from secagg.policy import PinnedRoster
from secagg.rpc.tls import AUTHORITY, COORDINATOR, ClientTls, ServerTls, make_certificates

FEDERATION = "federation.toml"


@dataclass(frozen=True)
class Federation:
    """Who takes part, pinned out of band by every party.

    Attributes:
        training_run: name of the run whose rounds are counted.
        server_key: the coordinator's Ed25519 verify key, 32 bytes.
        pinned: every site's verify key.
    """

    training_run: str
    server_key: bytes
    pinned: PinnedRoster


def load_federation(folder: Path, study: Study) -> Federation:
    """Read `federation.toml`.

    Raises:
        ConfigError: missing or malformed, or its sites are not the study's; names the file and the remedy.
    """
    path = folder / FEDERATION
    text = read_text(path, "ask the coordinator for it, or give --credentials")
    try:
        content = tomllib.loads(text)
        pinned = PinnedRoster({site: bytes.fromhex(key) for site, key in content["clients"].items()})
        federation = Federation(str(content["training_run"]), bytes.fromhex(content["server_key"]), pinned)
    except (ValueError, KeyError, AttributeError, TypeError, SecAggConfigError) as error:
        raise ConfigError(f"{path}: not a federation file ({error}); ask the coordinator for it again") from error
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
    if path.exists() and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others can read this private key; run: chmod 600 {path}")
    text = read_text(path, f"make it with `secagg keygen {name}`")
    try:
        content = tomllib.loads(text)
        key = SigningKey.from_bytes(bytes.fromhex(content["signing_key"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a signing key; make one with `secagg keygen {name}`") from error
    if content.get("id") != name:
        raise ConfigError(f"{path}: is the key of {content.get('id')!r}, not of {name}; use its own")
    return key


def site_tls(folder: Path, site: str, federation: Federation) -> ClientTls:
    """A site's TLS credentials; raises secagg's ConfigError with the file and the remedy."""
    paths = (folder / f"{AUTHORITY}.pem", folder / f"{site}.pem", folder / f"{site}.key")
    return ClientTls.load(*paths, roster=list(federation.pinned))


def coordinator_tls(folder: Path) -> ServerTls:
    """The coordinator's TLS credentials; raises secagg's ConfigError with the file and the remedy."""
    return ServerTls.load(folder / f"{AUTHORITY}.pem", folder / f"{COORDINATOR}.pem", folder / f"{COORDINATOR}.key")


def make_credentials(folder: Path, study: Study, training_run: str) -> None:
    """Everything that a demonstration needs, for all parties, in one folder; certificates are valid for 30 days.

    Raises:
        ConfigError: the folder cannot be written.
    """
    make_certificates(folder, study.site_ids)
    keys = {name: SigningKey.generate() for name in (COORDINATOR, *study.site_ids)}
    for name, key in keys.items():
        _write(folder / f"{name}.signing", f'id = "{name}"\nsigning_key = "{key.export().hex()}"\n', 0o600)
    lines = [
        f'training_run = "{training_run}"',
        f'server_key = "{keys[COORDINATOR].verify_key.hex()}"',
        "",
        "[clients]",
    ]
    lines += [f'"{site}" = "{keys[site].verify_key.hex()}"' for site in study.site_ids]
    _write(folder / FEDERATION, "\n".join(lines) + "\n", 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
        file.write(text)
