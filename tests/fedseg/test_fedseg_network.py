"""Coordinator and sites over real TLS in one process, so that either can be made to lie."""

import asyncio
import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedseg import dialogue
from fedseg.attempt import Facts
from fedseg.coordinator import Coordinator
from fedseg.coordinator import Options as CoordinatorOptions
from fedseg.credentials import load_federation, make_credentials
from fedseg.data.declaration import Declaration
from fedseg.data.loading import load_site
from fedseg.errors import ConfigError, LedgerError, RoundFailedError
from fedseg.events import Listening
from fedseg.ledger import verify
from fedseg.models import load_model
from fedseg.runfolder import RunFolder
from fedseg.site import Options as SiteOptions
from fedseg.site import Site
from fedseg.site.figures import Figures
from fedseg.status import read_status
from fedseg.study import Study
from fedseg.update import assign, flatten
from secagg import AbortedError
from secagg.rpc.client import MailboxClient
from secagg.service import room
from secagg.service.dialogue import Protocolled, Ready
from secagg.sqlite import SqliteStore
from secagg.steps import MASKED_INPUT_COLLECTION, STEPS
from secagg.transcript_files import verify as verify_transcripts
from tests.support.federation import COORDINATOR, Federation
from tests.support.folders import wider_than_its_owner
from tests.support.tcp_proxy import TcpProxy
from tests.support.tiny import tiny_classes, tiny_study


async def federate(
    study: Study,
    folder: Path,
    *,
    kind: type[Coordinator] = Coordinator,
    run: str = "run",
):
    """Run everybody to the end; returns what the coordinator and each site ended with (a folder or an exception)."""
    credentials = folder / ("credentials" if run == "run" else f"credentials-{run}")
    make_credentials(credentials, study, run)
    data = {name: load_site(None, name, study) for name in study.site_ids}  # before anybody waits for anybody
    listening = asyncio.get_running_loop().create_future()

    def listen(event) -> None:
        if isinstance(event, Listening):
            listening.set_result(event.port)

    options = CoordinatorOptions(credentials=credentials, patience=5, step_seconds=5, rejoin_seconds=1)
    coordinator = kind(RunFolder.create(folder / "coordinator", study, listen), options)
    running = asyncio.create_task(coordinator.run())
    port = await listening

    async def site(name: str) -> Path:
        options = SiteOptions(
            site=name,
            address=f"127.0.0.1:{port}",
            credentials=credentials,
            state=folder / f"{name}-state",
            patience=10,
        )
        return await Site(RunFolder.create(folder / name, study), data[name], options).run()

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


def test_a_site_whose_disk_is_full_at_the_very_end_waits_and_has_its_model(tmp_path, monkeypatch):
    """Its coordinator is gone by then: what begins anew would wait for it for ever."""
    finish, full = Figures.finish, {"site-b"}

    def finishing(figures, *rest):
        if figures._me in full:
            full.clear()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return finish(figures, *rest)

    monkeypatch.setattr(Figures, "finish", finishing)
    monkeypatch.setattr(room, "_AGAIN_SECONDS", 0.0)

    async def scenario() -> None:
        async with Federation(tiny_classes(), tmp_path) as federation:
            federation.start()
            run = await federation.finished()
            model = (run / "model.safetensors").read_bytes()
            assert (federation.tasks["site-b"].result() / "model.safetensors").read_bytes() == model
            assert "the disk is full ([Errno 28] No space left on device)" in federation.said("site-b")

    asyncio.run(scenario())


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

    async def _completed(self, save, done) -> None:
        await super()._completed(save, done)
        self.state = self.state + np.float32(0.01)
        assign(self.model, self.state)


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
            return super()._wanted() | {"site-that-never-comes"}

        async def _gather(self) -> list[str]:
            return (await super()._gather())[:2]

    ended, sites = asyncio.run(federate(study, tmp_path, kind=Alone))
    assert isinstance(ended, RoundFailedError)
    assert "a sum needs 3" in str(ended)
    for path in sites.values():
        assert isinstance(path, Path)
        assert "the coordinator gave up" in (path / "events.jsonl").read_text()


