"""Writes the protocol's own known answers next to this file: `make vectors`. The format is in README.md.

Specification: docs/spec.md, section "Test vectors".
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from lies import first_bundle, tell
from marks import sequences
from playing import SENDS, STEPS, Files, Json, Setting, drawn, randomness

from secagg import SecAggError, Suite
from secagg.encoding import digest, encode
from secagg.keys import ChannelKey, MaskKey
from secagg.layout import Field, Layout
from secagg.masking import (
    envelope_info,
    pair_commitment,
    pair_mask_seed,
    self_commitment,
    self_mask_seed,
    share_commitment,
    slot_mask,
    slot_values,
)
from secagg.merkle import tree
from secagg.messages import Bundle, ReleaseClaim, Result
from secagg.packing import dtype_for, modulo, pack, unpack
from secagg.policy import Policy
from secagg.prg import CHUNK_BYTES, Stream, apply_masks, keystream
from secagg.quantize import dequantize, quantize
from secagg.shamir import PRIME, combine, is_share, split

HERE = Path(__file__).parent
HYBRID = Suite.MLKEM768_X25519
WIDTHS = {8: 6, 16: 12, 23: 16, 24: 16, 31: 24, 32: 16, 40: 32, 64: 48}
"""Width of the modulus to value bits."""


# --- rounds ----------------------------------------------------------------------------------------------------------


def rounds(files: Files) -> None:
    for bits, value_bits in WIDTHS.items():
        run = files.run(f"round_n3_b{bits:02}", bits=bits, value_bits=value_bits, length=11)
        run.open()
        files.write(run.play(), f"Everybody present, modulo 2^{bits}.")

    run = files.run("round_n3_hybrid", suite=HYBRID, bits=23)
    run.open()
    files.write(run.play(), "Everybody present, post-quantum suite.")

    run = files.run("round_n3_weights", weights={"site-a": 0.5, "site-c": 3.0}, clip_range=0.1, length=20)
    run.open()
    files.write(run.play(), "Public weights; the largest maps to full scale and an absent one is 1.")

    for step in STEPS[:4]:
        run = files.run(f"round_n5_silent_{step}", n=5)
        run.open()
        files.write(run.play(silent={"site-e": step}), f"One of five falls silent before {SENDS[step]}.")

    run = files.run("round_n5", n=5)
    run.open()
    files.write(run.play(), "Everybody present.")
    for step in STEPS[4:]:
        silence(
            files, f"silent_{step}", "round_n5", step, ["site-e"], f"One of five falls silent before {SENDS[step]}."
        )

    run = files.run("round_n6_hybrid", n=6, suite=HYBRID, length=3)
    run.open()
    run.play(silent={"site-e": "mask_input"})
    files.write(run, "One of six falls silent before MaskedInput, post-quantum suite: pair secrets are released.")
    comment = "The pair secret with the dropped site-e is {} where the survivor falls silent too."
    derived, opened = comment.format("derived from its mask key"), comment.format("opened with its mask key")
    silence(files, "silent_recipient", run.name, "unmask", ["site-a", "site-e"], derived)
    silence(files, "silent_dealer", run.name, "unmask", ["site-b", "site-e"], opened)
    comment = "Two of five fall silent, and one is too many: nothing is opened and nobody is to blame."
    silence(files, "abort_too_few", "round_n5", "mask_input", ["site-d", "site-e"], comment)

    complaint(files)
    chained(files)
    accepted(files)
    repeats(files)
    aborted(files)


def silence(files: Files, name: str, base: str, step: str, who: list[str], comment: str) -> None:
    """From some step on, a round goes on without these clients."""
    replayed = files.runs[base].index(step, "site-a")
    run = files.runs[base].branch(replayed)
    files.branch(name, files.runs[base], run.play(silent=dict.fromkeys(who, step), since=step), replayed, comment)


def complaint(files: Files) -> None:
    """Attempt 0 ends with a complaint, attempt 1 leaves one end of it out."""
    run = files.run("round_n4_complaint", n=4)
    run.open()

    def lie(operation: str, party: str, message: Any) -> Any:
        bundles = getattr(message, "bundles", ())
        if not bundles or party != "site-d":
            return message
        return first_bundle(mask_key_commitment=bytes(32))(message)

    run.play(lie=lie, corrupt="site-d")
    gone = run.do("leave_out", pairs=[["site-a", "site-d"]])
    run.open(attempt=1, leave_out=gone)
    run.play(1)
    files.write(
        run, "site-d deals site-a a share that misses its commitment; the next attempt leaves out one of the two."
    )


def chained(files: Files) -> None:
    """Two rounds; site-a missed the result of the first and replays its receipt."""
    run = files.run("round_n3_chained")
    run.open()
    run.starts(0)
    run.play(silent={"site-a": "conclude"})
    receipt = run.views[0]["Result"].receipt
    run.open(2, head=receipt.head)
    for party in run.setting.ids:
        run.do("mark_replayed", party, round=receipt.round_id.hex())
    run.starts(1, (receipt,))
    run.play(1)
    files.write(run, "Two rounds; the second builds on the head of the first, whose result site-a never saw.")


def accepted(files: Files) -> None:
    """A burned round whose shares everybody sent; every operator accepts it by name, and the advertisements say so."""
    run = files.run("round_n4_exposed", n=4)
    run.open()
    run.play(until="conclude")
    round_id = run.views[0]["Result"].receipt.round_id.hex()
    run.open(2, head=run.views[0]["Result"].receipt.head)
    for party in run.setting.ids:
        run.do("accept_exposure", party, round=round_id)
    run.play(1)
    files.write(run, "Nobody replayed the first round; its claim is in every advertisement of the second.")


def repeats(files: Files) -> None:
    run = files.run("round_n3_repeats")
    run.open()
    run.play(until="share_keys")
    for party in run.setting.ids:
        run.do("server_receive", party, data=run.messages[f"AdvertiseKeys.{party}"])
        run.do("share_keys", party, data=run.messages["Roster"])
    files.write(run, "Repeats, byte for byte, get the stored reply: lost answers are asked for again.", False)


def aborted(files: Files) -> None:
    for before, operation, heard in (
        ("report", "mask_input", "ShareInbox.site-e"),
        ("mask_input", "attest", "Reports"),
    ):
        base = files.runs[f"round_n5_silent_{before}"]
        replayed = base.index(operation, "site-a")
        run = base.branch(replayed)
        run.do(before, "site-e", data=base.messages[heard])
        run.do(operation, "site-e", data=base.input_of(replayed))
        files.branch(f"abort_{operation}", base, run, replayed, "A client that is too late for a set is a dropout.")


# --- primitives ----------------------------------------------------------------------------------------------------


def succeeds(make: Callable[[], Json]) -> Json:
    """What came out, or that it was refused."""
    try:
        return make() | {"success": True}
    except (ValueError, SecAggError):
        return {"success": False}


def encodings() -> Iterator[Json]:
    def typed(value: Any) -> Json:
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, str):
            return {"text": value}
        return {"integer": value} if isinstance(value, int) else {"list": [typed(item) for item in value]}

    for fields_ in (
        [],
        ["", b"", []],
        ["site-a", b"\0\1", 0, 1, 2**64 - 1],
        [["a", "b"], "ab"],
        [["a"], ["b"], [["a", 7], ["b", bytes(32)]]],
        [bytes(range(256)) * 20, "after a long field"],
        [2**64],
        [-1],
        ["Zürich"],
    ):
        case = {"operation": "encode", "purpose": "example", "fields": [typed(value) for value in fields_]}
        encoded = lambda: {"output": encode("example", *fields_).hex(), "sha256": digest("example", *fields_).hex()}  # noqa: B023, E731
        yield case | succeeds(encoded)


def keystreams() -> Iterator[Json]:
    seed = drawn("keystream", 32)
    for start, length in ((0, 64), (5, 30), (CHUNK_BYTES - 16, 48), (CHUNK_BYTES, 16), (3 * CHUNK_BYTES - 1, 2)):
        output = keystream(seed, start, length).hex()
        yield {"operation": "keystream", "seed": seed.hex(), "start": start, "length": length, "output": output}
    for dtype, count in (("uint32", 5), ("uint64", 5), ("uint32", 2**16 + 3), ("uint64", 2**15 + 3)):
        add, subtract = [drawn(f"mask {i}", 32) for i in (1, 2)], [drawn("mask 3", 32)]
        vector = np.arange(count, dtype=dtype)
        apply_masks(vector, add, subtract)
        yield {
            "operation": "apply_masks",
            "word": dtype,
            "vector": f"0 to {count - 1}",
            "count": count,
            "add": [seed.hex() for seed in add],
            "subtract": [seed.hex() for seed in subtract],
            "first": vector[:5].tolist(),
            "last": vector[-5:].tolist(),
            "sha256": hashlib.sha256(vector.astype(vector.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        }


def quantised() -> Iterator[Json]:
    for bits, value_bits in WIDTHS.items():
        for dtype in (np.float32, np.float64):
            setting = Setting(
                length=12, bits=bits, value_bits=value_bits, clip_range=0.75, weights={"site-a": 1.5, "site-b": 3.0}
            )
            update = np.array(setting.update("site-a")).astype(dtype)
            key = drawn(f"rounding {bits} {np.dtype(dtype)}", 32)
            output, rate = quantize(update, setting.policy, "site-a", Stream(key))
            yield {
                "operation": "quantize",
                "bits": bits,
                "value_bits": value_bits,
                "clip_range": 0.75,
                "weight": 1.5,
                "largest_weight": 3.0,
                "update": update.tolist(),
                "rounding_key": key.hex(),
                "output": output.tolist(),
                "clip_rate": rate,
            }


def layouts() -> Iterator[Json]:
    """Every kind of field, with private weights and with public ones."""
    fields = {
        "gradient": Field.floats((2, 3), clip_range=0.001),
        "histogram": Field.counts(4, largest=1_000_000),
        "head/bias": Field.floats((), clip_range=20.0, value_bits=12),
        "noised": Field.integers(3, bits=24, step=0.25),
    }
    update = {
        "gradient": [[0.001, -0.002, 0.0], [0.0001, -0.00031, 0.0007]],
        "histogram": [0, 1, 999_999, 1_000_000],
        "head/bias": -7.3,
        "noised": [-70_000, 0, 12],
    }
    public, private = Layout(fields), Layout.weighted_mean(fields, largest_weight=300)
    for layout, weights, values in (
        (public, {"a": 1.5, "b": 3.0}, update),
        (private, {}, {"weight": 120.0, **update}),
    ):
        policy = Policy(project="vectors", clients=3, layout=layout, weights=weights)
        key = drawn(f"rounding of {', '.join(layout)}", 32)
        output, rate = quantize(values, policy, "a", Stream(key))
        yield {
            "operation": "layout",
            "policy": policy.to_table(),
            "policy_hash": policy.hash().hex(),
            "update": values,
            "rounding_key": key.hex(),
            "output": output.tolist(),
            "clip_rate": rate,
            "sum": dequantize(modulo(output * output.dtype.type(3), policy.bits), policy).tolist(),
        }


def packings() -> Iterator[Json]:
    for bits in range(8, 65):
        for count in (7, 2**16 + 5) if bits in (23, 63) else (7,):
            key = drawn(f"packing {bits}", 32)
            vector = (Stream(key).words64(count) & np.uint64(2**bits - 1)).astype(dtype_for(bits))
            packed = pack(vector, bits)
            case = {"operation": "pack", "bits": bits, "count": count, "values_keystream": key.hex()}
            if count < 100:
                case |= {"values": vector.tolist(), "output": packed.hex()}
            yield case | {"size": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    for bits in (9, 23, 63):
        good = pack(np.ones(3, dtype_for(bits)), bits)
        for data in (good[:-1], good + bytes(4), good[:-1] + bytes([good[-1] | 0x80]), good):
            read = lambda: {"output": unpack(data, 3, bits).tolist()}  # noqa: B023, E731
            yield {"operation": "unpack", "bits": bits, "count": 3, "input": data.hex()} | succeeds(read)


def shamirs() -> Iterator[Json]:
    for threshold, positions in ((1, [1]), (3, [1, 2, 3, 5]), (4, [2, 3, 7, 100, 256])):
        secret, draws = drawn(f"secret {threshold}", 32), []
        with randomness(f"polynomial {threshold}", draws):
            shares = split(secret, threshold, positions)
        yield {
            "operation": "split",
            "secret": secret.hex(),
            "threshold": threshold,
            "positions": positions,
            "coefficients": draws,
            "output": [share.hex() for share in shares],
        }
        held = dict(zip(positions, shares, strict=True))
        for subset in (positions, positions[-threshold:], positions[: threshold - 1]):
            given = {x: held[x] for x in subset}
            yield combined(given, threshold)
    too_large = (2**256).to_bytes(33, "big")
    yield combined({7: too_large}, 1)
    yield combined({7: (2**256 - 1).to_bytes(33, "big")}, 1)
    for share in (bytes(33), (PRIME - 1).to_bytes(33, "big"), PRIME.to_bytes(33, "big"), b"\xff" * 33, bytes(32)):
        yield {"operation": "is_share", "input": share.hex(), "output": is_share(share)}


def combined(shares: Mapping[int, bytes], threshold: int) -> Json:
    given = {str(x): share.hex() for x, share in shares.items()}
    case = {"operation": "combine", "shares": given, "threshold": threshold}
    return case | succeeds(lambda: {"output": combine(shares, threshold).hex()})


def derivations() -> Iterator[Json]:
    for suite in Suite:
        for party in ("site-a", "site-b"):
            seed = drawn(f"mask key of {party}", 32)
            key = MaskKey(suite, seed)
            with mock.patch("secrets.token_bytes", return_value=seed):
                channel = ChannelKey(suite)
            yield {
                "operation": "keys_of_seed",
                "suite": suite.value,
                "seed": seed.hex(),
                "channel_pk": channel.public.hex(),
                "mask_dh_pk": key.dh_public.hex(),
                "mask_kem_pk": key.kem_public.hex(),
                "pair_secret_with": "site-z",
                "pair_secret": key.pair_secret("site-z").hex(),
            }
    slot, roster1, round_id, exchanged, secret = (drawn(name, 32) for name in ("slot", "roster1", "round", "dh", "r"))
    share = split_share()
    both = {"slot": slot.hex(), "roster1": roster1.hex()}
    for pair_secret in (b"", secret):
        for ids in (("site-a", "site-b"), ("site-b", "site-a")):
            yield {
                "operation": "pair_mask_seed",
                "roster1": roster1.hex(),
                "round": round_id.hex(),
                "ids": list(ids),
                "exchanged": exchanged.hex(),
                "pair_secret": pair_secret.hex(),
                "output": pair_mask_seed(roster1, round_id, ids, exchanged, pair_secret).hex(),
            }
    yield {
        "operation": "self_mask_seed",
        "roster1": roster1.hex(),
        "round": round_id.hex(),
        "id": "site-a",
        "self_seed": secret.hex(),
        "output": self_mask_seed(roster1, round_id, "site-a", secret).hex(),
    }
    yield {
        "operation": "self_commitment",
        "slot": slot.hex(),
        "id": "site-a",
        "self_seed": secret.hex(),
        "output": self_commitment(slot, "site-a", secret).hex(),
    }
    seeds = {client_id: drawn(f"excess of {client_id}", 64) for client_id in ("site-a", "site-c")}
    for disclosed in ({}, seeds):
        yield {
            "operation": "result_hash",
            "total": exchanged.hex(),
            "excess_seeds": {client_id: told.hex() for client_id, told in disclosed.items()},
            "output": Result.hash_of(exchanged, disclosed).hex(),
        }
    for kind in "sb":
        output = share_commitment(slot, roster1, "site-a", "site-b", kind, share).hex()
        ends = {"dealer": "site-a", "holder": "site-b", "kind": kind, "share": share.hex()}
        yield {"operation": "share_commitment"} | both | ends | {"output": output}
    yield {
        "operation": "pair_commitment",
        "slot": slot.hex(),
        "dealer": "site-b",
        "recipient": "site-a",
        "pair_secret": secret.hex(),
        "output": pair_commitment(slot, "site-b", "site-a", secret).hex(),
    }
    for purpose in ("shares", "pair"):
        output = envelope_info(purpose, slot, roster1, "site-a", "site-b").hex()
        ends = {"purpose": purpose, "sender": "site-a", "recipient": "site-b"}
        yield {"operation": "envelope_info"} | both | ends | {"output": output}
    for pair in (b"", b"sealed pair secret"):
        bundle = Bundle(b"sealed shares", pair, slot, roster1, round_id if pair else b"")
        values = {item.name: getattr(bundle, item.name).hex() for item in fields(bundle)}
        yield {"operation": "bundle_digest"} | values | {"output": bundle.digest().hex()}
    for count in (1, 2, 3, 4, 5, 7, 8, 9):
        leaves = [digest("bundle", index.to_bytes(1, "big")) for index in range(count)]
        root, paths = tree(leaves)
        listed = {"leaves": [leaf.hex() for leaf in leaves], "paths": [path.hex() for path in paths]}
        yield {"operation": "bundle_tree"} | listed | {"root": root.hex()}
    yield claim_case()
    for bits in WIDTHS:
        policy = Setting(bits=bits, value_bits=WIDTHS[bits]).policy
        output = slot_values(policy, round_id).tolist()
        yield {"operation": "slots", "bits": bits, "round": round_id.hex(), "output": output}
        for length in (1, 2**16 - 1, 2**17 + 3):
            case = {"operation": "slot_mask", "bits": bits, "length": length, "seed": secret.hex()}
            policy = Setting(bits=bits, value_bits=WIDTHS[bits], length=length).policy
            yield case | {"output": slot_mask(secret, policy).hex()}


def claim_case() -> Json:
    """A claim field by field, and what it says that it is about."""
    hashes = {
        name: drawn(f"claim, {name}", 32)
        for name in ("session", "model_hash", "task_hash", "previous_head", "roster2", "sharers_hash", "inputs_hash")
    }
    attestations = {party: drawn(f"claim, {party}", 64) for party in ("site-a", "site-c")}
    claim = ReleaseClaim(training_run="run-7", round_number=300, attempt=2, attestations=attestations, **hashes)
    return {
        "operation": "release_claim",
        **{name: value.hex() for name, value in hashes.items()},
        "training_run": "run-7",
        "round_number": 300,
        "attempt": 2,
        "attestations": {party: signature.hex() for party, signature in attestations.items()},
        "round": claim.round_id.hex(),
        "attested": claim.attested.hex(),
        "encoded": encode("example", claim.fields()).hex(),
    }


def split_share() -> bytes:
    return int.from_bytes(drawn("share", 32), "big").to_bytes(33, "big")


PRIMITIVES = {
    "encoding": encodings,
    "keystream": keystreams,
    "quantize": quantised,
    "layout": layouts,
    "packing": packings,
    "shamir": shamirs,
    "derivations": derivations,
}


def generate(out: Path, recorded: Path | None) -> None:
    """Write every file.

    Args:
        out: folder to write to.
        recorded: folder whose envelopes are kept; None makes every envelope anew.
    """
    files = Files(recorded)
    for name, cases in PRIMITIVES.items():
        files.written[f"primitive_{name}"] = {"operations": list(cases())}
    rounds(files)
    tell(files)
    files.written["store_sequences"] = {"sequences": sequences()}
    for path in out.glob("*.json"):
        path.unlink()
    for name, content in files.written.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--fresh", action="store_true", help="seal every envelope anew")
    arguments = parser.parse_args()
    generate(arguments.out, None if arguments.fresh else HERE)
