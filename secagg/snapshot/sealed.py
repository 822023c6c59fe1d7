"""A sealed snapshot as bytes: which party's, of which attempt and step, and the secrets under that party's own key.

Specification: docs/spec.md, section "Sessions on a disk".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from secagg.context import RoundContext
from secagg.encoding import Buffer, Field, digest, encode, split_fields
from secagg.errors import ConfigError
from secagg.keys import SealingKey, SigningKey

FORMAT = 2
"""Of what is sealed; a snapshot of another one is refused."""


@dataclass(frozen=True)
class About:
    """What a snapshot is bound to; whoever has the file can read it, but for the session, which is not in it.

    Attributes:
        owner: id of the client; "" for the server.
        context: of the attempt.
        step: that the party is in.
    """

    owner: str
    context: RoundContext
    step: str

    def fields(self) -> list[Field]:
        """As they are encoded."""
        context = self.context
        hashes = (context.model_hash, context.task_hash, context.previous_head)
        return [FORMAT, self.owner, context.training_run, context.round_number, context.attempt, *hashes, self.step]


def seal(signing_key: SigningKey, session: bytes, about: About, secret: Sequence[Field]) -> bytes:
    """The bytes of a snapshot.

    Args:
        signing_key: the party's own, from which the sealing key follows.
        session: 32 bytes, of policy and roster; the snapshot opens under no other.
        about: what it is bound to.
        secret: what it holds.
    """
    bound = encode("snapshot-bound", session, *about.fields())
    sealed = SealingKey(signing_key).seal(bound, encode("snapshot-secret", *secret))
    return encode("snapshot", about.fields(), sealed)


def unseal(signing_key: SigningKey, session: bytes, owner: str, snapshot: Buffer) -> tuple[About, list[memoryview]]:
    """What `seal` sealed for this owner, each field as `encode` wrote it.

    Raises:
        ConfigError: it is no snapshot of this version, damaged, another party's, or of another policy or roster.
    """
    about, sealed = _parts(snapshot)
    about = replace(about, owner=owner)
    bound = encode("snapshot-bound", session, *about.fields())
    try:
        label, *fields = split_fields(SealingKey(signing_key).open(bound, sealed))
    except ValueError:
        label, fields = memoryview(b""), []
    if label != _label("snapshot-secret"):
        raise ConfigError(
            f"this snapshot of round {about.context.round_number} does not open: it is damaged, another party's, or of "
            "another policy or roster; this party joins the next attempt"
        )
    return about, fields


def digest_of(snapshot: Buffer) -> bytes:
    """H(snapshot), 32 bytes: what a store knows of it."""
    return digest("snapshot-digest", snapshot)


def number(field: memoryview) -> int:
    """A field that `encode` made of an integer."""
    return int.from_bytes(field, "big")


def items(field: memoryview) -> list[memoryview]:
    """A field that `encode` made of a sequence."""
    return split_fields(field[4:])


def text(field: memoryview) -> str:
    """A field that `encode` made of a text."""
    return bytes(field).decode("ascii")


def named(values: Mapping[str, bytes]) -> list[Field]:
    """Bytes by id, as one field, in order of the ids."""
    return [[client_id, values[client_id]] for client_id in sorted(values)]


def by_name(field: memoryview) -> dict[str, bytes]:
    """Inverse of `named`."""
    pairs = (items(pair) for pair in items(field))
    return {text(client_id): bytes(value) for client_id, value in pairs}


def _parts(snapshot: Buffer) -> tuple[About, bytes]:
    try:
        label, listed, sealed = split_fields(snapshot)
        version, owner, run, round_number, attempt, model, task, head, step = items(listed)
        if (bytes(label), number(version)) != (_label("snapshot"), FORMAT):
            raise ValueError("another kind or version")
        context = RoundContext(text(run), number(round_number), number(attempt), bytes(model), bytes(task), bytes(head))
        found = About(text(owner), context, text(step))
        if encode("snapshot", found.fields(), sealed) != snapshot:
            raise ValueError("a second spelling")
    except ValueError:  # a ConfigError of the context is one
        raise ConfigError(
            "these bytes are no snapshot of a session, are damaged, or are of another version of secagg; this party "
            "joins the next attempt"
        ) from None
    return found, bytes(sealed)


def _label(purpose: str) -> bytes:
    (label,) = split_fields(encode(purpose))
    return bytes(label)
