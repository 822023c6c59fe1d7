"""One account of a run, at every party: what a site did not see is proved to it, and an unfinished study says so."""

import asyncio
import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedseg import cli
from fedseg.cli.ending import conclude
from fedseg.coordinator import Coordinator
from fedseg.errors import RoundFailedError
from fedseg.models import load_model
from fedseg.report import claims, write_report
from fedseg.report.folder import Dropout, burned, dropouts, ended, read_run
from fedseg.site import Site
from fedseg.update import flatten
from secagg.messages import IncludedSet, Reports
from secagg.service.account import Account
from tests.support.federation import COORDINATOR, Federation
from tests.support.tiny import tiny_study


class Killing:
    """Kills site-d in the middle of round 2, and starts it again once the round ended without it."""

    federation: Federation

    def __call__(self, who: str, event: dict) -> None:
        if who == COORDINATOR and event["kind"] == "step":
            if (event["round"], event["site"], event["step"]) == (2, "site-d", "ShareReport"):
                self.federation.kill("site-d")
        elif who == COORDINATOR and event["kind"] == "end_round" and event["round"] == 2:
            self.federation.start("site-d")


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_the_killed_site_the_others_and_the_coordinator_give_one_account(tmp_path):
    study, killing = tiny_study(sites=4, rounds=3), Killing()

    async def scenario() -> list[Path]:
        async with Federation(study, tmp_path, on=killing) as federation:
            killing.federation = federation
            federation.start()
            await federation.finished()
            return [task.result() for task in federation.tasks.values()]

    folders = asyncio.run(scenario())
    runs = [read_run(folder) for folder in folders]
    assert [dropouts(run) for run in runs] == [[Dropout(2, "site-d", 3)]] * 5
    accounts = [[(end.round, end.included, end.dropped, end.head) for end in ended(run)] for run in runs]
    assert accounts == accounts[:1] * 5
    sentences = {tuple(claims.account(run)) for run in runs}
    assert len(sentences) == 1
    assert "site-d dropped after it had shared its keys" in next(iter(sentences))[0]
    assert len({claims.summary(run) for run in runs}) == 1
    protocols = [metrics_of(folder)["protocol"] for folder in folders]
    assert {(p["rounds_completed"], p["burned"]) for p in protocols} == {(3, 0)}
    assert all(p["dropouts"] == [{"round": 2, "site": "site-d"}] for p in protocols)
    assert all(metrics_of(folder)["unfinished"] == "" for folder in folders)
    models = [flatten(load_model(folder / "model.safetensors", study)) for folder in folders]
    assert all(np.array_equal(model, models[0]) for model in models)  # of the last sum, not of the one before
    for folder in folders:
        write_report(folder)


class KillingTwo:
    """Kills two sites once all attested in round 1, so that it burns, and starts them again."""

    federation: Federation

    def __call__(self, who: str, event: dict) -> None:
        if (who, event["kind"], event.get("step"), event.get("round")) == (COORDINATOR, "close", "ConsistencyCheck", 1):
            self.federation.kill("site-d", "site-e")
        if (who, event["kind"], event.get("round")) == (COORDINATOR, "burned", 1):
            self.federation.start("site-d", "site-e")


def test_a_burned_round_has_one_number_in_every_report_and_an_unfinished_study_says_so_in_each(tmp_path):
    killing = KillingTwo()

    async def scenario() -> list[Path]:
        federation = killing.federation = Federation(tiny_study(sites=5, rounds=2), tmp_path, on=killing)
        async with federation:
            federation.start()
            await federation.finished()
            return [task.result() for task in federation.tasks.values()]

    folders = asyncio.run(scenario())
    assert len(folders) == 6
    runs = [read_run(folder) for folder in folders]
    assert [burned(run) for run in runs] == [[1]] * 6
    (told,) = {tuple(claims.account(run)) for run in runs}
    assert told[0] == (
        "Round 1 burned: it has no sum, and its number is not used again. What it cost in epsilon stays spent."
    )
    assert told[-1].startswith("The study did not finish, 1 of 2 rounds have a sum: too few sites have budget left")
    assert len({claims.summary(run) for run in runs}) == 1
    for folder in folders:
        page = write_report(folder).read_text()
        assert all(html.escape(sentence) in page for sentence in told)
        assert "No site dropped out of a sum." in page


class GivingUp(Coordinator):
    """Ends after its first round, as where its sites are gone for good."""

    async def _gather(self) -> list[str]:
        found = await super()._gather()
        return found[: 2 if self.folder.tally.completed else None]


