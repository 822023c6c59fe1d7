"""A client's session between two messages, sealed: it leaves memory here and comes back once.

What is public in it are the messages themselves, as they went over the wire; what is secret is listed state by state.
"""

from typing import TypeVar, cast

from secagg import wire
from secagg.client import Advertised, Attested, Joining, Masked, OpenRound, Released, Reported, Shared, verify_claims
from secagg.client import _Held as Held
from secagg.client import _Own as Own
from secagg.encoding import Buffer, Field
from secagg.errors import IllegalTransitionError
from secagg.keys import ChannelKey, MaskKey, SigningKey
from secagg.messages import (
    AdvertiseKeys,
    Attestation,
    EncryptedShares,
    FromClient,
    FromServer,
    IncludedSet,
    MaskedInput,
    Reports,
    Roster,
    ShareInbox,
    ShareReport,
    SlotMasks,
    UnmaskingShares,
)
from secagg.policy import Policy
from secagg.prg import Executor
from secagg.roster import PinnedRoster, session_id
from secagg.session import ClientSession
from secagg.snapshot import sealed
from secagg.store import Store

_Kind = TypeVar("_Kind")
_Live = Advertised | Shared | Reported | Masked | Attested | Released


def suspend(session: ClientSession) -> bytes:
    """Seal what a session holds, mark that in its store, and end the session: it goes on where `resume` opens this.

    Write the bytes whole to a disk before the reply of the last step is sent (`secagg.writing.write_whole`).

    Args:
        session: after `start` and before its end, without an update that is not masked yet.

    Raises:
        IllegalTransitionError: it is not in such a state.
        UnexpectedMessageError: C-24, another attempt was joined meanwhile.
    """
    state, first, opened = session._state, session.first, session.opened
    if first is None or not isinstance(state, _Live):
        raise IllegalTransitionError("a session is suspended after its first message and before its end")
    if session._update is not None:
        raise IllegalTransitionError("an update is never written down: provide it in the process that gets the reports")
    own = state.own
    history: list[Field] = [[wire.encode(heard), wire.encode(said)] for heard, said in session._answered]
    waiting = b"" if session._waiting is None else wire.encode(session._waiting)
    rates: list[Field] = [[name, rate.hex()] for name, rate in session._clip_rates.items()]
    public = (wire.encode(first), history, waiting, session._clip_rate.hex(), rates)
    secret = (type(state).__name__, _secrets(state), int(opened.private), int(opened.checked), *public)
    about = sealed.About(own.me, opened.context, session.step)
    snapshot = sealed.seal(own.signing_key, own.attempt.session, about, secret)
    with own.store.transaction() as marks:
        marks.suspend(own.attempt, sealed.digest_of(snapshot))
    session.close()
    return snapshot


def resume(
    snapshot: Buffer,
    policy: Policy,
    me: str,
    signing_key: SigningKey,
    pinned: PinnedRoster,
    store: Store,
    executor: Executor | None = None,
) -> ClientSession:
    """The session that was suspended last, once: its store knows it no more before anything in it is used.

    Args:
        snapshot: what `suspend` gave.
        policy: as it was.
        me: own id in the roster.
        signing_key: own identity.
        pinned: as it was.
        store: durable marks of the data set.
        executor: what expands masks, see `ClientSession`.

    Raises:
        ConfigError: it is no snapshot of this client and store, not the last one, was used already, or is damaged.
        UnexpectedMessageError: C-24, another attempt was joined meanwhile.
    """
    identity = session_id(policy, pinned)
    about, fields = sealed.unseal(signing_key, identity, me, snapshot)
    # Used up before anything in it is: a crash behind this line costs the round, never a second answer.
    with store.transaction() as marks:
        marks.resume(about.context.at(identity), sealed.digest_of(snapshot))
    kind, secrets, private, checked, first, history, waiting, rate, rates = fields
    opened = OpenRound(about.context, bool(sealed.number(private)), bool(sealed.number(checked)))
    session = ClientSession(policy, me, signing_key, pinned, opened, store, executor)
    pairs = (sealed.items(pair) for pair in sealed.items(history))
    session._answered = [
        (wire.decode_from_server(bytes(heard)), wire.decode_from_client(bytes(said))) for heard, said in pairs
    ]
    said = _Said(wire.decode_from_client(bytes(first)), session._answered)
    session._first, session._step = said.of(AdvertiseKeys), about.step
    waited = wire.decode_from_server(bytes(waiting)) if waiting else None
    session._waiting = waited if isinstance(waited, Reports) else None
    session._provided = said.has(MaskedInput)
    if said.has(IncludedSet):
        session._included = tuple(said.of(IncludedSet).by_id)
        session._dropped = tuple(sorted(said.of(Reports).by_id.keys() - said.of(IncludedSet).by_id.keys()))
    session._clip_rate = float.fromhex(sealed.text(rate))
    session._clip_rates = {
        sealed.text(name): float.fromhex(sealed.text(value)) for name, value in map(sealed.items, sealed.items(rates))
    }
    own = cast(Joining, session._state).own
    session._state = _revived(sealed.text(kind), own, said, sealed.items(secrets))
    return session


