"""Skipping or repeating a round, or handing one round's message to another, is a type error before it is a bug."""

from pathlib import Path

from tests.support.typing_errors import wrong_lines

ROOT = Path(__file__).parents[2]

ROUNDS = """
from secagg.client import Advertised, Attested, Joining, Masked, Reported, Shared
from secagg.messages import Attestations, IncludedSet, Reports, Roster, ShareInbox
from secagg.quantize import Quantised

def in_order(state: Joining, roster: Roster, inbox: ShareInbox, reports: Reports, update: Quantised,
             included: IncludedSet, attestations: Attestations) -> None:
    advertised, _ = state.advertise_keys()
    shared, _ = advertised.share_keys(roster)
    reported, _ = shared.report(inbox)
    masked, _ = reported.mask_input(reports, update)
    attested, _ = masked.attest(included)
    attested.unmask(attestations)

def skips_the_roster(state: Joining, inbox: ShareInbox) -> None:
    state.advertise_keys()[0].report(inbox)

def skips_the_report(state: Shared, reports: Reports, update: Quantised) -> None:
    state.mask_input(reports, update)

def skips_the_consistency_check(state: Masked, attestations: Attestations) -> None:
    state.unmask(attestations)

def masks_twice(state: Masked, reports: Reports, update: Quantised) -> None:
    state.mask_input(reports, update)

def takes_another_rounds_message(state: Attested, included: IncludedSet) -> None:
    state.unmask(included)
"""


def test_a_round_that_is_skipped_does_not_type_check(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong, told = wrong_lines(ROUNDS, tmp_path)
    bad = {i for i, line in enumerate(ROUNDS.splitlines(), start=1) if line.startswith("    state.")}
    assert wrong == bad, told
    assert len(bad) == 5
