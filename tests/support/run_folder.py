"""Makes a run folder as `simulate` and `coordinator` write it, without running anything."""

import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np

STRUCTURES = [
    "external CSF",
    "grey matter",
    "white matter",
    "ventricles",
    "cerebellum",
    "deep grey matter",
    "brainstem",
]
STEPS = ["AdvertiseKeys", "ShareKeys", "ShareReport", "MaskedInputCollection", "ConsistencyCheck", "Unmasking"]
BYTES_UP = dict(zip(STEPS, [2_630, 14_900, 410, 41_300, 610, 1_900], strict=True))
BYTES_DOWN = dict(zip(STEPS, [13_100, 74_000, 2_100, 3_050, 3_000, 44_000], strict=True))
SITES = ["site-a", "site-b", "site-c", "site-d", "site-e"]
TOML = """# five hospitals, public phantom cohort
[study]
name = "{name}"
structures = {structures}
rounds = 20
local_steps = 10
lr = 0.5

[data]
layout = "{layout}"
modality = ["T2w"]
dims = 2
size = 64

[privacy]
mechanism = "{mechanism}"
unit = "patient"
epsilon = 8.0
delta = 3e-4
sample_rate = 0.5
clip_norm = 0.05

[secagg]
suite = "MLKEM768_X25519"
max_corrupt = 1
"""


