"""Bytes: every message comes back as it went, and any other bytes are refused as malformed, never anything else."""

from dataclasses import replace

import pytest

import secagg
from secagg import AuthenticationError, MalformedMessageError, Suite, keys, wire
from secagg import secagg_pb2 as pb
from secagg.files import load_roster
from secagg.messages import (
    Abort,
    AdvertiseKeys,
    Attestations,
    Bundle,
    Header,
    IncludedSet,
    MaskedInput,
    Receipt,
    ReleaseClaim,
    Reports,
    Result,
    Roster,
    RoundStart,
    ShareInbox,
    ShareReport,
    SlotMasks,
    SlotsFailed,
    UnmaskingShares,
)
from secagg.sqlite import SqliteStore
from tests.support.cohort import RUN, SERVER_KEY, Cohort, signing_key


def every_message() -> tuple[list, list]:
    """One whole round with a dropout: what the clients said and what the server said."""
    up, down = [], []
    play = Cohort(5, suite=Suite.MLKEM768_X25519).play(
        silent={"site-c": "MaskedInputCollection"},
        up=lambda step, who, m: up.append(m) or m,
        down=lambda step, who, m: down.append(m) or m,
    )
    start = RoundStart(RUN, 2, 1, *[bytes(32)] * 3, missed=(play.server.receipt,)).sign(SERVER_KEY)
    failed = SlotsFailed(play.server.receipt.round_id, play.server.receipt.attested)
    masks = SlotMasks(*[bytes(32)] * 2, "site-a", {"site-b": bytes(32)}).sign(SERVER_KEY)
    return [*up, announcing(up), masks], [*down, start, failed, Abort.because(bytes(32), failed)]


def announcing(said: list) -> AdvertiseKeys:
    """An advertisement that says which round was released and not replayed."""
    claim = ReleaseClaim(bytes(32), RUN, 3, 1, *[bytes([i]) * 32 for i in range(6)], {"site-b": bytes(64)})
    first = next(message for message in said if isinstance(message, AdvertiseKeys))
    return replace(first, released=claim.round_id, exposing=(claim,)).sign(SERVER_KEY)


FROM_CLIENT, FROM_SERVER = ({type(m): m for m in said} for said in every_message())
KINDS = FROM_CLIENT | FROM_SERVER
each_kind = pytest.mark.parametrize("message", KINDS.values(), ids=lambda message: type(message).__name__)


def decoded(data: bytes) -> list:
    """What either side makes of these bytes; anything but a message or a MalformedMessageError fails the test."""
    messages = []
    for decode in (wire.decode_from_client, wire.decode_from_server):
        try:
            messages.append(decode(data))
        except MalformedMessageError as error:
            assert error.check in ("M-01", "W-01")  # noqa: PT017
            assert error.culprits == ()  # noqa: PT017
    return messages


def test_every_message_takes_part():
    assert FROM_CLIENT.keys() == set(wire._CLIENT_FIELDS.values())
    assert FROM_SERVER.keys() == set(wire._SERVER_FIELDS.values())
    assert len(KINDS) == 17


@each_kind
def test_a_message_comes_back_as_it_went(message):
    data = wire.encode(message)
    assert decoded(data) == [message]
    assert wire.encode(decoded(data)[0]) == data == b"".join(wire.parts(message))


@each_kind
def test_it_is_read_from_any_buffer_and_its_vector_is_a_view(message):
    decode = wire.decode_from_client if type(message) in FROM_CLIENT else wire.decode_from_server
    data = bytearray(wire.encode(message))
    read = decode(memoryview(data))
    assert read == message
    (*_, last) = wire.parts(message)
    for name in ("y", "total"):
        if hasattr(message, name):
            assert last is getattr(message, name)
            assert getattr(read, name).obj is data
            assert wire.encode(read) == data


def test_what_went_to_many_is_decoded_once_for_all_of_them():
    roster, reports = FROM_SERVER[Roster], FROM_SERVER[Reports]
    heard = wire.decode_each(wire.encode_each({"site-a": roster, "site-b": roster, "site-c": reports}))
    assert heard == {"site-a": roster, "site-b": roster, "site-c": reports}
    assert heard["site-a"] is heard["site-b"]
    assert heard["site-a"] is not roster


def test_a_message_is_verified_once_but_not_for_another_key_and_not_its_copies(monkeypatch):
    asked = []
    real = keys.VerifyKey
    monkeypatch.setattr(keys, "VerifyKey", lambda key: asked.append(key) or real(key))
    keys._verified.cache_clear()
    (report,) = decoded(wire.encode(FROM_CLIENT[ShareReport].sign(signing_key(0))))
    mine, other = signing_key(0), signing_key(1)
    for _ in range(3):
        report.verify(mine.verify_key, "S-09")
    assert len(asked) == 1
    for message, key in ((report, other), (report.sign(other), mine), (replace(report, complaint="site-b"), mine)):
        for _ in range(2):
            with pytest.raises(AuthenticationError):
                message.verify(key.verify_key, "S-09")
    assert len(asked) == 4


