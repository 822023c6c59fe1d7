"""Coordinator and sites over real TLS in one process, so that either can be made to lie."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_study

from fedseg.coordinator import Coordinator
from fedseg.coordinator import Options as CoordinatorOptions
from fedseg.credentials import load_federation, make_credentials
from fedseg.data import load_site
from fedseg.errors import ConfigError, RoundFailedError
from fedseg.ledger import verify
from fedseg.models import load_model
from fedseg.runfolder import RunFolder
from fedseg.site import Options as SiteOptions
from fedseg.site import Site
from fedseg.study import Study
from fedseg.update import assign, flatten
from secagg.sqlite import SqliteStore
from secagg.transcript import verify as verify_transcripts


async def federate(study: Study, folder: Path, *, kind: type[Coordinator] = Coordinator, at_sites: Study | None = None):
    """Run everybody to the end; returns what the coordinator and each site ended with (a folder or an exception)."""
    make_credentials(folder / "credentials", study, "run")
    listening = asyncio.get_running_loop().create_future()

    def listen(event) -> None:
        if event["kind"] == "listening":
            listening.set_result(event["port"])

    options = CoordinatorOptions("127.0.0.1", 0, folder / "credentials", patience=5, step_seconds=5, rejoin_seconds=1)
    coordinator = kind(RunFolder.create(folder / "coordinator", study, listen), options)
    running = asyncio.create_task(coordinator.run())
    port = await listening

    async def site(name: str) -> Path:
        own = at_sites or study
        options = SiteOptions(name, f"127.0.0.1:{port}", folder / "credentials", folder / f"{name}-state", patience=10)
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
    from fedseg.data import load_cohort
    from fedseg.simulate import Options, simulate

    study = tiny_study(rounds=2)
    run, _ = asyncio.run(federate(study, tmp_path))
    with RunFolder.create(tmp_path / "simulated", study) as folder:
        simulated = simulate(folder, load_cohort(None, study), Options())
    models = [flatten(load_model(path / "model.safetensors", study)) for path in (run, simulated)]
    assert np.array_equal(*models)


class Tampering(Coordinator):
    """Publishes another model than the sum gives, signed like any other."""

    def _record(self, number, outcome) -> None:
        self.vector = self.vector + np.float32(0.01)
        assign(self.model, self.vector)
        super()._record(number, outcome)


def test_sites_refuse_a_model_that_the_last_sum_does_not_give(tmp_path):
    study = tiny_study(rounds=2)
    ended, sites = asyncio.run(federate(study, tmp_path, kind=Tampering))
    assert isinstance(ended, RoundFailedError)
    for error in sites.values():
        assert isinstance(error, RoundFailedError)
        assert "the last one plus the last sum" in str(error)
    for name in study.site_ids:  # the round that was refused was never charged
        assert [event.round_number for event in verify(tmp_path / f"{name}-state" / "run.jsonl").values()] == [1]


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
    assert all("another study" in str(error) for error in sites.values()), sites


@pytest.mark.parametrize("share", [False, True])
def test_validation_metrics_leave_a_site_only_where_the_study_says_so(tmp_path, share):
    study = tiny_study(rounds=1).replace(report={"share_metrics": share})
    run, _ = asyncio.run(federate(study, tmp_path))
    kinds = [event.mechanism for event in verify(tmp_path / "site-a-state" / "run.jsonl").values()]
    assert kinds.count("metrics") == (2 if share else 0)
    events = (run / "events.jsonl").read_text()
    assert ('"kind":"dice"' in events) == share


# --- Transcripts -------------------------------------------------------------------------------------------------


def verdict_on(run: Path, folder: Path, study: Study):
    """What an auditor with the federation's roster finds in the coordinator's folder."""
    found = sorted((run / "transcripts").iterdir())
    federation = load_federation(folder / "credentials", study)
    policy = study.policy(len(flatten(load_model(run / "model.safetensors", study))), federation.server_key)
    return found, verify_transcripts(found, policy, federation.roster)


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
    import json

    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["head"] for event in events if event["kind"] == "end_round"]