def interval(mean, n, half=0.05):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def phantom(seed, size=64):
    """A slice of nested ellipses with seven labels, and a prediction that is wrong at the seams."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] - size / 2) / (size / 2)

    def labels(shift):
        found = np.zeros((size, size), np.uint8)
        ripple = 0.04 * np.sin(9 * np.arctan2(y, x) + shift)
        for label, (cy, cx, ry, rx) in enumerate(
            [
                (0, 0, 0.86, 0.74),
                (0, 0, 0.76, 0.64),
                (0, 0, 0.66, 0.54),
                (-0.1, 0, 0.3, 0.16),
                (0.52, 0, 0.14, 0.3),
                (0.12, 0.2, 0.16, 0.12),
                (0.3, 0, 0.12, 0.1),
            ],
            start=1,
        ):
            found[np.hypot((y - cy) / ry, (x - cx) / rx) < 1 + ripple + 0.15 * shift * (label in (5, 6))] = label
        return found

    truth = labels(0.0)
    means = np.array([0.02, 0.9, 0.45, 0.65, 0.95, 0.4, 0.5, 0.55])
    image = means[truth] + 0.04 * rng.standard_normal((size, size)) * (truth > 0)
    return image.astype(np.float32), truth, labels(0.3 * seed)


def make_events(name, sites, structures, rounds, mechanism, secure, seed, drop_round):
    rng = np.random.default_rng(7)
    first = {"kind": "study", "t": 0.0, "name": name, "study_hash": "5f" * 32, "sites": sites, "structures": structures}
    first |= {
        "rounds": rounds,
        "local_steps": 10,
        "parameters": 10_123,
        "mechanism": mechanism,
        "unit": "patient",
        "delta": 3e-4,
    }
    first |= {
        "budget": 8.0 if mechanism != "none" else None,
        "sample_rate": 0.5,
        "clip_norm": 0.05,
        "noise_multiplier": 3.1,
    }
    first |= {
        "suite": "MLKEM768_X25519",
        "n": len(sites),
        "threshold": 4,
        "max_corrupt": 1,
        "min_survivors": 4,
        "bits": 32,
    }
    first |= {
        "party": "",
        "task": "segmentation",
        "spare_rounds": 0,
        "trust": "nobody is trusted" if mechanism != "none" else "",
    }
    events = [first | {"seed": seed, "secure": secure, "start": "phantom"}]
    t, gone = 1.2, None
    for number in range(1, rounds + 1):
        begin, seconds, clock = t, {}, t
        events.append({"kind": "round", "t": begin, "round": number, "attempt": 0, "model_hash": f"{number:064x}"})
        if gone:
            events.append({"kind": "rejoined", "t": begin + 0.02, "round": number, "site": gone})
            gone = None
        if mechanism != "none":
            spent = 7.94 * math.sqrt(number / rounds)
            events += [{"kind": "epsilon", "t": begin, "round": number, "site": site, "spent": spent} for site in sites]
        pace = {site: 0.48 + 0.12 * rng.random() for site in sites}
        alive = list(sites)
        for site in sites:
            steps = 4 if number == drop_round and site == sites[3] else 10
            for step in range(1, steps + 1):
                at = begin + 0.1 + pace[site] * step
                events.append({"kind": "train", "t": at, "round": number, "site": site, "step": step, "steps": 10})
        for step in STEPS:
            if number == drop_round and step == "ShareReport":
                alive.remove(sites[3])
            slowest = clock
            for site in alive:
                wait = 0.02 + 0.05 * rng.random()
                at = clock + wait if step != STEPS[3] else begin + 0.15 + 10 * pace[site] + wait
                slowest = max(slowest, at)
                event = {"kind": "step", "t": at, "round": number, "site": site, "step": step, "bytes": BYTES_UP[step]}
                events.append(event)
            if number == drop_round and step == "ShareReport":
                slowest += 2.0
                gone = sites[3]
                events.append({"kind": "dropped", "t": slowest, "round": number, "site": gone, "after": "ShareKeys"})
            seconds[step], clock = slowest - clock, slowest + 0.01
            event = {"kind": "close", "t": clock, "round": number, "step": step, "seconds": seconds[step]}
            events.append(event | {"bytes_down": BYTES_DOWN[step] * len(alive)})
        seconds["train"], t = max(pace.values()) * 10, clock + 0.1
        end = {"kind": "end_round", "t": clock + 0.02, "round": number, "attempt": 0, "included": alive, "exact": True}
        end |= {"dropped": [gone] if gone else [], "head": f"{number:02x}" * 32, "clip_rate": {}, "seconds": seconds}
        events.append(end | {"bytes_up": 1, "bytes_down": 1})
    events = [*sorted(events, key=lambda event: event["t"]), {"kind": "end", "t": t, "seconds": t}]
    began = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
    return [event | {"at": (began + timedelta(seconds=event["t"])).isoformat()} for event in events]


def make_run(
    folder,
    *,
    name="fetal-brain-demo",
    sites=SITES,
    structures=STRUCTURES,
    rounds=20,
    mechanism="local",
    secure=True,
    seed=None,
    drop_round=7,
    layout="phantom",
    command="fedseg demo",
    pictures=True,
):
    """A run folder as `simulate` and `coordinator` write it; the last site has no test patient."""
    (folder / "ledger").mkdir(parents=True)
    for site in sites:
        (folder / "ledger" / f"{site}.jsonl").write_text('{"event": "start"}\n')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "study.toml").write_text(
        TOML.format(name=name.replace('"', ""), structures=json.dumps(structures), layout=layout, mechanism=mechanism)
    )
    events = make_events(name, sites, structures, rounds, mechanism, secure, seed, drop_round)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    final = [0.71, 0.52, 0.69, 0.66, 0.58, 0.49, 0.55, 0.43][: len(structures)]
    history = []
    for number in range(rounds + 1):
        reached = [0.3 + (value - 0.3) * (1 - math.exp(-number / 4)) for value in final]
        means = dict(zip(structures, reached, strict=True))
        history.append({"round": number, "dice": means, "mean": sum(reached) / len(reached), "epsilon": None})
    patients = [12, 9, 11, 8, 1][: len(sites)]
    per_site = {
        site: {
            "n_train": 40 if n > 1 else 1,
            "n_test": n if n > 1 else 0,
            "mean": interval(0.58 + 0.02 * i, n, 0.3 / n) if n > 1 else {"mean": float("nan"), "n": 0},
            "structures": {s: interval(v, n) if n > 1 else None for s, v in zip(structures, final, strict=True)},
        }
        for i, (site, n) in enumerate(zip(sites, patients, strict=True))
    }
    privacy = {
        "epsilon": 7.94,
        "delta": 3e-4,
        "unit": "patient",
        "neighbouring": "add or remove one patient",
        "trust": "nobody is trusted: each site's update is private on its own",
    }
    privacy |= {
        "noise_multiplier": 3.1,
        "sample_rate": 0.5,
        "clip_norm": 0.05,
        "steps": 200,
        "per_site": dict.fromkeys(sites, 7.94),
    }
    privacy["sentence"] = "An adversary with a 1 % prior guess about a patient is right at most 27 % of the time."
    ended = [event for event in events if event["kind"] == "end_round"]
    drops = [{k: e[k] for k in ("round", "site", "after")} for e in events if e["kind"] == "dropped"]
    protocol = {
        "rounds_completed": len(ended),
        "burned": 0,
        "dropouts": drops,
        "bytes_up": 6_175_000,
        "bytes_down": 13_820_000,
    }
    metrics = {
        "format": 2,
        "study": name,
        "study_hash": "5f" * 32,
        "seed": seed,
        "seeded_no_privacy_claim": seed is not None,
    }
    metrics |= {
        "command": command,
        "started_utc": "2026-11-21 09:30:00",
        "seconds": events[-1]["t"],
        "parameters": 10_123,
    }
    metrics |= {"mechanism": mechanism, "privacy": privacy if mechanism != "none" else None, "history": history}
    overall = {s: interval(v, 40, 0.03) for s, v in zip(structures, final, strict=True)}
    grid = {"size": 64, "dims": 2, "spacing": [2.6, 3.4], "apart": [5.0, 5.0]}
    metrics["dice"] = {
        "grid": grid,
        "overall": overall,
        "mean": interval(sum(final) / len(final), 40, 0.025),
        "sites": per_site,
    }
    metrics["baselines"] = {"zero-shot": interval(0.41, 40), "one site alone": interval(0.50, 40)}
    metrics["protocol"] = protocol | {"seconds": ended[0]["seconds"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if pictures:
        arrays = {}
        for i in range(3):
            arrays[f"image_{i}"], arrays[f"truth_{i}"], arrays[f"prediction_{i}"] = phantom([1, 3, 2][i])
        ranks = zip(["best", "worst", "median"], [0.74, 0.47, 0.61], sites, strict=False)
        view = {"plane": "axial", "number": 12, "of": 24, "edges": ["L", "R", "A", "P"]}
        meta = [
            {"rank": r, "dice": d, "site": s, "case": f"/data/{s}/sub-DOE-{i:03d}.nii.gz", "view": view}
            for i, (r, d, s) in enumerate(ranks)
        ]
        np.savez(folder / "examples.npz", meta=json.dumps(meta), **arrays)
    return folder
