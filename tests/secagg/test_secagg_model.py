"""The model under audits/model: its events are named as its README says, and spin agrees with it (slow)."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "audits" / "model"
EVENTS = {"join", "contribute", "attest", "release", "replay", "accept_exposure", "restart"}
EVENTS |= {"new_run", "other_project", "open_round"}


def test_the_events_of_the_model_are_those_of_its_readme():
    defined = set(re.findall(r"^inline (\w+)\(", (FOLDER / "cross_round.pml").read_text(), re.MULTILINE))
    listed = re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == EVENTS
    assert len(listed) == len(EVENTS)
    helpers = {"combinations_keep_together", "sort_sites", "of_run", "read_claim", "look_at_roster", "grant"}
    assert defined - helpers == EVENTS


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("spin") and shutil.which("gcc")), reason="the model is checked with spin and gcc")
@pytest.mark.parametrize("name", ["protocol, n=4", "marks per run", "a run starts over on the same model"])
def test_spin_agrees(name):
    spec = importlib.util.spec_from_file_location("model_check", FOLDER / "check.py")
    check = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = check  # a dataclass looks its module up
    spec.loader.exec_module(check)
    attack, states, _ = check.check(check.CASES[name])
    assert attack is check.CASES[name].attack
    assert states > 1000
