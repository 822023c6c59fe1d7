"""A server with an executor takes masks off while the last shares come in: the same round, begun earlier."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

import secagg.client
from secagg import ShareError, Suite, wire
from secagg.messages import Roster
from secagg.shamir import PRIME, SHARE_BYTES
from secagg.steps import MASKED_INPUT_COLLECTION, UNMASKING
from secagg.transcript_files import Recorder, verify
from tests.support.cohort import SERVER_KEY, Cohort, Play
from tests.support.hostile import deal_otherwise

SILENT = {"site-f": MASKED_INPUT_COLLECTION, "site-d": UNMASKING}


class Begins:
    """An executor that works as soon as it is asked, and keeps the seeds of every call."""

    def __init__(self, copies: bool = False) -> None:
        self.calls, self._copies = [], copies

    def map(self, function, parts, add, subtract, chunks):
        add, subtract = next(add), next(subtract)
        self.calls.append((*add, *subtract))
        return [
            function(part.copy() if self._copies else part, add, subtract, chunk)
            for part, chunk in zip(parts, chunks, strict=True)
        ]


def unmasking(cohort: Cohort, executor, silent=SILENT, **given) -> Play:
    """A round whose server is about to collect shares."""
    play = Play(cohort, silent=silent)
    play.server = cohort.server(executor=executor, **given)
    return play.until(UNMASKING)


def hear(play: Play, clients) -> None:
    for client_id in clients:
        play.server.receive(client_id, wire.decode_from_client(wire.encode(play.out[client_id])))


@pytest.mark.parametrize("suite", list(Suite))
@pytest.mark.parametrize("executor", [Begins(), Begins(copies=True), ThreadPoolExecutor(2)])
def test_the_sum_is_exact_and_the_transcript_holds(tmp_path, suite, executor):
    cohort = Cohort(7, suite=suite, length=300_000)
    with Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY) as recorder:
        play = unmasking(cohort, executor, record=recorder).to_the_end()
    assert play.failure is None
    assert play.exact
    assert (play.server.dropped, "site-d" in play.server.included) == (("site-f",), True)
    assert verify([tmp_path / "t"], cohort.policy, cohort.roster).status == "holds"


def test_an_executor_that_fails_at_first_costs_no_message(tmp_path):
    """The share that was taken meanwhile is recorded as well: without it the transcript would not hold."""

    class FailsOnce(Begins):
        def map(self, *given):
            if not self.calls:
                self.calls.append(())
                raise RuntimeError("no workers")
            return super().map(*given)

    cohort, executor = Cohort(7, length=5), FailsOnce()
    with Recorder(tmp_path / "t", cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY) as recorder:
        play = unmasking(cohort, executor, record=recorder).to_the_end()
    assert play.exact
    assert len(executor.calls) > 1
    assert verify([tmp_path / "t"], cohort.policy, cohort.roster).status == "holds"


def test_begins_at_the_t_th_message_and_expands_every_mask_once():
    cohort, executor = Cohort(7, length=5), Begins()
    play = unmasking(cohort, executor)
    threshold, heard = cohort.policy.threshold, [i for i in play.out if i not in SILENT]
    hear(play, heard[: threshold - 1])
    assert executor.calls == []
    hear(play, heard[threshold - 1 : threshold])
    (begun,) = executor.calls
    assert len(begun) == 6 + threshold  # six included have self masks; t of them have been heard about the one dropped
    hear(play, heard[threshold:])
    assert len(executor.calls) == 1
    play.answer(play.server.close_step())
    seeds = [seed for call in executor.calls for seed in call]
    assert len(executor.calls) == 2
    assert len(seeds) == len(set(seeds)) == 6 + 6
    assert play.exact


def test_without_an_executor_nothing_begins_before_the_end():
    play = unmasking(Cohort(7, length=5), None)
    with mock.patch("secagg.server.unpack", side_effect=AssertionError):
        hear(play, [i for i in play.out if i not in SILENT])
    play.answer(play.server.close_step())
    assert play.exact


@pytest.mark.parametrize(("which", "step"), [(0, MASKED_INPUT_COLLECTION), (1, UNMASKING)])
def test_a_dealer_of_something_else_is_convicted_as_ever(which, step):
    cohort = Cohort(6, length=5)
    play = Play(cohort, silent={"site-b": step})
    play.server = cohort.server(executor=Begins())
    deal_otherwise(play.clients["site-b"], which, 7)
    play.to_the_end()
    assert isinstance(play.failure, ShareError)
    assert (play.failure.check, play.failure.culprits) == ("S-18", ("site-b",))


@pytest.mark.parametrize("executor", [None, Begins()])
def test_the_shares_at_the_end_decide_whatever_those_at_the_beginning_gave(executor):
    """A corrupt dealer gives site-a a share beside the polynomial, and commits to it.

    The first t shares that come open the right key; those that a verifier of the transcript will use do not.
    """
    cohort = Cohort(6, length=5)
    play = Play(cohort, silent={"site-f": MASKED_INPUT_COLLECTION})
    play.server = cohort.server(executor=executor)
    honest, dealer = secagg.client.split, play.clients["site-f"]
    receive = dealer.receive

    def beside(secret, threshold, positions):
        shares = honest(secret, threshold, positions)
        return [((int.from_bytes(shares[0], "big") + 1) % PRIME).to_bytes(SHARE_BYTES, "big"), *shares[1:]]

    def deals(message):
        if not isinstance(message, Roster):
            return receive(message)
        with mock.patch.object(secagg.client, "split", beside):
            return receive(message)

    dealer.receive = deals
    play.until(UNMASKING)
    hear(play, sorted(play.out, reverse=True))
    with pytest.raises(ShareError) as caught:
        play.server.close_step()
    assert (caught.value.check, caught.value.culprits) == ("S-18", ("site-f",))
