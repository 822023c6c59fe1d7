"""ML-KEM-768 key generation after FIPS 203, in plain integers: to see that an opened seed gives the advertised key.

Only public values and seeds that a transcript has opened are handled here, so that nothing has to be constant-time.
"""

from __future__ import annotations

import hashlib

Q, N, K = 3329, 256, 3
Polynomial = list[int]

ZETAS = [pow(17, int(f"{i:07b}"[::-1], 2), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * int(f"{i:07b}"[::-1], 2) + 1, Q) for i in range(128)]


def ntt(f: Polynomial) -> Polynomial:
    """Algorithm 9: the number-theoretic transform."""
    f, i, length = list(f), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            zeta, i = ZETAS[i], i + 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j + length], f[j] = (f[j] - t) % Q, (f[j] + t) % Q
        length //= 2
    return f


def product(f: Polynomial, g: Polynomial) -> Polynomial:
    """Algorithm 11: the product of two transformed polynomials."""
    h = [0] * N
    for i in range(128):
        a, b, c, d = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        h[2 * i], h[2 * i + 1] = (a * c + b * d * GAMMAS[i]) % Q, (a * d + b * c) % Q
    return h


def uniform(seed: bytes, j: int, i: int) -> Polynomial:
    """Algorithm 7: a transformed polynomial off SHAKE-128, by rejection."""
    stream, found = hashlib.shake_128(seed + bytes([j, i])).digest(3 * 448), []
    for at in range(0, len(stream), 3):
        a, b, c = stream[at : at + 3]
        found += [d for d in (a + 256 * (b % 16), b // 16 + 16 * c) if d < Q]
    return found[:N]


def binomial(seed: bytes, nonce: int) -> Polynomial:
    """Algorithm 8 with eta = 2: small coefficients off SHAKE-256."""
    bits = int.from_bytes(hashlib.shake_256(seed + bytes([nonce])).digest(128), "little")
    take = [(bits >> (4 * i)) & 15 for i in range(N)]
    return [((t & 1) + (t >> 1 & 1) - (t >> 2 & 1) - (t >> 3 & 1)) % Q for t in take]


def packed(f: Polynomial) -> bytes:
    """ByteEncode with 12 bits a coefficient: 384 bytes."""
    return sum(c << (12 * i) for i, c in enumerate(f)).to_bytes(384, "little")


def public_key(d: bytes) -> bytes:
    """Algorithm 13: the encapsulation key of the seed d (z is for decapsulation only), 1184 bytes."""
    expanded = hashlib.sha3_512(d + bytes([K])).digest()
    rho, sigma = expanded[:32], expanded[32:]
    secret = [ntt(binomial(sigma, i)) for i in range(K)]
    rows = []
    for i in range(K):
        row = ntt(binomial(sigma, K + i))
        for j in range(K):
            row = [(x + y) % Q for x, y in zip(row, product(uniform(rho, j, i), secret[j]), strict=True)]
        rows.append(packed(row))
    return b"".join(rows) + rho


def usable(key: bytes) -> bool:
    """FIPS 203, section 7.2: every coefficient of the key lies below q."""
    bits = int.from_bytes(key[: 384 * K], "little")
    return all((bits >> (12 * i)) & 4095 < Q for i in range(N * K))
