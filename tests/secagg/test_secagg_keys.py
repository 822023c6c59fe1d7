"""Known answers, hostile keys and envelopes, and the manners of secrets."""

import copy
import hashlib
import hmac
import json
import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import keys
from secagg.encoding import encode
from secagg.keys import ChannelKey, MaskKey, SigningKey, check_public, envelope_length, hkdf, seal, verify
from secagg.policy import Suite

HERE = Path(__file__).parent
VECTORS = Path(os.environ.get("SECAGG_VECTORS", HERE.parents[2] / "shared" / "vectors"))
XWING, X25519 = Suite.MLKEM768_X25519, Suite.X25519
PRIME = 2**255 - 19
both_suites = pytest.mark.parametrize("suite", list(Suite))


def wycheproof(name):
    path = VECTORS / "wycheproof" / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    groups = json.loads(path.read_text())["testGroups"]
    return [(group, test) for group in groups for test in group["tests"]]


def unhex(test, *names):
    return [bytes.fromhex(test[name]) for name in names]


def with_dh(private):
    key = MaskKey(X25519)
    key._dh = X25519PrivateKey.from_private_bytes(private)
    return key


class TestX25519:
    @pytest.mark.parametrize(
        ("scalar", "point", "result"),
        [
            (
                "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
                "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
                "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
            ),
            (
                "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
                "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
                "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
            ),
        ],
    )
    def test_rfc_7748(self, scalar, point, result):
        assert with_dh(bytes.fromhex(scalar)).exchange(bytes.fromhex(point)).hex() == result

    def test_rfc_7748_thousand_times(self):
        scalar = point = (9).to_bytes(32, "little")
        for _ in range(1000):
            scalar, point = with_dh(scalar).exchange(point), scalar
        assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"

    def test_wycheproof(self):
        refused = 0
        for _, test in wycheproof("x25519_test.json"):
            private, public, shared = unhex(test, "private", "public", "shared")
            acceptable = check_public(X25519, ChannelKey(X25519).public, public, b"")
            if "ZeroSharedSecret" in test["flags"]:
                refused += 1
                assert not acceptable
                with pytest.raises(ValueError, match="shared key"):
                    with_dh(private).exchange(public)
                continue
            assert with_dh(private).exchange(public) == shared
            assert acceptable == ("NonCanonicalPublic" not in test["flags"]), test["tcId"]
        assert refused == 31

    def test_every_point_of_low_order_is_listed_and_gives_no_secret(self):
        key = X25519PrivateKey.generate()
        for u in keys._LOW_ORDER:
            with pytest.raises(ValueError, match="shared key"):
                key.exchange(X25519PublicKey.from_public_bytes(u.to_bytes(32, "little")))
        prime = keys._FIELD_PRIME
        # The last two are of order 8: doubled, as u' = (u^2 - 1)^2 / (4 u (u^2 + 486662 u + 1)), they are of order 4.
        for u in keys._LOW_ORDER[3:]:
            double = pow(u * u - 1, 2, prime) * pow(4 * u * (u * u + 486662 * u + 1), -1, prime) % prime
            assert double in (1, prime - 1)

    def test_both_ends_agree(self):
        u, v = MaskKey(X25519), MaskKey(X25519)
        assert u.exchange(v.dh_public) == v.exchange(u.dh_public) != u.exchange(u.dh_public)