def test_an_unfinished_study_is_no_success_of_any_command_and_its_reports_say_so_first(tmp_path, monkeypatch):
    study = tiny_study(rounds=2)

    async def scenario() -> tuple:
        async with Federation(study, tmp_path, kind=GivingUp) as federation:
            federation.start("site-a", "site-b")
            given = ["--credentials", str(federation.credentials), "--out", str(tmp_path / "runs")]
            command = ["site", str(tmp_path / "run.toml"), "site-c", "--coordinator", f"127.0.0.1:{federation.port}"]
            result = await asyncio.to_thread(CliRunner().invoke, cli.app, [*command, *given])
            tasks = federation.tasks
            ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
            return result, federation.coordinator.folder, dict(zip(tasks, ended, strict=True))

    result, folder, ended_with = asyncio.run(scenario())
    assert result.exit_code == 1
    assert isinstance(result.exception, RoundFailedError)
    assert "the study did not finish, 1 of 2 rounds have a sum: the coordinator gave up: 2 of 3" in str(
        result.exception
    )
    assert isinstance(ended_with[COORDINATOR], RoundFailedError)
    assert folder.finished
    (commanded,) = (tmp_path / "runs").glob("tiny-*")
    assert (commanded / "report.html").is_file()
    for run in (commanded, folder.path, ended_with["site-a"], ended_with["site-b"]):
        assert next(claims.warnings(read_run(run))).startswith(
            "the study did not finish: 1 of 2 rounds have a sum; the"
        )
        assert metrics_of(run)["protocol"]["rounds_completed"] == 1
    for run in (commanded, folder.path):  # what a site and the coordinator say at the end
        with pytest.raises(RoundFailedError, match="did not finish"):
            conclude(run)

    def give_up(fresh, options):
        shutil.rmtree(fresh.path)
        fresh.path = Path(shutil.copytree(folder.path, tmp_path / "commanded"))
        raise RoundFailedError("2 of 3 sites are there")

    (folder.path / "report.html").unlink()
    monkeypatch.setattr("fedseg.coordinator.coordinate", give_up)
    given = ["--credentials", str(tmp_path / "credentials"), "--out", str(tmp_path / "other")]
    result = CliRunner().invoke(cli.app, ["coordinator", str(tmp_path / "run.toml"), *given])
    assert result.exit_code == 1
    assert "did not finish, 1 of 2 rounds have a sum" in str(result.exception)
    assert (tmp_path / "commanded" / "report.html").is_file()


def test_a_site_that_saw_the_end_needs_no_coordinator_to_say_so_and_to_finish_its_folder(tmp_path, monkeypatch):
    """One process of it was killed between the end of the run and its own figures."""
    study, plain = tiny_study(rounds=1), Site._written

    def killed(site, reason):
        if site.me == "site-b":
            raise RuntimeError("killed")
        return plain(site, reason)

    monkeypatch.setattr(Site, "_written", killed)

    async def scenario() -> None:
        async with Federation(study, tmp_path) as federation:
            federation.start()
            await asyncio.wait(federation.tasks.values())

    asyncio.run(scenario())
    (left,) = (tmp_path / "site-b").glob("tiny-*")
    assert left.name.endswith(".partial")
    given = ["--credentials", str(tmp_path / "credentials-run"), "--coordinator", "127.0.0.1:9"]
    for site in ("site-a", "site-b"):
        own = ["--state", str(tmp_path / f"{site}-state"), "--out", str(tmp_path / site)]
        result = CliRunner().invoke(cli.app, ["site", str(tmp_path / "run.toml"), site, *given, *own])
        assert result.exit_code == 0, (result.output, result.exception)
        assert "this run is finished: the study is complete" in result.output
        (folder,) = (tmp_path / site).glob("tiny-*")
        assert metrics_of(folder)["protocol"]["rounds_completed"] == 1
        assert (folder / "report.html").is_file()
    shutil.rmtree(folder)
    result = CliRunner().invoke(cli.app, ["site", str(tmp_path / "run.toml"), site, *given, *own])
    assert result.exit_code == 0
    assert "is not there any more" in result.output


class Lying(Coordinator):
    """Gives another account at the end than the one that its sites signed."""

    lie = ""

    def _dismiss(self, sites) -> None:
        if self.lie == "receipts":
            self.book.receipts = self.book.receipts[:-1]
        super()._dismiss(sites)

    async def _part_from(self, site, place) -> None:
        self.saw.clear()
        await super()._part_from(site, place)

    def account(self, number):
        found = super().account(number)
        return None if found is None else self._lied(Account.unpacked(found), number).packed()

    def _lied(self, account, number):
        match self.lie if number == 1 else "":
            case "sharers":
                return replace(account, reports=Reports(account.reports.reports[:-1]))
            case "sum":
                return replace(account, included=IncludedSet(account.included.inputs[:-1]))
            case "signature":
                last = replace(account.reports.reports[-1], signature=bytes(64))
                return replace(account, reports=Reports((*account.reports.reports[:-1], last)))
        return account


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("", ""),
        ("sharers", "other sharers of round 1"),
        ("sum", "not what that round's receipt names"),
        ("signature", "not what sites signed"),
        ("receipts", "not those of the rounds that this site saw"),
    ],
)
def test_sites_refuse_an_account_that_was_not_signed(tmp_path, lie, words, monkeypatch):
    if lie == "receipts":  # seen where the first model cannot be: its start has other bits elsewhere
        monkeypatch.setattr("fedseg.site.run.same_everywhere", lambda study: False)

    async def scenario() -> list:
        kind = type("Liar", (Lying,), {"lie": lie})
        async with Federation(tiny_study(rounds=1), tmp_path, kind=kind) as federation:
            federation.start()
            return await asyncio.gather(*federation.tasks.values(), return_exceptions=True)

    _, *sites = asyncio.run(scenario())
    assert len(sites) == 3
    for ended_with in sites:
        if lie:
            assert isinstance(ended_with, RoundFailedError)
            assert words in str(ended_with)
        else:
            assert [end.round for end in ended(read_run(ended_with))] == [1]  # what was seen is not told twice