@each_kind
def test_what_one_side_says_is_never_the_other_sides_word(message):
    ours, theirs = wire.decode_from_client, wire.decode_from_server
    if type(message) in FROM_SERVER:
        ours, theirs = theirs, ours
    assert isinstance(ours(wire.encode(message)), type(message))
    with pytest.raises(MalformedMessageError, match="W-01"):
        theirs(wire.encode(message))


def test_the_two_sides_share_no_field_number():
    client, server = ({field.number for field in side.DESCRIPTOR.fields} for side in (pb.FromClient, pb.FromServer))
    assert not client & server
    for side, numbers in ((pb.FromClient, client), (pb.FromServer, server)):
        assert side.DESCRIPTOR.fields_by_name["vector"].number == max(numbers), "the vector is the last field"


# --- One spelling ------------------------------------------------------------------------------------------------


def varint(value: int, padding: int = 0) -> bytes:
    """LEB128, with needless zero groups where asked for."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * padding
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def halves(data: bytes) -> tuple[int, bytes, bytes]:
    """Number and body of the message in these bytes, and the vector's field after it, if there is one."""
    tag, start = read_varint(data, 0)
    size, start = read_varint(data, start)
    return tag >> 3, data[start : start + size], data[start + size :]


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    end = next(i for i in range(at, len(data)) if data[i] < 0x80) + 1
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data[at:end])), end


