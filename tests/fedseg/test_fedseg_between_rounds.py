"""Between the rounds, through fedseg's own coordinator, sites and sums: what was broken in version 0.2 stays mended."""

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedseg import exposure
from fedseg.aggregate import SecureSum
from fedseg.coordinator import Coordinator
from fedseg.credentials import load_federation, make_credentials, signing_key
from fedseg.data.loading import load_site
from fedseg.dialogue import ToEvaluate, content_of
from fedseg.errors import ConfigError, RoundFailedError
from fedseg.mechanisms.table import MECHANISMS
from fedseg.parties import Agreed, InProcess
from fedseg.runfolder import RunFolder
from fedseg.site import Options, Site
from fedseg.site import run as site_module
from fedseg.start import starting_model
from fedseg.update import NoisedUpdate, model_hash, opened
from secagg import PinnedRoster, Policy, RoundBook, SigningKey, dequantize, masking, wire
from secagg.client import Reported
from secagg.context import GENESIS, next_head
from secagg.messages import Receipt, Result, RoundStart
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.service import exposed
from secagg.service.dialogue import Protocolled
from secagg.sqlite import SqliteStore
from secagg.store import Marks
from secagg.transcript_files import verify
from tests.support.federation import ASKED, COORDINATOR, Federation
from tests.support.tiny import tiny_study

LENGTH = 12
FIVE = [f"site-{letter}" for letter in "abcde"]


def open_release(folder: Path, site: str) -> str:
    """Name of the round that a site released and that is not accounted for."""
    with SqliteStore(folder / f"{site}-state" / exposure.MARKS, site) as store, store.transaction() as marks:
        return marks.open_release.name if marks.open_release else ""


# --- The way out: replay, or acceptance by name ------------------------------------------------------------------


class Killing:
    """Kills two sites once everybody attested, so that too few release shares, and starts them again."""

    def __init__(self) -> None:
        self.federation: Federation | None = None

    def __call__(self, who: str, event: dict) -> None:
        if (who, event["kind"], event.get("step"), event.get("round")) == (COORDINATOR, "close", "ConsistencyCheck", 1):
            self.federation.kill("site-d", "site-e")
        if who == COORDINATOR and event["kind"] == "burned" and event["round"] == 1:
            self.federation.start("site-d", "site-e")


async def stuck(folder: Path, accepting: list[str]) -> Federation:
    """A federation whose first round burned after three sites released shares; some operators accept."""
    killing = Killing()
    federation = killing.federation = Federation(tiny_study(sites=5, rounds=1, mechanism="none"), folder, on=killing)
    await federation.__aenter__()
    federation.start()
    await federation.accept(*accepting)
    return federation


def test_a_federation_in_which_every_site_refuses_goes_on_once_every_operator_accepted_by_name(tmp_path):
    async def scenario() -> None:
        federation = await stuck(tmp_path, [])
        try:
            await federation.until(lambda: all(federation.asked(site) for site in FIVE[:3]))
            for site in FIVE[:3]:
                assert "C-05" in federation.said(site)
                assert "shares" in federation.said(site)
                assert open_release(tmp_path, site).startswith("round 1, attempt 0")
            assert not federation.of(COORDINATOR, "end_round")
            assert not any(federation.coordinator.presence.shown.values())  # no transcript of this round, and no other
            printed = await federation.accept(*FIVE[:3])
            assert all("itself sent shares" in text for text in printed)
            # Those who had not released see what the others say, and give nothing before they accepted too (C-26).
            await federation.until(lambda: all(federation.asked(site) for site in FIVE[3:]))
            assert all("C-26" in federation.said(site) for site in FIVE[3:])
            assert not federation.of(COORDINATOR, "end_round")
            printed = await federation.accept(*FIVE[3:])
            assert all("no open release of its own" in text for text in printed)
            await federation.finished()
        finally:
            await federation.__aexit__()
        (ended,) = federation.of(COORDINATOR, "end_round")
        assert (ended["round"], ended["attempt"]) == (2, len(_burned(federation)) - 1)
        # An acceptance is read between attempts: who accepts last may find an attempt begun that awaits it no more, and
        # on a busy machine a connection may seem gone. Who is left out keeps what it had.
        assert set(ended["included"]) <= set(FIVE)
        assert len(ended["included"]) >= len(FIVE) - 1
        # A burned round is told under its own number, by everybody.
        assert _burned(federation) == [(1, 0), *((2, attempt) for attempt in range(ended["attempt"]))]
        still_open = {site: name for site in FIVE if (name := open_release(tmp_path, site))}
        assert not still_open.keys() & set(ended["included"]), still_open
        named = {command.split("--accept-exposure ")[1] for site in FIVE for command in federation.asked(site)}
        assert len(named) == 1  # one round, the same for all

    asyncio.run(scenario())


