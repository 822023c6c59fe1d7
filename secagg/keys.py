"""Key pairs of a client and everything that is done with them: sign, seal, agree, derive.

Each primitive comes from a library (PyNaCl, cryptography). Must never: print, copy, pickle or log a secret, or let
one leave the process, but for an explicitly exported signing key. Specification: docs/spec.md, sections "Primitives"
and "Keys and seeds".
"""

import hashlib
import secrets
from functools import cache, lru_cache
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey as Ed25519Key
from nacl.signing import VerifyKey

from secagg.arguments import must_be
from secagg.encoding import encode
from secagg.policy import Suite

KEY_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184
MLKEM_CIPHERTEXT_BYTES = 1088
MLKEM_SEED_BYTES = 64
TAG_BYTES = 16
NONCE_BYTES = 12

_KEPT_BYTES = 1 << 13
"""Of a message whose signature is remembered as verified: the start of a round grows with every round before it."""

_FIELD_PRIME = 2**255 - 19
_LOW_ORDER = (
    0,
    1,
    _FIELD_PRIME - 1,
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)
"""Canonical u coordinates of the points of order 1, 2, 4 and 8 of Curve25519 and its twist (RFC 7748, section 7):
with one of them every exchange gives zero."""

_KEM = {Suite.X25519: hpke.KEM.X25519, Suite.MLKEM768_X25519: hpke.KEM.MLKEM768_X25519}

_PublicKey = X25519PublicKey | hpke.MLKEM768X25519PublicKey
_PrivateKey = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey


class Secret:
    """Something that is neither printed nor copied nor pickled."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is never copied or pickled")

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce__()

    def wipe(self) -> None:
        """Overwrites the bytes held here and drops the library's key objects; nothing works afterwards.

        Best effort: copies that Python or a library made on the way are beyond reach.
        """
        for value in vars(self).values():
            if isinstance(value, bytearray):
                value[:] = bytes(len(value))
        vars(self).clear()


class SigningKey(Secret):
    """d_u: the Ed25519 identity of a client or server (RFC 8032)."""

    def __init__(self, key: Ed25519Key) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "SigningKey":
        """A fresh key from the operating system."""
        return cls(Ed25519Key.generate())

    @classmethod
    def from_bytes(cls, seed: bytes) -> "SigningKey":
        """The key of a 32-byte seed, as `export` gave it. ConfigError for other types, ValueError for other lengths."""
        must_be(seed, (bytes, bytearray), "the seed", "give 32 bytes, or read a file with secagg.load_key")
        return cls(Ed25519Key(bytes(seed)))

    def export(self) -> bytes:
        """The 32-byte seed, for key files only."""
        return bytes(self._key)

    @property
    def verify_key(self) -> bytes:
        """The public half, 32 bytes."""
        return bytes(self._key.verify_key)

    def sign(self, message: bytes) -> bytes:
        """64-byte signature over a message that `encoding.encode` made (its label separates the purposes)."""
        return self._key.sign(message).signature


class SealingKey(Secret):
    """Seals what a party keeps on its own disk for itself (AES-256-GCM with a random nonce).

    It follows from the party's signing key, so that there is no second key to keep. A nonce repeats with a chance below
    2^-32 over 2^32 sealings.
    """

    def __init__(self, signing_key: SigningKey) -> None:
        self._key = bytearray(hkdf(signing_key.export(), encode("sealing-key")))

    def seal(self, about: bytes, plaintext: bytes) -> bytes:
        """Nonce, ciphertext and tag: what `open` opens under the same `about`, which is not in it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(bytes(self._key)).encrypt(nonce, plaintext, about)

    def open(self, about: bytes, sealed: bytes) -> bytes:
        """The plaintext. ValueError if these bytes were not sealed with this key and `about`."""
        try:
            view = memoryview(sealed)
            return AESGCM(bytes(self._key)).decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], about)
        except (InvalidTag, ValueError):
            raise ValueError("it does not open") from None