@each_kind
def test_a_message_has_one_spelling(message):
    data = wire.encode(message)
    number, body, vector = halves(data)
    assert field(number, body) + vector == data
    tag, size, last = varint(number << 3 | 2), varint(len(body)), 18 if type(message) in FROM_CLIENT else 19
    unknown, group = field(500, b"?"), b"\xa3\x1f\xa4\x1f"
    for wrong in (
        b"",
        data[:-1],
        data + b"\0",
        data + data,
        data + unknown,
        unknown + data,
        field(number, body + unknown) + vector,
        field(number, body + b"\xa0\x1f\0") + vector,
        field(number, body + group) + vector,
        varint(number << 3 | 3) + body + varint(number << 3 | 4) + vector,
        varint(number << 3 | 2, padding=1) + size + body + vector,
        tag + varint(len(body), padding=1) + body + vector,
        tag + varint(len(body), padding=9) + body + vector,
        tag + varint(len(body) + 1) + body + vector,
        tag + varint(2**31 - 1) + body + vector,
        tag + varint(2**31) + body + vector,
        tag + varint(2**63 - 1) + body + vector,
        tag + varint(2**64 - 1) + body + vector,
        tag + b"\xff" * 11 + body + vector,
        varint(number << 3) + size + body + vector,
        varint(number << 3 | 5) + body + vector,
        field(number, b"") + field(number, body) + vector,
        field(number, body[: len(body) // 2]) + field(number, body[len(body) // 2 :]) + vector,
        field(number ^ 1, b"") + data,
        field(last, b"") + field(number, body) if vector else data + field(last, b""),
        vector + field(number, body) if vector else data + field(last, b"vector"),
        field(number, body) if vector else field(last, b"vector") + data,
        data + vector if vector else data + field(last, b"") * 2,
        field(number, field(number, body)) + vector,
    ):
        assert decoded(wrong) == [], wrong[:40]


@each_kind
def test_what_is_in_it_has_one_spelling_too(message):
    """Every field of it twice, away, in another place, longer or shorter by a byte: another message or none."""
    data = wire.encode(message)
    number, body, vector = halves(data)
    kind = (pb.FromClient if type(message) in FROM_CLIENT else pb.FromServer).DESCRIPTOR.fields_by_number[number]
    inner = [value.number for value in kind.message_type.fields]
    for value in inner:
        for extra in (field(value, b"?" * 33), varint(value << 3) + b"\1", varint(value << 3 | 5) + bytes(4)):
            for wrong in (body + extra, extra + body):
                assert message not in decoded(field(number, wrong) + vector)


def start_of(number: bytes) -> bytes:
    """A round start with this spelling of its round number."""
    return field(8, field(1, b"run") + number + b"".join(field(i, bytes(32)) for i in (4, 5, 6)))


def test_a_number_has_one_spelling():
    assert [message.round_number for message in decoded(start_of(b"\x10\x05"))] == [5]
    assert [message.round_number for message in decoded(start_of(b"\x10" + varint(2**63 - 1)))] == [2**63 - 1]
    for wrong in (
        b"",  # zero
        b"\x10" + varint(2**63),  # what no store can hold
        b"\x10" + varint(2**64 - 1),
        b"\x10\0",  # the default spelled out
        b"\x10\x85\0",
        b"\x12\1\5",  # as a packed list
        b"\x11" + bytes(8),
        b"\x15" + bytes(4),
        b"\x10" + varint(2**64),
        b"\x10" + b"\xff" * 9 + b"\x7f",
        b"\x10" + b"\xff" * 10 + b"\1",
        b"\x10\4\x10\5",
        b"\x18\1\x10\5",  # the attempt before the number
    ):
        assert decoded(start_of(wrong)) == []


def nested(depth: int) -> bytes:
    return field(1, nested(depth - 1)) if depth else b""


@pytest.mark.parametrize("text", [b"\xc3\x28", b"\xed\xa0\x80", b"\xff", b"a\0" * 2 + b"\xf8"], ids=repr)
def test_text_is_utf_8(text):
    assert decoded(field(5, field(1, bytes(32)) + field(2, b"a")))
    assert decoded(field(5, field(1, bytes(32)) + field(2, text))) == []


@pytest.mark.parametrize("depth", [2, 99, 100, 101, 300])
def test_depth_is_refused(depth):
    assert decoded(nested(depth)) == []
    assert decoded(field(2, nested(depth))) == []
    assert decoded(b"\x0b" * depth + b"\x0c" * depth) == []


# --- One shape ---------------------------------------------------------------------------------------------------


def wrapped(**message) -> bytes:
    envelope = pb.FromClient if next(iter(message)) in wire._CLIENT_FIELDS else pb.FromServer
    return envelope(**message).SerializeToString()


def claimed(**changes):
    """The protobuf twin of an advertisement with a claim, some of whose fields are changed."""
    return wire._written(KINDS[AdvertiseKeys]), changes


def written(twin, **changes):
    message, of_claim = twin
    spoilt = pb.AdvertiseKeys.FromString(message.SerializeToString())
    for target, values in ((spoilt.exposing[0], of_claim), (spoilt, changes)):
        for name, value in values.items():
            target.ClearField(name)
            target.MergeFrom(type(target)(**{name: value}))
    return spoilt


def test_the_twin_that_is_spoilt_below_is_a_message_itself():
    assert decoded(wrapped(advertise_keys=written(claimed()))) == [KINDS[AdvertiseKeys]]


@pytest.mark.parametrize(
    "data",
    [
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(31), client_id="a", nonce=bytes(16))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="a", nonce=bytes(15))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="", nonce=bytes(16))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="é", nonce=bytes(16))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="a" * 65, nonce=bytes(16))),
        wrapped(encrypted_shares=pb.EncryptedShares()),
        wrapped(result=pb.Result()) + field(19, b"sum"),
        wrapped(masked_input=pb.MaskedInput(client_id="a")) + field(18, b"y"),
        wrapped(confirmation=pb.Confirmation(head=bytes(31), client_id="a")),
        wrapped(included_set=pb.IncludedSet()),
        wrapped(
            round_start=pb.RoundStart(
                training_run="",
                round_number=1,
                **dict.fromkeys(("model_hash", "task_hash", "previous_head"), bytes(32)),
            )
        ),
        wrapped(
            share_report=pb.ShareReport(
                client_id="a", complaint="é", **dict.fromkeys(("slot", "roster1", "roster2"), bytes(32))
            )
        ),
        wrapped(advertise_keys=written(claimed(), released=b"")),
        wrapped(advertise_keys=written(claimed(), exposing=9 * [written(claimed()).exposing[0]])),
        wrapped(advertise_keys=written(claimed(attestations=[]))),
        wrapped(advertise_keys=written(claimed(attestations=[pb.NamedBytes(client_id="a", value=bytes(63))]))),
        wrapped(advertise_keys=written(claimed(attestations=2 * [pb.NamedBytes(client_id="a", value=bytes(64))]))),
        wrapped(advertise_keys=written(claimed(round_number=0))),
        wrapped(advertise_keys=written(claimed(training_run="\x1b[2J"))),
        wrapped(slot_masks=pb.SlotMasks(round_id=bytes(32), attested=bytes(31), client_id="a")),
        wrapped(
            slot_masks=pb.SlotMasks(
                round_id=bytes(32),
                attested=bytes(32),
                client_id="a",
                masks=[pb.NamedBytes(client_id="b", value=bytes(8)), pb.NamedBytes(client_id="c", value=bytes(9))],
            )
        ),
        wrapped(slots_failed=pb.SlotsFailed(round_id=bytes(32))),
    ],
)
def test_fields_of_the_wrong_shape_are_refused(data):
    number, *_ = halves(data)
    side = wire.decode_from_client if number in pb.FromClient.DESCRIPTOR.fields_by_number else wire.decode_from_server
    with pytest.raises(MalformedMessageError, match="M-01"):
        side(data)


