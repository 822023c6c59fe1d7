"""What a TLS handshake agreed on, as the server's first message says in the clear (RFC 8446, section 4.1.3).

gRPC tells neither the version nor the key exchange. For reports, and so that nothing older than TLS 1.3 is let in. It
must never decide anything that TLS decides.
"""

NEWEST = "TLS 1.3"

_HANDSHAKE, _SERVER_HELLO = 22, 2
_SUPPORTED_VERSIONS, _KEY_SHARE = 43, 51
_VERSIONS = {0x0304: NEWEST, 0x0303: "TLS 1.2", 0x0302: "TLS 1.1", 0x0301: "TLS 1.0"}
_GROUPS = {
    0x11EC: "X25519MLKEM768",
    0x11EB: "SecP256r1MLKEM768",
    0x11ED: "SecP384r1MLKEM1024",
    0x0017: "P-256",
    0x0018: "P-384",
    0x0019: "P-521",
    0x001D: "X25519",
}


def negotiated(first: bytes) -> str:
    """Version and key exchange, such as "TLS 1.3, X25519MLKEM768".

    Args:
        first: the first bytes that the server sent on a connection.

    Returns:
        The names; "" where these bytes are something else, such as an alert.
    """
    try:
        return _read(first)
    except IndexError:
        return ""


def _read(data: bytes) -> str:
    if data[0] != _HANDSHAKE or data[5] != _SERVER_HELLO:
        return ""
    version = _number(data, 9)
    place = 11 + 32
    place += 1 + data[place]  # the echoed session id
    place += 2 + 1  # cipher suite, compression
    end = place + 2 + _number(data, place)
    place += 2
    group = ""
    while place < end:
        kind, size = _number(data, place), _number(data, place + 2)
        if kind == _SUPPORTED_VERSIONS:
            version = _number(data, place + 4)
        elif kind == _KEY_SHARE:
            number = _number(data, place + 4)
            group = ", " + _GROUPS.get(number, f"group {number:#06x}")
        place += 4 + size
    return _VERSIONS.get(version, f"version {version:#06x}") + group


def _number(data: bytes, place: int) -> int:
    return data[place] << 8 | data[place + 1]