class TestEd25519:
    def test_rfc_8032(self):
        key = SigningKey.from_bytes(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
        assert key.verify_key.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        assert key.sign(b"\x72").hex() == (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        )

    def test_wycheproof(self):
        for group, test in wycheproof("ed25519_test.json"):
            message, signature = unhex(test, "msg", "sig")
            public = bytes.fromhex(group["publicKey"]["pk"])
            assert verify(public, message, signature) == (test["result"] == "valid"), test["tcId"]

    def test_export_restores_the_key(self):
        key = SigningKey.generate()
        assert SigningKey.from_bytes(key.export()).verify_key == key.verify_key != SigningKey.generate().verify_key

    @pytest.mark.parametrize("length", [0, 31, 33, 64])
    def test_wrong_seed_length(self, length):
        with pytest.raises(ValueError, match="32 bytes"):
            SigningKey.from_bytes(bytes(length))

    def test_malformed_bytes_are_false_not_errors(self):
        key = SigningKey.generate()
        message = encode("test", "m")
        signature = key.sign(message)
        assert verify(key.verify_key, message, signature)
        assert not verify(key.verify_key, message + b"\0", signature)
        assert not verify(SigningKey.generate().verify_key, message, signature)
        for public in (b"", bytes(31), bytes(32), bytes(33), b"\xff" * 32):
            assert not verify(public, message, signature)
        for forged in (b"", bytes(63), bytes(64), signature + b"\0", signature[:-1], b"\xff" * 64):
            assert not verify(key.verify_key, message, forged)


class TestHkdf:
    @pytest.mark.parametrize(
        ("ikm", "salt", "info", "okm"),
        [
            (
                "0b" * 22,
                "000102030405060708090a0b0c",
                "f0f1f2f3f4f5f6f7f8f9",
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
            ),
            ("0b" * 22, "", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"),
        ],
    )
    def test_rfc_5869(self, ikm, salt, info, okm):
        ikm, salt, info = bytes.fromhex(ikm), bytes.fromhex(salt), bytes.fromhex(info)
        assert hkdf(ikm, info, salt).hex() == okm

    def test_wycheproof(self):
        for _, test in wycheproof("hkdf_sha256_test.json"):
            ikm, salt, info, okm = unhex(test, "ikm", "salt", "info", "okm")
            derived, common = hkdf(ikm, info, salt), min(32, len(okm))
            assert test["result"] == "invalid" or derived[:common] == okm[:common]


class TestMlKem:
    """The library behind X-Wing: FIPS 203 key generation and decapsulation, implicit rejection included."""

    def test_wycheproof_key_from_seed(self):
        for _, test in wycheproof("mlkem_768_keygen_seed_test.json"):
            seed, public = unhex(test, "seed", "ek")
            assert MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw() == public

    def test_wycheproof_decapsulation(self):
        for _, test in wycheproof("mlkem_768_test.json"):
            seed, ciphertext, shared = unhex(test, "seed", "c", "K")
            if test["result"] == "valid":
                assert MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext) == shared
            else:
                with pytest.raises(ValueError, match="ML-KEM-768"):
                    MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext)


def labeled_extract(suite_id, salt, label, key):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite_id + label + key, hashlib.sha256)


