"""The report: true to the run folder, self-contained, escaped, and honest about what is not claimed."""

import hashlib
import html
import json
import math
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest

from fedseg.errors import FedSegError
from fedseg.report import write_report
from fedseg.report.folder import read_run

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
    return [*sorted(events, key=lambda event: event["t"]), {"kind": "end", "t": t, "seconds": t}]


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
        "trust": "nobody",
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
    metrics = {"study": name, "study_hash": "5f" * 32, "seed": seed, "seeded_no_privacy_claim": seed is not None}
    metrics |= {
        "command": command,
        "started_utc": "2026-11-21 09:30:00",
        "seconds": events[-1]["t"],
        "parameters": 10_123,
    }
    metrics |= {"mechanism": mechanism, "privacy": privacy if mechanism != "none" else None, "history": history}
    overall = {s: interval(v, 40, 0.03) for s, v in zip(structures, final, strict=True)}
    metrics["dice"] = {"overall": overall, "mean": interval(sum(final) / len(final), 40, 0.025), "sites": per_site}
    metrics["baselines"] = {"zero-shot": interval(0.41, 40), "one site alone": interval(0.50, 40)}
    metrics["protocol"] = protocol | {"seconds": ended[0]["seconds"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if pictures:
        arrays = {}
        for i in range(3):
            arrays[f"image_{i}"], arrays[f"truth_{i}"], arrays[f"prediction_{i}"] = phantom([1, 3, 2][i])
        ranks = zip(["best", "worst", "median"], [0.74, 0.47, 0.61], sites, strict=False)
        meta = [{"rank": r, "dice": d, "site": s, "case": f"{s}-{i:03d}"} for i, (r, d, s) in enumerate(ranks)]
        np.savez(folder / "examples.npz", meta=json.dumps(meta), **arrays)
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The whole report of a five-site run with a dropout and pictures."""
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "demo"))


def report(folder, **changes):
    return write_report(make_run(folder, **{"rounds": 3, "pictures": False, "drop_round": 2, **changes})).read_text()


def text_of(page):
    body = re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite_events(folder, change):
    path = folder / "events.jsonl"
    events = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_every_number_stands_beside_what_it_needs(demo):
    text = text_of(demo.read_text())
    assert "0.60 0.57 to 0.62 (95 % bootstrap interval), n = 40 patients" in text
    assert "ε 7.94 per patient, of a budget of 8 delta 0.0003 trust model nobody mechanism local" in text
    assert "20 of 20 0 burned" in text
    assert "1 of 1 site-d, round 7" in text
    assert "20 MB 6.17 MB up, 13.8 MB down" in text
    assert "zero-shot 0.41 0.36 to 0.46 40" in text
    assert "site-a 40 12 0.58" in text
    for name in STRUCTURES + SITES + STEPS:
        assert name in text
    assert "right at most 27 %" in text


def test_study_command_and_hashes_are_on_record(demo):
    page = demo.read_text()
    for name in ("study.toml", "model.safetensors", "ledger/site-a.jsonl", "events.jsonl", "metrics.json"):
        assert hashlib.sha256((demo.parent / name).read_bytes()).hexdigest() in page
    assert "5f" * 32 in page
    assert "14" * 32 in page  # head of round 20
    assert "sample_rate = 0.5" in page
    assert "<pre>fedseg demo</pre>" in page


def test_the_page_is_self_contained(demo):
    page = demo.read_text()
    assert not re.search(r"https?:", page)
    assert not re.search(r"<(script|link|iframe|object|embed|base|form)\b|@import|\bon\w+=", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert page.count("data:image/png;base64,") == 12
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', page)
    assert targets
    assert set(targets) <= set(ids)
    assert "#fe00" not in page, "a placeholder colour was left"
    assert demo.stat().st_size < 2_000_000
    assert not list(demo.parent.glob("*.part"))


def test_names_are_text_whatever_they_hold(tmp_path):
    hostile = "<script>alert(1)</script> $x^2$ {{ 7*7 }} &amp; \"'"
    folder = make_run(
        tmp_path / "run", name=hostile, structures=["<b>$\\frac$</b>", "b"], rounds=3, drop_round=2, command=hostile
    )

    def spoil(metrics):
        metrics["privacy"] |= {"sentence": hostile, "trust": hostile}
        metrics["baselines"][hostile] = interval(0.3, 4)
        metrics["versions"] = {"torch": hostile}

    rewrite(folder / "metrics.json", spoil)
    with np.load(folder / "examples.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name.endswith("_0")}
    meta = [{"rank": "best", "site": hostile, "case": hostile, "dice": float("nan")}]
    np.savez(folder / "examples.npz", meta=json.dumps(meta), **kept)
    with (folder / "study.toml").open("a") as file:
        file.write("# <img src=x onerror=alert(1)>\n")
    page = write_report(folder).read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>$" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; $x^2$ {{ 7*7 }} &amp;amp; &#34;&#39;") >= 6
    assert page.count("&lt;b&gt;$\\frac$&lt;/b&gt;") >= 3  # two tables and the chart
    assert "Best: Dice n/a" in page


def test_an_average_of_nobody_is_not_a_number(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, pictures=False)

    def empty(metrics):
        metrics["baselines"]["zero-shot"] = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 0}
        metrics["dice"]["overall"]["brainstem"] = None
        metrics["dice"]["sites"]["site-b"]["mean"] = {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1}
        metrics["dice"]["sites"]["site-c"] = {}

    rewrite(folder / "metrics.json", empty)
    text = text_of(write_report(folder).read_text())
    assert "site-e 1 0 n/a n/a" in text
    assert "zero-shot n/a 0" in text
    assert "brainstem n/a 0" in text
    assert "site-b 40 9 0.50 one patient, no interval" in text
    assert "site-c not shared not shared n/a n/a" in text
    assert "nan" not in text.lower().split()


CLAIM = "(ε = 7.94, δ = 0.0003)"


@pytest.mark.parametrize(
    ("changes", "warning", "claims"),
    [
        ({}, None, True),
        ({"mechanism": "none"}, "no privacy claim: the study ran with mechanism = 'none'", False),
        ({"seed": 3}, "seeded: no privacy claim", False),
        ({"secure": False}, "plain sum: the coordinator saw every update", True),
    ],
)
def test_what_is_not_guaranteed_is_the_first_line(tmp_path, changes, warning, claims):
    text = text_of(report(tmp_path / "run", **changes))
    body = text.split("federated segmentation report ", 1)[1]
    assert body.startswith(warning or "Federated segmentation report")
    summary = body.split("Mean Dice over test patients")[0]
    assert (CLAIM in summary) is claims
    assert ("could open only sums of at least four updates" in summary) is changes.get("secure", True)
    assert (f"about any one patient: {CLAIM}" in text) is claims
    assert ("never one honest site's update" in text) is changes.get("secure", True)
    assert not re.search("anonym|complian", text)


def test_other_weaknesses_are_named_first_too(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, pictures=False)
    rewrite(folder / "metrics.json", lambda metrics: metrics["privacy"].update(unit="slice", delta=0.01, epsilon=8.5))

    def break_a_sum(events):
        next(event for event in events if event["kind"] == "end_round" and event["round"] == 2)["exact"] = False
        return events

    rewrite_events(folder, break_a_sum)
    first = text_of(write_report(folder).read_text()).split("Federated segmentation report")[0]
    assert "the privacy unit is the slice, not the patient" in first
    assert "epsilon 8.5 is above the budget of 8" in first
    assert "delta 0.01 is not below 1/161" in first
    assert "the sum of round 2 is not the sum of the survivors" in first


def test_images_of_patients_are_announced(tmp_path):
    real = make_run(tmp_path / "real", layout="feta", rounds=3)
    assert "shows images of patients" in write_report(real).read_text()
    (real / "examples.npz").unlink()
    assert "shows images of patients" not in write_report(real).read_text()


def test_phantoms_are_not_patients(demo):
    page = demo.read_text()
    assert "no patient is shown" in page
    assert "shows images of patients" not in page
    assert [page.index(f"{rank}: Dice") for rank in ("Best", "Median", "Worst")] == sorted(
        page.index(f"{rank}: Dice") for rank in ("Best", "Median", "Worst")
    )


def test_a_dropout_is_told_and_drawn(demo):
    page = demo.read_text()
    told = "Round 7: site-d dropped after ShareKeys. Its update is not in the sum, which is that of 4 of 5 sites"
    assert f"{told} (site-a, site-b, site-c and site-e), checked value by value. It was back in round 8." in page
    assert "Round 7, step by step" in page
    assert "dropped after ShareKeys; back in round 8" in page


def test_a_site_lost_after_its_masked_input_is_in_the_sum(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, drop_round=None, pictures=False)

    def lose(events):
        end = next(i for i, event in enumerate(events) if event["kind"] == "end_round" and event["round"] == 3)
        lost = {
            "kind": "dropped",
            "t": events[end]["t"],
            "round": 3,
            "site": "site-b",
            "after": "MaskedInputCollection",
        }
        return [*events[:end], lost, *events[end:]]

    rewrite_events(folder, lose)
    text = text_of(write_report(folder).read_text())
    assert "site-b dropped after MaskedInputCollection. Its update is in the sum" in text
    assert "It did not come back." in text


def test_a_run_without_dropouts_metrics_or_pictures(tmp_path):
    folder = make_run(tmp_path / "run", rounds=1, drop_round=None, pictures=False, structures=["lesion"])

    def unshared(metrics):
        metrics["history"], metrics["dice"], metrics["baselines"] = [], {"mean": None}, {}

    rewrite(folder / "metrics.json", unshared)
    text = text_of(write_report(folder).read_text())
    assert "No site dropped out." in text
    assert "the sites did not share metrics" in text
    assert "every site stayed" in text
    assert "Round 1, step by step" in text


def test_a_resumed_run_reads_on_one_clock(tmp_path):
    folder = make_run(tmp_path / "run", rounds=4, drop_round=None, pictures=False)

    def resume(events):
        at = next(i for i, event in enumerate(events) if event["kind"] == "round" and event["round"] == 3)
        start = events[at]["t"]
        return [*events[:at], events[0], *({**event, "t": event["t"] - start} for event in events[at:])]

    rewrite_events(folder, resume)
    times = [event.t for event in read_run(folder).events]
    assert times == sorted(times)
    assert write_report(folder).exists()


def cut(name, keep):
    def break_it(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return break_it


def edit(change):
    return lambda folder: rewrite(folder / "metrics.json", change)


def misshape(folder):
    with np.load(folder / "examples.npz") as arrays:
        content = dict(arrays) | {"truth_1": np.zeros((3, 3), np.uint8)}
    np.savez(folder / "examples.npz", **content)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "no such run folder"),
        (lambda folder: (folder / "metrics.json").unlink(), "metrics.json is missing"),
        (lambda folder: (folder / "events.jsonl").unlink(), "events.jsonl is missing"),
        (lambda folder: (folder / "study.toml").unlink(), "study.toml is missing"),
        (cut("metrics.json", 0.6), "metrics.json is cut off"),
        (cut("events.jsonl", 0.6), r"events.jsonl: line \d+ is cut off"),
        (cut("events.jsonl", 0), "events.jsonl: the first line must be the 'study' event"),
        (cut("study.toml", 0.5), "study.toml: not a study file"),
        (cut("examples.npz", 0.5), "examples.npz is cut off"),
        (misshape, "examples.npz: image_1, truth_1 and prediction_1"),
        (lambda f: rewrite_events(f, lambda events: events[:-8]), "events.jsonl has 2 finished rounds"),
        (lambda f: rewrite_events(f, lambda events: events[1:]), "first line must be the 'study' event"),
        (lambda f: rewrite_events(f, lambda e: [e[0] | {"n": "five"}, *e[1:]]), "line 1, field study.n: "),
        (edit(lambda metrics: metrics.pop("protocol")), "metrics.json: field protocol: field required"),
        (edit(lambda metrics: metrics.update(study_hash="00" * 32)), "different study hashes"),
        (edit(lambda metrics: metrics.update(privacy=None)), "metrics.json: field privacy is missing"),
    ],
)
def test_a_damaged_run_is_refused_by_name(tmp_path, break_it, message):
    folder = make_run(tmp_path / "run", rounds=3)
    break_it(folder)
    with pytest.raises(FedSegError, match=message) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("report.html*"))


def test_a_failed_write_leaves_the_old_report_and_nothing_beside_it(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", rounds=2, drop_round=None, pictures=False)
    (folder / "report.html").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FedSegError, match=r"report.html cannot be written \(No space left on device\)"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "old"
    assert not list(folder.glob("*.part"))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync --hide-scrollbars"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium` to look at the report")
@pytest.mark.parametrize("width", [1280, 420])
def test_chromium_renders_the_page(demo, tmp_path, width):
    picture = tmp_path / "page.png"
    size = [f"--window-size={width},3000", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    command = [CHROMIUM, *FLAGS.split(), *size, demo.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[1] == width
    paper = pixels[0, 0]
    inked = np.abs(pixels - paper).max(axis=2) > 0.1
    bands = inked.reshape(10, -1).mean(axis=1)
    assert (bands > 0.01).all(), "a blank band"
    assert not inked[:, -8:].any(), "something is wider than the page"
