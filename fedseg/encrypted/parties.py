"""The three parties: `parties.toml`, the same at each, with everybody's address and certificate and the model's hash.

    [data]                                [model]                              [third]
    address = "clinic.example:9401"       address = "lab.example:9402"         address = "other.example:9403"
    certificate = "data.pem"              certificate = "model.pem"            certificate = "third.pem"
                                          sha256 = "..."

Each certificate is pinned as it is: no authority can make another one. Each party has its own key in `ROLE.key`,
readable by its owner only. Must never: put a key into an error.
"""

import hashlib
import json
import re
import socket
import ssl
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedseg.errors import ConfigError, FedSegError
from fedseg.files import read_text
from secagg.enrolment.papers import fingerprint
from secagg.enrolment.requests import new_key
from secagg.errors import ConfigError as SecAggConfigError
from secagg.rpc.authority import valid_for
from secagg.rpc.pem import certificates_in, days_left, key_pem, private_key_in
from secagg.writing import PRIVATE, PUBLIC, write_new

ROLES = ("data", "model", "third")
"""In the order of their ranks."""
WHO = {"data": "the pictures' owner", "model": "the model's owner", "third": "the third party"}
DAYS = 365.0
_ADDRESS = re.compile(r"(?P<host>[^\s:]+|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})")
_HASH = re.compile(r"[0-9a-f]{64}")
_SECONDS = 5.0


class PartyError(FedSegError):
    """Another party is not there, has gone, or is not who it should be; nothing was written."""


@dataclass(frozen=True)
class Party:
    """One of the three.

    Attributes:
        role: one of `ROLES`.
        address: HOST:PORT where the others reach it.
        certificate: its file.
        der: what is in it.
    """

    role: str
    address: str
    certificate: Path
    der: bytes = field(repr=False)

    @property
    def where(self) -> str:
        """Who and where, for sentences."""
        return f"{WHO[self.role]} at {self.address}"

    @property
    def fingerprint(self) -> str:
        """Of its certificate, to be read aloud."""
        return fingerprint(self.der)


@dataclass(frozen=True)
class Parties:
    """What `parties.toml` says.

    Attributes:
        path: of the file.
        each: by role.
        model: SHA-256 of the model's file, in hexadecimal.
    """

    path: Path
    each: dict[str, Party]
    model: str

    @property
    def digest(self) -> str:
        """Of what must be the same at all three: certificates and model. Addresses may differ behind a router."""
        said = {role: hashlib.sha256(self.each[role].der).hexdigest() for role in ROLES}
        return hashlib.sha256(json.dumps({**said, "sha256": self.model}, sort_keys=True).encode()).hexdigest()

    def key(self, role: str, given: Path | None = None) -> Path:
        """The file of a party's own key, which fits its certificate and is readable by its owner only.

        Args:
            role: whose.
            given: where it lies, if not beside `parties.toml`.

        Raises:
            ConfigError: it is missing, others can read it, or it belongs to another certificate.
        """
        path = given or self.path.parent / f"{role}.key"
        try:
            own = private_key_in(path).public_key()
        except SecAggConfigError as error:
            raise ConfigError(str(error)) from None
        if own != x509.load_der_x509_certificate(self.each[role].der).public_key():
            raise ConfigError(
                f"{path}: is not the key of {self.each[role].certificate}, which {self.path} names for {WHO[role]}; "
                "use the key that was made with it"
            )
        return path