def labeled_expand(suite_id, key, label, info, length):
    info = length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info
    okm = block = b""
    while len(okm) < length:
        block = hmac.digest(key, block + info + bytes([len(okm) // 32 + 1]), hashlib.sha256)
        okm += block
    return okm[:length]


def key_schedule(kem_id, aead_id, key_bytes, shared, info):
    """RFC 9180, section 5.1, base mode with HKDF-SHA256: AEAD key and base nonce."""
    suite_id = b"HPKE" + kem_id + b"\0\1" + aead_id
    context = (
        b"\0" + labeled_extract(suite_id, b"", b"psk_id_hash", b"") + labeled_extract(suite_id, b"", b"info_hash", info)
    )
    secret = labeled_extract(suite_id, shared, b"secret", b"")
    return (
        labeled_expand(suite_id, secret, b"key", context, key_bytes),
        labeled_expand(suite_id, secret, b"base_nonce", context, 12),
    )


class TestHpke:
    """RFC 9180 prints X25519 with AES-128-GCM only, and seals under an AAD.

    So its numbers check the key schedule above, and the schedule then makes the AES-256-GCM envelope for the product.
    """

    INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    PLAINTEXT = b"Beauty is truth, truth beauty"
    ENCAPSULATED = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    PRIVATE = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    SHARED = bytes.fromhex("fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc")
    CIPHERTEXT = bytes.fromhex(
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )

    def test_rfc_9180_a_1(self):
        key, nonce = key_schedule(b"\0\x20", b"\0\1", 16, self.SHARED, self.INFO)
        assert AESGCM(key).decrypt(nonce, self.CIPHERTEXT, b"Count-0") == self.PLAINTEXT

        key, nonce = key_schedule(b"\0\x20", b"\0\2", 32, self.SHARED, self.INFO)
        envelope = self.ENCAPSULATED + AESGCM(key).encrypt(nonce, self.PLAINTEXT, b"")
        channel = ChannelKey(X25519)
        channel._key = X25519PrivateKey.from_private_bytes(self.PRIVATE)
        assert channel.open(self.INFO, envelope) == self.PLAINTEXT

    def test_xwing_draft_08(self):
        vector = json.loads((HERE / "vectors" / "xwing_draft08.json").read_text())
        seed, public, ciphertext, shared = unhex(vector, "sk", "pk", "ct", "ss")
        private, derived = keys._xwing_key(seed)
        assert derived == public

        key, nonce = key_schedule(b"\x64\x7a", b"\0\2", 32, shared, self.INFO)
        envelope = ciphertext + AESGCM(key).encrypt(nonce, self.PLAINTEXT, b"")
        mask = MaskKey(XWING)
        mask._kem = private
        assert mask.open_pair(self.INFO, envelope) == self.PLAINTEXT

    def test_xwing_draft_08_second_key(self):
        seed = bytes.fromhex("badfd6dfaac359a5efbb7bcc4b59d538df9a04302e10c8bc1cbf1a0b3a5120ea")
        public = keys._xwing_key(seed)[1]
        assert public[:32].hex() == "0333285fa253661508c9fb444852caa4061636cb060e69943b431400134ae1fb"
        assert public[-28:].hex() == "cbb48fd4c562a576549f85b528c953926d96ea8a160b8843f1c89c62"

    @both_suites
    def test_opens_only_with_its_key_and_info(self, suite):
        channel = ChannelKey(suite)
        envelope = seal(suite, channel.public, b"info", b"two shares")
        assert len(envelope) == envelope_length(suite, len(b"two shares"))
        assert channel.open(b"info", envelope) == b"two shares"
        with pytest.raises(ValueError, match="does not open"):
            channel.open(b"other", envelope)
        with pytest.raises(ValueError, match="does not open"):
            ChannelKey(suite).open(b"info", envelope)

    @both_suites
    def test_tampered_envelopes(self, suite):
        channel = ChannelKey(suite)
        envelope = seal(suite, channel.public, b"info", b"share")
        flipped = [bytearray(envelope) for _ in range(3)]
        for position, forged in zip((0, len(envelope) // 2, -1), flipped, strict=True):
            forged[position] ^= 1
        for forged in [*map(bytes, flipped), b"", envelope[:-1], envelope + b"\0", bytes(len(envelope))]:
            with pytest.raises(ValueError, match="does not open"):
                channel.open(b"info", forged)

    @both_suites
    @pytest.mark.parametrize("length", [0, 31, 33, 1215, 1217])
    def test_seal_refuses_other_keys(self, suite, length):
        with pytest.raises(ValueError, match="bytes long"):
            seal(suite, bytes(length), b"info", b"share")


class TestMaskKey:
    @both_suites
    def test_reconstruction_gives_the_same_key(self, suite):
        key, peer = MaskKey(suite), MaskKey(suite)
        again = MaskKey(suite, key.seed)
        assert (again.dh_public, again.kem_public) == (key.dh_public, key.kem_public)
        assert again.exchange(peer.dh_public) == peer.exchange(key.dh_public)
        assert again.pair_secret("site-b") == key.pair_secret("site-b")
        assert key.seed != peer.seed

    def test_derivations_are_those_of_the_specification(self):
        seed = bytes(range(32))
        key = MaskKey(XWING, seed)
        dh = X25519PrivateKey.from_private_bytes(hkdf(seed, encode("mask/dh")))
        assert key.dh_public == dh.public_key().public_bytes_raw()
        assert key.kem_public == keys._xwing_key(hkdf(seed, encode("mask/kem")))[1]
        assert key.pair_secret("b") == hkdf(seed, encode("pair", "b")) != key.pair_secret("c")
        assert seed not in (key.dh_public, key.pair_secret("b"))

    def test_pair_secret_travels_in_the_hybrid_suite_only(self):
        u, v = MaskKey(XWING), MaskKey(XWING)
        envelope = seal(XWING, v.kem_public, b"info", u.pair_secret("v"))
        assert MaskKey(XWING, v.seed).open_pair(b"info", envelope) == u.pair_secret("v")
        with pytest.raises(ValueError, match="does not open"):
            u.open_pair(b"info", envelope)
        plain = MaskKey(X25519)
        assert (plain.kem_public, plain.pair_secret("v")) == (b"", b"")
        with pytest.raises(ValueError, match="no sealed pair secrets"):
            plain.open_pair(b"info", envelope)

    @pytest.mark.parametrize("length", [0, 31, 33])
    def test_wrong_seed_length(self, length):
        with pytest.raises(ValueError, match="32 bytes"):
            MaskKey(X25519, bytes(length))


class TestCheckPublic:
    PLACES = (
        (XWING, "channel_pk"),
        (XWING, "mask_dh_pk"),
        (XWING, "mask_kem_pk"),
        (X25519, "channel_pk"),
        (X25519, "mask_dh_pk"),
    )

    @staticmethod
    def honest(suite):
        mask = MaskKey(suite)
        return {"channel_pk": ChannelKey(suite).public, "mask_dh_pk": mask.dh_public, "mask_kem_pk": mask.kem_public}

    @both_suites
    def test_honest_keys(self, suite):
        assert check_public(suite, **self.honest(suite))

    @both_suites
    @pytest.mark.parametrize("name", ["channel_pk", "mask_dh_pk", "mask_kem_pk"])
    def test_lengths(self, suite, name):
        honest = self.honest(suite)
        for wrong in (honest[name][:-1], honest[name] + b"\1", b"\1" * 31):
            assert wrong == honest[name] or not check_public(suite, **honest | {name: wrong})
        if honest[name]:
            assert not check_public(suite, **honest | {name: b""})

    @pytest.mark.parametrize(("suite", "name"), PLACES)
    @pytest.mark.parametrize(
        "point",
        [0, 1, PRIME - 1, PRIME, PRIME + 1, PRIME + 9, 2**255 - 1, 2**255 + 9],
        ids=["0", "1", "-1", "p", "p+1", "p+9", "2^255-1", "high bit"],
    )
    def test_bad_points_in_every_place(self, suite, name, point):
        honest = self.honest(suite)
        forged = honest[name][:-32] + point.to_bytes(32, "little")
        assert not check_public(suite, **honest | {name: forged})

    @pytest.mark.parametrize("name", ["channel_pk", "mask_kem_pk"])
    def test_unreduced_mlkem_coefficient(self, name):
        honest = self.honest(XWING)
        forged = b"\xff\xff\xff" + honest[name][3:]
        assert not check_public(XWING, **honest | {name: forged})

    def test_keys_of_the_other_suite(self):
        assert not check_public(X25519, **self.honest(XWING))
        assert not check_public(XWING, **self.honest(X25519))


@both_suites
class TestSecretsKeepQuiet:
    @staticmethod
    def secrets(suite):
        return [SigningKey.generate(), ChannelKey(suite), MaskKey(suite)]

    def test_repr_shows_the_kind_only(self, suite):
        for secret in self.secrets(suite):
            name = f"<{type(secret).__name__}>"
            assert (repr(secret), str(secret), f"{secret}", repr([secret])) == (name, name, name, f"[{name}]")

    def test_no_copy_no_pickle(self, suite):
        for secret in self.secrets(suite):
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps, lambda one: copy.deepcopy({"key": [one]})):
                with pytest.raises(TypeError, match="never copied or pickled"):
                    duplicate(secret)

    def test_wipe(self, suite):
        key = MaskKey(suite)
        held = key._seed
        assert any(held)
        key.wipe()
        assert not any(held)
        assert not vars(key)
        for secret in self.secrets(suite):
            secret.wipe()
            assert not vars(secret)

    def test_errors_hold_no_secret(self, suite):
        key = MaskKey(suite)
        with pytest.raises(ValueError, match=r"sealed|open") as caught:
            key.open_pair(b"info", b"x" * envelope_length(suite, 32))
        assert key.seed.hex() not in repr(caught.value)
        assert caught.value.__cause__ is None


def test_library_names_the_suites_as_the_specification_does():
    assert isinstance(keys._public_key(X25519, ChannelKey(X25519).public), X25519PublicKey)
    assert isinstance(keys._public_key(XWING, ChannelKey(XWING).public), hpke.MLKEM768X25519PublicKey)