def _burned(federation: Federation) -> list[tuple[int, int]]:
    return [(event["round"], event["attempt"]) for event in federation.of(COORDINATOR, "burned")]


def test_only_a_whole_identifier_of_a_round_is_accepted_and_only_where_a_site_has_marks(tmp_path):
    study = tiny_study(mechanism="none")
    make_credentials(tmp_path / "credentials", study, "run")
    accept = exposure.accept_round
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        accept(study, tmp_path / "credentials", tmp_path, "site-a", "3f9c")
    with pytest.raises(ConfigError, match="give --state"):
        accept(study, tmp_path / "credentials", tmp_path, "site-a", "00" * 32)
    with SqliteStore(tmp_path / exposure.MARKS, "site-a") as store:
        assert "site-a" in accept(study, tmp_path / "credentials", tmp_path, "site-a", "00" * 32)
        with store.transaction() as marks:
            assert marks.accepted(bytes(32))
            assert not marks.accepted(bytes([1] * 32))


def test_one_operator_who_does_not_accept_keeps_his_site_out_whatever_others_accept(tmp_path):
    async def scenario() -> None:
        federation = await stuck(tmp_path, FIVE[:3])
        try:
            await federation.until(lambda: all("C-26" in federation.said(site) for site in FIVE[3:]))
            await federation.accept("site-d")  # four of five accept: enough for a sum, and all but site-e are in it
            await federation.finished_round(2)
        finally:
            await federation.__aexit__()
        (ended,) = federation.of(COORDINATOR, "end_round")
        assert ended["included"] == tuple(FIVE[:4])
        with SqliteStore(tmp_path / "site-e-state" / exposure.MARKS, "site-e") as store, store.transaction() as marks:
            assert marks.open_release is None
        assert len(_steps(federation, "site-e", "MaskedInputCollection")) == 1  # of round 1

    asyncio.run(scenario())


def test_without_c26_sites_that_accepted_nothing_are_in_the_second_sum(tmp_path, monkeypatch):
    monkeypatch.setattr(Marks, "refuse_claims", lambda *_: None)

    async def scenario() -> None:
        federation = await stuck(tmp_path, FIVE[:3])
        try:
            await federation.finished()
        finally:
            await federation.__aexit__()
        assert federation.of(COORDINATOR, "end_round")[0]["included"] == tuple(FIVE)
        assert not federation.asked("site-d")

    asyncio.run(scenario())


def _steps(federation: Federation, site: str, step: str) -> list[dict]:
    return [event for event in federation.of(COORDINATOR, "step") if (event["site"], event["step"]) == (site, step)]


def test_a_site_that_missed_the_result_gets_the_transcript_of_that_very_round_and_goes_on(tmp_path):
    killed: list[str] = []

    def kill(who: str, event: dict) -> None:
        last = event["kind"] == "step" and (event["site"], event["step"]) == ("site-b", "Unmasking")
        if who == COORDINATOR and last and not killed:
            federation.kill("site-b")
            killed.append("site-b")
        if who == COORDINATOR and event["kind"] == "end_round" and event["round"] == 1:
            assert open_release(tmp_path, "site-b").startswith("round 1")
            federation.start("site-b")

    async def scenario() -> None:
        async with federation:
            federation.start()
            await federation.finished()

    federation = Federation(tiny_study(sites=5, rounds=2, mechanism="none"), tmp_path, on=kill)
    asyncio.run(scenario())
    first, second = federation.of(COORDINATOR, "end_round")
    assert "site-b" in first["included"]
    assert second["included"] == tuple(FIVE)
    assert federation.asked("site-b")  # it said what it waited for, and nobody had to accept anything
    assert "settled" in federation.said("site-b")
    assert "which it gets" in federation.said(COORDINATOR)


