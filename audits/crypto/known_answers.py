"""Published answers through the entry points of secagg: RFCs, and the files of Wycheproof where they are there."""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from audits.base import Result, Task

PUBLISHED = Path(__file__).with_name("published.json")
FILES = Path(os.environ.get("SECAGG_VECTORS", Path(__file__).parents[3] / "shared" / "vectors")) / "wycheproof"
Case: TypeAlias = dict[str, Any]
Wrong: TypeAlias = Iterator[str]


def run(task: Task) -> Result:
    """Every case that is there; one wrong answer is a violation."""
    rows, wrong = [], list[str]()
    published: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    for name, check in CHECKS.items():
        task.progress(name)
        cases = published[name]["cases"]
        bad = [text for case in cases for text in check(case)]
        rows.append({"what": name, "source": published[name]["source"], "cases": len(cases), "wrong": len(bad)})
        wrong += bad
    for file, check_file in FROM_FILES.items():
        if not (FILES / file).is_file():
            rows.append({"what": file, "source": "Wycheproof", "cases": 0, "wrong": "the file is not here"})
            continue
        task.progress(file)
        groups = json.loads((FILES / file).read_text(encoding="utf-8"))["testGroups"]
        cases = [{**group, **test} for group in groups for test in group["tests"]]
        bad = [f"{file} {case['tcId']}: {text}" for case in cases for text in check_file(case)]
        rows.append({"what": file, "source": "Wycheproof", "cases": len(cases), "wrong": len(bad)})
        wrong += bad
    count = sum(int(row["cases"]) for row in rows)
    says = f"{count} published cases through secagg's own entry points: {len(wrong)} wrong"
    says += f", the first: {wrong[0]}" if wrong else "."
    return Result("violated" if wrong else "holds", says, {"cases": count, "wrong": len(wrong)}, rows=tuple(rows))


