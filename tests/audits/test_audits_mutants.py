"""Every planted bug is an edit of the code that is there, and the bench tells a kill from a survivor."""

from dataclasses import replace

import pytest

from audits.base import Task
from audits.mutants import run_all, running, sample
from audits.mutants.patches import ROOT, PatchError, mutants
from audits.mutants.running import tried
from audits.table import AUDITS


@pytest.mark.parametrize("name", mutants())
def test_a_mutant_applies_and_its_detector_exists(name):
    mutant = mutants()[name]
    texts = mutant.patched(ROOT)
    assert all((ROOT / file).read_text(encoding="utf-8") != text for file, text in texts.items())
    if "::" in mutant.detector:
        file, test = mutant.detector.split("::")
        assert f"def {test.split('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert mutant.detector in {audit.name for audit in AUDITS}
    assert mutant.shows


def test_the_design_names_44_and_ten_lie_between_rounds():
    numbers = [mutant.number for mutant in mutants().values()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 54


def test_an_edit_of_code_that_is_gone_is_an_error():
    mutant = replace(mutants()["share-index-0"], old="not in this file")
    with pytest.raises(PatchError, match="occurs 0 times"):
        mutant.patched(ROOT)
    with pytest.raises(PatchError, match="share-index-0"):
        replace(mutant, old="def split(", new="def split").patched(ROOT)


def test_samples_follow_from_their_seed():
    assert sample(1) == sample(1) != sample(2)


def test_a_bench_tells_a_kill_from_a_survivor_and_from_a_kill_for_another_reason():
    killed = mutants()["share-index-0"]
    harmless = replace(killed, name="harmless", new=killed.old.replace("not all(1", "not all( 1"))
    otherwise = replace(killed, name="otherwise", shows="another reason")
    alone, *others = tried([killed, harmless, otherwise])
    assert alone.mutant is None
    assert alone.as_it_should
    assert [one.as_it_should for one in others] == [True, False, False]
    assert "DID NOT RAISE" in others[0].says
    assert others[1].says == "passes"


def test_a_machine_too_busy_to_answer_blames_nobody(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "PATIENCE", 0.0)
    monkeypatch.setattr("audits.mutants.mutants", lambda: {"share-index-0": mutants()["share-index-0"]})
    result = run_all(Task("full", 0, tmp_path, print))
    assert result.verdict == "no power"
    assert "too busy" in result.says
