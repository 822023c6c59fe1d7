"""What a mechanism claims and who must be trusted is in one table: a new row changes every place at once."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedseg.cli.terminal import main
from fedseg.coordinator import Coordinator
from fedseg.coordinator import Options as CoordinatorOptions
from fedseg.credentials import make_credentials
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError, RoundFailedError
from fedseg.mechanisms.local import Local
from fedseg.mechanisms.table import MECHANISMS, no_claim, trust_in
from fedseg.parties import InProcess
from fedseg.privacy.delta import delta_text
from fedseg.privacy.trust import Trust
from fedseg.report import write_report
from fedseg.runfolder import RunFolder
from fedseg.screen import Screen
from fedseg.simulate import Options, simulate
from fedseg.site import Options as SiteOptions
from fedseg.site import Site
from fedseg.summary import study_event
from secagg import ExposureError
from secagg.store import Marks, Release
from tests.support.run_folder import make_run
from tests.support.tiny import tiny_study

SENTENCES = ("the seventh moon", "the noise is in the tide only")


class Tidal(Local):
    name = "tidal"
    trust = Trust(True, False, *SENTENCES, short="of the sum")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    """Of a mechanism whose epsilon holds for the sum, and whose updates are not private alone."""
    monkeypatch.setitem(MECHANISMS, "tidal", Tidal())
    return tiny_study(mechanism="tidal", seed=None)


def train(study, runs: Path) -> dict:
    with RunFolder.create(runs, study) as folder:
        run = simulate(folder, load_cohort(None, study), Options())
    return json.loads((run / "metrics.json").read_text())


def test_an_epsilon_is_claimed_and_charged(study, tmp_path):
    claim = train(study, tmp_path)["privacy"]
    assert 0 < claim["epsilon"] <= 8
    assert claim["trust"] == "the seventh moon is trusted: the noise is in the tide only"


def test_c05_stays_on_where_a_single_update_is_not_private(study, tmp_path, monkeypatch):
    monkeypatch.setattr(InProcess, "replay", lambda *_: None)
    with pytest.raises((RoundFailedError, ExposureError), match="C-05"):
        train(study, tmp_path)


@pytest.mark.parametrize("secure", [True, False])
def test_a_report_has_the_new_rows_words_and_nobody_elses(study, tmp_path, secure):
    html = {
        mechanism: write_report(
            make_run(tmp_path / mechanism, mechanism=mechanism, secure=secure, rounds=2, pictures=False)
        ).read_text(encoding="utf-8")
        for mechanism in ("tidal", "local")
    }
    assert all(words in html["tidal"] for words in SENTENCES)
    assert not any(one.trust.because in html["tidal"] for name, one in MECHANISMS.items() if name != "tidal")
    assert "nobody" not in html["tidal"]
    assert ("private by itself" in html["local"]) == (not secure)
    assert "private by itself" not in html["tidal"]


def test_a_coordinator_keeps_whole_transcripts_for_it(study, tmp_path):
    make_credentials(tmp_path / "credentials", study, "run")
    options = CoordinatorOptions(credentials=tmp_path / "credentials", transcripts="hashes")
    with RunFolder.create(tmp_path, study) as folder, pytest.raises(ConfigError, match="whole transcripts"):
        Coordinator(folder, options)


@pytest.mark.parametrize(("mechanism", "waits"), [("tidal", True), ("local", False)])
def test_a_site_that_sent_shares_comes_back_only_after_a_replay(study, tmp_path, monkeypatch, mechanism, waits):
    monkeypatch.setattr(Marks, "open_release", Release(bytes(32), "round 1", None))
    study, notes = study.replace(privacy={"mechanism": mechanism}), []
    make_credentials(tmp_path / "credentials", study, "run")
    options = SiteOptions(
        site="site-a", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=tmp_path / "state"
    )

    async def begin() -> None:
        site = Site(folder, load_cohort(None, study)["site-a"], options)
        site.member._begin()
        site.store.close()

    with RunFolder.create(tmp_path / "runs", study, notes.append) as folder:
        asyncio.run(begin())
    assert any("[C-05]" in note.text for note in notes) == waits


def test_screen_and_command_say_what_the_row_says(study, tmp_path, monkeypatch, capsys):
    shown = io.StringIO()
    Screen(Console(file=shown, width=300))(study_event(study, 3, secure=True))
    assert "epsilon at most 8 per patient, delta 0.01, trusting the seventh moon" in shown.getvalue()
    path = tmp_path / "study.toml"
    path.write_text(study.toml())
    monkeypatch.setattr("sys.argv", ["fedseg", "epsilon", str(path)])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert "who is trusted: the seventh moon; the noise is in the tide only" in " ".join(said.split())
    assert "nobody" not in said


def test_the_row_of_no_mechanism_claims_nothing():
    assert not MECHANISMS["none"].trust.claims_epsilon
    assert not MECHANISMS["none"].trust.each_update_private
    assert "no differential privacy is claimed: mechanism = 'none'" in no_claim("none")


def test_an_unknown_mechanism_is_a_sentence():
    with pytest.raises(ConfigError, match="'lunar' is not known to this version"):
        trust_in("lunar", 1)


@pytest.mark.parametrize(("delta", "text"), [(0.00125, "0.00125"), (3e-4, "0.0003"), (1e-05, "1e-05"), (None, "n/a")])
def test_delta_is_never_rounded(delta, text):
    assert delta_text(delta) == text
