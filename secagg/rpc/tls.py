"""Certificates: who the coordinator and the sites are to each other on the wire, and why a connection fails.

TLS with one pinned authority. A site's name is the common name of its certificate; coordinator and site certificates
differ in extended key usage, so that no site can pose as the coordinator. A site without a certificate, where a load
balancer ends TLS, pins the authority alone. Renewed files are read while a run goes on. Must never: make a certificate
(`secagg.rpc.demo_authority` does for demonstrations), take a key that others can read, or put one into a repr, error or
pickle.
"""

import datetime as dt
import os
import ssl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NoReturn, Self, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secagg.errors import ConfigError
from secagg.rpc.pem import as_pem, certificates_in, key_pem, private_key_in, revoked_in
from secagg.rpc.proxy import Proxy, ProxyError, dial

AUTHORITY = "authority"
COORDINATOR = "coordinator"
_DIAGNOSES = 3
_DIAGNOSIS_SECONDS = 15.0
_DIAGNOSIS_PAUSE = 0.3
_SEEN_CERTIFICATES = 512
_Stamps: TypeAlias = "tuple[tuple[int, int, int], ...]"


@dataclass(frozen=True)
class Credentials:
    """One party's certificate, checked against its key and the authority; use `ServerTls` or `ClientTls`.

    Attributes:
        name: whom it is for.
        paths: of certificate and key.
        revoked: serial numbers of certificates that are let in no more.
        files: authority, certificate, key and revoked ones as they were read; `stamps` change where a file does.
    """

    name: str
    authority: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    paths: tuple[Path, Path] = field(repr=False)
    revoked: frozenset[int] = frozenset()
    files: tuple[Path | None, ...] = field(default=(), repr=False)
    stamps: _Stamps = field(default=(), repr=False)

    _usage: ClassVar[x509.ObjectIdentifier]
    _role: ClassVar[str]

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials hold a private key and cannot be copied or serialised")

    @property
    def expires(self) -> dt.datetime | None:
        """Last moment of the certificate; None without one."""
        return last_moment(self.certificate)

    def days_left(self) -> float | None:
        """Days until the certificate ends, negative afterwards; None without one."""
        end = self.expires
        return None if end is None else (end - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1)

    def renewed(self) -> Self:
        """What the files say now, if that is whole, valid and for the same party; else this."""
        try:
            if _stamps(self.files) == self.stamps:
                return self
            authority, certificate, key, revoked = self.files
            if authority is None or certificate is None or key is None:
                return self
            fresh = self._load(authority, certificate, key, revoked)
        except ConfigError:  # such as between the writing of the certificate and that of its key
            return self
        return fresh if fresh.name == self.name else self

    @classmethod
    def _load(cls, authority: Path, certificate: Path, key: Path, revoked: Path | None = None) -> Self:
        files = (authority, certificate, key, revoked)
        stamps = _stamps(files)
        roots = certificates_in(Path(authority), "authority")
        chain = certificates_in(Path(certificate), "certificate")
        own = private_key_in(Path(key))
        _check_dates(authority, roots[0])
        _check_dates(certificate, chain[0])
        if not _leads_to(chain, roots):
            raise ConfigError(
                f"certificate {certificate} was not issued by the authority {authority}; use the authority file "
                "that came with it, or ask the coordinator for a new certificate"
            )
        if _public_bytes(chain[0].public_key()) != _public_bytes(own.public_key()):
            raise ConfigError(f"key {key} does not belong to certificate {certificate}; take the pair made together")
        if not _allows(chain[0], cls._usage):
            raise ConfigError(f"certificate {certificate} is not for a {cls._role}; take the {cls._role}'s own")
        name = cls._name(certificate, chain[0])
        taken_back = revoked_in(revoked, roots) if revoked is not None else frozenset[int]()
        paths = (certificate, key)
        return cls(name, as_pem(roots), as_pem(chain), key_pem(own), paths, taken_back, files, stamps)

    @staticmethod
    def _name(path: Path, certificate: x509.Certificate) -> str:
        return COORDINATOR


