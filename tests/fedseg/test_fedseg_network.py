"""Coordinator and sites over real TLS in one process, so that either can be made to lie."""

import asyncio
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from fedseg import dialogue
from fedseg.coordinator import Coordinator
from fedseg.coordinator import Options as CoordinatorOptions
from fedseg.credentials import load_federation, make_credentials
from fedseg.data.loading import load_site
from fedseg.errors import ConfigError, LedgerError, RoundFailedError
from fedseg.events import Listening
from fedseg.ledger import verify
from fedseg.models import load_model
from fedseg.runfolder import RunFolder
from fedseg.site import Options as SiteOptions
from fedseg.site import Site
from fedseg.study import Study
from fedseg.update import assign, flatten
from secagg.rpc.client import MailboxClient
from secagg.sqlite import SqliteStore
from secagg.steps import MASKED_INPUT_COLLECTION, STEPS
from secagg.transcript_files import verify as verify_transcripts
from tests.support.tiny import tiny_study


async def federate(
    study: Study,
    folder: Path,
    *,
    kind: type[Coordinator] = Coordinator,
    at_sites: Study | None = None,
    run: str = "run",
):
    """Run everybody to the end; returns what the coordinator and each site ended with (a folder or an exception)."""
    credentials = folder / ("credentials" if run == "run" else f"credentials-{run}")
    make_credentials(credentials, study, run)
    listening = asyncio.get_running_loop().create_future()

    def listen(event) -> None:
        if isinstance(event, Listening):
            listening.set_result(event.port)

    options = CoordinatorOptions("127.0.0.1", 0, credentials, patience=5, step_seconds=5, rejoin_seconds=1)
    coordinator = kind(RunFolder.create(folder / "coordinator", study, listen), options)
    running = asyncio.create_task(coordinator.run())
    port = await listening

    async def site(name: str) -> Path:
        own = at_sites or study
        options = SiteOptions(name, f"127.0.0.1:{port}", credentials, folder / f"{name}-state", patience=10)
        return await Site(RunFolder.create(folder / name, own), load_site(None, name, own), options).run()

    sites = await asyncio.gather(*(site(name) for name in study.site_ids), return_exceptions=True)
    (ended,) = await asyncio.gather(running, return_exceptions=True)
    return ended, dict(zip(study.site_ids, sites, strict=True))


def test_everybody_ends_with_the_same_head_and_a_report_of_their_own(tmp_path):
    study = tiny_study(rounds=2)
    run, sites = asyncio.run(federate(study, tmp_path))
    assert isinstance(run, Path)
    assert all(isinstance(ended, Path) for ended in sites.values()), sites
    heads = {tuple(_heads(path)) for path in (run, *sites.values())}
    assert len(heads) == 1
    assert len(next(iter(heads))) == 2
    simulated = flatten(load_model(run / "model.safetensors", study))
    assert np.isfinite(simulated).all()


def test_the_network_and_the_simulation_train_the_same_model(tmp_path):
    from fedseg.data.loading import load_cohort
    from fedseg.simulate import Options, simulate

    study = tiny_study(rounds=2)
    run, _ = asyncio.run(federate(study, tmp_path))
    with RunFolder.create(tmp_path / "simulated", study) as folder:
        simulated = simulate(folder, load_cohort(None, study), Options())
    models = [flatten(load_model(path / "model.safetensors", study)) for path in (run, simulated)]
    assert np.array_equal(*models)


class Tampering(Coordinator):
    """Publishes another model than the sum gives, signed like any other."""

    def _record(self, number, attempt, outcome) -> None:
        self.vector = self.vector + np.float32(0.01)
        assign(self.model, self.vector)
        super()._record(number, attempt, outcome)


def test_sites_refuse_a_model_that_the_last_sum_does_not_give(tmp_path):
    study = tiny_study(rounds=2)
    ended, sites = asyncio.run(federate(study, tmp_path, kind=Tampering))
    assert isinstance(ended, RoundFailedError)
    for error in sites.values():
        assert isinstance(error, RoundFailedError)
        assert "the last one plus the last sum" in str(error)
    for name in study.site_ids:  # the round that was refused was never charged
        assert [event.round_number for event in verify(tmp_path / f"{name}-state" / "ledger.jsonl").values()] == [1]