def verify(verify_key: bytes, message: bytes, signature: bytes) -> bool:
    """Check an Ed25519 signature; bytes that are no key or no signature are False, never an error.

    Args:
        verify_key: the signer's, 32 bytes.
        message: what was signed.
        signature: 64 bytes.
    """
    check = _verified if len(message) <= _KEPT_BYTES else _verified.__wrapped__
    return check(bytes(verify_key), bytes(message), bytes(signature))


@lru_cache(maxsize=512)
def _verified(verify_key: bytes, message: bytes, signature: bytes) -> bool:
    """`verify`, kept: a process that holds all parties of a round, or replays its own, meets each signature again."""
    try:
        VerifyKey(verify_key).verify(message, signature)
    except CryptoError:
        return False
    return True


def hkdf(key: bytes, info: bytes, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 (RFC 5869): 32 bytes.

    Args:
        key: the secret that the result follows from.
        info: made by `encoding.encode`, so that every purpose has its own result.
        salt: the RFC's default, zeros, where it is empty.
    """
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(key)


class ChannelKey(Secret):
    """c_u: the key under which shares travel, fresh for every slot, never shared (HPKE base mode, RFC 9180).

    Attributes:
        public: 32 bytes (X25519), or 1216 bytes (X-Wing: ML-KEM-768 then X25519).
    """

    def __init__(self, suite: Suite, seed: bytes | None = None) -> None:
        """Draws the key from the operating system, or makes it again from its seed."""
        self._seed = bytearray(secrets.token_bytes(KEY_BYTES) if seed is None else seed)
        self._suite = suite
        self._key: _PrivateKey
        make = _xwing_key if suite is Suite.MLKEM768_X25519 else _x25519_key
        self._key, self.public = make(bytes(self._seed))

    @property
    def seed(self) -> bytes:
        """What the key is made of, 32 bytes: for a sealed snapshot only."""
        return bytes(self._seed)

    def open(self, info: bytes, envelope: bytes) -> bytes:
        """Plaintext of an envelope sealed to `public` under this `info`. ValueError if it does not open."""
        return _open(self._suite, self._key, info, envelope)


class MaskKey(Secret):
    """s_u: 32 bytes from which both halves of the mask key and the pair secrets are derived.

    Enough shares of s_u give all of it, so that a mask can be recovered from either end of its pair.

    Attributes:
        dh_public: X25519 public key, 32 bytes.
        kem_public: X-Wing public key, 1216 bytes; empty in the X25519 suite.
    """

    def __init__(self, suite: Suite, seed: bytes | None = None) -> None:
        """Draws s_u from the operating system, or takes a reconstructed one. ValueError unless it has 32 bytes."""
        self._seed = bytearray(secrets.token_bytes(KEY_BYTES) if seed is None else seed)
        if len(self._seed) != KEY_BYTES:
            raise ValueError("a mask key has 32 bytes")
        self._suite = suite
        self._dh, self.dh_public = _x25519_key(self._derive("mask/dh"))
        self.kem_public = b""
        if suite is Suite.MLKEM768_X25519:
            self._kem, self.kem_public = _xwing_key(self._derive("mask/kem"))

    @property
    def seed(self) -> bytes:
        """s_u itself, to be split into shares."""
        return bytes(self._seed)

    def pair_secret(self, peer: str) -> bytes:
        """r_uv for a peer v in whose pair this client is the dealer: 32 bytes; empty in the X25519 suite."""
        return self._derive("pair", peer) if self.kem_public else b""

    def open_pair(self, info: bytes, envelope: bytes) -> bytes:
        """r_vu that the dealer v sealed to `kem_public`. ValueError if it does not open, or without such a key."""
        if not self.kem_public:
            raise ValueError("the X25519 suite has no sealed pair secrets")
        return _open(self._suite, self._kem, info, envelope)

    def exchange(self, peer_dh_public: bytes) -> bytes:
        """X25519 (RFC 7748) with a peer's `dh_public`: 32 bytes. ValueError if the result is all zero."""
        return self._dh.exchange(X25519PublicKey.from_public_bytes(peer_dh_public))

    def _derive(self, purpose: str, *fields: str) -> bytes:
        return hkdf(bytes(self._seed), encode(purpose, *fields))


def seal(suite: Suite, public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Seal a plaintext for one reader (HPKE base mode, RFC 9180).

    Args:
        suite: of `public`.
        public: the reader's key; whoever holds its private half opens the envelope, and nobody else.
        info: the envelope opens only under the same bytes: who sent it to whom in which attempt.
        plaintext: what is sealed.

    Returns:
        The envelope, `envelope_length` bytes.

    Raises:
        ValueError: `public` is not a key of the suite.
    """
    return _hpke(suite).encrypt(plaintext, _public_key(suite, public), info)


def envelope_length(suite: Suite, plaintext_length: int) -> int:
    """Bytes of an envelope around `plaintext_length` bytes: encapsulated key, ciphertext, tag."""
    encapsulated = KEY_BYTES + (MLKEM_CIPHERTEXT_BYTES if suite is Suite.MLKEM768_X25519 else 0)
    return encapsulated + plaintext_length + TAG_BYTES


def check_public(suite: Suite, channel_pk: bytes, mask_dh_pk: bytes, mask_kem_pk: bytes) -> bool:
    """Check the three keys of an AdvertiseKeys message: False for any that no honest client can have made.

    Checked are the lengths of the suite, canonical encodings, that no X25519 point is of low order, and that ML-KEM
    keys are reduced (FIPS 203, 7.2).

    Args:
        suite: of the policy.
        channel_pk: 32 or 1216 bytes.
        mask_dh_pk: 32 bytes.
        mask_kem_pk: 1216 bytes, or none in the X25519 suite.
    """
    if suite is Suite.X25519 and mask_kem_pk:
        return False
    kem_keys = [channel_pk, mask_kem_pk] if suite is Suite.MLKEM768_X25519 else [channel_pk]
    try:
        for key in kem_keys:
            _public_key(suite, key)
    except ValueError:
        return False
    return all(map(_is_contributory, [mask_dh_pk, *(key[-KEY_BYTES:] for key in kem_keys)]))


def _is_contributory(point: bytes) -> bool:
    u = int.from_bytes(point, "little")
    return len(point) == KEY_BYTES and u < _FIELD_PRIME and u not in _LOW_ORDER


def _x25519_key(seed: bytes) -> tuple[X25519PrivateKey, bytes]:
    key = X25519PrivateKey.from_private_bytes(seed)
    return key, key.public_key().public_bytes_raw()


def _xwing_key(seed: bytes) -> tuple[hpke.MLKEM768X25519PrivateKey, bytes]:
    """Key pair from a 32-byte seed (X-Wing draft-08, section 5.2: SHAKE-256 to both component seeds)."""
    expanded = hashlib.shake_256(seed).digest(MLKEM_SEED_BYTES + KEY_BYTES)
    kem = MLKEM768PrivateKey.from_seed_bytes(expanded[:MLKEM_SEED_BYTES])
    dh, dh_public = _x25519_key(expanded[MLKEM_SEED_BYTES:])
    return hpke.MLKEM768X25519PrivateKey(kem, dh), kem.public_key().public_bytes_raw() + dh_public


@lru_cache(maxsize=1024)  # a key is checked, then sealed to: parsing it takes a fifth of either; 9 KB each, X-Wing
def _public_key(suite: Suite, public: bytes) -> _PublicKey:
    if suite is Suite.X25519:
        return X25519PublicKey.from_public_bytes(public)
    kem = MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES])
    return hpke.MLKEM768X25519PublicKey(kem, X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]))


def _open(suite: Suite, key: _PrivateKey, info: bytes, envelope: bytes) -> bytes:
    try:
        return _hpke(suite).decrypt(envelope, key, info)
    except InvalidTag:
        raise ValueError("the envelope does not open") from None


@cache
def _hpke(suite: Suite) -> hpke.Suite:
    return hpke.Suite(_KEM[suite], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