class ServerTls(Credentials):
    """The coordinator's certificate and key; `revoked`: serial numbers of certificates that it lets in no more."""

    _usage = ExtendedKeyUsageOID.SERVER_AUTH
    _role = "coordinator"

    @classmethod
    def load(cls, authority: Path, certificate: Path, key: Path, revoked: Path | None = None) -> Self:
        """Read three PEM files, and the list of revoked certificates where there is one.

        Args:
            authority: the certificate of the authority that every party pins.
            certificate: the coordinator's own, with any intermediate ones behind it.
            key: its private key, which only its owner may read.
            revoked: the authority's list of certificates that it took back (a CRL in PEM form); may be missing.

        Raises:
            ConfigError: a file is missing or unreadable, expired, not yet valid, from another authority, not a
                coordinator's, or the key does not match; names the file and what to do.
        """
        return cls._load(authority, certificate, key, revoked)


class ClientTls(Credentials):
    """A site's credentials; `name` is the site id."""

    _usage = ExtendedKeyUsageOID.CLIENT_AUTH
    _role = "site"

    @staticmethod
    def _name(path: Path, certificate: x509.Certificate) -> str:
        try:
            return _site(certificate)
        except ValueError as error:
            raise ConfigError(f"certificate {path} {error}; ask for one that names this site only") from None

    @classmethod
    def load(cls, authority: Path, certificate: Path, key: Path, roster: Collection[str]) -> Self:
        """Read three PEM files.

        Args:
            authority: the certificate of the authority that every party pins.
            certificate: the site's own, with any intermediate ones behind it.
            key: its private key, which only its owner may read.
            roster: the sites' ids; the common name of the certificate must be one of them.

        Raises:
            ConfigError: as `ServerTls.load`, or the name is not in the roster.
        """
        credentials = cls._load(authority, certificate, key)
        if credentials.name not in roster:
            raise ConfigError(
                f"certificate {certificate} is for {credentials.name!r}, which is not in the roster "
                f"({', '.join(sorted(roster))}); use this site's own certificate"
            )
        return credentials

    @classmethod
    def without_certificate(cls, authority: Path, site: str) -> Self:
        """For a site that proves itself with its signing key (`secagg.rpc.proof`): it pins the authority alone.

        Args:
            authority: certificates of the authority of whoever ends TLS before the coordinator.
            site: this site's id.

        Raises:
            ConfigError: the file is missing, unreadable or expired.
        """
        roots = certificates_in(Path(authority), "authority")
        _check_dates(authority, roots[0])
        return cls(site, as_pem(roots), b"", b"", (authority, authority))


def site_named_by(pem: bytes, revoked: Collection[int] = ()) -> str:
    """The site that a peer's certificate is for: the first one in `pem`, whose chain TLS has verified.

    Args:
        pem: what the peer showed.
        revoked: serial numbers that are let in no more.

    Raises:
        ValueError: it is no certificate, revoked, not for authenticating a client, or names nobody or more than one;
            the message goes on from "the certificate".
    """
    shown = _shown(pem)
    if shown.serial in revoked:
        raise ValueError("was revoked by the coordinator; ask for a new one with enrol request")
    if shown.problem:
        raise ValueError(shown.problem)
    return shown.name


@dataclass(frozen=True, slots=True)
class _Shown:
    name: str
    problem: str
    serial: int
    ends: dt.datetime | None


@lru_cache(maxsize=_SEEN_CERTIFICATES)
def _shown(pem: bytes) -> _Shown:
    """What a certificate says. A site shows its own with every call; reading it takes a millisecond."""
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        return _Shown("", "is missing or cannot be read", -1, None)
    name = problem = ""
    try:
        name = _site(certificate)
    except ValueError as error:
        problem = str(error)
    return _Shown(name, problem, certificate.serial_number, certificate.not_valid_after_utc)


def _site(certificate: x509.Certificate) -> str:
    """The one site that a certificate names. ValueError where it names another number, or is not for a client."""
    if not _allows(certificate, ExtendedKeyUsageOID.CLIENT_AUTH):
        raise ValueError("is not for a site: its extended key usage lacks client authentication")
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1:
        raise ValueError(f"has {len(names)} common names and must have one")
    with suppress(x509.ExtensionNotFound):
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if any(getattr(other, "value", None) != names[0] for other in others):
            raise ValueError(f"names {names[0]!r} and others and must name one site")
    return names[0]