class Flipping(Coordinator):
    """Changes one byte of every transcript that it sends."""

    def _send_transcript(self, round_id, sites):
        def flipped(site, kind, payload) -> None:
            if kind == "transcript":
                payload = payload[:500] + bytes([payload[500] ^ 1]) + payload[501:]
            send(site, kind, payload)

        send, self.mailbox.send = self.mailbox.send, flipped
        try:
            return super()._send_transcript(round_id, sites)
        finally:
            self.mailbox.send = send


class Withholding(Coordinator):
    def _send_transcript(self, round_id, sites) -> bool:
        return False


@pytest.mark.parametrize("kind", [Withholding, Flipping])
def test_a_lying_coordinators_transcript_neither_clears_a_round_nor_ends_a_site_and_one_from_elsewhere_does(
    tmp_path, kind
):
    sites = FIVE[:3]

    async def scenario() -> None:
        async with Federation(tiny_study(rounds=2, mechanism="none"), tmp_path, kind=kind) as federation:
            federation.start()
            await federation.until(lambda: all(federation.asked(site) for site in sites))
            assert not any(task.done() for task in federation.tasks.values())
            assert all(open_release(tmp_path, site).startswith("round 1") for site in sites)
            for site in sites:
                assert ("was refused and settles nothing" in federation.said(site)) == (kind is Flipping)
                assert (tmp_path / f"{site}-state" / "refused.transcript").is_file() == (kind is Flipping)
            (found,) = federation.coordinator.folder.path.glob("transcripts/*")
            for site in sites:  # an auditor had a good copy
                told = await federation.run(
                    *federation.asked(site)[0].split(" --accept-exposure ")[0].split(), "--replay", str(found)
                )
                assert "replayed, and it holds" in told
            await federation.until(lambda: len(federation.of(COORDINATOR, "end_round")) == 2)
            assert federation.of(COORDINATOR, "end_round")[1]["included"] == tuple(sites)

    asyncio.run(scenario())


# --- 1: another project's transcript -----------------------------------------------------------------------------


def sums(folder: Path, keys: dict[str, SigningKey], policy: Policy, server: SigningKey, run: str = "run") -> SecureSum:
    book = RoundBook(run, bytes(32), server, policy.max_corrupt)
    rounding = lambda site, number: Stream.seeded(1, site, number)  # noqa: E731
    agreed = Agreed(policy, PinnedRoster({site: key.verify_key for site, key in keys.items()}), run, bytes(32), False)
    return SecureSum(agreed, book, InProcess(agreed, keys, folder, rounding), folder)


def update(site: str, length: int = LENGTH) -> NoisedUpdate:
    values = np.random.default_rng(sum(site.encode())).uniform(-0.4, 0.4, length).astype(np.float32)
    return NoisedUpdate.unprotected(values, site, MECHANISMS["none"].trust)


def quiet(kind: str, **fields) -> None:
    pass


def begin(site: Site) -> dict[bytes, bool]:
    """What a site says that it waits for, before it connects."""
    site.member._begin()
    return dict(site.member._exposed.waiting)


def replay(site: Site, path: Path) -> dict[bytes, bool]:
    """What it waits for after a transcript came."""
    asyncio.run(site.member._replay(path.read_bytes()))
    site.member._look()
    return dict(site.member._exposed.waiting)


@pytest.fixture
def liver(tmp_path) -> Site:
    """site-b of project "liver", which sent shares in round 1, and after which the coordinator fell silent."""
    study = tiny_study(sites=5, mechanism="none")
    make_credentials(tmp_path / "credentials", study, "run")
    options = Options(
        site="site-b", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=tmp_path / "state"
    )
    made = Site(RunFolder.create(tmp_path / "runs", study), load_site(None, "site-b", study), options)
    made.store.close()
    (tmp_path / "state" / exposure.MARKS).unlink()
    secure = sums(tmp_path / "liver", identities(tmp_path), made.policy, server_key(tmp_path))
    silent = dict.fromkeys(["site-d", "site-e"], "Unmasking")
    with pytest.raises(RoundFailedError):
        secure.round(bytes(32), FIVE, lambda site: update(site, made.policy.length), quiet, silent)
    secure.close()
    shutil.copy(tmp_path / "liver" / "site-b.sqlite", tmp_path / "state" / exposure.MARKS)
    return Site(RunFolder.create(tmp_path / "runs", study), load_site(None, "site-b", study), options)


