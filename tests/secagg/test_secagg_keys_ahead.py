"""Keys of the next attempt that are drawn ahead: they are for one join, and after any other one they are gone."""

import copy
import pickle
from contextlib import contextmanager

import pytest

from secagg import ClientSession, Suite, unchecked_round, wire
from secagg.ahead import KeysAhead
from secagg.driver import Send
from secagg.errors import ConfigError, UnexpectedMessageError
from tests.secagg.test_secagg_driver import World
from tests.support.cohort import Cohort


def first(cohort, ahead, attempt):
    """What site-a advertises in an attempt."""
    about = (cohort.policy, "site-a", cohort.keys["site-a"], cohort.roster)
    opened = unchecked_round(cohort.context(1, attempt))
    return ClientSession(*about, opened, cohort.stores["site-a"], ahead=ahead).start()


def public(ahead):
    channel, mask = ahead._drawn
    return channel.public, mask.dh_public, mask.kem_public


def advertised(message):
    return message.channel_pk, message.mask_dh_pk, message.mask_kem_pk


@pytest.mark.parametrize("suite", Suite)
def test_keys_are_there_before_the_attempt_and_serve_one(suite):
    cohort = Cohort(suite=suite)
    ahead = KeysAhead(cohort.policy.suite, cohort.stores["site-a"])
    ahead.draw()
    drawn = public(ahead)
    ahead.draw()
    assert advertised(first(cohort, ahead, 0)) == drawn
    later = {advertised(first(cohort, ahead, attempt)) for attempt in (1, 2)}
    assert len(later | {drawn}) == 3


def test_memory_that_was_restored_or_forked_has_keys_that_no_attempt_takes_again():
    """The second object stands for the same memory in another process: it holds the very keys."""
    cohort = Cohort()
    ahead, restored = (KeysAhead(cohort.policy.suite, cohort.stores["site-a"]) for _ in range(2))
    ahead.draw()
    drawn, restored._drawn = public(ahead), ahead._drawn
    assert advertised(first(cohort, ahead, 0)) == drawn
    assert advertised(first(cohort, restored, 1)) != drawn
    assert restored._drawn is None


def test_an_attempt_that_another_process_joined_makes_them_worthless_and_wipes_them():
    cohort = Cohort()
    ahead = KeysAhead(cohort.policy.suite, cohort.stores["site-a"])
    ahead.draw()
    drawn, (channel, mask) = public(ahead), ahead._drawn
    first(cohort, None, 0)
    assert advertised(first(cohort, ahead, 1)) != drawn
    assert vars(channel) == vars(mask) == {}


def test_an_attempt_that_is_refused_leaves_none_behind_in_memory():
    cohort = Cohort()
    ahead = KeysAhead(cohort.policy.suite, cohort.stores["site-a"])
    first(cohort, ahead, 1)
    ahead.draw()
    channel, mask = ahead._drawn
    with pytest.raises(UnexpectedMessageError, match="C-03"):
        first(cohort, ahead, 0)
    assert vars(channel) == vars(mask) == {}
    ahead.draw()
    drawn = public(ahead)
    assert advertised(first(cohort, ahead, 2)) == drawn


def test_a_store_that_cannot_be_used_just_now_keeps_no_client_from_its_rest():
    world = World()
    driver = world.clients["site-a"]

    @contextmanager
    def locked():
        raise ConfigError("another process has it")
        yield

    world.cohort.stores["site-a"].transaction = locked
    driver.rest()
    assert driver._ahead._drawn is not None


def test_they_show_nowhere_and_are_not_copied():
    cohort = Cohort()
    ahead = KeysAhead(cohort.policy.suite, cohort.stores["site-a"])
    ahead.draw()
    assert repr(ahead) == "<KeysAhead>"
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="never copied or pickled"):
            attempt(ahead)


def test_a_driver_at_rest_has_them_and_one_in_an_attempt_draws_none():
    world = World()
    for driver in world.clients.values():
        driver.rest()
    drawn = {me: public(driver._ahead) for me, driver in world.clients.items()}
    seen = {}

    def says(me, data):
        seen.setdefault(me, wire.decode_from_client(data))
        world.clients[me].rest()
        return data

    world.says = says
    world.begin()
    assert {me: advertised(message) for me, message in seen.items()} == drawn
    world.clients["site-a"].close()
    assert world.clients["site-a"]._ahead._drawn is None


def test_keys_are_drawn_between_rounds_and_not_within_one():
    world = World()
    world.begin()
    driver = world.clients["site-b"]
    assert not driver.live
    driver.rest()
    assert driver._ahead._drawn is not None
    driver.model_hash = bytes([9]) * 32
    world.says = lambda me, data: None
    sent = driver.receive(wire.encode(world.book.start(bytes([9]) * 32)))
    assert isinstance(sent[0], Send)
    driver.rest()
    assert driver._ahead._drawn is None