def test_a_site_with_another_study_is_refused_at_once_and_the_others_go_on(tmp_path):
    """It was refused as the first round began, after every site had been waited for."""
    study = tiny_study(sites=4, rounds=1)

    async def scenario() -> None:
        async with Federation(study, tmp_path) as federation:
            federation.start("site-d", study=study.replace(study={"lr": 0.5}))
            with pytest.raises(RoundFailedError) as refused:
                await federation.tasks.pop("site-d")
            sentence = str(refused.value)
            assert "site-d was started with another study" in sentence
            assert federation.said(COORDINATOR).count(sentence) == 1
            assert "site-d stopped" not in federation.said(COORDINATOR)
            assert not federation.of(COORDINATOR, "round")
            federation.start("site-d")  # with the right one, as its operator would
            federation.start("site-a", "site-b", "site-c")
            await federation.finished()
            (end,) = federation.of(COORDINATOR, "end_round")
            assert end["included"] == tuple(study.site_ids)

    asyncio.run(scenario())


def test_the_coordinator_and_a_waiting_site_name_whom_they_wait_for(tmp_path):
    study = tiny_study(rounds=1)

    async def scenario() -> None:
        async with Federation(study, tmp_path) as federation:
            federation.start("site-a", "site-b")
            named = lambda who: [event["sites"] for event in federation.of(who, "waiting")]  # noqa: E731
            await federation.until(lambda: ("site-c",) in named(COORDINATOR) and ("site-c",) in named("site-a"))
            federation.start("site-c")
            await federation.finished()

    asyncio.run(scenario())


def test_a_site_tells_its_operator_of_a_cut_and_why_and_when_it_is_over(tmp_path):
    """Its status said that the coordinator was there, whatever happened to the network."""
    study = tiny_study(rounds=1)

    async def scenario() -> None:
        async with Federation(study, tmp_path) as federation:
            with TcpProxy("127.0.0.1", federation.port) as proxy:
                federation.port = proxy.port
                federation.start("site-a")
                (own,) = (tmp_path / "site-a").iterdir()
                coordinator = lambda: [peer.state for peer in read_status(own).peers][:1]  # noqa: E731
                await federation.until(lambda: federation.of("site-a", "connected"))
                assert coordinator() == ["connected"]
                proxy.refuse()
                await federation.until(lambda: coordinator() == ["gone"])
                await federation.until(lambda: "refused" in federation.said("site-a"))
                assert "does not answer" in federation.said("site-a")
                proxy.clear()
                await federation.until(lambda: coordinator() == ["connected"])

    asyncio.run(scenario())


def test_a_site_whose_state_was_wiped_is_refused_by_name_and_told_what_to_do(tmp_path):
    """Row 14 of the trials: it was accepted, and the epsilon that was claimed fell."""
    study = tiny_study(rounds=20)

    async def scenario() -> None:
        async with Federation(study, tmp_path) as federation:
            federation.start()
            await federation.finished_round(1)
            federation.kill("site-c")
            await asyncio.gather(federation.tasks.pop("site-c"), return_exceptions=True)
            shutil.rmtree(tmp_path / "site-c-state")
            federation.start("site-c")
            with pytest.raises(RoundFailedError) as refused:
                await federation.tasks.pop("site-c")
            assert "site-c took part in round" in str(refused.value)
            assert "bring back the newest state folder" in str(refused.value)
            assert [event["site"] for event in federation.of(COORDINATOR, "refused")] == ["site-c"]

    asyncio.run(scenario())


def test_a_site_says_that_no_coordinator_answers(tmp_path):
    study, events = tiny_study(rounds=1), []
    make_credentials(tmp_path / "credentials", study, "run")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        options = SiteOptions(
            site="site-a",
            address=f"127.0.0.1:{nobody.getsockname()[1]}",
            credentials=tmp_path / "credentials",
            state=tmp_path / "state",
            patience=3,
        )
        folder = RunFolder.create(tmp_path / "out", study, events.append)
        with pytest.raises(AbortedError):
            asyncio.run(Site(folder, load_site(None, "site-a", study), options).run())
    assert [event.sites for event in events if event.kind == "waiting"] == [("coordinator",)]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("share", [False, True])
