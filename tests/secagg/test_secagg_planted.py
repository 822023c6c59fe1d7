"""Bugs that were planted and survived: each has a test of what it breaks, and falls to it."""

import secrets
import threading
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from secagg import InconsistentViewError, TooFewClientsError, UnexpectedMessageError
from secagg.context import Slot
from secagg.keys import MaskKey
from secagg.messages import IncludedSet
from secagg.prg import CHUNK_BYTES, Masks, apply_masks
from secagg.sqlite import SqliteStore
from secagg.steps import CONSISTENCY_CHECK, MASKED_INPUT_COLLECTION
from tests.support.cohort import RUN, Cohort, Play
from tests.support.hostile import pair_material, remove_masks

# --- A keystream that repeats after 64 chunks --------------------------------------------------------------------

SEED = bytes(range(32))
WORDS = CHUNK_BYTES // 4


def chunk(seed: bytes, index: int) -> np.ndarray:
    """Chunk `index` by the definition, block by block: AES-256 of (index as 96 bits | 2, 3, ... as 32 bits)."""
    counters = np.empty((CHUNK_BYTES // 16, 16), np.uint8)
    counters[:, :12] = np.frombuffer(index.to_bytes(12, "big"), np.uint8)
    counters[:, 12:] = np.arange(2, 2 + len(counters), dtype=">u4").view(np.uint8).reshape(-1, 4)
    encrypted = Cipher(AES256(seed), ECB()).encryptor().update(counters.tobytes())
    return np.frombuffer(encrypted, "<u4")


@pytest.mark.parametrize("first", [0, 1, 63, 64, 65, 127, 128, 255, 256, 4097, 2**16, 2**20 + 3, 2**32 - 1, 2**40])
def test_every_chunk_of_a_mask_is_its_own_however_far_out(first):
    vector = np.zeros(2 * WORDS, np.uint32)
    Masks([SEED], []).apply(vector, first)
    assert np.array_equal(vector[:WORDS], chunk(SEED, first))
    assert np.array_equal(vector[WORDS:], chunk(SEED, first + 1))


def test_a_vector_of_more_than_four_million_values_never_sees_a_mask_twice():
    """131 chunks, 8.6 million values: against the definition in pieces, and no two chunks are the same."""
    vector, other = np.zeros(131 * WORDS - 5, np.uint32), SEED[::-1]
    apply_masks(vector, [SEED], [other])
    heads = set()
    for index in range(131):
        part = vector[index * WORDS : (index + 1) * WORDS]
        assert np.array_equal(part, (chunk(SEED, index) - chunk(other, index))[: len(part)])
        heads.add(part[:8].tobytes())
    assert len(heads) == 131


def test_a_sum_of_more_than_four_million_values_is_exact_and_no_mask_repeats():
    cohort = Cohort(3, length=65 * WORDS + 7)
    play = Play(cohort).until(MASKED_INPUT_COLLECTION)
    said = next(iter(play.out.values()))
    words = np.frombuffer(bytes(said.y), "<u4")
    play.to_the_end()
    assert play.exact
    update = cohort.plain_sum([said.client_id])
    masks = words[: len(update)] - update
    assert not np.array_equal(masks[:WORDS], masks[64 * WORDS : 65 * WORDS])


# --- min_survivors confused with t at U3 -------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [5, 6])
def test_an_honest_server_ends_a_round_with_fewer_inputs_than_min_survivors_though_t_would_do(inputs):
    cohort = Cohort(8, c=1, min_survivors=7)
    assert cohort.policy.threshold == 5
    silent = dict.fromkeys(cohort.ids[inputs:], MASKED_INPUT_COLLECTION)
    play = cohort.play(silent=silent)
    assert isinstance(play.failure, TooFewClientsError)
    assert (play.failure.step, play.failure.have, play.failure.need) == (MASKED_INPUT_COLLECTION, inputs, 7)


@pytest.mark.parametrize("inputs", [5, 6])
def test_a_client_attests_no_set_of_fewer_than_min_survivors_though_t_would_do(inputs):
    """A lying server shows everybody the same, well signed, too small set."""
    cohort = Cohort(8, c=1, min_survivors=7)

    def fewer(step, who, message):
        return IncludedSet(message.inputs[:inputs]) if isinstance(message, IncludedSet) else message

    play = Play(cohort, down=fewer).until(CONSISTENCY_CHECK)
    assert play.out == {}
    for who in cohort.ids[:inputs]:
        assert isinstance(play.errors[who], InconsistentViewError)
        assert play.errors[who].check == "C-21"


# --- The check of the contribution outside its transaction -------------------------------------------------------


SLOT = Slot(bytes(32), RUN, 1, 0)


def contribute(store: SqliteStore) -> None:
    with store.transaction() as marks:
        marks.contribute(SLOT, f"event {threading.get_ident()}", (), private=True)


def test_of_two_processes_that_contribute_at_once_exactly_one_wins(tmp_path: Path):
    """Two openings of one file; both have done everything that comes before BEGIN when the first one begins."""
    stores = [SqliteStore(tmp_path / "marks.sqlite", "d") for _ in range(2)]
    with stores[0].transaction() as marks:
        marks.join(SLOT, bytes(32), private=True)
    begin, outcomes = threading.Barrier(2), []
    for store in stores:
        store._database.set_trace_callback(lambda sql: begin.wait(60) if sql.startswith("BEGIN") else None)

    def race(store: SqliteStore) -> None:
        try:
            contribute(store)
            outcomes.append("contributed")
        except UnexpectedMessageError as error:
            outcomes.append(error.check)

    threads = [threading.Thread(target=race, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["C-14", "contributed"]


# --- b_u derived from s_u ----------------------------------------------------------------------------------------

VICTIM = "site-b"


class Drawn:
    """The operating system's randomness, draw by draw: the same in every run but for the draws given."""

    def __init__(self, changed: dict[int, bytes] | None = None) -> None:
        self.changed, self.draws = changed or {}, []

    def __call__(self, size: int = 32) -> bytes:
        index = len(self.draws)
        self.draws.append(self.changed.get(index, chunk(SEED, index).tobytes()[:size]))
        return self.draws[-1]


def run_with(monkeypatch, drawn: Drawn) -> tuple[bytes, bytes, Cohort, Play, dict]:
    """A round up to the masked inputs: s_u and b_u of the victim, and everything that was said and shown."""
    cohort, heard = Cohort(4), {}

    def keep(step, who, message):
        heard[type(message).__name__, who] = message
        return message

    with monkeypatch.context() as patch:
        patch.setattr(secrets, "token_bytes", drawn)
        play = Play(cohort, down=keep).until("ShareKeys")
        state = play.clients[VICTIM]._state
        s_u, b_u = bytes(state.mask_key.seed), bytes(state.self_seed)
        play.until(MASKED_INPUT_COLLECTION)
    return s_u, b_u, cohort, play, heard


def read(s_u: bytes, b_u: bytes, cohort: Cohort, play: Play, heard: dict) -> np.ndarray:
    """What somebody reads from the victim's y who knows s_u, everything that was sent, and takes b_u for its seed."""
    said, roster = play.out[VICTIM], heard["Roster", VICTIM]
    pairs = pair_material(MaskKey(cohort.suite, s_u), roster, VICTIM, heard["Reports", VICTIM].by_id)
    return remove_masks(cohort, roster, said.round_id, VICTIM, said.y, b_u, pairs)


def test_a_public_mask_key_does_not_open_the_self_mask(monkeypatch):
    """s_u tells nothing about b_u: either can be drawn anew while the other stays, and y stays closed under b_u."""
    first = Drawn()
    s_u, b_u, *round_1 = run_with(monkeypatch, first)
    assert first.draws.count(s_u) == first.draws.count(b_u) == 1, "each is a draw of its own"
    again = run_with(monkeypatch, Drawn())
    assert (again[0], again[1]) == (s_u, b_u)

    at_s, at_b, other = first.draws.index(s_u), first.draws.index(b_u), bytes([77]) * 32
    same_s, new_b, *round_2 = run_with(monkeypatch, Drawn({at_b: other}))
    assert (same_s, new_b) == (s_u, other)
    new_s, same_b, *_ = run_with(monkeypatch, Drawn({at_s: other}))
    assert (new_s, same_b) == (other, b_u)

    # Whoever could compute b_u from s_u and what is public would find the same one in both runs.
    update = round_2[0].plain_sum([VICTIM])
    assert np.array_equal(read(s_u, b_u, *round_1), update)
    assert not np.array_equal(read(s_u, b_u, *round_2), update)
    assert np.array_equal(read(s_u, new_b, *round_2), update)
