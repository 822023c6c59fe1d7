"""Published answers and the nastiest Wycheproof cases as constants: what test_secagg_keys and test_secagg_prg read from
../shared/vectors keeps its power where that folder is absent. The project's own answers: test_secagg_vectors."""

import hashlib

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import keys
from secagg.encoding import encode, vector_digest, vector_hash
from secagg.keys import ChannelKey, MaskKey, SigningKey, check_public, hkdf, verify
from secagg.policy import Suite
from secagg.prg import CHUNK_BYTES, keystream

XWING, X25519 = Suite.MLKEM768_X25519, Suite.X25519
PRIME = 2**255 - 19


def with_dh(private: bytes) -> MaskKey:
    key = MaskKey(X25519)
    key._dh = X25519PrivateKey.from_private_bytes(private)
    return key


def acceptable(point: bytes) -> bool:
    """As a mask key and as a channel key."""
    one, other = MaskKey(X25519).dh_public, ChannelKey(X25519).public
    both = {check_public(X25519, one, point, b""), check_public(X25519, point, other, b"")}
    assert len(both) == 1
    return both.pop()


# --- X25519 ---


def test_rfc_7748_section_6_1():
    alice = with_dh(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = with_dh(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice._dh.public_key().public_bytes_raw() == alice_public
    assert alice.exchange(bob_public).hex() == bob.exchange(alice_public).hex() == shared
    assert acceptable(alice_public)


LOW_ORDER = [point + offset for point in (0, 1, PRIME - 1) for offset in (0, PRIME) if point + offset < 2**255]
ORDER_EIGHT = [
    int.from_bytes(bytes.fromhex(point), "little")
    for point in (
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    )
]


@pytest.mark.parametrize("high_bit", [0, 1 << 255], ids=["", "high bit"])
@pytest.mark.parametrize("point", [*LOW_ORDER, *ORDER_EIGHT], ids=hex)
def test_a_zero_shared_secret_is_refused(point, high_bit):
    """Wycheproof X25519, flag ZeroSharedSecret: every point that it has, in every encoding."""
    public = (point | high_bit).to_bytes(32, "little")
    assert not acceptable(public)
    with pytest.raises(ValueError, match="shared key"):
        with_dh(bytes.fromhex("786a33a4f7af297a20e7642925932bf509e7070fa1bc36986af1eb13f4f50b55")).exchange(public)


@pytest.mark.parametrize(
    ("private", "public", "shared"),
    [
        (
            "0016b62af5cabde8c40938ebf2108e05d27fa0533ed85d70015ad4ad39762d54",
            "efffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "b4d10e832714972f96bd3382e4d082a21a8333a16315b3ffb536061d2482360d",
        ),
        (
            "98c2b08cbac14e15953154e3b558d42bb1268a365b0ef2f22725129d8ac5cb7f",
            "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "9c034fcd8d3bf69964958c0105161fcb5d1ea5b8f8abb371491e42a7684c2322",
        ),
        (
            "c0697b6f05e0f3433b44ea352f20508eb0623098a7770853af5ca09727340c4e",
            "0200000000000000000000000000000000000000000000000000000000000080",
            "ed18b06da512cab63f22d2d51d77d99facd3c4502e4abf4e97b094c20a9ddf10",
        ),
        (
            "c8e0330ae9dceeff887fba761225879a4bd2e0db08799244136e4721b2c88970",
            "dbffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "dfe60831c9f4f96c816e51048804dbdc27795d760eced75ef575cbe3b464054b",
        ),
    ],
)
def test_a_noncanonical_point_works_and_is_refused_all_the_same(private, public, shared):
    """Wycheproof X25519, flag NonCanonicalPublic: two names for one key would get past "keys occur once"."""
    assert with_dh(bytes.fromhex(private)).exchange(bytes.fromhex(public)).hex() == shared
    assert not acceptable(bytes.fromhex(public))


@pytest.mark.parametrize(
    ("private", "public", "shared"),
    [
        (  # on the twist
            "d85d8c061a50804ac488ad774ac716c3f5ba714b2712e048491379a500211958",
            "63aa40c6e38346c5caf23a6df0a5e6c80889a08647e551b3563449befcfc9733",
            "279df67a7c4611db4708a0e8282b195e5ac0ed6f4b2f292c6fbd0acac30d1332",
        ),
        (  # a shared secret of 2
            "60a3a4f130b98a5be4b1cedb7cb85584a3520e142d474dc9ccb909a073a9767f",
            "b7b6d39c765cb60c0c8542f4f3952ffb51d3002d4aeb9f8ff988b192043e6d0a",
            "0200000000000000000000000000000000000000000000000000000000000000",
        ),
        (  # a private key of -1
            "a023cdd083ef5bb82f10d62e59e15a6800000000000000000000000000000050",
            "6c05871352a451dbe182ed5e6ba554f2034456ffe041a054ff9cc56b8e946376",
            "6c05871352a451dbe182ed5e6ba554f2034456ffe041a054ff9cc56b8e946376",
        ),
    ],
    ids=["twist", "small secret", "key of -1"],
)
def test_other_edges_of_x25519(private, public, shared):
    assert with_dh(bytes.fromhex(private)).exchange(bytes.fromhex(public)).hex() == shared
    assert acceptable(bytes.fromhex(public))


# --- Ed25519 ---


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
    ids=["1", "3"],
)
def test_rfc_8032_section_7_1(seed, public, message, signature):
    key = SigningKey.from_bytes(bytes.fromhex(seed))
    assert (key.verify_key.hex(), key.sign(bytes.fromhex(message)).hex()) == (public, signature)


WYCHEPROOF_KEY = bytes.fromhex("7d4d0e7f6153a69b6242b522abbee685fda4420f8834b108c3bdae369ef549fa")
R = "7c38e026f29e14aabd059a0f2db8b0cd783040609a8be684db12f82a27774ab0"
S = "7a9155711ecfaf7f99f277bad0c6ae7e39d4eef676573336a5c51eb6f946b30d"
IDENTITY, ORDER = "01" + "00" * 31, "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010"


def test_the_signature_that_the_forgeries_start_from():
    assert verify(WYCHEPROOF_KEY, b"Test", bytes.fromhex(R + S))


@pytest.mark.parametrize(
    ("message", "signature"),
    [
        # s + L, s + 2L, s + 8L: the same scalar, another signature
        (b"Test", R + "67654bce3832c2d76f8f6f5dafc08d9339d4eef676573336a5c51eb6f946b31d"),
        (b"Test", R + "5439412b5395d42f462c67008eba6ca839d4eef676573336a5c51eb6f946b32d"),
        (b"Test", R + "e2300459f1e742404cd934d2c595a6253ad4eef676573336a5c51eb6f946b38d"),
        # high bits that a parser may drop
        (b"Test", R + S[:-2] + "2d"),
        (b"Test", R + S[:-2] + "4d"),
        (b"Test", R + S[:-2] + "8d"),
        # lengths
        (b"Test", ""),
        (b"Test", R),
        (b"Test", R + S[:-4]),
        (b"Test", R + S + "2020"),
        (b"Test", "00" + R + S),
        # special values of R and s
        (b"?", "00" * 64),
        (b"?", IDENTITY + "00" * 32),
        (b"?", IDENTITY + ORDER),
        (b"?", "ed" + "ff" * 30 + "7f" + "00" * 32),
        # R with the other sign of x, R = 0, R that is no point
        (
            b"123400",
            "657c1492402ab5ce03e2c3a7f0384d051b9cf3570f1207fc78c1bcc98c281cab"
            "227aedf259f910f0f3a759a335062665217925d019173b88917eae294f75d40f",
        ),
        (b"123400", "00" * 32 + "e0b8e7770d51c7a36375d006c5bffd6af43ff54aaf47e4330dc118c71d61ec02"),
        (b"123400", "ff" * 32 + "463a1908382e7eb7693acef9884f7cf931a215e0791876be22c631a59881fd0e"),
    ],
)
def test_malleable_and_malformed_signatures(message, signature):
    """Wycheproof Ed25519: SignatureMalleability, TruncatedSignature, SignatureWithGarbage, InvalidEncoding."""
    assert not verify(WYCHEPROOF_KEY, message, bytes.fromhex(signature))


@pytest.mark.parametrize("low_order", [IDENTITY, "00" * 32, "ec" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f"])
def test_a_verify_key_of_low_order_signs_nothing(low_order):
    """Under the identity as key, R = [s]B verifies every message where a library does not look."""
    assert not verify(bytes.fromhex(low_order), b"anything", bytes.fromhex(IDENTITY + "00" * 32))


# --- HKDF-SHA256 ---


def test_rfc_5869_case_2():
    ikm, salt, info = bytes(range(0x50)), bytes(range(0x60, 0xB0)), bytes(range(0xB0, 0x100))
    assert hkdf(ikm, info, salt).hex() == "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"


def test_a_long_salt_is_its_hash_and_an_empty_one_is_zeros():
    """Wycheproof HKDF, flag OutputCollision: why a salt is always a hash or nothing."""
    ikm = bytes.fromhex("3ee1fc0d8fac49d494c4a1b8cf6bf290a4a2c19a27c3ab1914d0d21c841577e0")
    info = bytes.fromhex("4dc991623624fadef207587e42776cf3e0fdf4e5")
    long = bytes.fromhex(
        "888815e19321fa618f0ce9800b7c2f6d289ed32c23d9816cc8bb36966bbe413e24db80612bd48c8fd8e791732aed6228"
        "8c3bf97d7c881b8d80dd48fa31b6f5d0cb"
    )
    for salt in (long, hashlib.sha256(long).digest()):
        assert hkdf(ikm, info, salt).hex() == "52a1d834f372578ccc7b57e9149f4c45f98ff754dbdec0bb3a8f931bd14e4bb1"
    for salt in (b"", bytes(32)):
        assert hkdf(ikm, info, salt).hex() == "f41f703259063d401de67cea9192038ddddc71ede5cdb383aad71894c1a39e8c"


# --- BLAKE3 ---


@pytest.mark.parametrize(
    ("length", "answer"),
    [
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"),
        (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
        (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
        (5121, "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff"),
    ],
)
def test_blake3_answers_of_its_authors(length, answer):
    """github.com/BLAKE3-team/BLAKE3, test_vectors.json: bytes 0 to 250, again and again; 1024 bytes are one chunk."""
    data = bytes(i % 251 for i in range(length))
    assert blake3(data).hexdigest() == answer
    assert blake3(data[: length // 2]).update(data[length // 2 :]).hexdigest() == answer


def test_a_vectors_hash_is_blake3_over_the_encoding_and_takes_it_in_pieces():
    vector = bytes(i % 251 for i in range(5121))
    expected = blake3(encode("total", vector)).digest()
    assert vector_digest("total", memoryview(b"x" + vector)[1:]) == expected
    pieces = vector_hash("total", len(vector))
    for start in range(0, len(vector), 1000):
        pieces.update(vector[start : start + 1000])
    assert pieces.digest() == expected != vector_digest("masked-vector", vector)


# --- ML-KEM-768 (FIPS 203) ---

SEED = bytes.fromhex(
    "7c9935a0b07694aa0c6d10e4db6b1add2fd81a25ccb148032dcd739936737f2d8626ed79d451140800e03b59b956f821"
    "0e556067407d13dc90fa9e8b872bfb8f"
)


def test_fips_203_key_generation():
    public = MLKEM768PrivateKey.from_seed_bytes(SEED).public_key().public_bytes_raw()
    assert hashlib.sha256(public).hexdigest() == "86adbca81f4fee893e2fb58fb98aa2fe188f501fed268d7f4056f8c05c4e53c4"


def test_fips_203_implicit_rejection():
    """Section 6.3: a ciphertext that was not made for the key gives SHAKE-256(z | c), z the second half of the seed."""
    key = MLKEM768PrivateKey.from_seed_bytes(SEED)
    for ciphertext in (bytes(1088), b"\xff" * 1088, bytes(i % 256 for i in range(1088))):
        assert key.decapsulate(ciphertext) == hashlib.shake_256(SEED[32:] + ciphertext).digest(32)
    for length in (0, 1087, 1089):
        with pytest.raises(ValueError, match="ML-KEM-768"):
            key.decapsulate(bytes(length))


@pytest.mark.parametrize("coefficient", [3329, 3330, 4095])
@pytest.mark.parametrize("place", [0, 1, 766, 767])
def test_fips_203_unreduced_keys(coefficient, place):
    """Section 7.2, modulus check: a coefficient at or above q = 3329, in either half of its three bytes."""
    mask, honest = MaskKey(XWING), ChannelKey(XWING).public
    first = place // 2 * 3
    packed = int.from_bytes(honest[first : first + 3], "little")
    shift = 12 * (place % 2)

    def forged(value: int) -> bytes:
        triple = packed & ~(4095 << shift) | value << shift
        return honest[:first] + triple.to_bytes(3, "little") + honest[first + 3 :]

    assert check_public(XWING, forged(3328), mask.dh_public, mask.kem_public)
    assert not check_public(XWING, forged(coefficient), mask.dh_public, mask.kem_public)
    assert not check_public(XWING, ChannelKey(XWING).public, mask.dh_public, forged(coefficient))
    with pytest.raises(ValueError, match="ML-KEM-768"):
        keys.seal(XWING, forged(coefficient), b"info", b"share")


# --- AES-256-GCM and the keystream that it shares ---

# RFC 9180, A.1: its encapsulated key, under the AES-256-GCM of our suites and without AAD.
HPKE_PRIVATE = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
HPKE_INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
ENVELOPE = bytes.fromhex(
    "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431090b7dc225419f7da9e8b460becfbb96"
    "a26c7964d79b8010d397fa838589afa254267701d76b93925614730ccd"
)


def hpke_channel() -> ChannelKey:
    channel = ChannelKey(X25519)
    channel._key = X25519PrivateKey.from_private_bytes(HPKE_PRIVATE)
    return channel


def test_an_envelope_for_the_key_of_rfc_9180_opens():
    assert hpke_channel().open(HPKE_INFO, ENVELOPE) == b"Beauty is truth, truth beauty"


@pytest.mark.parametrize("bit", [0, 1, 7, 8, 31, 32, 63, 64, 71, 77, 80, 96, 97, 103, 120, 121, 126, 127])
def test_every_tampered_tag_is_refused(bit):
    """Wycheproof AES-GCM, flag ModifiedTag: the same bits, here in an envelope."""
    forged = bytearray(ENVELOPE)
    forged[len(ENVELOPE) - 16 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="does not open"):
        hpke_channel().open(HPKE_INFO, bytes(forged))


@pytest.mark.parametrize(
    "tag",
    [
        bytes(16),
        b"\xff" * 16,
        ENVELOPE[-15:],
        ENVELOPE[-16:] + b"\0",
        bytes(255 - byte for byte in ENVELOPE[-16:]),
        bytes(byte ^ 0x80 for byte in ENVELOPE[-16:]),
        b"",
    ],
    ids=["zeros", "ones", "short", "long", "all flipped", "high bits", "none"],
)
def test_other_tags_are_refused(tag):
    with pytest.raises(ValueError, match="does not open"):
        hpke_channel().open(HPKE_INFO, ENVELOPE[:-16] + tag)


def test_wycheproof_modified_tag_130():
    key, nonce = bytes(range(32)), bytes(range(0x50, 0x5C))
    ciphertext = bytes.fromhex("b2061457c0759fc1749f174ee1ccadfa")
    right, wrong = bytes.fromhex("9ce8fef6d8ab1bf1bf887232eab590dd"), bytes.fromhex("9de8fef6d8ab1bf1bf887232eab590dd")
    assert AESGCM(key).decrypt(nonce, ciphertext + right, b"") == bytes(range(0x20, 0x30))
    with pytest.raises(InvalidTag):
        AESGCM(key).decrypt(nonce, ciphertext + wrong, b"")


@pytest.mark.parametrize(
    ("key", "nonce", "message", "ciphertext"),
    [
        (
            "51e4bf2bad92b7aff1a4bc05550ba81df4b96fabf41c12c7b00e60e48db7e152",
            "4f07afedfdc3b6c2361823d3",
            "be3308f72a2c6aed",
            "cf332a12fdee800b",
        ),
        (
            "00112233445566778899aabbccddeeff102132435465768798a9bacbdcedfe0f",
            "000000000000000000000000",
            "561008fa07a68f5c61285cd013464eaf",
            "23293e9b07ca7d1b0cae7cc489a973b3",
        ),
        (
            "00112233445566778899aabbccddeeff102132435465768798a9bacbdcedfe0f",
            "ffffffffffffffffffffffff",
            "c6152244cea1978d3e0bc274cf8c0b3b",
            "7cb6fc7c6abc009efe9551a99f36a421",
        ),
    ],
    ids=["95", "128", "129"],
)
def test_a_gcm_ciphertext_is_the_message_and_chunk_number_nonce(key, nonce, message, ciphertext):
    """Wycheproof AES-GCM, valid: among them the last chunk that there is."""
    start = int(nonce, 16) * CHUNK_BYTES
    stream = keystream(bytes.fromhex(key), start, len(message) // 2)
    assert bytes(a ^ b for a, b in zip(bytes.fromhex(message), stream, strict=True)).hex() == ciphertext