def test_a_coordinator_that_gives_up_tells_its_sites_why(tmp_path):
    study = tiny_study(rounds=1)

    class Alone(Coordinator):
        def _wanted(self) -> set[str]:
            return super()._wanted() | {"a site that never comes"}

        async def _gather(self) -> list[str]:
            return (await super()._gather())[:2]

    ended, sites = asyncio.run(federate(study, tmp_path, kind=Alone))
    assert isinstance(ended, RoundFailedError)
    assert "a sum needs 3" in str(ended)
    for path in sites.values():
        assert isinstance(path, Path)
        assert "the coordinator gave up" in (path / "events.jsonl").read_text()


def test_sites_refuse_another_study(tmp_path):
    study = tiny_study(rounds=1)
    other = study.replace(study={"lr": 0.5})
    ended, sites = asyncio.run(federate(study, tmp_path, at_sites=other))
    assert isinstance(ended, RoundFailedError)
    assert all("[C-23]" in str(error) and "study file" in str(error) for error in sites.values()), sites


@pytest.mark.parametrize("share", [False, True])
def test_validation_metrics_leave_a_site_only_where_the_study_says_so(tmp_path, share):
    study = tiny_study(rounds=1).replace(report={"share_metrics": share})
    run, _ = asyncio.run(federate(study, tmp_path))
    kinds = [event.mechanism for event in verify(tmp_path / "site-a-state" / "ledger.jsonl").values()]
    assert kinds.count("metrics") == (2 if share else 0)
    events = (run / "events.jsonl").read_text()
    assert ('"kind":"dice"' in events) == share


# --- One patient more --------------------------------------------------------------------------------------------


def sent_by(site: str, study: Study, folder: Path, monkeypatch) -> tuple[dict[str, list], list[float]]:
    """What a site sends by kind, protocol messages as their sizes; and when its protocol messages went."""
    sent, times = defaultdict(list), []

    class Watched(MailboxClient):
        def __init__(self, address, client_id, *rest, **options) -> None:
            super().__init__(address, client_id, *rest, **options)
            self.watched = client_id == site

        async def send(self, kind, payload) -> None:
            if self.watched:
                sent[kind].append(len(payload) if kind == dialogue.PROTOCOL else json.loads(payload))
                if kind == dialogue.PROTOCOL:
                    times.append(time.monotonic())
            await super().send(kind, payload)

    with monkeypatch.context() as patched:
        patched.setattr("fedseg.site.MailboxClient", Watched)
        run, _ = asyncio.run(federate(study, folder))
    assert isinstance(run, Path)
    return sent, times


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("site", "fewer", "roles"), [("site-b", 3, [(0, 3), (1, 3)]), ("site-a", 1, [(1, 0), (1, 1)])])
def test_what_a_site_sends_depends_on_no_patient(tmp_path, site, fewer, roles, share, monkeypatch):
    """One more where nobody was in training, and where nobody was to be tested: the coordinator is told the same."""
    study = tiny_study(rounds=2, steps=2).replace(report={"share_metrics": share})
    told, charged = [], []
    for patients, (trained, held) in zip((fewer, fewer + 1), roles, strict=True):
        sites = [s.model_dump(mode="json") | ({"patients": patients} if s.id == site else {}) for s in study.sites]
        changed = Study.model_validate_json(json.dumps(study.model_dump(mode="json") | {"sites": sites}))
        data = load_site(None, site, changed)
        assert (len(data.train), len(data.test)) == (trained, held)
        folder = tmp_path / str(patients)
        sent, _ = sent_by(site, changed, folder, monkeypatch)
        rows = [message.pop("rows") for message in sent[dialogue.METRICS]]
        assert [len(found) for found in rows] == ([held] * 3 if share else [])  # which is what share_metrics gives away
        told.append(dict(sent))
        events = verify(folder / f"{site}-state" / "ledger.jsonl").values()
        charged.append([event.model_copy(update={"study_hash": "0" * 64}) for event in events])
    assert told[0] == told[1]
    assert charged[0] == charged[1]
    assert [message["step"] for message in told[0][dialogue.PROGRESS]] == [0, 0]