def identities(folder: Path) -> dict[str, SigningKey]:
    return {site: signing_key(folder / "credentials", site) for site in FIVE}


def server_key(folder: Path) -> SigningKey:
    return signing_key(folder / "credentials", "coordinator")


def foreign(folder: Path, policy: Policy, key: SigningKey) -> Path:
    """A transcript that holds, of the same sites and the same run name."""
    secure = sums(folder / "brain", identities(folder), policy, key)
    secure.round(bytes(32), FIVE, lambda site: update(site, policy.length), quiet, {})
    secure.close()
    return folder / "brain" / "round.transcript"


@pytest.mark.parametrize("changed", ["project", "coordinator", "length"])
def test_another_projects_transcript_clears_nothing(tmp_path, liver, changed):
    other = {"project": liver.policy.project + "-2", "server_key": server_key(tmp_path).verify_key, "length": LENGTH}
    key = server_key(tmp_path)
    policy = replace(liver.policy, project=other["project"]) if changed == "project" else liver.policy
    if changed == "coordinator":
        key = SigningKey.generate()
        policy = replace(policy, server_key=key.verify_key)
    if changed == "length":
        policy = replace(policy, length=LENGTH)
    path = foreign(tmp_path, policy, key)
    assert verify([path], policy, load_federation(tmp_path / "credentials", liver.study).pinned).status == "holds"
    waiting = begin(liver)
    assert replay(liver, path) == waiting
    assert len(waiting) == 1
    with liver.store.transaction() as marks:
        assert marks.open_release is not None
    events = (liver.folder.path / "events.jsonl").read_text()
    assert "was refused and settles nothing" in events
    assert "T-03" in events


def test_another_rounds_transcript_of_the_same_project_clears_nothing(tmp_path, liver):
    """Round 1 again, attempt 0, of the same session: everything holds, and it is another round."""
    path = foreign(tmp_path, liver.policy, server_key(tmp_path))
    begin(liver)
    assert replay(liver, path)


def test_with_both_defences_out_another_projects_transcript_lets_the_site_go_on(tmp_path, liver, monkeypatch):
    policy = replace(liver.policy, project="brain")
    path = foreign(tmp_path, policy, server_key(tmp_path))
    (waited,) = begin(liver)
    monkeypatch.setattr(exposed, "verify", lambda paths, _, roster: verify(paths, policy, roster))
    assert list(replay(liver, path)) == [waited]  # the identifier of the round still says that it is another one
    marked = Marks.replay
    monkeypatch.setattr(Marks, "replay", lambda marks, *args: marked(marks, *args[:-1], waited))
    assert not replay(liver, path)
    *_, last = liver.member._outgoing._queue
    assert last.unreplayed == []


# --- 2: two live sessions ----------------------------------------------------------------------------------------


def two_sums(folder: Path) -> tuple[dict, Exception | None]:
    """Two coordinators at once: while the sites of "one" train, a whole round of "two" passes without site-e."""
    keys, server = {site: SigningKey.generate() for site in FIVE}, SigningKey.generate()
    policy = Policy(project="two", clients=5, length=LENGTH, clip_range=0.5, server_key=server.verify_key)
    one, two = (sums(folder, keys, policy, server, run) for run in ("one", "two"))
    totals: dict[str, np.ndarray] = {}

    def train(site: str) -> NoisedUpdate:
        if not totals:
            totals["two"] = two.round(bytes([2] * 32), FIVE[:4], update, quiet, {}).total
        return update(site)

    try:
        totals["one"] = one.round(bytes([1] * 32), FIVE, train, quiet, {}).total
    except RoundFailedError as error:
        return totals, error
    finally:
        one.close()
        two.close()
    quantised, _ = quantize(update("site-e").vector, policy, "site-e", Stream.seeded(1, "site-e", 1))
    totals["site-e"] = dequantize(quantised, policy)
    return totals, None


def test_of_two_live_sessions_the_later_one_is_the_only_one_that_gets_anything(tmp_path):
    totals, error = two_sums(tmp_path)
    assert list(totals) == ["two"]
    assert "C-24" in str(error)


