"""Transcripts that must be refused, each with the check that refuses it.

Each is a whole round that a lying server and its clients made up together (`tests.support.forge`), consistent with the
lie as far as it can be; or a file that was damaged. `LIES` holds them by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from secagg import PinnedRoster, Policy, SigningKey, Suite
from secagg.encoding import encode
from secagg.messages import AdvertiseKeys, Attestation, Confirmation, Receipt, ReleaseClaim, UnmaskingShares
from secagg.packing import pack, unpack
from secagg.roster import session_id
from secagg.shamir import PRIME, split
from secagg.transcript.record import Block, OpenedPair, PublishedShares, encode_record, records
from tests.support.cohort import SENDING, SERVER_KEY, Cohort, signing_key
from tests.support.forge import changed, forge, other_hash, written

KEYS, SHARES, REPORT, MASKED, ATTEST, UNMASK = SENDING


@dataclass
class Lie:
    check: str
    alone: bool
    tell: Callable


LIES: dict[str, Lie] = {}


def lie(check: str, alone: bool = False) -> Callable:
    """A file, or several, that the check must refuse; `alone`: nothing else finds anything wrong with it."""

    def add(tell):
        LIES[tell.__name__] = Lie(check, alone, tell)
        return tell

    return add


def told(folder: Path, name: str) -> tuple[list[Path], Policy, PinnedRoster]:
    """The files, and the policy and roster of who reads them: those of five clients unless the lie says otherwise."""
    files = LIES[name].tell(folder)
    paths, reader = files if isinstance(files, tuple) else (files, Cohort(5))
    return paths if isinstance(paths, list) else [paths], reader.policy, reader.roster


def put(folder: Path, message_records, **options) -> Path:
    return written(folder / f"{len(list(folder.iterdir()))}", message_records, **options)


def only(who: str, change: Callable) -> Callable:
    """A twist for one sender."""
    return lambda sender, value: change(value) if sender == who else value


@lie("T-01", alone=True)
def the_chain_ends_elsewhere(folder):
    return put(folder, forge(Cohort(5)), closing=lambda c: replace(c, link=other_hash(c.link)).sign(SERVER_KEY))


@lie("T-01", alone=True)
def the_file_is_not_sealed(folder):
    return put(folder, forge(Cohort(5)), signing_key=None)


@lie("T-01", alone=True)
def the_file_is_sealed_by_a_stranger(folder):
    return put(folder, forge(Cohort(5)), signing_key=SigningKey.generate())


@lie("T-01", alone=True)
def a_file_without_server_key_is_sealed(folder):
    return put(folder, forge(Cohort(5, signed=False))), Cohort(5, signed=False)


@lie("T-01", alone=True)
def a_confirmation_was_cut_out(folder):
    whole = written(folder / "whole", forge(Cohort(5))).read_bytes()
    with open(folder / "whole", "rb") as file:
        *_, last, _ = records(file.read)
    (folder / "cut").write_bytes(whole.replace(len(last).to_bytes(4, "big") + last, b""))
    return folder / "cut"


@lie("T-02", alone=True)
def too_few_confirm(folder):
    return put(folder, forge(Cohort(5), members=lambda name, ids: ids[:3] if name == "U6" else ids))


@lie("T-02", alone=True)
def one_confirms_another_head(folder):
    return put(folder, forge(Cohort(5), confirmation=only("site-b", lambda c: replace(c, head=other_hash(c.head)))))


@lie("T-02", alone=True)
def a_dropped_client_confirms(folder):
    members = lambda name, ids: [*ids, "site-e"] if name == "U6" else ids  # noqa: E731
    return put(folder, forge(Cohort(5), {"site-e": MASKED}, members=members))


@lie("T-02", alone=True)
def the_receipt_is_for_another_round_number(folder):
    return put(folder, forge(Cohort(5), receipt=lambda _, r: replace(r, round_number=2)))


@lie("T-02")
def the_receipt_is_for_another_statement(folder):
    return put(folder, forge(Cohort(5), receipt=lambda _, r: replace(r, attested=other_hash(r.attested))))


@lie("T-02")
def another_sum_is_published_than_was_confirmed(folder):
    cohort = Cohort(5)
    honest = forge(cohort)
    at = honest.index(next(r for r in honest if isinstance(r, Receipt))) + 1
    honest[at] = Block(bytes([honest[at].data[0] ^ 1]) + honest[at].data[1:])
    return put(folder, honest)


@lie("T-03", alone=True)
def another_clip_range_is_shown_than_was_signed(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, clip_range=(0.5).hex())))


@lie("T-03", alone=True)
def another_roster_is_meant(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, roster_hash=other_hash(b""))))


@lie("T-03", alone=True)
def another_attempt_is_shown_than_was_signed(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, attempt=1)))


@lie("T-03")
def other_weights_are_shown_than_were_signed(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, weights={"site-a": (2.0).hex()})))


@lie("T-03")
def another_threshold_is_shown_than_was_signed(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, max_corrupt=2)))


@lie("T-03")
def an_unsafe_policy_is_shown(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, min_survivors=2)))


@lie("T-03")
def a_policy_of_other_clients_is_shown(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, clients=6, min_survivors=5)))


@lie("T-03")
def the_reader_pinned_another_key(folder):
    reader = Cohort(5)
    reader.roster = PinnedRoster({**reader.roster, "site-e": signing_key(99).verify_key})
    return put(folder, forge(Cohort(5))), reader


@lie("T-03", alone=True)
def the_round_is_of_another_project(folder):
    reader = Cohort(5)
    reader.policy = replace(reader.policy, project="another")
    return put(folder, forge(Cohort(5))), reader


@lie("T-03", alone=True)
def the_reader_pinned_another_server(folder):
    reader = Cohort(5)
    reader.policy = replace(reader.policy, server_key=b"")
    return put(folder, forge(Cohort(5)), signing_key=None), reader


@lie("T-04", alone=True)
def an_attestation_carries_no_signature(folder):
    return put(folder, changed(forge(Cohort(5)), Attestation, "site-b", lambda a: replace(a, signature=bytes(64))))


@lie("T-04", alone=True)
def a_confirmation_is_signed_by_another(folder):
    sign = Cohort(5).keys["site-a"]
    return put(folder, changed(forge(Cohort(5)), Confirmation, "site-b", lambda c: c.sign(sign)))


@lie("T-04")
def a_report_is_on_other_headers(folder):
    return put(folder, forge(Cohort(5), report=only("site-b", lambda r: replace(r, roster2=other_hash(r.roster2)))))


@lie("T-04")
def an_input_is_forother_sharers(folder):
    twist = only("site-b", lambda i: replace(i, sharers_hash=other_hash(i.sharers_hash)))
    return put(folder, forge(Cohort(5), input=twist))


@lie("T-04", alone=True)
def keys_are_advertised_for_another_slot(folder):
    twist = only("site-e", lambda a: replace(a, slot=other_hash(a.slot)))
    return put(folder, forge(Cohort(5), {"site-e": SHARES}, advertisement=twist))


@lie("T-04", alone=True)
def a_bundle_is_not_the_signed_one(folder):
    def other(sent):
        first = replace(sent.bundles[0], shares_hash=other_hash(sent.bundles[0].shares_hash))
        return replace(sent, bundles=(first, *sent.bundles[1:]))

    return put(folder, changed(forge(Cohort(5)), PublishedShares, "site-b", other))


@lie("T-04", alone=True)
def the_receipt_is_unsigned(folder):
    return put(folder, changed(forge(Cohort(5)), Receipt, "", lambda r: replace(r, signature=b"")))


@lie("T-04")
def a_bundle_is_missing(folder):
    return put(
        folder, changed(forge(Cohort(5)), PublishedShares, "site-b", lambda s: replace(s, bundles=s.bundles[1:]))
    )


@lie("T-04")
def a_stranger_confirms_a_burned_round(folder):
    cohort = Cohort(5)
    honest = forge(cohort, only_headers=True)
    stranger = replace(honest[-1], client_id="site-x").sign(SERVER_KEY)
    return put(folder, [*honest, stranger])


@lie("T-04")
def a_stranger_advertises_keys(folder):
    twist = only("site-e", lambda a: replace(a, client_id="x\x1b[31m"))
    return put(folder, forge(Cohort(5), {"site-e": SHARES}, advertisement=twist))


@lie("T-04")
def a_message_is_for_more_clients_than_there_are(folder):
    more = lambda s: replace(s, bundles=s.bundles * 9)  # noqa: E731
    return put(folder, changed(forge(Cohort(5)), PublishedShares, "site-b", more))


@lie("T-04")
def a_pair_with_a_stranger_is_opened(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    return put(folder, forge(cohort, pair=lambda *_: [OpenedPair("site-a", "site-x", bytes(32))])), cohort


@lie("T-05", alone=True)
def two_clients_share_a_nonce(folder):
    return put(
        folder,
        forge(Cohort(5), advertisement=lambda _, a: replace(a, nonce=bytes(16)) if a.client_id < "site-c" else a),
    )


@lie("T-05", alone=True)
def two_clients_share_a_channel_key(folder):
    keys = []

    def same(_, advertised):
        keys.append(advertised.channel_pk)
        return replace(advertised, channel_pk=keys[0])

    return put(folder, forge(Cohort(5), advertisement=same))


@lie("T-05", alone=True)
def a_share_commitment_occurs_twice(folder):
    return put(
        folder,
        forge(
            Cohort(5),
            {"site-e": REPORT},  # whose shares nobody needs
            bundle=lambda who, b: replace(b, mask_key_commitment=bytes([8]) * 32) if who.startswith("site-e>") else b,
        ),
    )


def two_rounds(folder, twist: Callable, **both) -> list[Path]:
    cohort = Cohort(5)
    first = forge(cohort, **both)
    head = next(r.head for r in first if isinstance(r, Receipt))
    second = forge(cohort, context=cohort.context(2, head=head), **twist(first), **both)
    return [put(folder, first), put(folder, second)]


@lie("T-05", alone=True)
def a_nonce_comes_again_in_the_next_round(folder):
    return two_rounds(
        folder,
        lambda first: {"advertisement": only("site-a", lambda a: replace(a, nonce=first[1].nonce))},
    )


@lie("T-05", alone=True)
def a_channel_key_of_a_round_comes_again(folder):
    return two_rounds(
        folder,
        lambda first: {"advertisement": only("site-a", lambda a: replace(a, channel_pk=first[1].channel_pk))},
    )


@lie("T-05")
def a_promise_of_a_burned_round_comes_again(folder):
    cohort = Cohort(5)
    burned = forge(cohort, only_headers=True)
    promised = burned[1].self_commitment
    again = forge(
        cohort,
        context=cohort.context(2),
        only_headers=True,
        header=only("site-a", lambda h: replace(h, self_commitment=promised)),
    )
    return [put(folder, burned), put(folder, again)]


LOW_ORDER = bytes(32)


@lie("T-06", alone=True)
def a_mask_key_has_low_order(folder):
    twist = only("site-e", lambda a: replace(a, mask_dh_pk=LOW_ORDER))
    return put(folder, forge(Cohort(5), {"site-e": SHARES}, advertisement=twist))


@lie("T-06", alone=True)
def a_channel_key_is_not_canonical(folder):
    twist = only("site-e", lambda a: replace(a, channel_pk=bytes([255]) * 32))
    return put(folder, forge(Cohort(5), advertisement=twist))


@lie("T-06", alone=True)
def a_key_of_the_suite_is_missing(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    twist = only("site-e", lambda a: replace(a, mask_kem_pk=b""))
    return put(folder, forge(cohort, {"site-e": SHARES}, advertisement=twist)), cohort


@lie("T-07", alone=True)
def another_model_is_shown_than_was_signed(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, model_hash=other_hash(b"model"))))


@lie("T-07", alone=True)
def another_task_is_shown_than_was_signed(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, task_hash=other_hash(b"task"))))


@lie("T-07")
def one_client_masked_for_another_model(folder):
    return put(folder, forge(Cohort(5), input=only("site-c", lambda i: replace(i, round_id=other_hash(i.round_id)))))


@lie("T-08", alone=True)
def an_envelope_is_sent_again(folder):
    first = []

    def again(who, bundle):
        first.append(bundle.shares_hash)
        return replace(bundle, shares_hash=first[0]) if who == "site-b>site-c" else bundle

    return put(folder, forge(Cohort(5), bundle=again))


@lie("T-08", alone=True)
def a_pair_envelope_is_missing(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    return put(folder, forge(cohort, bundle=only("site-a>site-b", lambda b: replace(b, pair_hash=b"")))), cohort


@lie("T-08", alone=True)
def a_pair_secret_is_sealed_by_both(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    both = lambda b: replace(b, pair_hash=bytes([1]) * 32, pair_commitment=bytes([2]) * 32)  # noqa: E731
    return put(folder, forge(cohort, bundle=only("site-b>site-a", both))), cohort


@lie("T-09", alone=True)
def fewer_inputs_than_the_policy_needs(folder):
    cohort = Cohort(5, min_survivors=5)
    return put(folder, forge(cohort, {"site-e": MASKED})), cohort


@lie("T-09", alone=True)
def shares_are_released_without_attesting(folder):
    members = lambda name, ids: ids[:-1] if name == "U4" else [*ids, "site-e"] if name == "U5" else ids  # noqa: E731
    return put(folder, forge(Cohort(5), members=members))


@lie("T-09", alone=True)
def a_report_complains(folder):
    return put(folder, forge(Cohort(5), report=only("site-b", lambda r: replace(r, complaint="site-c"))))


@lie("T-09")
def a_client_reports_that_dealt_nothing(folder):
    members = lambda name, ids: sorted([*ids, "site-e"]) if name == "U2" else ids  # noqa: E731
    return put(folder, forge(Cohort(6), {"site-e": SHARES}, members=members)), Cohort(6)


@lie("T-10", alone=True)
def one_client_attests_another_set(folder):
    return put(
        folder, forge(Cohort(5), attestation=only("site-b", lambda a: replace(a, attested=other_hash(a.attested))))
    )


@lie("T-10", alone=True)
def shares_are_released_for_another_set(folder):
    return put(folder, forge(Cohort(5), release=only("site-b", lambda u: replace(u, attested=other_hash(u.attested)))))


@lie("T-10")
def no_quorum_attests(folder):
    return put(folder, forge(Cohort(5), members=lambda name, ids: ids[:3] if name in ("U4", "U5") else ids))


@lie("T-11", alone=True)
def a_share_of_both_kinds_is_out(folder):
    dealt = {}

    def keep(dealer, shares):
        dealt[dealer] = shares
        return shares

    def release(message):
        seeds = {u: share for u, share in message.self_seed_shares.items() if u != "site-c"}
        return replace(message, self_seed_shares=seeds, mask_key_shares={"site-c": dealt["site-c"][0]})

    return put(folder, forge(Cohort(5), share_s=keep, release=only("site-a", release)))


@lie("T-11", alone=True)
def a_share_is_held_back(folder):
    keep = lambda m: replace(m, self_seed_shares={u: s for u, s in m.self_seed_shares.items() if u != "site-c"})  # noqa: E731
    return put(folder, forge(Cohort(5), release=only("site-a", keep)))


@lie("T-11", alone=True)
def a_pair_is_opened_without_need(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    opened = [OpenedPair("site-a", "site-c", bytes(32))]
    return put(folder, forge(cohort, {"site-e": MASKED}, pair=lambda _, pairs: opened)), cohort


@lie("T-11")
def a_pair_that_is_needed_is_missing(folder):
    cohort = Cohort(6, suite=Suite.MLKEM768_X25519)
    return put(folder, forge(cohort, {"site-b": MASKED, "site-d": UNMASK}, pair=lambda _, pairs: [])), cohort


def other_share(shares: Mapping[str, bytes], dealer: str) -> dict[str, bytes]:
    return {**shares, dealer: split(bytes(32), 1, [1])[0]}


@lie("T-12", alone=True)
def a_share_misses_its_commitment(folder):
    other = lambda m: replace(m, self_seed_shares=other_share(m.self_seed_shares, "site-c"))  # noqa: E731
    return put(folder, forge(Cohort(5), release=only("site-a", other)))


@lie("T-12")
def a_mask_key_share_misses_its_commitment(folder):
    other = lambda m: replace(m, mask_key_shares=other_share(m.mask_key_shares, "site-e"))  # noqa: E731
    return put(folder, forge(Cohort(5), {"site-e": MASKED}, release=only("site-a", other)))


@lie("T-12")
def an_own_seed_misses_its_commitment(folder):
    return put(folder, forge(Cohort(5), release=only("site-a", lambda m: replace(m, self_seed=bytes(32)))))


def shares_of_something_else(_):
    return split(bytes([3]) * 32, 4, [1, 2, 3, 4])


@lie("T-12")
def a_silent_client_dealt_another_seed(folder):
    return put(folder, forge(Cohort(5), {"site-e": UNMASK}, share_b=only("site-e", shares_of_something_else)))


@lie("T-12")
def a_dropped_client_dealt_another_key(folder):
    return put(folder, forge(Cohort(5), {"site-e": MASKED}, share_s=only("site-e", shares_of_something_else)))


@lie("T-12")
def a_dealt_secret_is_too_long(folder):
    too_long = (PRIME - 1).to_bytes(33, "big")
    return put(folder, forge(Cohort(5), {"site-e": UNMASK}, share_b=only("site-e", lambda _: [too_long] * 4)))


@lie("T-12")
def too_few_release_their_shares(folder):
    members = lambda name, ids: ids[:3] if name == "U5" else ids  # noqa: E731
    return put(folder, forge(Cohort(5), members=members))


@lie("T-12")
def a_pair_secret_misses_its_commitment(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    other = only("site-a", lambda m: replace(m, pair_secrets={"site-e": bytes(32)}))
    return put(folder, forge(cohort, {"site-e": MASKED}, release=other)), cohort


@lie("T-12")
def an_opened_pair_secret_misses_its_commitment(folder):
    cohort = Cohort(6, suite=Suite.MLKEM768_X25519)
    other = lambda _, pairs: [replace(pair, secret=bytes(32)) for pair in pairs]  # noqa: E731
    return put(folder, forge(cohort, {"site-b": MASKED, "site-d": UNMASK}, pair=other)), cohort


def plus_one(cohort: Cohort) -> Callable:
    def more(_, total):
        values = unpack(total, cohort.length + cohort.policy.slots, cohort.bits)
        values[0] += 1
        return pack(values, cohort.bits)

    return more


@lie("T-13", alone=True)
def everybody_confirms_another_sum(folder):
    return put(folder, forge(Cohort(5), total=plus_one(Cohort(5))))


@lie("T-13", alone=True)
def a_dropped_clients_mask_stays_in_the_sum(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    return put(folder, forge(cohort, {"site-e": MASKED}, total=plus_one(cohort))), cohort


@lie("T-13", alone=True)
def another_vector_was_signed(folder):
    return put(folder, forge(Cohort(5), input=only("site-b", lambda i: replace(i, y_hash=other_hash(i.y_hash)))))


@lie("T-13", alone=True)
def one_client_did_not_mask(folder):
    return put(folder, forge(Cohort(5), y=only("site-b", lambda y: bytes(len(y)))))


def without_slot_masks(cohort: Cohort) -> Callable:
    """A twist: the masks of site-b are on its values, and not on its constant slots."""

    def bare(y):
        words = unpack(y, cohort.length + cohort.policy.slots, cohort.bits).copy()
        words[cohort.length :] = 0
        return pack(words, cohort.bits)

    return only("site-b", bare)


@lie("T-13", alone=True)
def the_masks_of_the_slots_do_not_cancel(folder):
    return put(folder, forge(Cohort(5), y=without_slot_masks(Cohort(5))))


@lie("T-13", alone=True)
def the_mask_of_a_dropped_client_stays_in_the_slots(folder):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)
    return put(folder, forge(cohort, {"site-e": MASKED}, y=without_slot_masks(cohort))), cohort


@lie("T-14", alone=True)
def a_constant_slot_is_off(folder):
    def off(values):
        values[-1] += 1
        return values

    return put(folder, forge(Cohort(5), values=only("site-b", off)))


@lie("T-14", alone=True)
def a_value_is_out_of_range(folder):
    def large(values):
        values[2] = 6 << 15
        return values

    return put(folder, forge(Cohort(5), values=only("site-b", large)))


@lie("T-14", alone=True)
def a_value_is_out_of_range_for_its_weight(folder):
    cohort = Cohort(5, weights={u: 1.0 if u == "site-a" else 0.001 for u in Cohort(5).ids})

    def large(values):
        values[2] = -(1 << 17) % (1 << 32)
        return values

    return put(folder, forge(cohort, values=only("site-b", large))), cohort


@lie("T-18", alone=True)
def padding_is_not_zero(folder):
    # Fewer than 32 values: the upper bits of a plane's one word belong to none.
    return put(folder, forge(Cohort(5), y=only("site-b", lambda y: y[:3] + bytes([y[3] | 0x80]) + y[4:])))


@lie("T-18", alone=True)
def padding_of_the_sum_is_not_zero(folder):
    return put(folder, forge(Cohort(5), total=lambda _, y: y[:-1] + bytes([y[-1] | 0x80])))


@lie("T-18")
def a_vector_is_too_short(folder):
    return put(folder, forge(Cohort(5), y=only("site-b", lambda y: y[:-4])))


@lie("T-18")
def a_vector_is_missing(folder):
    honest = forge(Cohort(5))
    at = next(i for i, r in enumerate(honest) if isinstance(r, Block))
    return put(folder, honest[:at] + honest[at + 1 :])


@lie("T-18")
def a_vector_goes_on(folder):
    honest = forge(Cohort(5))
    at = next(i for i, r in enumerate(honest) if isinstance(r, Block))
    return put(folder, [*honest[: at + 1], Block(b""), *honest[at + 1 :]])


@lie("T-18")
def a_block_belongs_to_nothing(folder):
    honest = forge(Cohort(5))
    return put(folder, [honest[0], Block(bytes(28)), *honest[1:]])


@lie("T-18")
def vectors_follow_that_are_announced_by_hash(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, vectors=0)))


@lie("T-18")
def the_sum_is_missing(folder):
    honest = forge(Cohort(5), vectors=False)
    return put(folder, [r for r in honest if not isinstance(r, Block)])


@lie("T-19", alone=True)
def two_records_are_swapped(folder):
    honest = forge(Cohort(5))
    honest[1], honest[2] = honest[2], honest[1]
    return put(folder, honest)


@lie("T-19", alone=True)
def a_record_occurs_twice(folder):
    honest = forge(Cohort(5))
    return put(folder, [*honest, honest[-1]])


@lie("T-19", alone=True)
def a_round_does_not_continue_the_last(folder):
    cohort = Cohort(5)
    return [put(folder, forge(cohort)), put(folder, forge(cohort, context=cohort.context(2)))]


@lie("T-19", alone=True)
def a_round_comes_before_the_last(folder):
    cohort = Cohort(5)
    first = forge(cohort, context=cohort.context(2))
    head = next(r.head for r in first if isinstance(r, Receipt))
    return [put(folder, first), put(folder, forge(cohort, context=cohort.context(1, head=head)))]


@lie("T-20", alone=True)
def a_record_has_an_unknown_field(folder):
    *honest, last = forge(Cohort(5))
    return put(folder, [*honest, encode_record(last) + bytes(4)])


@lie("T-20", alone=True)
def a_list_miscounts_its_items(folder):
    cohort = Cohort(5)
    message = next(r for r in forge(cohort) if isinstance(r, UnmaskingShares))
    count = (4).to_bytes(4, "big")
    whole = encode_record(message)
    at = whole.index(count + (len(message.self_seed_shares["site-b"]) + 18).to_bytes(4, "big"))
    honest = forge(cohort)
    spelt = [encode_record(r) for r in honest]
    i = next(i for i, r in enumerate(honest) if isinstance(r, UnmaskingShares))
    spelt[i] = spelt[i][:at] + (5).to_bytes(4, "big") + spelt[i][at + 4 :]
    return put(folder, spelt)


@lie("T-20")
def both_kinds_of_share_are_in_one_message(folder):
    honest = forge(Cohort(5), {"site-e": MASKED})
    i = next(i for i, r in enumerate(honest) if isinstance(r, UnmaskingShares))
    spelt = [encode_record(r) for r in honest]
    spelt[i] = spelt[i].replace(b"site-e", b"site-b", 1)
    return put(folder, spelt)


@lie("T-03")
def a_float_has_a_second_spelling(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, clip_range="0x1p0")))


@lie("T-20")
def the_file_is_cut_off_in_a_record(folder):
    path = put(folder, forge(Cohort(5)))
    path.write_bytes(path.read_bytes()[:-20])
    return path


@lie("T-20")
def the_closing_record_is_missing(folder):
    path = put(folder, forge(Cohort(5)))
    with open(path, "rb") as file:
        *_, last = records(file.read)
    path.write_bytes(path.read_bytes()[: -4 - len(last)])
    return path


@lie("T-20")
def something_follows_the_closing_record(folder):
    path, more = put(folder, forge(Cohort(5))), encode_record(forge(Cohort(5))[-1])
    path.write_bytes(path.read_bytes() + len(more).to_bytes(4, "big") + more)
    return path


@lie("T-20")
def a_record_is_of_an_unknown_kind(folder):
    honest = forge(Cohort(5))
    return put(folder, [*honest, encode("transcript-diary", b"")])


@lie("T-20")
def a_record_lacks_a_field(folder):
    *honest, last = forge(Cohort(5))
    return put(folder, [*honest, encode("transcript-confirmation", last.head, last.client_id)])


@lie("T-20")
def the_opening_has_an_unknown_field(folder):
    opening, *honest = forge(Cohort(5))
    return put(folder, [encode_record(opening) + bytes(4), *honest])


@lie("T-20")
def the_opening_says_neither_whole_nor_hashes(folder):
    return put(folder, forge(Cohort(5), opening=lambda _, o: replace(o, vectors=2)))


@lie("T-20")
def the_round_has_no_result(folder):
    return put(folder, [r for r in forge(Cohort(5)) if not isinstance(r, Confirmation | Receipt)][:-1])


@lie("T-20")
def nothing_is_in_the_file(folder):
    return put(folder, forge(Cohort(5))[:1])


def claiming(cohort: Cohort, attesters: list[str]) -> Callable:
    """A twist: site-b says that it released shares for round 7, and shows the attestations of these."""
    session, some = session_id(cohort.policy, cohort.roster), bytes([5]) * 32
    claim = ReleaseClaim(session, "run-1", 7, 0, some, some, some, some, some, some, {"site-b": bytes(64)})
    signatures = {u: Attestation(claim.attested, u).sign(cohort.keys[u]).signature for u in attesters}
    return only("site-b", lambda a: replace(a, exposing=(replace(claim, attestations=signatures),)))


@lie("T-22", alone=True)
def a_release_is_claimed_that_no_quorum_attested(folder):
    return put(folder, forge(Cohort(5), advertisement=claiming(Cohort(5), ["site-a", "site-b", "site-c"])))


@lie("T-22", alone=True)
def a_release_is_claimed_with_signatures_of_another_round(folder):
    def other(sender, advertised):
        claimed = claiming(cohort, cohort.ids[:4])(sender, advertised)
        return replace(claimed, exposing=tuple(replace(c, round_number=8) for c in claimed.exposing))

    cohort = Cohort(5)
    return put(folder, forge(cohort, advertisement=other))


@lie("T-20")
def a_burned_round_shows_more_than_headers(folder):
    cohort = Cohort(5)
    opening, *headers = forge(cohort, only_headers=True)
    keys = [r for r in forge(cohort) if isinstance(r, AdvertiseKeys)]
    return put(folder, [opening, *headers, *keys])