def read_parties(path: Path) -> Parties:
    """The three parties of a file.

    Raises:
        ConfigError: it is missing or says something else; names the file and the remedy.
    """
    try:
        tables = tomllib.loads(read_text(path, "write it as docs/howto/encrypted.md says"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML ({error}); correct that line") from None
    wanted = {role: {"address", "certificate"} | ({"sha256"} if role == "model" else set()) for role in ROLES}
    for role, names in wanted.items():
        table = tables.get(role)
        if not isinstance(table, dict) or set(table) != names or not all(isinstance(v, str) for v in table.values()):
            raise ConfigError(
                f"{path}: [{role}] has {' and '.join(sorted(names))}, texts, and nothing else; correct it"
            )
    if others := sorted(set(tables) - set(ROLES)):
        raise ConfigError(f"{path}: [{others[0]}] is no party; there are {', '.join(ROLES)}")
    if not _HASH.fullmatch(tables["model"]["sha256"]):
        raise ConfigError(f"{path}: [model] sha256 is no hash of 64 hexadecimal digits; sha256sum MODEL prints it")
    each = {role: _party(path, role, tables[role]) for role in ROLES}
    if len({party.der for party in each.values()}) < len(ROLES):
        raise ConfigError(f"{path}: two parties have one certificate; each must have its own")
    return Parties(path, each, tables["model"]["sha256"])


def _party(path: Path, role: str, table: dict[str, str]) -> Party:
    if not (found := _ADDRESS.fullmatch(table["address"])) or not 0 < int(found["port"]) < 65536:
        raise ConfigError(f"{path}: [{role}] address = '{table['address']}' is no HOST:PORT; correct it")
    file = path.parent / table["certificate"]
    try:
        certificate = certificates_in(file, "certificate")[0]
    except SecAggConfigError as error:
        raise ConfigError(str(error)) from None
    if days_left(certificate) < 0:
        raise ConfigError(
            f"certificate {file} has expired; {WHO[role]} makes a new one: fedseg encrypted keygen {role}"
        )
    return Party(role, table["address"], file, certificate.public_bytes(Encoding.DER))


def make_key(role: str, folder: Path, days: float = DAYS) -> tuple[Path, str]:
    """Make `ROLE.key` and `ROLE.pem`, a certificate that nobody else signed.

    Args:
        role: one of `ROLES`.
        folder: made where it is missing.
        days: for which the certificate is valid.

    Returns:
        The certificate's file, and its fingerprint to be read aloud.

    Raises:
        ConfigError: either is there already.
        OSError: it cannot be written.
    """
    own, (first, last) = new_key(), valid_for(days)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedseg encrypted {role}")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(own.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(first).not_valid_after(last)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    certificate = builder.sign(own, hashes.SHA256())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_new(folder / f"{role}.key", key_pem(own), PRIVATE)
        path = write_new(folder / f"{role}.pem", certificate.public_bytes(Encoding.PEM), PUBLIC)
    except SecAggConfigError as error:
        raise ConfigError(str(error)) from None
    return path, fingerprint(certificate.public_bytes(Encoding.DER))


def host_port(address: str) -> tuple[str, int]:
    """Both halves of an address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def answers(party: Party, certificate: Path, key: Path) -> bool:
    """Whether another party listens at its address, with its own certificate and taking ours; blocks for seconds.

    SPU's TLS says of a refused certificate only that nobody is there. This says which one, with the standard library.

    Args:
        party: the other one.
        certificate: our own.
        key: our own.

    Raises:
        PartyError: somebody listens there who is not that party, or who does not take our certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is pinned, whatever it names
    context.load_verify_locations(cafile=party.certificate)
    context.load_cert_chain(certificate, key)
    try:
        with (
            socket.create_connection(host_port(party.address), _SECONDS) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.settimeout(1.0)  # in TLS 1.3 our certificate is looked at only after the handshake
            with suppress(TimeoutError):
                if not connection.recv(1):
                    raise ssl.SSLEOFError
            return True
    except ssl.SSLCertVerificationError:
        raise PartyError(
            f"whoever answers for {party.where} shows another certificate than {party.certificate}; "
            "ask for the certificate in use, and compare fingerprints by telephone"
        ) from None
    except (ssl.SSLError, ConnectionResetError):
        if not listens(party):  # it ended just now
            return False
        raise PartyError(
            f"{party.where} does not take our certificate {certificate}; all three must have the same files"
        ) from None
    except OSError:  # nobody listens, or somebody who says nothing
        return False


def listens(party: Party) -> bool:
    """Whether anybody listens at a party's address."""
    try:
        socket.create_connection(host_port(party.address), _SECONDS).close()
    except OSError:
        return False
    return True


def hash_of(model: Path) -> str:
    """SHA-256 of a file in hexadecimal. OSError where it cannot be read."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