def _bytes(case: Case, *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


def _exchanged(private: bytes, public: bytes) -> bytes:
    """X25519 as `MaskKey.exchange` does it, with a private key that is given: one that it derives is clamped alike."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from secagg.keys import MaskKey
    from secagg.policy import Suite

    key = MaskKey(Suite.X25519)
    key._dh = X25519PrivateKey.from_private_bytes(private)
    return key.exchange(public)


def _acceptable(public: bytes) -> bool:
    from secagg.keys import ChannelKey, check_public
    from secagg.policy import Suite

    return check_public(Suite.X25519, ChannelKey(Suite.X25519).public, public, b"")


def _x25519(case: Case) -> Wrong:
    """An answer, and whether a client would take the point: none of low order, none with a second spelling."""
    private, public, shared = _bytes(case, "private", "public", "shared")
    flags = case.get("flags", ())
    if _acceptable(public) != (not {"ZeroSharedSecret", "NonCanonicalPublic"} & set(flags)):
        yield "a point is taken that must not be, or the other way"
    try:
        answer = _exchanged(private, public)
    except ValueError:
        answer = bytes(32)
    if answer != shared:
        yield "another shared secret"


def _ed25519(case: Case) -> Wrong:
    from secagg.keys import SigningKey, verify

    seed, public, message, signature = _bytes(case, "seed", "public", "message", "signature")
    key = SigningKey.from_bytes(seed)
    if (key.verify_key, key.sign(message)) != (public, signature):
        yield "another key or signature"
    if not verify(public, message, signature) or verify(public, message + b"\0", signature):
        yield "a signature counts that must not, or the other way"


def _ed25519_file(case: Case) -> Wrong:
    from secagg.keys import verify

    message, signature = _bytes(case, "msg", "sig")
    if verify(bytes.fromhex(case["publicKey"]["pk"]), message, signature) != (case["result"] == "valid"):
        yield f"expected to be {case['result']}"


def _hkdf(case: Case) -> Wrong:
    from secagg.keys import hkdf

    ikm, salt, info, okm = _bytes(case, "ikm", "salt", "info", "okm")
    derived, common = hkdf(ikm, info, salt), min(32, len(okm))
    if case.get("result") != "invalid" and derived[:common] != okm[:common]:
        yield "another key"


def _gcm(case: Case) -> Wrong:
    from secagg.prg import keystream

    key, stream = _bytes(case, "key", "keystream")
    if keystream(key, 0, len(stream)) != stream:
        yield "another keystream"


def _gcm_file(case: Case) -> Wrong:
    """The keystream is GCM's ciphertext of zeros under nonce i; sealed files are opened by GCM itself."""
    from secagg.keys import SealingKey, SigningKey
    from secagg.prg import CHUNK_BYTES, keystream

    if (case["keySize"], case["ivSize"]) != (256, 96):
        return
    key, nonce, aad, message, ciphertext, tag = _bytes(case, "key", "iv", "aad", "msg", "ct", "tag")
    if case["result"] == "valid":
        stream = keystream(key, int.from_bytes(nonce, "big") * CHUNK_BYTES, len(message))
        if bytes(a ^ b for a, b in zip(message, stream, strict=True)) != ciphertext:
            yield "another keystream"
    sealing = SealingKey(SigningKey.generate())
    sealing._key[:] = key
    try:
        opened = sealing.open(aad, nonce + ciphertext + tag) == message
    except ValueError:
        opened = False
    if opened != (case["result"] == "valid"):
        yield f"expected to be {case['result']}"


def _hpke(case: Case) -> Wrong:
    """Secagg seals without associated data, so the vector's key and nonce make the envelope that it has to open."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from secagg.keys import ChannelKey
    from secagg.policy import Suite

    info, private, public, enc, key, nonce = _bytes(case, "info", "skRm", "pkRm", "enc", "key", "base_nonce")
    aad, plaintext, ciphertext = _bytes(case, "aad", "pt", "ct")
    if AESGCM(key).encrypt(nonce, plaintext, aad) != ciphertext:
        yield "key and nonce are not the vector's"
    channel = ChannelKey(Suite.X25519)
    channel._key = X25519PrivateKey.from_private_bytes(private)
    if channel._key.public_key().public_bytes_raw() != public:
        yield "another public key"
    if channel.open(info, enc + AESGCM(key).encrypt(nonce, plaintext, b"")) != plaintext:
        yield "another plaintext"


def _xwing(case: Case) -> Wrong:
    """The vector's shared secret, through RFC 9180's key schedule with AES-256-GCM, makes what has to open."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from secagg.keys import ChannelKey
    from secagg.policy import Suite

    seed, public, enc, shared = _bytes(case, "skRm", "pkRm", "enc", "shared_secret")
    channel = ChannelKey(Suite.MLKEM768_X25519, seed)
    if channel.public != public:
        yield "another public key"
    key, nonce = key_schedule(b"HPKE\x64\x7a\0\1\0\2", shared, b"info")
    if channel.open(b"info", enc + AESGCM(key).encrypt(nonce, b"two shares", b"")) != b"two shares":
        yield "another plaintext"


def key_schedule(suite: bytes, shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """RFC 9180, section 5.1, base mode with HKDF-SHA256 and AES-256-GCM: key and first nonce."""

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        """LabeledExtract."""
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, hashlib.sha256)

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        """LabeledExpand."""
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, labelled + b"\1", hashlib.sha256)[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    return expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)


def _mlkem_keys(case: Case) -> Wrong:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

    seed, public = _bytes(case, "seed", "ek")
    if MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw() != public:
        yield "another public key"


def _mlkem_decapsulation(case: Case) -> Wrong:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

    seed, ciphertext, shared = _bytes(case, "seed", "c", "K")
    try:
        right = MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext) == shared
    except ValueError:
        right = False
    if right != (case["result"] == "valid"):
        yield f"expected to be {case['result']}"


CHECKS: dict[str, Callable[[Case], Wrong]] = {
    "x25519": _x25519,
    "ed25519": _ed25519,
    "hkdf": _hkdf,
    "gcm": _gcm,
    "hpke": _hpke,
    "xwing": _xwing,
}
FROM_FILES: dict[str, Callable[[Case], Wrong]] = {
    "x25519_test.json": _x25519,
    "ed25519_test.json": _ed25519_file,
    "hkdf_sha256_test.json": _hkdf,
    "aes_gcm_test.json": _gcm_file,
    "mlkem_768_keygen_seed_test.json": _mlkem_keys,
    "mlkem_768_test.json": _mlkem_decapsulation,
}
