"""The privacy statement: what it says follows from ledgers and transcripts, and it never says more."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedseg import statement
from fedseg.budget.plan import metrics_entry, round_entry
from fedseg.data.loading import load_cohort
from fedseg.ledger import Ledger
from fedseg.privacy.accounting import epsilon, in_words
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.statement import write_statement
from fedseg.statement.facts import PRIORS, best_guess
from fedseg.statement.words import epsilon_text, percent
from tests.support.command import run as command
from tests.support.tiny import tiny_study

STUDY = tiny_study(seed=None)
PACKAGE = Path(statement.__file__).parent
NEVER = re.compile(r"anonym|complian|comply|complies", re.IGNORECASE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with RunFolder.create(tmp_path_factory.mktemp("Jane Doe"), STUDY) as folder:
        return simulate(folder, load_cohort(None, STUDY), Options(transcripts=True, command="fedseg simulate"))


def said_by(target):
    """A page without its markup, and its JSON."""
    text = html.unescape(re.sub(r"<[^>]+>", " ", target.read_text().partition("</style>")[2]))
    return " ".join(text.split()), json.loads(target.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    target = tmp_path_factory.mktemp("page") / "page.html"
    write_statement([run], target, run / "federation.toml")
    return target


def written(capsys, monkeypatch, target, *arguments):
    """The command's words, and what it wrote."""
    code, out, err = command(capsys, monkeypatch, "statement", *arguments, "--out", target)
    assert code == 0, err
    return out, *said_by(target)


def state_of(folder, *studies, metrics=()):
    """A site's state folder after these studies."""
    folder.mkdir()
    ledger = Ledger(folder / "ledger.jsonl")
    for place, study in enumerate(studies):
        for number in range(1, study.study.rounds + 1):
            ledger.append(round_entry(study, "site-a", f"run {place}", number))
        if place in metrics:
            ledger.append(metrics_entry(study, "site-a", f"run {place}", 1))
    return folder


def test_the_page_says_what_the_run_cost_whom_it_protects_and_what_was_verified(run, tmp_path, capsys, monkeypatch):
    out, text, told = written(capsys, monkeypatch, tmp_path / "page.html", run, "--roster", run / "federation.toml")
    spent = epsilon([e.dp_event() for e in Ledger(run / "ledger" / "site-a.jsonl").entries()], 0.01)
    assert f"This study cost each patient at most ε = {epsilon_text(spent)} at δ = 0.01." in text
    assert f"at most ε = {epsilon_text(spent)} at δ = 0.01" in out
    for observer in (
        "The public: whoever has the model",
        "The coordinator, even one that lies",
        "The coordinator together with up to 1 site",
        "Another site",
        "The site itself",
        "Somebody who listens on the network",
    ):
        assert observer in text
    assert "add or remove one patient" in text
    assert "Early stopping, tuning and search by looking at patients" in text
    assert "This was a simulation" in text
    assert told["evidence"]["status"] == "no power"  # no report was there
    assert "R-07 the report says what the folder gives simulation: there is no report" in text
    assert told["origin"]["code"] in text
    assert len(told["origin"]["commit"]) in (0, 40)
    for name, value in told["inputs"].items():
        assert name in text
        assert value in text


def test_what_patients_paid_is_composed_over_all_studies_in_the_ledger(tmp_path, capsys, monkeypatch):
    other = STUDY.replace(study={"name": "earlier"}, privacy={"epsilon": 5.0})
    state = state_of(tmp_path / "state", other, STUDY, metrics=(0,))
    _, text, told = written(capsys, monkeypatch, tmp_path / "page.html", state, "--delta", 0.01)
    (account,) = told["accounts"]
    entries = Ledger(state / "ledger.jsonl").entries()
    events = [event for entry in entries if (event := entry.dp_event()) is not None]
    assert account["total"]["epsilon"] == pytest.approx(epsilon(events, 0.01))
    first, second = account["uses"]
    assert first["alone"]["epsilon"] < second["alone"]["epsilon"] < second["together"]["epsilon"]
    assert account["total"]["epsilon"] > 8.5  # neither alone
    assert f"at most ε = {epsilon_text(account['total']['epsilon'])} at δ = 0.01" in text
    assert first["uncovered"] == 1
    assert "were shared, 1 times in these ledgers" in text
    assert "Only ledgers were given: no round was looked at." in text


def test_a_patient_may_be_in_two_data_sets_of_a_site_so_both_count(tmp_path, capsys, monkeypatch):
    one, other = state_of(tmp_path / "one", STUDY), state_of(tmp_path / "other", STUDY)
    (one / "budget.toml").write_text("epsilon = 12.0\ndelta = 1e-4\n")
    _, text, told = written(capsys, monkeypatch, tmp_path / "page.html", one, other, "--delta", 0.01)
    (account,) = told["accounts"]
    entries = Ledger(one / "ledger.jsonl").entries()
    assert account["total"]["epsilon"] == pytest.approx(epsilon([e.dp_event() for e in 2 * entries], 0.01))
    assert "2 data sets, as if one patient were in all of them" in text
    assert "budget for life: ε = 12 at δ = 0.0001" in text