def parts() -> dict[type, object]:
    """Every message and every message within one."""
    inner = [KINDS[Result].receipt, KINDS[ShareInbox].headers[0], KINDS[ShareInbox].bundles[-1]]
    inner.append(KINDS[AdvertiseKeys].exposing[0])
    return KINDS | {type(part): part for part in (*inner, KINDS[IncludedSet].inputs[0])}


@pytest.mark.parametrize("part", parts().values(), ids=lambda part: type(part).__name__)
def test_no_hash_may_be_short(part):
    keys = ("channel_pk", "mask_dh_pk")  # their lengths depend on the suite: C-07, S-05
    hashes = [n for n, v in vars(part).items() if isinstance(v, bytes) and len(v) == 32 and n not in keys]
    assert hashes or not isinstance(part, Receipt | ReleaseClaim | Bundle | Header | MaskedInput)
    for name in set(hashes) & set(type(part).__dataclass_fields__):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, **{name: getattr(part, name)[:-1]})
    if isinstance(part, Header):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, bundles_root=part.bundles_root[1:])


@pytest.mark.parametrize("part", parts().values(), ids=lambda part: type(part).__name__)
def test_an_id_is_1_to_64_ascii_characters(part):
    for client_id in ("", "é", "x" * 65):
        if hasattr(part, "client_id"):
            with pytest.raises(MalformedMessageError, match="M-01"):
                replace(part, client_id=client_id)


@pytest.mark.parametrize("run", ["", "é", "x" * 257, "\x1b[2J", "a\nb", "\0"])
def test_a_training_run_is_a_short_printable_ascii_name(run):
    for part in (KINDS[RoundStart], KINDS[Result].receipt, KINDS[AdvertiseKeys].exposing[0]):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, training_run=run)


@pytest.mark.parametrize("number", [-1, 0, 2**63, 2**64 - 1])
def test_numbers_are_what_every_store_can_hold(number):
    for part in (KINDS[RoundStart], KINDS[Result].receipt, KINDS[AdvertiseKeys].exposing[0]):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, round_number=number)
        assert replace(part, round_number=2**63 - 1)
    for part in (KINDS[RoundStart], KINDS[AdvertiseKeys].exposing[0]):
        if number:
            with pytest.raises(MalformedMessageError, match="M-01"):
                replace(part, attempt=number)


def test_lists_out_of_order_or_with_repeats_are_refused():
    for kind in (Roster, ShareInbox, Reports, IncludedSet, Attestations):
        message = KINDS[kind]
        name, entries = next(iter((n, getattr(message, n)) for n in kind.__dataclass_fields__))
        for wrong in (entries[::-1], (*entries, entries[-1])):
            with pytest.raises(MalformedMessageError, match="M-01"):
                replace(message, **{name: wrong})
    shares = KINDS[UnmaskingShares]
    listed = pb.FromClient.FromString(wire.encode(shares))
    entries = listed.unmasking_shares.self_seed_shares
    entries.add().CopyFrom(entries[0])
    with pytest.raises(MalformedMessageError, match="M-01"):
        wire.decode_from_client(listed.SerializeToString())


@pytest.mark.parametrize("share", [bytes(32), bytes(34), b"\xff" * 33])
def test_a_share_outside_the_field_is_refused(share):
    message = KINDS[UnmaskingShares]
    with pytest.raises(MalformedMessageError, match="M-01"):
        replace(message, self_seed_shares=dict.fromkeys(message.self_seed_shares, share))


def test_only_messages_are_encoded():
    with pytest.raises(TypeError):
        wire.encode(b"bytes")


def test_empty_attestations_and_results_keep_their_kind():
    assert decoded(wire.encode(Attestations(()))) == [Attestations(())]
    assert isinstance(decoded(wire.encode(KINDS[Result]))[0], Result)


def test_a_receipt_is_kept_as_bytes_and_read_back():
    receipt = Cohort().play().server.receipt
    data = wire.encode_receipt(receipt)
    assert wire.decode_receipt(data) == receipt
    for wrong in (b"", data[:-1], data + b"\x00", data + data, wire.encode(receipt_start(receipt))):
        with pytest.raises(MalformedMessageError):
            wire.decode_receipt(wrong)


def receipt_start(receipt):
    """A message that holds a receipt is none."""
    hashes = (bytes(32), bytes(32), receipt.head)
    return RoundStart(receipt.training_run, 2, 0, *hashes, (receipt,), receipt.signature)


def test_what_opens_files_is_loaded_when_asked_for():
    assert secagg.SqliteStore is SqliteStore
    assert secagg.load_roster is load_roster
    with pytest.raises(AttributeError, match="no attribute 'sqlite_store'"):
        _ = secagg.sqlite_store
