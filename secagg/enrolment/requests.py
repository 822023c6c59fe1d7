"""A site's request for a certificate (CSR), as this library or plain openssl makes it.

Must never: certify what a request asks for beyond its key: name, usage and dates are the coordinator's.
"""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from secagg.errors import ConfigError
from secagg.rpc.pem import USABLE, read_pem, unusable


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key for TLS, on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def new_csr(site: str, key: ec.EllipticCurvePrivateKey) -> str:
    """The request of a site for its key, in PEM form."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode("ascii")


def read_csr(path: Path) -> str:
    """A request in a file, written anew as every tool reads it.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    return _parsed(path, read_pem(path, "request")).public_bytes(serialization.Encoding.PEM).decode("ascii")


def checked_csr(csr: str, site: str, where: Path) -> x509.CertificateSigningRequest:
    """A request that may be signed for a site.

    Args:
        csr: PEM.
        site: whom it must be for.
        where: the file that it came in, for errors.

    Raises:
        ConfigError: it is none, was changed on the way, names somebody else, or has a key that gRPC refuses.
    """
    request = _parsed(where, csr.encode("ascii", "replace"))
    try:
        sound = request.is_signature_valid
        key = request.public_key()
    except Exception as error:  # a key of a kind that the library does not know
        raise ConfigError(f"{where}: the key of this request is of no known kind; {USABLE}") from error
    if not sound:
        raise ConfigError(f"{where}: the request was changed after it was signed; ask for it again")
    names = [str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [site]:
        asked = names[0] if len(names) == 1 else f"{len(names)} common names"
        raise ConfigError(f"{where}: the request is for {asked!r} and not for {site!r}; make it with -subj /CN={site}")
    if said := unusable(key):
        raise ConfigError(f"{where}: the request is for {said}, which is refused; {USABLE}")
    return request


def _parsed(path: Path, pem: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(pem)
    except ValueError:
        raise ConfigError(f"{path} is not a certificate request; it begins with BEGIN CERTIFICATE REQUEST") from None
