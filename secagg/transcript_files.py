"""Transcripts as files: written while a round runs, published once nothing in them can hurt, and read back.

While a round runs, everything goes into a file without a name, which a crash takes along, or into one that is sealed
under the server's own key, which another process goes on with. A finished round is published whole, in one rename; of a
burned one only the signed headers. Must never: write an envelope anywhere, or publish a masked input of a round without
a sum. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from numpy.typing import NDArray

from secagg.context import RoundContext, next_head
from secagg.encoding import VERSION
from secagg.errors import ConfigError, IllegalTransitionError, MalformedMessageError
from secagg.keys import SealingKey, SigningKey
from secagg.messages import (
    AcceptedInput,
    EncryptedShares,
    FromClient,
    Header,
    IncludedSet,
    Receipt,
    Result,
    ShareReport,
    UnmaskingShares,
)
from secagg.packing import packed_size, unpack
from secagg.policy import Policy
from secagg.recording import Passing, Sealed
from secagg.roster import PinnedRoster
from secagg.transcript.judging import judge
from secagg.transcript.record import (
    CHAIN_START,
    FORMAT,
    LARGEST_VECTOR,
    Block,
    Closing,
    OpenedPair,
    Opening,
    PublishedShares,
    Record,
    as_shown,
    decode_record,
    encode_record,
    next_link,
    place,
    records,
    sender_of,
)
from secagg.transcript.verdict import Verdict
from secagg.transcript.violation import ViolationError
from secagg.writing import PUBLIC, replacing


class Writer:
    """Appends records to a file and keeps the chain."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._link = CHAIN_START

    def write(self, record: bytes) -> None:
        """Append one encoded record, with its length before it, and extend the chain."""
        self._file.write(len(record).to_bytes(4, "big"))
        self._file.write(record)
        self._link = next_link(self._link, record)

    def close(self, signing_key: SigningKey | None) -> None:
        """Append the closing record: the end of the chain, signed where a key is given."""
        closing = Closing(self._link)
        self.write(encode_record(closing.sign(signing_key) if signing_key else closing))


