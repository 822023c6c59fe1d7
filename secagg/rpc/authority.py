"""A certificate authority of a federation's own: it signs what sites ask for, and takes certificates back.

Its key lies in memory, or in one file of its owner's. Must never: write a key that others can read, or certify a name
that it was not given by its caller.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secagg.errors import ConfigError
from secagg.rpc.pem import certificates_in, key_pem, private_key_in
from secagg.rpc.tls import AUTHORITY
from secagg.writing import PRIVATE, PUBLIC, write_whole

_CLOCK_SKEW = dt.timedelta(minutes=5)
_MOST_DAYS = 36500
_LONG = dt.timedelta(days=3650)

Validity = tuple[dt.datetime, dt.datetime]
"""First and last moment of a certificate."""


class Authority:
    """A certificate authority; its key is written where `keep` is told to, and nowhere else.

    Args:
        valid: first and last moment of the authority's own certificate and, unless given, of those it issues.
    """

    def __init__(self, valid: Validity | None = None) -> None:
        self._valid = valid or valid_for(30)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"secagg {AUTHORITY}")])
        builder = self._builder(self._name, self._key.public_key(), self._valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = builder.add_extension(_key_usage(authority=True), critical=True).sign(
            self._key, hashes.SHA256()
        )

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "Authority":
        """The authority that `keep` and `write` left.

        Raises:
            ConfigError: a file is missing, not what it should be, or others can read the key.
        """
        found = cls.__new__(cls)
        found._certificate = certificates_in(certificate, AUTHORITY)[0]
        own = private_key_in(key)
        if not isinstance(own, ec.EllipticCurvePrivateKey) or own.public_key() != found._certificate.public_key():
            raise ConfigError(f"key {key} does not belong to {certificate}; bring back the pair made together")
        found._key = own
        found._name = found._certificate.subject
        found._valid = (found._certificate.not_valid_before_utc, found._certificate.not_valid_after_utc)
        return found

    def keep(self, path: Path) -> Path:
        """Write the authority's own key, readable by its owner only."""
        return write_whole(path, key_pem(self._key), PRIVATE)

    def write(self, folder: Path) -> Path:
        """Write `authority.pem`, which every party pins."""
        return write_whole(folder / f"{AUTHORITY}.pem", self.pem, PUBLIC)

    @property
    def ends(self) -> dt.datetime:
        """When its own certificate expires, and all that it signed with it."""
        return self._valid[1]

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, folder: Path, name: str, hosts: Iterable[str] = (), valid: Validity | None = None
    ) -> tuple[Path, Path]:
        """Write `NAME.pem` and `NAME.key` (EC P-256, readable by the owner only), and return the two paths.

        Args:
            folder: where; a file of the name is replaced.
            name: whom the certificate is for.
            hosts: under which sites reach a coordinator; without any it is a site's certificate.
            valid: first and last moment; the authority's own where not given.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(key.public_key(), name, hosts, valid)
        return (
            write_whole(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), PUBLIC),
            write_whole(folder / f"{name}.key", key_pem(key), PRIVATE),
        )

    def certify(
        self, key: CertificatePublicKeyTypes, name: str, hosts: Iterable[str] = (), valid: Validity | None = None
    ) -> x509.Certificate:
        """A certificate for somebody else's key; arguments as for `issue`."""
        alternatives = [_general_name(host) for host in hosts]
        usage = ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key, valid or self._valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def revoke(self, path: Path, serials: Iterable[int]) -> Path:
        """Write the list (CRL) of all certificates that are taken back; see `secagg.rpc.pem.revoked_in`."""
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now).next_update(now + _LONG)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self._key, hashes.SHA256())
        return write_whole(path, signed.public_bytes(serialization.Encoding.PEM), PUBLIC)

    def _builder(self, subject: x509.Name, key: CertificatePublicKeyTypes, valid: Validity) -> x509.CertificateBuilder:
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


def valid_for(days: float) -> Validity:
    """From now on for so many days; it begins a little earlier, for clocks that are behind.

    Raises:
        ConfigError: that is more than a century.
    """
    if not days <= _MOST_DAYS:
        raise ConfigError(f"{days:g} days: nothing is valid for so long; give at most {_MOST_DAYS}")
    now = dt.datetime.now(dt.UTC)
    return now - _CLOCK_SKEW, now + dt.timedelta(days=days)


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