def test_without_c24_two_live_sessions_give_one_sites_update_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(Marks, "_require_live", lambda marks, *_: marks._get("live", {}))
    totals, error = two_sums(tmp_path)
    assert error is None
    assert np.array_equal(totals["one"] - totals["two"], totals["site-e"])


def test_two_studies_on_one_data_set_take_turns_and_neither_ends_the_others_sites(tmp_path, monkeypatch):
    go, train = threading.Event(), site_module.train_round

    def waiting(model, data, study, **rest):
        if study.study.name == "slow":
            go.wait()
        return train(model, data, study, **rest)

    monkeypatch.setattr(site_module, "train_round", waiting)
    fast = tiny_study(rounds=1, mechanism="none")
    slow = fast.replace(study={"name": "slow"})

    async def scenario() -> None:
        async with Federation(slow, tmp_path) as first:
            first.start()
            await first.until(lambda: len(first.of(COORDINATOR, "train")) >= 3)
            async with Federation(fast, tmp_path, run="another-run") as second:
                second.start()
                try:
                    await second.finished()
                finally:
                    go.set()
                await first.finished()
        assert second.of(COORDINATOR, "end_round")[0]["round"] == 1
        assert "C-24" in first.said("site-a")
        assert [event["round"] for event in first.of(COORDINATOR, "end_round")] == [2]

    asyncio.run(scenario())


# --- 3: a new run ------------------------------------------------------------------------------------------------


def test_a_new_training_run_asks_for_the_round_that_the_old_one_left_open(tmp_path):
    study = tiny_study(rounds=2, mechanism="none")

    async def scenario() -> None:
        async with Federation(study, tmp_path, kind=Withholding) as old:
            old.start()
            await old.until(lambda: all(old.asked(site) for site in FIVE[:3]))
        async with Federation(study, tmp_path, run="another-run", kind=Withholding) as new:
            new.start()
            await new.until(lambda: all(new.asked(site) for site in FIVE[:3]))
            assert not new.of(COORDINATOR, "round")  # nobody joined anything
        async with Federation(
            study, tmp_path, run="another-run"
        ) as honest:  # it finds the transcript beside its own folder
            honest.start()
            await honest.until(lambda: any(honest.coordinator.presence.shown.values()))
            running = asyncio.create_task(honest.accept_whatever_is_asked())
            await honest.finished()
            running.cancel()
        assert [event["round"] for event in honest.of(COORDINATOR, "end_round")] == [1, 2]

    asyncio.run(scenario())


# --- 5: a hidden round -------------------------------------------------------------------------------------------


class Hiding(Coordinator):
    """Takes the sum of round 1, and goes on as if it had burned."""

    async def _completed(self, save, done) -> None:
        await super()._completed(save, done)
        self.book.receipts = ()


def test_a_coordinator_that_hides_a_finished_round_is_refused(tmp_path):
    async def scenario() -> None:
        async with Federation(tiny_study(rounds=2), tmp_path, kind=Hiding) as federation:
            federation.start()
            sites = await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
        # Its model is that of round 1 on a head from before any round, which a site sees before its log does (C-04).
        assert all("the coordinator's first model is not the start of the study" in str(error) for error in sites), (
            sites
        )

    asyncio.run(scenario())


def test_a_coordinator_that_hides_a_finished_round_and_its_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fedseg.site.run.same_everywhere", lambda study: False
    )  # where a start has other bits elsewhere

    async def scenario() -> None:
        async with Federation(tiny_study(rounds=2), tmp_path, kind=Hiding) as federation:
            federation.start()
            sites = await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
        assert all("[C-04]" in str(error) for error in sites), sites

    asyncio.run(scenario())


# --- 12: poisoned slots ------------------------------------------------------------------------------------------


