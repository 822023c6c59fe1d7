"""Certificates for demonstrations and tests: an authority whose key is thrown away as soon as it has issued them.

Where hospitals take part, their own authority issues certificates; docs/howto/run-a-federation.md says which. Must
never: write the authority's key, or a key that others can read.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secagg.errors import ConfigError
from secagg.rpc.proxy import LOCAL_HOSTS
from secagg.rpc.tls import AUTHORITY, COORDINATOR
from secagg.writing import PRIVATE, PRIVATE_FOLDER, PUBLIC, write_whole

_CLOCK_SKEW = dt.timedelta(minutes=5)


class Authority:
    """A certificate authority that lives as long as this object: its key is never written.

    Args:
        valid: first and last moment of the authority's own certificate and, unless given, of those it issues.
    """

    def __init__(self, valid: tuple[dt.datetime, dt.datetime] | None = None) -> None:
        now = dt.datetime.now(dt.UTC)
        self._valid = valid or (now - _CLOCK_SKEW, now + dt.timedelta(days=30))
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"secagg {AUTHORITY}")])
        builder = self._builder(self._name, self._key.public_key(), self._valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = builder.add_extension(_key_usage(authority=True), critical=True).sign(
            self._key, hashes.SHA256()
        )

    def write(self, folder: Path) -> Path:
        """Write `authority.pem`, which every party pins."""
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        return write_whole(folder / f"{AUTHORITY}.pem", pem, PUBLIC)

    def issue(
        self,
        folder: Path,
        name: str,
        hosts: Iterable[str] = (),
        valid: tuple[dt.datetime, dt.datetime] | None = None,
    ) -> tuple[Path, Path]:
        """Write `NAME.pem` and `NAME.key` (EC P-256, readable by the owner only), and return the two paths.

        Args:
            folder: where; a file of the name is replaced.
            name: whom the certificate is for.
            hosts: under which sites reach a coordinator; without any it is a site's certificate.
            valid: first and last moment; the authority's own where not given.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternatives = [_general_name(host) for host in hosts]
        usage = ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(subject, key.public_key(), valid or self._valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            write_whole(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), PUBLIC),
            write_whole(folder / f"{name}.key", key_pem, PRIVATE),
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, valid: tuple[dt.datetime, dt.datetime]
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .subject_name(subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(valid[0])
            .not_valid_after(valid[1])
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def make_certificates(folder: Path, sites: Iterable[str], hosts: Iterable[str] = ()) -> None:
    """Write `authority.pem`, `coordinator.pem/.key` and `SITE.pem/.key` for a demonstration, valid for 30 days.

    Args:
        folder: is made where it is missing; existing files are replaced.
        sites: their ids.
        hosts: where the coordinator is reached, besides localhost, 127.0.0.1 and ::1.

    Raises:
        ConfigError: a site is called authority or coordinator, or the folder cannot be written.
    """
    sites = sorted(sites)
    for name in {AUTHORITY, COORDINATOR} & set(sites):
        raise ConfigError(f"site id {name!r} is the name of a file that the coordinator needs; choose another id")
    authority = Authority()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        authority.write(folder)
        authority.issue(folder, COORDINATOR, [*LOCAL_HOSTS, *hosts])
        for site in sites:
            authority.issue(folder, site)
    except OSError as error:
        raise ConfigError(f"folder {folder}: cannot write certificates ({error.strerror}); choose another") from None


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
