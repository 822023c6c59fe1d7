"""What is carried between a site and the coordinator to enrol it: three small TOML files, each signed.

    NAME.invitation  coordinator to site: where it listens, its key and authority; signed with the token's key
    NAME.request     site to coordinator: its verify key and what its certificate is to be for (CSR); signed with that
                     key, and with the token's or, at a renewal, with the key that is pinned so far
    NAME.approval    coordinator to site: its certificate; signed with the coordinator's key

Must never: hold a secret.
"""

import base64
import hashlib
import secrets
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from secagg.encoding import digest, encode
from secagg.errors import ConfigError
from secagg.keys import SigningKey, hkdf, verify
from secagg.text import read_text
from secagg.toml import from_toml, to_toml

_TOKEN_BYTES = 15
_GROUP = 4
_FINGERPRINT_BYTES = 12


def new_token() -> str:
    """A token of 120 random bits to be told by telephone: six groups of letters and digits that are not mistaken."""
    return grouped(base64.b32encode(secrets.token_bytes(_TOKEN_BYTES)).decode("ascii"), "-")


def token_key(token: str, site: str) -> SigningKey:
    """The key that follows from a token, for one site; whoever knows only its public half learns nothing of it.

    Raises:
        ConfigError: this is no token; it is not shown.
    """
    letters = "".join(token.upper().replace("-", " ").split())
    try:
        raw = base64.b32decode(letters)
    except ValueError:
        raw = b""
    if len(raw) != _TOKEN_BYTES:
        raise ConfigError("this is no token: it has six groups of four letters A to Z and digits 2 to 7; ask again")
    return SigningKey.from_bytes(hkdf(raw, encode("enrolment-token", site)))


def fingerprint(*parts: bytes) -> str:
    """96 bits of a hash, to be read aloud in six groups of four hexadecimal digits."""
    return grouped(digest("fingerprint", *parts)[:_FINGERPRINT_BYTES].hex(), " ")


def grouped(text: str, separator: str) -> str:
    """Text in groups of four."""
    return separator.join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))


@dataclass(frozen=True, kw_only=True)
class _Paper:
    """A file with plain texts in it, and signatures over all the others."""

    kind: ClassVar[str]
    unsigned: ClassVar[tuple[str, ...]]

    site: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """The paper in a file; nothing in it is believed before a signature is verified.

        Raises:
            ConfigError: it is another one, or none.
            OSError: it cannot be read.
        """
        try:
            table: dict[str, Any] = from_toml(read_text(path))
        except ValueError:  # TOML's errors are; a ConfigError is one, too
            table = {}
        found = table.pop("kind", None)
        known = {field.name for field in fields(cls)}
        if (
            found != f"enrolment {cls.kind}"
            or set(table) != known
            or not all(isinstance(v, str) for v in table.values())
        ):
            raise ConfigError(f"{path} is not an enrolment {cls.kind}; ask for the file again")
        if not all(value.isascii() for value in table.values()):
            raise ConfigError(f"{path} holds letters outside ASCII; ask for the file again")
        return cls(**table)

    @property
    def text(self) -> str:
        """The file's text."""
        return to_toml({"kind": f"enrolment {self.kind}", **asdict(self)})

    @property
    def statement(self) -> bytes:
        """What is signed: every field but the signatures."""
        return encode(f"enrolment-{self.kind}", *(v for name, v in asdict(self).items() if name not in self.unsigned))

    def signed(self, **keys: SigningKey) -> Self:
        """With these signatures: a key for each field's name."""
        return replace(self, **{name: key.sign(self.statement).hex() for name, key in keys.items()})

    def holds(self, name: str, verify_key: bytes) -> bool:
        """Whether the signature in a field is this key's."""
        return verify(verify_key, self.statement, as_bytes(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Invitation(_Paper):
    """See the module."""

    kind = "invitation"
    unsigned = ("token_signature",)

    address: str
    server_key: str
    authority: str
    expires: str
    token_signature: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the coordinator: the same in every invitation."""
        return coordinator_fingerprint(as_bytes(self.server_key), self.authority)


@dataclass(frozen=True, kw_only=True)
class Request(_Paper):
    """See the module."""

    kind = "request"
    unsigned = ("own_signature", "token_signature", "earlier_signature")

    server_key: str
    verify_key: str
    csr: str
    own_signature: str = ""
    token_signature: str = ""
    earlier_signature: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the site: both sides print it, and compare it by telephone."""
        return site_fingerprint(self.site, as_bytes(self.verify_key), self.csr)


@dataclass(frozen=True, kw_only=True)
class Approval(_Paper):
    """See the module."""

    kind = "approval"
    unsigned = ("signature",)

    verify_key: str
    certificate: str
    signature: str = ""


def coordinator_fingerprint(server_key: bytes, authority: str) -> str:
    """What a coordinator reads aloud: of its verify key and its authority (PEM)."""
    return fingerprint(b"coordinator", server_key, hashlib.sha256(authority.encode("ascii")).digest())


def site_fingerprint(site: str, verify_key: bytes, csr: str) -> str:
    """What a site reads aloud: of its name, its verify key and its request for a certificate (PEM)."""
    return fingerprint(site.encode("ascii"), verify_key, hashlib.sha256(csr.encode("ascii")).digest())


def as_bytes(text: str) -> bytes:
    """The bytes of hexadecimal digits; none where they are not."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