def test_validation_metrics_leave_a_site_only_where_the_study_says_so(tmp_path, share):
    study = tiny_study(rounds=1).replace(report={"share_metrics": share})
    run, _ = asyncio.run(federate(study, tmp_path))
    kinds = [entry.kind for entry in verify(tmp_path / "site-a-state" / "ledger.jsonl").values()]
    assert kinds.count("metrics") == (2 if share else 0)
    events = (run / "events.jsonl").read_text()
    assert ('"kind":"dice"' in events) == share


def test_a_site_that_evaluates_for_long_is_in_the_figures_of_the_last_model(tmp_path, monkeypatch):
    """Row 9 of the trials: a site that took longer than a step was missing from the final Dice."""
    plain = Figures.evaluate

    def slowly(figures, model, completed):
        if figures._me == "site-c" and completed:
            time.sleep(7)  # a step has 5 s here, and the end of a run is offered for 5 s
        return plain(figures, model, completed)

    monkeypatch.setattr(Figures, "evaluate", slowly)
    study = tiny_study(rounds=1).replace(report={"share_metrics": True})
    run, _ = asyncio.run(federate(study, tmp_path))
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    scored = {line["site"] for line in lines if line["kind"] == "dice" and line["round"] == 1}
    assert scored == {"site-a", "site-b", "site-c"}


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
                sent[kind].append(len(payload) if kind == Protocolled.kind else json.loads(payload))
                if kind == Protocolled.kind:
                    times.append(time.monotonic())
            await super().send(kind, payload)

    with monkeypatch.context() as patched:
        patched.setattr("fedseg.site.party.MailboxClient", Watched)
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
        rows = [message.pop("rows") for message in sent[dialogue.Metrics.kind]]
        assert [len(found) for found in rows] == ([held] * 3 if share else [])  # which is what share_metrics gives away
        for message in sent[Ready.kind]:
            for name in ("task", "policy", "roster"):  # the first names the made patients, the others fresh keys
                del message[name]
            message["says"] = {**json.loads(message["says"]), "signature": ""}  # by fresh keys too
        told.append(dict(sent))
        events = verify(folder / f"{site}-state" / "ledger.jsonl").values()
        stays = {"study_hash": "0" * 64, "patients": "", "charged": ""}  # who paid stays at the site
        # The thread that trains and the one that answers write as they come: what was paid counts, not who was first.
        charged.append(sorted(event.model_copy(update=stays).model_dump_json() for event in events))
    assert told[0] == told[1]
    assert charged[0] == charged[1]
    assert [message["step"] for message in told[0][dialogue.Progress.kind]] == [0, 0]


def test_without_privacy_progress_tells_when_each_step_ended(tmp_path, monkeypatch):
    study = tiny_study(rounds=1, steps=2, mechanism="none")
    sent, _ = sent_by("site-b", study, tmp_path, monkeypatch)
    assert [message["step"] for message in sent[dialogue.Progress.kind]] == [0, 1, 2]


def test_an_update_may_be_held_so_that_the_time_of_training_does_not_show(tmp_path, monkeypatch):
    study = tiny_study(rounds=1).replace(run={"hold_seconds": 2.0})
    _, times = sent_by("site-b", study, tmp_path, monkeypatch)
    masked = STEPS.index(MASKED_INPUT_COLLECTION)
    assert times[masked] - times[0] > 1.9