def test_a_site_that_poisons_its_slots_is_named_and_left_out_and_the_next_round_completes(tmp_path, monkeypatch):
    honest, mask_input = masking.slot_values, Reported.mask_input

    def poisoned(state, *args, **kwargs):
        if state.own.me != "site-b":
            return mask_input(state, *args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(masking, "slot_values", lambda policy, round_id: honest(policy, round_id) + 1)
            return mask_input(state, *args, **kwargs)

    monkeypatch.setattr(Reported, "mask_input", poisoned)

    async def scenario() -> None:
        async with Federation(tiny_study(sites=5, rounds=2), tmp_path) as federation:
            federation.start()
            await federation.finished()
        (ended,) = federation.of(COORDINATOR, "end_round")
        assert (ended["round"], ended["included"]) == (2, tuple(site for site in FIVE if site != "site-b"))
        assert _burned(federation)[0] == (1, 0)
        assert "site-b is left out of every later round" in federation.said(COORDINATOR)
        assert {event["site"] for event in federation.of(COORDINATOR, "step") if event["step"] == "Blame"} == set(FIVE)
        (burned,) = federation.of("site-a", "burned")
        assert (burned["round"], burned["attempt"]) == (1, 0)
        assert [event["step"] for event in federation.of("site-a", "step") if event["round"] == 1][-1] == "Blame"

    asyncio.run(scenario())


def test_with_differential_privacy_a_burned_round_keeps_nobody_out(tmp_path):
    killing = Killing()

    async def scenario() -> None:
        federation = killing.federation = Federation(tiny_study(sites=5, rounds=2), tmp_path, on=killing)
        async with federation:
            federation.start()
            await federation.finished()
        assert [event["round"] for event in federation.of(COORDINATOR, "end_round")] == [2]
        assert not any(ASKED in federation.said(site) for site in FIVE)

    asyncio.run(scenario())


# --- The next model: what the last one and the sum give, whatever the coordinator sends in between ------------------


class Rewinding(Coordinator):
    """Sends a model to evaluate just before the result, such that with the sum it gives the old model again."""

    async def run(self) -> Path:
        honest = self.mailbox.send

        def send(site: str, kind: str, payload: bytes) -> None:
            if kind == Protocolled.kind and isinstance(wire.decode_from_server(payload), Result):
                server = self.driver.session
                forward = self.study.following(
                    self.state, dequantize(server.result, self.policy), server.included, self.policy
                )
                self.back = (2 * self.state - forward).astype(np.float32)
                start = replace(self.book.start(model_hash(self.back)), previous_head=b"x" * 32, signature=b"")
                honest(
                    site,
                    ToEvaluate.kind,
                    ToEvaluate(start.sign(self.book.signing_key), content_of(self.back)).packed(),
                )
            honest(site, kind, payload)

        self.mailbox.send = send
        return await super().run()

    async def _completed(self, save, done) -> None:
        await super()._completed(save, done)
        self.state = self.study.following(self.back, done.total, done.included, self.policy)


def test_a_model_sent_for_evaluation_does_not_change_which_model_follows(tmp_path):
    """Otherwise round 2 would be about the updates of round 1 again, and every site could be left out of it."""

    async def scenario() -> None:
        study = tiny_study(rounds=2, mechanism="none")
        async with Federation(study, tmp_path, kind=Rewinding) as federation:
            federation.start()
            sites = await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
        assert all("the last one plus the last sum" in str(error) for error in sites), sites

    asyncio.run(scenario())


def test_a_first_model_that_is_not_the_start_of_the_study_is_not_trained(tmp_path):
    """Weights can be made to give patients away, and on any first model the updates of another run could be summed."""
    study = tiny_study(mechanism="none")
    make_credentials(tmp_path / "credentials", study, "run")
    options = Options(
        site="site-b", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=tmp_path / "state"
    )
    site = Site(RunFolder.create(tmp_path / "runs", study), load_site(None, "site-b", study), options)

    def about(state: np.ndarray, number: int, head: bytes) -> bytes:
        start = RoundStart("run", number, 0, model_hash(state), study.hash(), head, ()).sign(server_key(tmp_path))
        return site.about(start, content_of(state))

    first = opened(starting_model(study), 0)
    bent = first + np.float32(1e-3)
    for number in (1, 2):  # round 1 may have burned
        assert about(first, number, GENESIS) == model_hash(first)
        with pytest.raises(RoundFailedError, match="first model is not the start of the study"):
            about(bent, number, GENESIS)
    assert about(bent, 2, b"h" * 32) == model_hash(bent)  # after a sum that this site did not see
    site.store.close()


def test_a_site_that_has_not_the_file_of_the_start_takes_the_coordinators_first_model(tmp_path):
    """The file is the coordinator's: nothing here tells whether its model is right, and nothing breaks."""
    study = tiny_study(mechanism="none").replace(model={"start": str(tmp_path / "elsewhere.safetensors")})
    make_credentials(tmp_path / "credentials", study, "run")
    options = Options(
        site="site-b", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=tmp_path / "state"
    )
    site = Site(RunFolder.create(tmp_path / "runs", study), load_site(None, "site-b", study), options)
    state = opened(starting_model(tiny_study(mechanism="none")), 0)
    start = RoundStart("run", 1, 0, model_hash(state), study.hash(), GENESIS, ()).sign(server_key(tmp_path))
    assert site.about(start, content_of(state)) == model_hash(state)
    site.store.close()


class Repeating(Coordinator):
    """Opens every round on the model of the first, once the sites were started again."""

    again = asyncio.Event()

    async def _gather(self) -> list[str]:
        while self.book.number > 1 and not self.again.is_set():
            await self._hear(0.05)
        return await super()._gather()

    async def _completed(self, save, done) -> None:
        before = self.state
        await super()._completed(save, done)
        self.state = before


def test_a_site_that_was_started_again_still_knows_which_model_follows(tmp_path):
    async def scenario() -> None:
        Repeating.again = asyncio.Event()
        study = tiny_study(rounds=2, mechanism="none")
        async with Federation(study, tmp_path, kind=Repeating) as federation:
            federation.start()
            await federation.until(lambda: all(list(tmp_path.glob(f"{site}/*/transcripts/*")) for site in FIVE[:3]))
            federation.kill(*FIVE[:3])
            await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
            federation.start()
            Repeating.again.set()
            sites = await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
        assert all("the last one plus the last sum" in str(error) for error in sites), sites

    asyncio.run(scenario())


class Late:
    """Kills every site once all of them have released, before any has the sum."""

    def __init__(self, *sites: str) -> None:
        self.sites, self.released, self.federation = sites, set[str](), None

    def __call__(self, who: str, event: dict) -> None:
        if (who, event["kind"], event.get("step"), event.get("round")) == (COORDINATOR, "step", "Unmasking", 1):
            self.released.add(event["site"])
            if len(self.released) == len(self.sites):
                self.federation.kill(*self.sites)


def test_sites_that_confirm_a_sum_late_know_which_model_follows(tmp_path):
    """A confirmation by a new process must keep no less than one in time, or the same updates are summed again."""
    late = Late(*FIVE[:3])

    async def scenario() -> None:
        Repeating.again = asyncio.Event()
        Repeating.again.set()
        study = tiny_study(rounds=2, mechanism="none")
        async with Federation(study, tmp_path, kind=Repeating, on=late) as federation:
            late.federation = federation
            federation.start()
            await federation.until(lambda: federation.of(COORDINATOR, "end_round"))
            await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
            assert all(open_release(tmp_path, site) for site in FIVE[:3])
            federation.start()
            sites = await asyncio.gather(*(federation.tasks[site] for site in FIVE[:3]), return_exceptions=True)
            assert len(federation.of(COORDINATOR, "end_round")) == 1, "the same updates were summed twice"
        assert all("the last one plus the last sum" in str(error) for error in sites), sites

    asyncio.run(scenario())


class Inventing(Coordinator):
    """After round 1 it says that everybody missed a round 2, and opens round 3 on the model of round 1."""

    async def _completed(self, save, done) -> None:
        before = self.state
        await super()._completed(save, done)
        run, head, hashes = self.book.training_run, self.book.head, (b"r" * 32, b"a" * 32, b"t" * 32)
        self.book.completed(Receipt(run, 2, *hashes, head, next_head(head, *hashes)).sign(self.book.signing_key))
        self.state = before


def test_a_round_that_nobody_took_part_in_moves_no_site_to_another_model(tmp_path):
    async def scenario() -> None:
        study = tiny_study(rounds=3, mechanism="none")
        async with Federation(study, tmp_path, kind=Inventing) as federation:
            federation.start()
            await federation.until(lambda: all(federation.asked(site) for site in FIVE[:3]))
            assert len(federation.of(COORDINATOR, "end_round")) == 1
            assert {event["round"] for event in federation.of(COORDINATOR, "step")} == {1}
        for site in FIVE[:3]:
            assert "round 2, the last finished one, was one of its cohort" in federation.said(site)
            assert (b"r" * 32).hex() in federation.asked(site)[-1]

    asyncio.run(scenario())