def test_noise_in_the_sum_is_told_with_epsilon_and_guesses_without_mu(tmp_path, capsys, monkeypatch):
    study = tiny_study(seed=None, mechanism="distributed").replace(privacy={"noise": "skellam"})
    state = state_of(tmp_path / "state", study)
    _, text, told = written(capsys, monkeypatch, tmp_path / "page.html", state, "--delta", 0.01)
    (account,) = told["accounts"]
    assert account["uses"][0]["mechanisms"] == "distributed"
    assert 0 < account["total"]["epsilon"] <= 8.0
    assert account["total"]["mu"] is None
    assert "μ-GDP" not in text
    assert account["total"]["best"][1] == pytest.approx(best_guess(0.01, None, account["total"]["epsilon"], 0.01))


def test_without_a_delta_ledgers_alone_give_nothing(tmp_path, capsys, monkeypatch):
    state = state_of(tmp_path / "state", STUDY)
    code, _, err = command(capsys, monkeypatch, "statement", state, "--out", tmp_path / "page.html")
    assert code == 1
    assert "give --delta" in err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (tiny_study(seed=7), "seeded: no privacy claim"),
        (tiny_study(seed=None, mechanism="none"), "no differential privacy is claimed: mechanism 'none'"),
    ],
    ids=["seeded", "none"],
)
def test_a_run_without_a_claim_gets_none(run, tmp_path, capsys, monkeypatch, study, words):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "study.toml").write_text(study.toml())
    shutil.rmtree(folder / "ledger")
    _, text, told = written(capsys, monkeypatch, tmp_path / "page.html", folder, "--delta", 0.01)
    assert words in text
    assert "what it can reveal about them is not bounded" in text
    assert not re.search(r"Learns of one patient at most .* ε = ", text.partition("What these patients")[0])
    assert told["accounts"] == []


def test_figures_speak_for_the_sites_whose_ledgers_were_given(run, tmp_path, capsys, monkeypatch):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for site in ("site-b", "site-c"):
        (folder / "ledger" / f"{site}.jsonl").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["privacy"]["per_site"]["site-b"] = metrics["privacy"]["epsilon"] = 9.25
    (folder / "metrics.json").write_text(json.dumps(metrics))
    _, text, told = written(capsys, monkeypatch, tmp_path / "page.html", folder)
    assert "This study cost each patient of site-a at most ε" in text
    assert "site-b said ε = 9.25" in text
    assert "ε = 9.25 at δ = 0.01, as sites said; not recomputed here" in text
    assert told["evidence"]["status"] == "no power"


def test_a_lie_stands_at_the_top(run, tmp_path, capsys, monkeypatch):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = folder / "ledger" / "site-a.jsonl"
    path.write_text(path.read_text().replace('"steps":1', '"steps":2', 1))
    out, text, told = written(capsys, monkeypatch, tmp_path / "page.html", folder)
    assert told["evidence"]["status"] == "violated"
    assert text.index("something is violated, so nothing below can be relied on") < text.index("Privacy statement ·")
    assert "warning: something is violated" in out
    assert str(tmp_path) not in text  # the sentence names the file without its folder


def test_it_names_no_folder_no_patient_and_no_number_of_patients(run, page):
    text, told = said_by(page)
    for said in (text, json.dumps(told)):
        assert "Jane Doe" not in said
        assert str(run.parent) not in said
        assert not re.search(r"\b\d+ patients\b|n_train|n_test", said)
        for patient in load_cohort(None, STUDY)["site-a"].patients:
            assert patient not in said


def test_what_others_wrote_is_escaped(tmp_path, capsys, monkeypatch):
    evil = STUDY.replace(study={"name": "tiny"})
    folder = tmp_path / "state"
    folder.mkdir()
    ledger = Ledger(folder / "ledger.jsonl")
    entry = round_entry(evil, "site-a", "<script>alert(1)</script>", 1)
    ledger.append(entry.model_copy(update={"study": "<img src=x onerror=alert(1)>", "site": "site-a<b>"}))
    target = tmp_path / "page.html"
    written(capsys, monkeypatch, target, folder, "--delta", 0.01)
    page = target.read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "site-a<b>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"https?://|href=|url\(", page)


def test_neither_templates_nor_sentences_hold_the_words_that_laws_define(page):
    files = [*PACKAGE.iterdir(), *(PACKAGE.parent / "report").iterdir(), *(PACKAGE.parent / "verifying").iterdir()]
    for path in files:
        if path.suffix in (".html", ".css"):
            assert not NEVER.search(path.read_text()), path
    for path in PACKAGE.glob("*.py"):
        assert not NEVER.search(path.read_text()), path
    assert not NEVER.search(page.read_text())
    assert not NEVER.search(page.with_suffix(".json").read_text())


def test_figures_are_rounded_to_the_side_of_the_patient():
    assert epsilon_text(7.981) == "7.99"
    assert epsilon_text(8.0) == "8.00"
    assert epsilon_text(float("inf")) == "no bound"
    assert percent(0.5491) == "55.0 %"
    assert percent(1.0) == "100.0 %"


def test_what_a_guess_becomes_is_what_the_accountant_says_in_words():
    for prior in PRIORS:
        assert percent(best_guess(prior, 1.3, 6.0, 1e-5)).replace(" ", "") in in_words(1.3, prior), "rounded up"
        assert best_guess(prior, None, 0.0, 0.0) == pytest.approx(prior)
        assert prior < best_guess(prior, None, 1.0, 1e-5) < best_guess(prior, None, 3.0, 1e-5) < 1
        assert best_guess(prior, None, float("inf"), 1e-5) == 1.0


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make chromium`")
def test_it_is_printed_on_two_pages(page, tmp_path):
    paper = tmp_path / "page.pdf"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", f"--print-to-pdf={paper}"]
    subprocess.run([CHROMIUM, *options, page.as_uri()], check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) <= 2
