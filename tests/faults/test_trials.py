"""Trials of an early version that failed and are no cell of the matrix: two faults at once, networks, endings.

Numbers are those of the table in docs/operations.md. Real processes of the real commands, real TLS, real files.
"""

import signal
import time

import pytest

from secagg.service.stopping import ENDED_EARLY
from secagg.steps import MASKED_INPUT_COLLECTION, UNMASKING
from tests.faults.faults import ROUND
from tests.faults.federation import ROUNDS, SITES, STRUCK, federation
from tests.faults.parties import BETWEEN, CONFIRMATION, HOLD, KILL, Strike, until
from tests.support.tcp_proxy import UP


def everybody_ends_well(made):
    assert made.coordinator.status() == 0, made.coordinator.said()
    assert [made.parties[site].status() for site in SITES] == [0] * len(SITES)
    made.check_sums()
    made.check_logs()


def test_5_a_coordinator_that_gives_up_is_no_success_of_any_command_even_before_the_first_sum(tmp_path):
    with federation(tmp_path / "federation") as made:
        made.patience = 3.0
        made.serve()
        for site in SITES[:2]:
            made.join(site)
        assert made.coordinator.status() == ENDED_EARLY
        for site in SITES[:2]:
            assert made.parties[site].status() == ENDED_EARLY
            assert "the coordinator gave up: 2 of 4 sites are there" in made.parties[site].said()
        made.serve()  # nothing was lost, and nobody takes the run for finished
        for site in SITES:
            made.join(site)
        everybody_ends_well(made)


def test_6_a_sum_is_confirmed_later_where_two_sites_and_the_coordinator_die_just_after_it(tmp_path):
    """Updates are not private on their own: three of four have to confirm before anybody may go on."""
    with federation(tmp_path / "federation") as made:
        made.serve()
        made.join(SITES[0])
        held = made.join(SITES[1], Strike(CONFIRMATION, HOLD, ROUND))
        struck = [made.join(site, Strike(CONFIRMATION, KILL, ROUND)) for site in SITES[2:]]
        held.held()
        until(lambda: not any(site.alive for site in struck), "two sites died before they confirmed")
        assert made.finished(ROUND)
        made.coordinator.kill()
        held.go_on()
        time.sleep(5)  # longer than the three seconds for which confirmations were waited for
        made.serve()
        for site in SITES[2:]:
            made.join(site)
        everybody_ends_well(made)
        assert made.included(ROUND + 1) == list(SITES)
        assert made.attempts(ROUND) == 1


@pytest.mark.parametrize("step", [MASKED_INPUT_COLLECTION, pytest.param(UNMASKING, marks=pytest.mark.slow)])
def test_7_an_outage_of_the_coordinators_own_network_burns_nothing_below_the_deadline_of_the_step(tmp_path, step):
    with federation(tmp_path / "federation", step_seconds=30.0) as made:
        made.all_behind = True
        made.serve()
        for site in SITES[:-1]:
            made.join(site)
        held = made.join(STRUCK, Strike(step, HOLD, ROUND))
        held.held()
        made.proxy.refuse()
        held.go_on()
        time.sleep(5)  # longer than the grace for one site
        made.proxy.clear()
        everybody_ends_well(made)
        assert [made.included(number) for number in range(1, ROUNDS + 1)] == [list(SITES)] * ROUNDS
        assert made.attempts(ROUND) == 1


@pytest.mark.slow
def test_8_a_step_waits_beyond_its_deadline_for_a_site_that_is_still_sending(tmp_path):
    """The masked input takes three times the step's seconds on this line."""
    with federation(tmp_path / "federation", length=40_000, step_seconds=3.0) as made:
        made.serve()
        for site in SITES[:-1]:
            made.join(site)
        held = made.join(STRUCK, Strike(MASKED_INPUT_COLLECTION, HOLD, ROUND))
        held.held()
        made.proxy.throttle(12_000, UP)
        held.go_on()
        until(lambda: made.finished(ROUND), "the round has a sum")
        made.proxy.clear()
        everybody_ends_well(made)
        assert made.included(ROUND) == list(SITES)
        assert made.attempts(ROUND) == 1


@pytest.mark.slow
def test_15_a_site_that_is_gone_for_good_is_waited_for_once(tmp_path):
    with federation(tmp_path / "federation", rounds=5) as made:
        made.rejoin_seconds = 4.0
        for number in range(1, 6):
            made.write_vectors(number)
        made.serve()
        for site in SITES[:-1]:
            made.join(site)
        made.join(STRUCK, Strike(MASKED_INPUT_COLLECTION, KILL, 2))
        assert made.coordinator.status() == 0
        waited = [event for event in made.coordinator.events("waiting") if event["sites"] == [STRUCK]]
        assert len([event for event in waited if not event["step"]]) == 1
        made.check_sums()
        assert [made.included(number) for number in (2, 3, 4, 5)] == [list(SITES[:-1])] * 4


def test_16_ctrl_c_at_the_coordinator_is_a_sentence_and_the_same_command_goes_on(tmp_path):
    with federation(tmp_path / "federation") as made:
        coordinator = made.serve()
        for site in SITES[:-1]:
            made.join(site)
        held = made.join(STRUCK, Strike(BETWEEN, HOLD, ROUND))
        held.held()
        coordinator.signal(signal.SIGINT)
        assert coordinator.status(20) == ENDED_EARLY
        assert "SIGINT came; the same command goes on with this run" in coordinator.said()
        made.serve()
        held.go_on()
        everybody_ends_well(made)


def test_16_a_wrong_signing_key_and_a_state_that_is_a_file_are_sentences_before_anything_is_sent(tmp_path):
    with federation(tmp_path / "federation") as made:
        other, own = made.folder / SITES[1] / f"{SITES[1]}.signing", made.folder / STRUCK / f"{STRUCK}.signing"
        kept = own.read_text()
        own.write_text(other.read_text().replace(SITES[1], STRUCK))
        wrong = made.join(STRUCK)
        assert wrong.status() == 1
        assert "signing key" in wrong.said()
        assert not wrong.events("connected")
        own.write_text(kept)
        marks = made.folder / STRUCK / "marks.sqlite"
        marks.unlink(missing_ok=True)
        marks.mkdir()
        spoilt = made.join(STRUCK)
        assert spoilt.status() == 1
        assert "marks.sqlite" in spoilt.said()
        made.check_logs()
