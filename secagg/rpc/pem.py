"""Certificates and private keys in PEM files, as Windows, openssl and other tools leave them.

A byte-order mark, Windows line ends, text in front, an EC PARAMETERS block: all of it is read, and what goes to gRPC is
written anew. What gRPC's TLS library cannot use is refused here by name, instead of by a connection that breaks. Must
never: put a key into an error, or take one that others can read.
"""

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from secagg.errors import ConfigError
from secagg.text import byte_order_mark, read_text
from secagg.writing import owners_only

USABLE = "use an EC key on P-256 or P-384, or an RSA key of 2048 bits or more"
_CURVES = ("secp256r1", "secp384r1")
_RSA_BITS = 2048
_BROKEN_HASHES = (hashes.MD5, hashes.SHA1)


def read_pem(path: Path, what: str) -> bytes:
    """The bytes of a PEM file without a byte-order mark, lines ended as on Unix.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        pem = path.read_bytes()
        if byte_order_mark(pem):
            pem = read_text(path).encode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"{what} file {path} cannot be read ({error.strerror}); check the path, or make certificates first"
        ) from None
    return pem.replace(b"\r\n", b"\n")


def certificates_in(path: Path, what: str) -> list[x509.Certificate]:
    """The certificates of a file, the party's own first.

    Raises:
        ConfigError: it holds none, or gRPC could not use one.
    """
    pem = read_pem(path, what)
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{path} is not a certificate in PEM form; it begins with BEGIN CERTIFICATE") from None
    for certificate in found:
        if said := unusable(certificate.public_key()):
            raise ConfigError(f"certificate {path} holds {said}, which is refused; {USABLE}")
        if isinstance(certificate.signature_hash_algorithm, _BROKEN_HASHES):
            name = certificate.signature_hash_algorithm.name.upper()
            raise ConfigError(f"certificate {path} is signed over {name}, which is refused; ask for one with SHA-256")
    return found


def private_key_in(path: Path) -> PrivateKeyTypes:
    """The private key of a file.

    Raises:
        ConfigError: others can read it, it has a password, it is none, or gRPC could not use it.
    """
    pem = read_pem(path, "key")
    owners_only(path)
    begin = pem.find(b"-----BEGIN EC PRIVATE KEY")  # `openssl ecparam -genkey` writes the curve in front
    try:
        key = serialization.load_pem_private_key(pem[max(begin, 0) :], password=None)
    except TypeError:
        raise ConfigError(f"key {path} has a password; store it without one, readable by you only") from None
    except ValueError:
        raise ConfigError(f"{path} is not a private key in PEM form; it begins with BEGIN PRIVATE KEY") from None
    if said := unusable(key.public_key()):
        raise ConfigError(f"key {path} is {said}, which is refused; {USABLE}")
    return key


def unusable(key: PublicKeyTypes) -> str:
    """What a key is where gRPC's TLS refuses it, such as "an Ed25519 key"; "" where it takes it."""
    match key:
        case ec.EllipticCurvePublicKey():
            return "" if key.curve.name in _CURVES else f"an EC key on {key.curve.name}"
        case rsa.RSAPublicKey():
            return "" if key.key_size >= _RSA_BITS else f"an RSA key of {key.key_size} bits"
    name = type(key).__name__.removesuffix("PublicKey")
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name} key"


def as_pem(certificates: list[x509.Certificate]) -> bytes:
    """Certificates as every library reads them."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def key_pem(key: PrivateKeyTypes) -> bytes:
    """A private key as every library reads it (PKCS 8, no password): for gRPC, and for private files."""
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate expires; negative where it has."""
    return (certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1)


def revoked_in(path: Path, authority: list[x509.Certificate]) -> frozenset[int]:
    """Serial numbers of the certificates that an authority took back; none where there is no such list.

    Args:
        path: a list of revoked certificates (CRL) in PEM form.
        authority: whose signature it must have.

    Raises:
        ConfigError: it is no such list, or not this authority's; nobody is let in on a list that cannot be read.
    """
    if not path.exists():
        return frozenset()
    try:
        listed = x509.load_pem_x509_crl(read_pem(path, "revocation"))
    except ValueError:
        raise ConfigError(f"{path} is not a list of revoked certificates; it begins with BEGIN X509 CRL") from None
    if not any(_signed(listed, root) for root in authority):
        raise ConfigError(f"{path} was not signed by the authority of this folder; make it again with enrol revoke")
    return frozenset(each.serial_number for each in listed)


def _signed(listed: x509.CertificateRevocationList, root: x509.Certificate) -> bool:
    try:
        return listed.is_signature_valid(root.public_key())  # type: ignore[arg-type]  # a TypeError for other keys
    except (TypeError, InvalidSignature):
        return False