def last_moment(pem: bytes) -> dt.datetime | None:
    """When the first certificate in `pem` ends; None where there is none."""
    return _shown(pem).ends


def diagnose(host: str, port: int, tls: ClientTls, proxy: Proxy | None = None) -> str:
    """Connect with the standard library's TLS, whose errors say what is wrong; blocks for seconds at most.

    Args:
        host: of the coordinator.
        port: of the coordinator.
        tls: this site's credentials.
        proxy: through which it is reached.

    Returns:
        Why nothing answers, and what to do, or "" if the connection is sound. All of it may pass: a middlebox that
        answers instead, a certificate that is renewed.
    """
    try:
        # gRPC refuses a client's certificate without a word; a server that is just stopping closes once.
        if any(_answers(host, port, tls, proxy) for _ in range(_DIAGNOSES)):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"it shows a certificate that is not trusted here ({error.verify_message}); check the address and "
            "the authority file, or ask for a coordinator certificate with this address"
        )
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return "it closed the connection"
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return "what answers there does not speak TLS; check the address, the port and what is between"
    except ProxyError as error:
        return f"{error}; check the proxy, or name the coordinator in no_proxy"
    except TimeoutError:
        return f"no answer within {_DIAGNOSIS_SECONDS:g} s; check that it runs, the address and the firewall"
    except OSError as error:
        return f"{error.strerror or error}; check that it runs, the address and the firewall"
    if not tls.certificate:
        return "it closed the connection"
    left = tls.days_left()
    ended = f", which ended on {tls.expires:%Y-%m-%d %H:%M} UTC" if left is not None and left < 0 else ""
    return (
        f"it refuses certificate {tls.paths[0]}{ended}; use the certificate that was issued for this study and is "
        "still valid, or ask the coordinator for a new one: it is read again while this site waits"
    )


def _answers(host: str, port: int, tls: ClientTls, proxy: Proxy | None) -> bool:
    """Tell whether the server still talks after the handshake: in TLS 1.3 it looks at our certificate only then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=tls.authority.decode("ascii"))
    if tls.certificate:
        with _in_memory(tls.certificate + tls.key) as pair:  # as gRPC has them, whatever wrote the files
            context.load_cert_chain(pair)
    context.set_alpn_protocols(["h2"])
    with (
        dial(host, port, proxy, _DIAGNOSIS_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        try:
            if connection.recv(1):
                return True
        except (ssl.SSLEOFError, ConnectionResetError):
            pass
    time.sleep(_DIAGNOSIS_PAUSE)
    return False


def _stamps(files: tuple[Path | None, ...]) -> _Stamps:
    """What changes where a file does; a file may be missing."""
    found = []
    for path in files:
        try:
            stat = os.stat(path) if path is not None else None
        except OSError:
            stat = None
        found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat is not None else (0, 0, 0))
    return tuple(found)


@contextmanager
def _in_memory(pem: bytes) -> Iterator[str]:
    """A file that lies on no disk: the standard library's TLS takes keys from files only."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = dt.datetime.now(dt.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        raise ConfigError(f"certificate {path} expired on {last:%Y-%m-%d %H:%M} UTC; ask for a new one")
    if now < first:
        raise ConfigError(
            f"certificate {path} is not valid before {first:%Y-%m-%d %H:%M} UTC; check the clock of this computer"
        )


def _leads_to(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> bool:
    certificate, intermediates = chain[0], chain[1:]
    while not any(_issued(certificate, root) for root in roots):
        issuer = next((candidate for candidate in intermediates if _issued(certificate, candidate)), None)
        if issuer is None:
            return False
        intermediates.remove(issuer)
        certificate = issuer
    return True


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _allows(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    """Tell whether a certificate names this usage. One that names no usage at all is refused here."""
    try:
        if not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return False
    except x509.ExtensionNotFound:
        pass
    try:
        return usage in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