class Recorder:
    """Records one attempt: give it to `ServerSession(record=...)`. A context manager, which publishes at its end.

    Args:
        path: the transcript to write; a file of that name is replaced, but only by a whole transcript.
        policy: the session's.
        pinned: the session's.
        context: the session's.
        vectors: publish masked inputs whole, so that the sum can be recomputed; otherwise only their hashes.
        signing_key: key of `policy.server_key`, which seals the file; None where the policy names none.
        durable: what was recorded lies beside `path`, sealed under `signing_key`, so that another process can `rewind`
            to what an earlier one brought to the disk with `sync`. Call `rewind` first, also with 0.
        synced: whether the transcript is on the disk when it is published. False is for simulations only, whose one
            process replays it at once.

    Attributes:
        receipt: of the round, once the result was recorded; without one nothing but headers is shown.

    It belongs to one thread. Memory: the messages of the round, which the session holds as well, without vectors.

    Raises:
        ConfigError: roster, policy and key do not fit together, or the vectors are too long for a transcript.
        OSError: nothing can be written beside `path`.
    """

    def __init__(
        self,
        path: str | Path,
        policy: Policy,
        pinned: PinnedRoster,
        context: RoundContext,
        vectors: bool = True,
        signing_key: SigningKey | None = None,
        *,
        durable: bool = False,
        synced: bool = True,
    ) -> None:
        if (signing_key.verify_key if signing_key else b"") != policy.server_key:
            raise ConfigError("the signing key is not the policy's server_key")
        if packed_size(policy.length + policy.slots, policy.bits) > LARGEST_VECTOR:
            raise ConfigError("a transcript holds vectors of less than 4 GiB")
        self.path = Path(path)
        self._policy, self._signing_key, self._vectors, self._synced = policy, signing_key, vectors, synced
        self._opening = Opening.of(policy, pinned.hash(), context, vectors)
        self._spool = self._sealed() if durable else Passing(self.path.parent)
        self._places: dict[tuple[int, str, str], tuple[int, int]] = {}
        self._headers: list[Header] = []
        self.receipt: Receipt | None = None
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._spool.closed:
            self.publish()

    def _sealed(self) -> Sealed:
        if self._signing_key is None:
            raise ConfigError("a durable recording is sealed under the server's key, and this policy names none")
        beside = self.path.with_name(f".{self.path.name}.recording")
        return Sealed(beside, SealingKey(self._signing_key), encode_record(self._opening))

    @property
    def recorded(self) -> int:
        """How far a durable recording has come; 0 of another one."""
        return self._spool.size if isinstance(self._spool, Sealed) else 0

    def sync(self) -> None:
        """Bring a durable recording to the disk.

        Raises:
            OSError: it cannot be written now; nothing is lost, and a later call tries again.
        """
        if isinstance(self._spool, Sealed):
            self._spool.sync()

    def rewind(self, recorded: int) -> None:
        """Go on from where a durable recording was once; 0 begins anew.

        Raises:
            OSError: that much is not there, or it is damaged.
        """
        if not isinstance(self._spool, Sealed):
            raise OSError("a recording without a name is not resumed")
        last: tuple[int, str, str] | None = None
        for start, record in self._spool.rewind(recorded):
            message = decode_record(record)
            if isinstance(message, Block) and last is not None:
                begin, count = self._places[last]
                self._places[last] = begin, count + 1
                continue
            last = place(message)
            self._places[last] = start, 1
            if isinstance(message, PublishedShares):
                self._headers.append(message.header)
            if isinstance(message, Receipt):
                self.receipt = message

    def __repr__(self) -> str:
        return f"<Recorder of {self.path}>"

    def __call__(self, message: FromClient | OpenedPair | Result) -> None:
        """Record an accepted message in its published form; a full disk costs the transcript, not the round.

        Raises:
            IllegalTransitionError: the transcript is published.
        """
        if self._spool.closed:
            raise IllegalTransitionError("this transcript is published")
        if self._failure is None:
            try:
                self._record(message)
            except OSError as error:
                self._failure = error

    def _record(self, message: FromClient | OpenedPair | Result) -> None:
        match message:
            case EncryptedShares():
                self._headers.append(message.header)
            case Result():
                self.receipt = message.receipt
        record, vector = as_shown(message, self._policy, self._vectors)
        self._keep(record, *vector)

    def _keep(self, message: Record, *vector: Block) -> None:
        start = self._spool.append(map(encode_record, (message, *vector)))
        self._places[place(message)] = (start, 1 + len(vector))

    def publish(self) -> Path | None:
        """Write the transcript and forget everything else; of a round without a result only headers.

        Returns:
            The path, or None where there is nothing to publish: no sum, and no header either.

        Raises:
            IllegalTransitionError: it is published already.
            OSError: it cannot be written, or something could not be recorded; what was recorded is gone, unless it is
                durable: then it may be tried again.
        """
        if self._spool.closed:
            raise IllegalTransitionError("this transcript is published")
        try:
            if self._failure is not None:
                raise self._failure
            if self.receipt or self._headers:
                with replacing(self.path, PUBLIC, synced=self._synced) as draft, open(draft, "wb") as file:
                    self._write(Writer(file))
        except OSError:
            if not isinstance(self._spool, Sealed):
                self._spool.close()
            raise
        self._spool.close()
        return self.path if self.receipt or self._headers else None

    def _write(self, writer: Writer) -> None:
        writer.write(encode_record(self._opening))
        if self.receipt is None:
            for header in sorted(self._headers, key=lambda header: header.client_id):
                writer.write(encode_record(header))
        else:
            for _, (start, count) in sorted(self._places.items()):
                for record in self._spool.read(start, count):
                    writer.write(record)
        writer.close(self._signing_key)


def verify(
    paths: Iterable[str | Path],
    policy: Policy,
    pinned: PinnedRoster,
    progress: Callable[[int], object] | None = None,
) -> Verdict:
    """Verify transcript files of one session, each run in the order of its rounds; stops at the first thing wrong.

    Args:
        paths: the files.
        policy: the reader's own, with the server key; never one that came with the files.
        pinned: the reader's own pinned roster.
        progress: told how many bytes were read, now and then.

    Returns:
        The verdict: it never raises for what a transcript says.

    Raises:
        ConfigError: policy and roster do not fit together, or a file is no transcript.
        OSError: a file cannot be read.
    """
    return judge(((str(path), _records(Path(path), progress)) for path in paths), policy, pinned)