class _Said:
    """The messages of an attempt so far: one of each class."""

    def __init__(self, first: FromClient, answered: list[tuple[FromServer, FromClient]]) -> None:
        every = (first, *(message for pair in answered for message in pair))
        self._by_kind: dict[type, object] = {type(message): message for message in every}

    def has(self, kind: type) -> bool:
        """Whether there was one."""
        return kind in self._by_kind

    def of(self, kind: type[_Kind]) -> _Kind:
        """The message of this class."""
        return cast(_Kind, self._by_kind[kind])


def _secrets(state: _Live) -> list[Field]:
    """What a state holds beside the messages."""
    match state:
        case Advertised():
            return [state.channel_key.seed, state.mask_key.seed]
        case Shared():
            return [state.channel_key.seed, state.mask_key.seed, state.self_seed]
        case Released():
            return [sealed.named(state.slot_masks.masks)]
    held = state.held
    shares = (held.mask_key_shares, held.self_seed_shares, held.pair_secrets, held.slot_masks, held.excess_seeds)
    return [held.mask_key.seed, held.self_seed, *map(sealed.named, shares)]


def _revived(kind: str, own: Own, said: _Said, secrets: list[memoryview]) -> _Live:
    """The state of this name, with its secrets as `_secrets` listed them and the messages that led to it."""
    suite = own.policy.suite
    if kind == "Released":
        shares = said.of(UnmaskingShares)
        masks = SlotMasks(shares.round_id, shares.attested, own.me, sealed.by_name(secrets[0]))
        included, disclosed = frozenset(said.of(IncludedSet).by_id), b"".join(shares.excess_seeds)
        return Released(own, shares.round_id, shares.attested, included, masks, disclosed)
    if kind == "Advertised":
        channel, mask = map(bytes, secrets)
        return Advertised(own, ChannelKey(suite, channel), MaskKey(suite, mask), said.of(AdvertiseKeys))
    roster = said.of(Roster)
    if kind == "Shared":
        channel, mask, self_seed = map(bytes, secrets)
        keys, claims = (ChannelKey(suite, channel), MaskKey(suite, mask)), verify_claims(own, roster)
        return Shared(own, *keys, self_seed, roster, claims, said.of(EncryptedShares).header)
    held = Held(MaskKey(suite, bytes(secrets[0])), bytes(secrets[1]), *map(sealed.by_name, secrets[2:]))
    inbox = said.of(ShareInbox)
    if kind == "Reported":
        return Reported(own, held, roster, verify_claims(own, roster), inbox, said.of(ShareReport))
    sharers = frozenset(said.of(Reports).by_id)
    if kind == "Masked":
        return Masked(own, held, inbox, sharers, said.of(MaskedInput).acceptance())
    return Attested(own, held, inbox, sharers, said.of(IncludedSet), said.of(Attestation))
