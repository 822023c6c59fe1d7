"""Reads a transcript in one pass: records in, a `Transcript` out, or the first thing that keeps it from being one.

These checks run while the records go by, because without them there is nothing to read; all others are in `checks`.
Must never: take a policy or a roster from the records. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields

from secagg.encoding import VERSION
from secagg.errors import ConfigError
from secagg.messages import AcceptedInput, Receipt
from secagg.transcript.facts import Past, Reader, Transcript
from secagg.transcript.record import (
    CHAIN_START,
    FORMAT,
    Block,
    Opening,
    Record,
    decode_record,
    encode_record,
    name_of,
    next_link,
    place,
    sender_of,
)
from secagg.transcript.violation import ViolationError


def read_transcript(file: str, records: Iterable[bytes], reader: Reader, past: Past) -> Transcript:
    """Read a transcript in one pass, adding up vectors as they go by.

    Args:
        file: what to call it, such as its path.
        records: its records in order, each encoded. A ValueError of theirs is a violation: they do not go on.
        reader: whose policy and roster count.
        past: what the transcripts before this one leave.

    Raises:
        ViolationError: T-03, T-04, T-18, T-19 or T-20.
        ConfigError: it is no transcript of this version.
    """
    pieces = _numbered(records)
    transcript = _opened(file, pieces, reader, past)
    before: Record = transcript.opening
    for number, data in pieces:
        record = _decoded(number, data)
        if isinstance(record, Opening) or transcript.closing is not None:
            raise ViolationError("T-20", "a transcript opens once, and ends with its closing record", number)
        if isinstance(record, Block):
            transcript.vectors.take(number, record)
        else:
            transcript.vectors.finish()
            t19_order(number, before, record)
            transcript.take(number, record)
            before = record
            if isinstance(record, Receipt) or (isinstance(record, AcceptedInput) and transcript.opening.vectors):
                transcript.vectors.announce(number, record)
        if transcript.closing is None:
            transcript.link = next_link(transcript.link, data)
    if transcript.closing is None:
        raise ViolationError("T-20", "the file ends without a closing record: it is cut off")
    if not transcript.complete:
        raise ViolationError("T-20", "the file holds neither a finished round nor the headers of a burned one")
    return transcript


def _numbered(records: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for data in records:
            yield number, data
            number += 1
    except ValueError as error:
        raise ViolationError("T-20", f"the file does not go on with a whole record: {error}", number) from None


def _opened(file: str, pieces: Iterator[tuple[int, bytes]], reader: Reader, past: Past) -> Transcript:
    """The transcript that the first record opens. ConfigError where none is: then nothing was claimed either."""
    try:
        number, data = next(pieces)
        opening = decode_record(data)
    except (StopIteration, ValueError, ViolationError):
        opening = None
    if not isinstance(opening, Opening) or opening.format != FORMAT:
        raise ConfigError(
            f"{file} is no transcript of protocol version {VERSION}; give the file that the server published"
        )
    t20_schema(number, data, opening)
    try:
        context = opening.context
    except ConfigError as error:
        raise ViolationError("T-03", f"no such round can be agreed upon: {error}", 0) from None
    if opening.vectors > 1:
        raise ViolationError("T-20", "the opening is not spelt in the one way that it can be", 0)
    t03_opening(opening, Opening.of(reader.policy, reader.pinned.hash(), context, bool(opening.vectors)))
    transcript = Transcript(file, reader, opening, past)
    transcript.link = next_link(CHAIN_START, data)
    return transcript


def _decoded(number: int, data: bytes) -> Record:
    try:
        record = decode_record(data)
    except ValueError as error:
        raise ViolationError("T-20", f"this is no record of a transcript: {error}", number) from None
    t20_schema(number, data, record)
    return record


def t03_opening(opening: Opening, own: Opening) -> None:
    """T-03: the transcript is of your policy and roster, field by field; everything else is read under these."""
    if opening.roster_hash != own.roster_hash:
        raise ViolationError("T-03", "the transcript is of another roster than yours", 0)
    if opening.project != own.project:
        sentence = f"the transcript is of project {opening.project!r} and yours is {own.project!r}"
        raise ViolationError("T-03", sentence, 0)
    if differing := [field.name for field in fields(own) if getattr(opening, field.name) != getattr(own, field.name)]:
        raise ViolationError("T-03", f"the transcript is of another policy than yours: {', '.join(differing)}", 0)


def t19_order(number: int, before: Record, record: Record) -> None:
    """T-19: records are sorted by kind and sender, each once, and every round continues the file before.

    Args:
        number: of the record in the file.
        before: the record before it that is no block.
        record: the record.
    """
    if place(before) >= place(record):
        sentence = f"a record of kind {name_of(record)} stands in the wrong place or twice"
        raise ViolationError("T-19", sentence, number, sender_of(record))


def t20_schema(number: int, data: bytes, record: Record) -> None:
    """T-20: every record has its one encoding: no unknown field, no second spelling, nothing behind the end.

    Args:
        number: of the record in the file.
        data: its bytes there.
        record: what they were decoded to.
    """
    if encode_record(record) != data:
        raise ViolationError("T-20", "a record is not spelt in the one way that it can be", number, sender_of(record))