def test_without_privacy_progress_tells_when_each_step_ended(tmp_path, monkeypatch):
    study = tiny_study(rounds=1, steps=2, mechanism="none")
    sent, _ = sent_by("site-b", study, tmp_path, monkeypatch)
    assert [message["step"] for message in sent[dialogue.PROGRESS]] == [0, 1, 2]


def test_an_update_may_be_held_so_that_the_time_of_training_does_not_show(tmp_path, monkeypatch):
    study = tiny_study(rounds=1).replace(run={"hold_seconds": 2.0})
    _, times = sent_by("site-b", study, tmp_path, monkeypatch)
    masked = STEPS.index(MASKED_INPUT_COLLECTION)
    assert times[masked] - times[0] > 1.9


def test_a_site_does_not_go_on_from_a_ledger_of_the_first_versions(tmp_path):
    study = tiny_study(rounds=1)
    make_credentials(tmp_path / "credentials", study, "run")
    state = tmp_path / "state"
    state.mkdir()
    (state / "run.jsonl").write_text("{}\n")
    options = SiteOptions("site-a", "127.0.0.1:1", tmp_path / "credentials", state)
    with pytest.raises(
        LedgerError, match=r"run\.jsonl: was written by fedseg 0\.1 or 0\.2, whose epsilon was not true"
    ):
        Site(RunFolder.create(tmp_path / "out", study), load_site(None, "site-a", study), options)
    assert not (state / "ledger.jsonl").exists()


def test_two_runs_on_one_data_set_share_a_ledger_and_its_budget(tmp_path):
    study = tiny_study(rounds=1)
    asyncio.run(federate(study, tmp_path, run="first"))
    ended, _ = asyncio.run(federate(study, tmp_path, run="second"))
    assert isinstance(ended, RoundFailedError)  # every site left: one round was all that the budget allowed
    for name in study.site_ids:
        events = verify(tmp_path / f"{name}-state" / "ledger.jsonl").values()
        assert [(event.training_run, event.round_number) for event in events] == [("first", 1)]


# --- Transcripts -------------------------------------------------------------------------------------------------


def verdict_on(run: Path, folder: Path, study: Study):
    """What an auditor with the federation's roster finds in the coordinator's folder."""
    found = sorted((run / "transcripts").iterdir())
    federation = load_federation(folder / "credentials", study)
    policy = study.policy(len(flatten(load_model(run / "model.safetensors", study))), federation.server_key)
    return found, verify_transcripts(found, policy, federation.pinned)


def test_every_round_leaves_a_transcript_that_holds(tmp_path):
    study = tiny_study(rounds=2)
    run, _ = asyncio.run(federate(study, tmp_path))
    found, verdict = verdict_on(run, tmp_path, study)
    ids = [report.receipt.round_id.hex()[:16] for report in verdict.rounds]
    assert [path.name for path in found] == [f"000{n}-0-{name}.transcript" for n, name in enumerate(ids, 1)]
    assert (verdict.status, [len(report.included) for report in verdict.rounds]) == ("holds", [3, 3])
    assert [report.next_head.hex() for report in verdict.rounds] == _heads(run)


def test_without_privacy_sites_replay_each_round_before_the_next(tmp_path):
    study = tiny_study(rounds=2, mechanism="none")
    run, sites = asyncio.run(federate(study, tmp_path))
    assert all(isinstance(ended, Path) for ended in sites.values()), sites
    assert len(_heads(run)) == 2
    for name, ended in sites.items():
        with SqliteStore(tmp_path / f"{name}-state" / "marks.sqlite", name) as store, store.transaction() as marks:
            assert marks.open_release is None
        kept = [path.name.split("-")[-1] for path in sorted((ended / "transcripts").iterdir())]
        assert kept == [path.name.split("-")[-1] for path in sorted((run / "transcripts").iterdir())]


def test_without_privacy_whole_transcripts_are_kept(tmp_path):
    study = tiny_study(mechanism="none")
    make_credentials(tmp_path / "credentials", study, "run")
    options = CoordinatorOptions("127.0.0.1", 0, tmp_path / "credentials", transcripts="hashes")
    with pytest.raises(ConfigError, match="keep them"):
        Coordinator(RunFolder.create(tmp_path, study), options)


def _heads(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["head"] for event in events if event["kind"] == "end_round"]