def test_a_round_that_the_coordinator_ends_is_held_as_long(tmp_path, monkeypatch):
    """Else a coordinator that ends every round measures when a site is free again: how many patients were drawn."""
    study = tiny_study(rounds=1, steps=2).replace(run={"hold_seconds": 2.0})
    make_credentials(tmp_path / "credentials", study, "run")
    options = SiteOptions(
        site="site-a", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=tmp_path / "state"
    )

    async def scenario() -> float:
        with RunFolder.create(tmp_path / "out", study) as folder:
            site = Site(folder, load_site(None, "site-a", study), options)
            facts = Facts(1, 0, folder.emit)
            site.round = SimpleNamespace(model=site.model, facts=facts, number=1, opened_on=site.state)
            over = threading.Event()
            monkeypatch.setattr("fedseg.site.run.train_round", lambda *_, on_step, **__: (over.set(), on_step(1, 2)))
            monkeypatch.setattr(site.member, "tell", lambda message: None)
            with pytest.raises(RoundFailedError, match="the round is over"):
                await asyncio.to_thread(site.work(1), over)
            site.store.close()
            return facts.seconds

    assert asyncio.run(scenario()) >= 2.0


def test_a_site_does_not_go_on_from_a_ledger_of_the_first_versions(tmp_path):
    study = tiny_study(rounds=1)
    make_credentials(tmp_path / "credentials", study, "run")
    state = tmp_path / "state"
    state.mkdir()
    (state / "run.jsonl").write_text("{}\n")
    options = SiteOptions(site="site-a", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=state)
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
    status = read_status(run)  # of the same run: what was seen of it while it went on
    assert (status.over, status.completed, status.burned, status.party) == ("complete", 2, 0, "coordinator")
    assert status.certificate
    assert all(peer.certificate and peer.epsilon is not None for peer in status.peers)


def test_without_privacy_sites_replay_each_round_before_the_next(tmp_path):
    study = tiny_study(rounds=2, mechanism="none")
    run, sites = asyncio.run(federate(study, tmp_path))
    assert all(isinstance(ended, Path) for ended in sites.values()), sites
    assert len(_heads(run)) == 2
    for party in (run, *sites.values(), *(tmp_path / f"{name}-state" for name in sites)):
        assert set(wider_than_its_owner(party)) <= {"model.safetensors"}
    for name, ended in sites.items():
        with SqliteStore(tmp_path / f"{name}-state" / "marks.sqlite", name) as store, store.transaction() as marks:
            assert marks.open_release is None
        kept = [path.name.split("-")[-1] for path in sorted((ended / "transcripts").iterdir())]
        assert kept == [path.name.split("-")[-1] for path in sorted((run / "transcripts").iterdir())]


def test_without_privacy_whole_transcripts_are_kept(tmp_path):
    study = tiny_study(mechanism="none")
    make_credentials(tmp_path / "credentials", study, "run")
    options = CoordinatorOptions(credentials=tmp_path / "credentials", transcripts="hashes")
    with pytest.raises(ConfigError, match="keep them"):
        Coordinator(RunFolder.create(tmp_path, study), options)


def _heads(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["head"] for event in events if event["kind"] == "end_round"]


class Otherwise(Site):
    """A hospital whose files call the first structure otherwise than those of the others."""

    def says(self) -> str:
        name = {"site-b": "shell"}.get(self.me, "core")
        declared = Declaration(structures=(name, *[""] * 6))
        return dialogue.Declares.signed(declared, self.federation.training_run, self.me, self.key).model_dump_json()


def test_the_site_whose_files_declare_another_label_is_refused_by_name_before_round_one(tmp_path, monkeypatch):
    study = tiny_study(sites=4, rounds=1)
    monkeypatch.setattr(sys.modules[__name__], "Site", Otherwise)
    run, sites = asyncio.run(federate(study, tmp_path))
    said = "sites' files declare what the study calls 'external CSF' differently: site-b 'shell', the others 'core'"
    assert said in str(sites.pop("site-b"))
    assert all(isinstance(ended, Path) for ended in (run, *sites.values())), (run, sites)
    events = (run / "events.jsonl").read_text()
    assert events.count(said) == 1
    (end,) = [event for line in events.splitlines() if (event := json.loads(line))["kind"] == "end_round"]
    assert end["included"] == ["site-a", "site-c", "site-d"]
    assert not (tmp_path / "site-b-state" / "ledger.jsonl").exists()  # nothing was charged