def _records(path: Path, progress: Callable[[int], object] | None) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for data in records(file.read):
            if progress is not None:
                progress(4 + len(data))
            yield data


@dataclass(frozen=True)
class Published:
    """What a transcript file says of a finished round, for whoever computes with its sum; `verify` says if it holds.

    Attributes:
        context: of the attempt, as the opening says.
        included, dropped: U3, and U2 without U3, sorted.
        receipt: the server's. Its head is the one that follows from the file's own inputs and sum.
        total: (d,) of `dtype_for(bits)`, the sum modulo 2^b without its constant slots.
        excess_seeds: what clients disclosed for this sum, by client, one behind the other.
    """

    context: RoundContext
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    receipt: Receipt
    total: NDArray[Any]
    excess_seeds: Mapping[str, bytes]


def context_of(path: str | Path) -> RoundContext:
    """The attempt that a transcript file says it is of: what files of a run are ordered by.

    Raises:
        ConfigError: it does not begin as a transcript does.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return _opening(path, records(file.read)).context


def signatures(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Who signed the messages that a transcript file shows: a client's id and a signature each; verified by nobody yet.

    Raises:
        ConfigError: it is no transcript, or is cut off.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            encoded = records(file.read)
            _opening(path, encoded)
            for record in map(decode_record, encoded):
                signed = record.header if isinstance(record, PublishedShares) else record
                if (signature := getattr(signed, "signature", b"")) and (sender := sender_of(signed)):
                    yield sender, signature
    except (ValueError, MalformedMessageError) as error:
        raise ConfigError(f"{path}: its records are not those of a round: {error}") from None


def published(path: str | Path, policy: Policy) -> Published | None:
    """The round of a transcript file, with the sum that its receipt names.

    No signature is looked at here. Give the file to `verify` as well, or hold the receipt against one that is known.

    Args:
        path: the file.
        policy: the reader's own, for the length and width of the sum.

    Returns:
        None where the file is of a round without a sum.

    Raises:
        ConfigError: it is no transcript, or the sum or the head is not what the receipt says.
        OSError: it cannot be read.
    """
    inputs: list[AcceptedInput] = []
    sharers: list[str] = []
    receipt, pieces, disclosed = None, list[bytes](), dict[str, bytes]()
    try:
        with open(path, "rb") as file:
            encoded = records(file.read)
            context = _opening(path, encoded).context
            for record in map(decode_record, encoded):
                match record:
                    case ShareReport():
                        sharers.append(record.client_id)
                    case AcceptedInput():
                        inputs.append(record)
                    case UnmaskingShares() if record.excess_seeds:
                        disclosed[record.client_id] = b"".join(record.excess_seeds)
                    case Receipt():
                        receipt = record
                    case Block() if receipt is not None:
                        pieces.append(record.data)
        if receipt is None:
            return None
        included, packed = IncludedSet(tuple(inputs)), b"".join(pieces)
        total = unpack(packed, policy.length + policy.slots, policy.bits)[: policy.length]
    except (ValueError, MalformedMessageError, ViolationError) as error:
        raise ConfigError(f"{path}: its records are not those of a round: {error}") from None
    named = Result.hash_of(packed, dict(sorted(disclosed.items())))
    head = next_head(context.previous_head, receipt.round_id, included.attested, named)
    if receipt.total_hash != named or receipt.head != head:
        raise ConfigError(f"{path}: the sum in it is not the one that its receipt names")
    dropped = tuple(sorted(set(sharers) - included.by_id.keys()))
    return Published(context, tuple(included.by_id), dropped, receipt, total, disclosed)


def _opening(path: str | Path, encoded: Iterator[bytes]) -> Opening:
    try:
        opening = decode_record(next(encoded))
    except (StopIteration, ValueError):
        opening = None
    if not isinstance(opening, Opening) or opening.format != FORMAT:
        raise ConfigError(f"{path} is no transcript of protocol version {VERSION}")
    return opening
