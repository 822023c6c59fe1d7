"""The report: true to the run folder, self-contained, escaped, and honest about what is not claimed."""

import hashlib
import html
import json
import re
import shutil
import stat
import subprocess

import matplotlib.image
import numpy as np
import pytest

from fedseg.errors import FedSegError
from fedseg.report import PRIVATE, claims, write_report
from fedseg.report.folder import read_run
from tests.support.run_folder import SITES, STEPS, STRUCTURES, interval, make_run


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


def keep_one_example(folder, **meta):
    with np.load(folder / "examples.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name.endswith("_0")}
    meta = {"rank": "best", "site": "site-a", "case": "a", "dice": 0.5} | meta
    np.savez(folder / "examples.npz", meta=json.dumps([meta]), **kept)


def test_every_number_stands_beside_what_it_needs(demo):
    text = text_of(demo.read_text())
    assert "0.60 0.57 to 0.62 (95 % bootstrap interval), n = 40 patients" in text
    assert "ε 7.94 per patient, of a budget of 8 delta 0.0003 who is trusted nobody mechanism local" in text
    assert "20 of 20 0 burned" in text
    assert "Dropouts survived 1 site-d, round 7" in text
    assert "20 MB 6.17 MB up, 13.8 MB down" in text
    assert "zero-shot 0.41 0.36 to 0.46, n = 40" in text
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
    keep_one_example(folder, site=hostile, case=hostile, dice=float("nan"))
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
    assert "site-e 1 0 n/a 7.94" in text
    assert "zero-shot n/a 0" in text
    assert "brainstem n/a 0" in text
    assert "site-b 40 9 0.50 one patient, no interval" in text
    assert "site-c not shared not shared n/a 7.94" in text
    assert "nan" not in text.lower().split()


CLAIM = "(ε = 7.94, δ = 0.0003)"


@pytest.mark.parametrize(
    ("changes", "warning", "claims"),
    [
        ({}, None, True),
        ({"mechanism": "none"}, "no differential privacy is claimed: mechanism = 'none'", False),
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
    assert "epsilon 8.50 is above the budget of 8" in first
    assert "delta = 0.01 is not below 1/161" in first
    assert "the sum of round 2 is not the sum of the survivors" in first


def test_images_of_patients_are_announced(tmp_path):
    real = make_run(tmp_path / "real", layout="feta", rounds=3)
    keep_one_example(real)
    page, private = write_report(real).read_text(), real / PRIVATE
    assert "data:image" not in page
    assert "The pictures are of patients and are not on this page. report-private.html beside it has them." in page
    assert private.read_text().count("data:image") == 4
    first = text_of(private.read_text()).split("Federated segmentation report")[0]
    assert "private: shows images of patients and must not leave the place where the data is" in first
    assert [stat.S_IMODE((real / name).stat().st_mode) for name in ("report.html", PRIVATE)] == [0o600, 0o600]
    (real / "examples.npz").unlink()
    assert "are not on this page" not in write_report(real).read_text()
    assert not private.exists()


def test_a_command_names_no_folder_on_the_page_that_may_be_forwarded(tmp_path):
    """A folder may be called after a patient, the last one too; the owner's page and metrics.json have it whole."""
    command = (
        "fedseg simulate /srv/DOE/study.toml --seed 3 --data DOE --out='/tmp/DOE x' --plain 'C:\\DOE\\b.toml' --new DOE"
    )
    folder = make_run(tmp_path / "run", rounds=3, layout="feta")
    rewrite(folder / "metrics.json", lambda metrics: metrics.update(command=command))
    page, private = write_report(folder).read_text(), (folder / PRIVATE).read_text()
    shown = "fedseg simulate study.toml --seed 3 --data ... --out=... --plain b.toml --new ..."
    assert f"<pre>{shown}</pre>" in page
    assert "metrics.json has the whole command" in page
    assert "DOE" not in page
    assert html.escape(command, quote=False) in html.unescape(private)
    assert html.escape(command, quote=False) in html.unescape(private).replace("&#39;", "'")


def test_no_page_names_a_patient_and_every_picture_says_where_left_is(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, layout="feta")
    pages = [write_report(folder).read_text(), (folder / PRIVATE).read_text()]
    assert not any("sub-DOE" in page for page in pages)
    assert "Best: Dice 0.74 · one case of site-a · axial slice 12 of 24" in text_of(pages[1])
    with np.load(folder / "examples.npz") as arrays:
        assert "sub-DOE" in str(arrays["meta"])  # its owner finds the files


def test_the_grid_of_dice_is_said(demo):
    said = "Dice is computed on the study's working grid of 64 x 64 pixels a slice, 2.6 to 3.4 mm wide, with the files'"
    assert f"{said} own slices 5 mm apart; not on the files' own grids." in text_of(demo.read_text())


def test_a_coordinator_shows_public_phantoms_of_any_study(tmp_path):
    folder = make_run(tmp_path / "run", layout="feta", rounds=3, command="fedseg coordinator fetal.toml")
    keep_one_example(folder, site="public phantom")
    page = write_report(folder).read_text()
    assert "no patient is shown" in page
    assert not (folder / PRIVATE).exists()


def test_a_coordinator_that_heard_no_epsilon_and_no_metrics_claims_none(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, pictures=False)

    def silent(metrics):
        metrics["privacy"] |= {"epsilon": 0.0, "per_site": {}}
        sites = {site: {"n_train": None, "n_test": 0, "mean": None, "structures": {}} for site in SITES}
        metrics["dice"] = {"mean": None, "overall": {}, "sites": sites}
        metrics["history"] = [{"round": 1, "dice": dict.fromkeys(STRUCTURES), "mean": None}]

    rewrite(folder / "metrics.json", silent)
    rewrite_events(folder, lambda events: [e | {"spent": None} if e["kind"] == "epsilon" else e for e in events])
    page = write_report(folder).read_text()
    text = text_of(page)
    assert "no privacy claim: no site has reported what it spent" in text.split("Federated segmentation report")[0]
    assert "ε = 0" not in text
    assert "ε 0" not in text
    assert "site-a not shared not shared n/a" in text


def test_phantoms_are_not_patients(demo):
    page = demo.read_text()
    assert "no patient is shown" in page
    assert not demo.with_name(PRIVATE).exists()
    assert [page.index(f"{rank}: Dice") for rank in ("Best", "Median", "Worst")] == sorted(
        page.index(f"{rank}: Dice") for rank in ("Best", "Median", "Worst")
    )


def test_a_dropout_is_told_and_drawn(demo):
    page = demo.read_text()
    told = "Round 7: site-d dropped after it had shared its keys. Its update is not in the sum, which is that of 4 of 5"
    others = "sites (site-a, site-b, site-c and site-e), checked value by value"
    assert f"{told} {others}. It is in the sum of round 8 again." in page
    assert "Round 7, step by step" in page
    assert "dropped after ShareKeys; back in round 8" in page


def test_only_a_later_sum_is_a_return(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, drop_round=2, pictures=False)
    rewrite_events(folder, lambda events: [event for event in events if event["kind"] != "rejoined"])
    assert "It is in the sum of round 3 again." in write_report(folder).read_text()

    def without(events):
        last = events[-2]
        assert (last["kind"], last["round"]) == ("end_round", 3)
        last["included"].remove("site-d")
        return events

    rewrite_events(folder, without)
    assert "It is in no later sum." in write_report(folder).read_text()


def test_a_party_that_saw_little_gives_the_same_account_and_draws_no_empty_rows(tmp_path):
    """site-d was killed in round 2: of rounds 1 and 2 it has what others signed, of itself what it sent in round 3."""
    whole = make_run(tmp_path / "whole", rounds=3, drop_round=2, pictures=False)
    own = make_run(tmp_path / "own", rounds=3, drop_round=2, pictures=False, command="fedseg site study.toml site-d")

    def seen_by_site_d(events):
        mine = [
            e for e in events if e["kind"] == "study" or (e.get("round") == 3 and e.get("site", "site-d") == "site-d")
        ]
        caught_up = [e | {"attempt": None, "t": 99.0} for e in events if e["kind"] == "end_round" and e["round"] < 3]
        return [*(e for e in mine if e["kind"] not in ("close", "rejoined")), *caught_up]

    def figures_of_site_d(metrics):
        metrics["dice"]["sites"] = {"site-d": {"n_train": 4, "n_test": 0, "mean": None, "structures": {}}}
        metrics["privacy"]["per_site"] = {"site-d": 7.94}

    rewrite_events(own, seen_by_site_d)
    rewrite(own / "metrics.json", figures_of_site_d)
    told = claims.account
    sentences = [list(told(read_run(folder))) for folder in (whole, own)]
    assert [text.replace(", checked value by value", "") for text in sentences[0]] == [
        text.replace(", checked value by value", "") for text in sentences[1]
    ]
    assert [claims.summary(read_run(folder)) for folder in (whole, own)][1:] == [claims.summary(read_run(whole))]
    page = write_report(own).read_text()
    sites = text_of(page[page.index('<section id="sites">') : page.index('<section id="privacy">')])
    assert "site-d 4 0 7.94" in sites
    assert "site-a" not in sites
    assert "n/a" not in sites
    protocol = page[page.index('<section id="protocol">') : page.index('<section id="record">')]
    assert "n/a" not in text_of(protocol)
    assert "to the sites" not in protocol
    drawn = protocol[protocol.index("<svg") :]
    assert "site-d" in drawn
    assert "site-a" not in drawn
    assert "14" * 32 not in page
    assert "03" * 32 in page  # the last round's head, although round 2 was written down later


def test_a_study_that_did_not_finish_says_so_first(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, pictures=False)
    rewrite(folder / "metrics.json", lambda metrics: metrics.update(unfinished="the coordinator gave up: 2 of 5"))

    def longer(events):
        return [events[0] | {"rounds": 9}, *events[1:]]

    rewrite_events(folder, longer)
    body = text_of(write_report(folder).read_text()).split("federated segmentation report ", 1)[1]
    assert body.startswith("the study did not finish: 3 of 9 rounds have a sum; the coordinator gave up: 2 of 5 Feder")
    assert "every round completed" not in body


def test_what_clip_range_cut_is_among_the_first_lines(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, pictures=False)

    def cut(share):
        return lambda events: [e | {"clip_rate": {"site-a": share}} if e["kind"] == "end_round" else e for e in events]

    rewrite_events(folder, cut(0.98))
    text = text_of(write_report(folder).read_text())
    first = text.split("Federated segmentation report")[0]
    assert "round 3: clip_range cut 98 % of the values of site-a's update" in first
    assert "raise [secagg] clip_range" in first
    assert "2 more updates were cut much" in first
    assert "values cut by clip_range, at most 98 % (site-a, round 3)" in text
    rewrite_events(folder, cut(0.01))
    text = text_of(write_report(folder).read_text())
    assert "clip_range cut" not in text
    assert "values cut by clip_range, at most 1 % (site-a, round 3)" in text


def test_a_burned_round_and_what_only_this_party_saw_of_it(tmp_path):
    folder = make_run(tmp_path / "run", rounds=3, drop_round=None, pictures=False)
    rewrite(folder / "metrics.json", lambda metrics: metrics["protocol"].update(rounds_completed=2, burned=1))

    def burn(events):
        kept = [e for e in events if (e["kind"], e.get("round")) != ("end_round", 2)]
        return [*kept, {"kind": "burned", "t": 99.0, "round": 2, "attempt": 1, "reason": "3 of 4 released shares"}]

    rewrite_events(folder, burn)
    text = text_of(write_report(folder).read_text())
    assert "Round 2 burned: it has no sum, and its number is not used again." in text
    assert "Seen by this party alone Round 2, attempt 1, ended without a sum: 3 of 4 released shares." in text


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
    assert "site-b fell silent after MaskedInputCollection, when its update was already in the sum." in text
    assert "Dropouts survived 0 every site stayed" in text  # what no other party could know is no dropout


def test_a_run_without_dropouts_metrics_or_pictures(tmp_path):
    folder = make_run(tmp_path / "run", rounds=1, drop_round=None, pictures=False, structures=["lesion"])

    def unshared(metrics):
        metrics["history"], metrics["dice"], metrics["baselines"] = [], {"mean": None}, {}

    rewrite(folder / "metrics.json", unshared)
    text = text_of(write_report(folder).read_text())
    assert "No site dropped out of a sum." in text
    assert "the sites did not share metrics" in text
    assert "every site stayed" in text
    assert "Round 1, step by step" in text


def test_a_run_that_completed_no_round(tmp_path):
    folder = make_run(tmp_path / "run", rounds=2, drop_round=1, pictures=False)
    rewrite(folder / "metrics.json", lambda metrics: metrics["protocol"].update(rounds_completed=0, burned=2))
    rewrite_events(folder, lambda events: [event for event in events if event["kind"] != "end_round"])
    text = text_of(write_report(folder).read_text())
    assert "two rounds burned, without a sum" in text
    assert "0 of 2 2 burned" in text
    assert "site-d fell silent after ShareKeys, and the round did not complete." in text


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


def pickled(folder):
    with np.load(folder / "examples.npz") as arrays:
        content = dict(arrays) | {"meta": np.array(str(arrays["meta"]), dtype=object)}
    np.savez(folder / "examples.npz", **content)


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
        (pickled, "examples.npz is cut off or not a picture file"),
        (misshape, "examples.npz: image_1, truth_1 and prediction_1"),
        (lambda f: rewrite_events(f, lambda events: events[:-8]), "events.jsonl has 2 finished rounds"),
        (lambda f: rewrite_events(f, lambda events: events[1:]), "first line must be the 'study' event"),
        (lambda f: rewrite_events(f, lambda e: [e[0] | {"n": "five"}, *e[1:]]), "line 1, field study.n: "),
        (edit(lambda metrics: metrics.pop("protocol")), "metrics.json: field protocol: field required"),
        (edit(lambda metrics: metrics.update(study_hash="00" * 32)), "different study hashes"),
        (edit(lambda metrics: metrics.update(privacy=None)), "metrics.json: field privacy is missing"),
        (edit(lambda metrics: metrics.pop("format")), r"fedseg 0\.1 or 0\.2, whose epsilon was not true"),
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
@pytest.mark.parametrize(("width", "height"), [(1280, 5000), (420, 9000)])
def test_chromium_renders_the_page(demo, tmp_path, width, height):
    picture = tmp_path / "page.png"
    size = [f"--window-size={width},{height}", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    command = [CHROMIUM, *FLAGS.split(), *size, demo.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[1] == width
    paper = pixels[0, 0]
    inked = np.abs(pixels - paper).max(axis=2) > 0.1
    bands = inked.reshape(10, -1).mean(axis=1)
    assert (bands > 0.01).all(), "a blank band"
    assert not inked[:, -8:].any(), "something is wider than the page"
