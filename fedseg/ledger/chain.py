"""The file of a ledger: canonical JSON lines, each linked to the one before, and signed where the site has a key.

The chain shows lines that were edited, moved or taken out of the middle. That the end was not cut off shows only
against what lies beside the ledger (`fedseg.ledger.witness`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.errors import EARLIER, LedgerError
from fedseg.ledger.entries import FORMAT, Entry, entry_of
from secagg.encoding import digest, encode
from secagg.keys import SigningKey
from secagg.keys import verify as signed_by

START = "0" * 64
RESTORE = "restore the ledger from a backup, because what this site's patients have spent is no longer known"
_OUTSIDE = ("previous", "event_id", "signer", "signature")
"""Fields of a line that are not its entry's."""


@dataclass(frozen=True)
class Line:
    """One line of a ledger.

    Attributes:
        event_id: its link in the chain, 64 hexadecimal digits: it hashes the entry and everything before it.
        entry: what was released.
        signer: Ed25519 verify key of the site that wrote it, hexadecimal; "" where nobody signed.
        signature: over `event_id`, hexadecimal.
    """

    event_id: str
    entry: Entry
    signer: str = ""
    signature: str = ""

    @property
    def holds(self) -> bool:
        """Whether the signature is the signer's; True where nobody signed."""
        if not self.signer:
            return True
        try:
            return signed_by(bytes.fromhex(self.signer), _statement(self.event_id), bytes.fromhex(self.signature))
        except (ValueError, TypeError):  # neither a key nor a signature
            return False


def read(path: Path) -> list[Line]:
    """Every line, in order; none where there is no file. Signatures are looked at by `verify`.

    Raises:
        LedgerError: a line is cut off, no entry, edited or out of its place, or of a later version, with its number.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from error
    lines: list[Line] = []
    previous = START
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        where = f"{path}, line {number}"
        if not line.endswith(b"\n"):
            raise LedgerError(
                f"{where}: the line is cut off, as by a crash while writing; its round did not train, so "
                "delete this line and go on"
            )
        fields, found = _parse(line, where)
        event_id, expected = _linked(previous, fields, found.signer, found.signature)
        if line != expected:
            raise LedgerError(f"{where}: the line was edited, or one before it is missing; {RESTORE}")
        lines.append(found)
        previous = event_id
    return lines


def verify(path: Path) -> dict[str, Entry]:
    """Id to entry of every line, in order, with every signature verified; empty where there is no file.

    Raises:
        LedgerError: as `read`, or a signature does not hold.
    """
    return {line.event_id: line.entry for line in verified(path)}


def verified(path: Path) -> list[Line]:
    """`read`, with every signature verified: whoever needs the lines as well reads the file once.

    Raises:
        LedgerError: as `verify`.
    """
    lines = read(path)
    for number, line in enumerate(lines, start=1):
        if not line.holds:
            raise LedgerError(f"{path}, line {number}: its signature does not hold; {RESTORE}")
    return lines


def next_line(previous: str, entry: Entry, key: SigningKey | None) -> tuple[Line, bytes]:
    """The line that makes `entry` follow the one with the id `previous`, and its bytes.

    Args:
        previous: the last line's id, or `START`.
        entry: what is released.
        key: the site's; None leaves the line unsigned, as in a simulation.
    """
    fields, signer = entry.model_dump(), "" if key is None else key.verify_key.hex()
    event_id, _ = _linked(previous, fields, signer, "")
    line = Line(event_id, entry, signer, "" if key is None else key.sign(_statement(event_id)).hex())
    return line, _linked(previous, fields, signer, line.signature)[1]


def _statement(event_id: str) -> bytes:
    return encode("ledger-line", event_id)


def _linked(previous: str, fields: dict[str, Any], signer: str, signature: str) -> tuple[str, bytes]:
    """Id and canonical line: `previous`, an entry's fields and who signs, sorted; the id hashes these and is signed."""
    body = {"previous": previous, **fields, **({"signer": signer} if signer else {})}
    event_id = digest("ledger-event", _canonical(body)).hex()
    signed = {"signature": signature} if signer else {}
    return event_id, _canonical({**body, "event_id": event_id, **signed}) + b"\n"


def _canonical(body: dict[str, Any]) -> bytes:
    return _ENCODER.encode(body).encode("ascii")


def _parse(line: bytes, where: str) -> tuple[dict[str, Any], Line]:
    """A line's own fields, which the chain covers, and what it says today."""
    try:
        body = _DECODER.decode(line.decode("utf-8"))
        if not isinstance(body, dict):
            raise ValueError("not an object")
        if "study_hash" in body and "format" not in body:
            raise LedgerError(f"{where}: {EARLIER}")
        if isinstance(body.get("format"), int) and body["format"] > FORMAT:
            raise LedgerError(f"{where}: was written by a later version of fedseg; use that one for this data set")
        fields = {name: body[name] for name in body if name not in _OUTSIDE}
        event_id, signer, signature = (str(body.get(name, "")) for name in _OUTSIDE[1:])
        return fields, Line(event_id, entry_of(fields), signer, signature)
    except ValueError as error:  # of JSON, UTF-8 or the entry's fields
        raise LedgerError(f"{where}: this is not an entry of a ledger; {RESTORE}") from error


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


# Made once: a ledger has thousands of lines, and each is parsed once and written twice to be held against its bytes.
_DECODER = json.JSONDecoder(parse_constant=_refused)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
