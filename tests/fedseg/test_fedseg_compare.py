"""`fedseg compare` and `fedseg evaluate`: same patients, same steps, held against each other, through interruptions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedseg.cli.comparing import _show
from fedseg.compare import cells as training
from fedseg.compare.cells import Judged
from fedseg.compare.outcome import Comparison
from fedseg.compare.page import write_page
from fedseg.compare.rows import ROWS, cells, chosen, fitting, trainable
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.mechanisms.table import MECHANISMS
from fedseg.models import build_model
from fedseg.privacy.dpsgd import clipped_gradient, plain_gradient
from fedseg.sharing.method import Sharing
from fedseg.sharing.space import Space, Within
from fedseg.study import load_study
from fedseg.update import flatten
from tests.support.command import is_one_sentence, run
from tests.support.tiny import tiny_study

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


def study(rounds: int = 2, steps: int = 2):
    base = tiny_study(rounds=rounds, steps=steps, patients=5, seed=None)
    return base.replace(data={"size": 16, "holdout": 0.4}, privacy={"released": 0.1})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(study().toml())
    return tmp_path / "study.toml"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_with_the_package_can_be_compared(path):
    base = load_study(path)
    rows, said = trainable(chosen([]), base, {})
    found = {cell.row.name for cell in cells(base, {}, rows, [2.0, 8.0], 1)}
    assert found >= {"zero-shot", "pooled", "alone", "federated"}
    private = {"local", "central", "twin-local"}
    if base.privacy.clip_norm is None:
        assert not found & private
        assert {sentence.split(":")[0] for sentence in said} >= {"row local", "row central", "row twin-local"}
    elif base.structures:
        assert found >= private


def test_every_row_has_the_same_steps_patients_and_seeds():
    base = study()
    cohort = load_cohort(None, base)
    train = sum(len(data.train) for data in cohort.values())
    found = list(cells(base, {}, chosen([]), [2.0, 8.0], 2))
    assert {cell.study.study.rounds * cell.study.study.local_steps for cell in found} == {4}
    for cell in found:
        seen = cell.cohort(cohort)
        alone = cell.options("").alone
        drawn = sum(len(seen[site].train) for site in ([alone] if alone else seen))
        assert drawn == (len(cohort[cell.site].train) if cell.row.who == "each" else train)
        assert {site: data.test for site, data in seen.items()} == {site: data.test for site, data in cohort.items()}
        assert cell.study.study.seed == cell.seed
    assert {cell.name for cell in found if cell.epsilon} == {
        f"{row} {epsilon}" for row in ("local", "distributed", "svt", "central") for epsilon in (2, 8)
    }
    pooled = next(cell for cell in found if cell.row.name == "pooled").cohort(cohort)
    assert len({case.patient for case in pooled["site-a"].train}) == train  # two sites may use one name


def test_a_private_row_names_everything_that_belongs_to_its_epsilon():
    base = study()
    done = [(cell, Judged(values={"Dice": {"site-a": [[0.5] * 7]}})) for cell in cells(base, {}, list(ROWS), [8.0], 1)]
    claims = {row.row: row.claim for row in Comparison.of(base, "", "", done).rows}
    assert {name for name, claim in claims.items() if claim} == {"local", "distributed", "svt", "central"}
    for name, trusted in (("local", "nobody"), ("distributed", "the threshold"), ("central", "one party that holds")):
        assert claims[name].startswith(f"epsilon 8 per patient at delta 0.01; {trusted}")


def test_rows_come_with_their_twins_and_unknown_ones_are_told():
    assert [row.name for row in chosen(["local"])] == ["zero-shot", "twin-local", "local"]
    with pytest.raises(ConfigError, match="--rows tidal: no such row; use of zero-shot, pooled"):
        chosen(["tidal"])
    with pytest.raises(ConfigError, match=r"--for local: \[data\] is not that of the study"):
        fitting("local", study().replace(data={"size": 32}), study())


def test_only_a_federation_has_some_of_its_sites_in_a_round():
    """Who trains alone is in every round: such a cell would fail, and be told as a result."""
    base = tiny_study(sites=4).replace(federation={"participation": 3}, privacy={"released": 0.1})
    parts = {cell.row.name: cell.study.federation.participation for cell in cells(base, {}, list(ROWS), [8.0], 1)}
    assert {name for name, part in parts.items() if part} == {
        row.name for row in ROWS if row.who == "federation" and row.name in parts
    }


def test_a_row_of_its_own_study_lends_it_to_its_twin():
    own = study(rounds=4, steps=1).replace(study={"lr": 0.01})
    rates = {cell.row.name: cell.study.study.lr for cell in cells(study(), {"distributed": own}, list(ROWS), [8.0], 1)}
    assert {name for name, rate in rates.items() if rate == 0.01} == {"distributed", "twin-central"}


def judgement(low: float) -> Judged:
    return Judged(values={"Dice": {"site-a": [[low, low + 0.2], [low + 0.1, None]], "site-b": [[low, low]]}})


def test_differences_are_of_the_same_patients_and_seeds_are_averaged_first(tmp_path, capsys):
    base = study()
    base = base.model_copy(update={"study": base.study.model_copy(update={"structures": ("one", "two")})})
    low = {"zero-shot": [0.3], "federated": [0.5, 0.6], "twin-local": [0.4, 0.4], "local": [0.2, 0.3]}
    rows = [row for row in ROWS if row.name in low]
    done = [(cell, judgement(low[cell.row.name][cell.seed - 1])) for cell in cells(study(), {}, rows, [8.0], 2)]
    found = Comparison.of(base, "fedseg compare x", "", done)
    lines = {row.row: row for row in found.rows}
    local = lines["local"]
    assert local.mean.mean == pytest.approx(np.mean([0.35, 0.35, 0.25]))
    assert local.mean.n == 3
    assert local.spread == pytest.approx((np.mean([0.3, 0.3, 0.2]), np.mean([0.4, 0.4, 0.3])))
    assert local.structures["two"].n == 2
    assert local.sites["site-b"].mean.n == 1
    assert {name: value.mean for name, value in local.minus.items()} == pytest.approx(
        {"twin": -0.15, "zero-shot": -0.05, "federated": -0.3}
    )
    assert local.minus["twin"].low == pytest.approx(-0.15)  # every patient loses as much
    assert local.below_start
    assert not lines["federated"].below_start
    assert found.below == ["federated, local, epsilon 8"]
    _show(found)
    said = " ".join(capsys.readouterr().out.split())
    assert "BELOW ITS START: federated, local, epsilon 8" in said
    page = write_page(found, tmp_path).read_text()
    assert "federated, local, epsilon 8: training made the model no better than its start" in page
    assert page.count("<svg") == 1 + 2 + 2


@pytest.fixture
def undrawn(monkeypatch):
    """Charts take a second of CPU each time, and have a test of their own."""
    monkeypatch.setattr("fedseg.compare.page.drawn", lambda *_: "")


ARGUMENTS = ("--seeds", 1, "--epsilon", 8, "--rows", "federated,local")


def test_the_command_tells_its_cost_goes_on_where_it_was_stopped_and_names_no_patient(
    file, tmp_path, capsys, monkeypatch, undrawn
):
    out, trained = tmp_path / "out", []
    honest = training._train

    def counted(cell, *rest):
        if len(trained) == 2 and not (out / "stopped").exists():
            (out / "stopped").touch()
            raise KeyboardInterrupt
        trained.append(cell.row.name)
        return honest(cell, *rest)

    monkeypatch.setattr(training, "_train", counted)
    command = ("compare", file, "--out", out, *ARGUMENTS)
    code, said, error = run(capsys, monkeypatch, *command, "--cost")
    assert (code, trained) == (0, [])
    assert "4 trainings: about" in said
    assert "CPU minutes to go" in said
    out.mkdir(exist_ok=True)
    code, said, error = run(capsys, monkeypatch, *command)
    assert code == 1
    assert is_one_sentence(error[error.index("fedseg:") :])
    assert "the same command goes on" in error
    assert json.loads((out / "comparison.json").read_text())["missing"] == 2
    code, said, _ = run(capsys, monkeypatch, *command, "--json")
    assert code == 0
    assert trained == ["zero-shot", "federated", "twin-local", "local"]
    found = json.loads(said)
    assert (found["missing"], [row["row"] for row in found["rows"]]) == (0, trained)
    assert found == json.loads((out / "comparison.json").read_text())
    assert found["rows"][3]["bytes_up"] > 10_000
    for name in ("comparison.json", "comparison.html"):
        assert "sub-0" not in (out / name).read_text()


def test_a_training_that_was_killed_in_a_round_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    import fedseg.simulate as simulation

    base = study()
    cohort = load_cohort(None, base)
    (cell,) = cells(base, {}, [row for row in ROWS if row.name == "federated"], [], 1)
    whole = training.train(cell, cohort, tmp_path / "whole", "")
    honest, calls = simulation.train_round, []

    def killed(*arguments, **named):
        calls.append(named["round_number"])
        if calls.count(2) == 1:
            raise KeyboardInterrupt
        return honest(*arguments, **named)

    monkeypatch.setattr(simulation, "train_round", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(cell, cohort, tmp_path / "killed", "")
    assert training.judged(tmp_path / "killed") is None
    before = len(calls)
    again = training.train(cell, cohort, tmp_path / "killed", "")
    assert again.values == whole.values
    assert set(calls[before:]) == {2}


def test_what_cannot_be_trained_is_a_line_of_the_table(file, tmp_path, capsys, monkeypatch, undrawn):
    file.write_text(study().replace(study={"lr": 1e30}).toml())
    code, said, _ = run(
        capsys, monkeypatch, "compare", file, "--out", tmp_path / "out", *ARGUMENTS[:4], "--rows", "federated", "--json"
    )
    assert code == 0
    failed = {row["row"]: row["failed"] for row in json.loads(said)["rows"]}
    assert "diverged" in failed["federated"]
    assert failed["zero-shot"] == ""


def test_what_failed_is_tried_again_by_the_same_command(file, tmp_path, capsys, monkeypatch, undrawn):
    """A full disk is freed; what was trained before it stays."""
    command = ("compare", file, "--out", tmp_path / "out", *ARGUMENTS[:4], "--rows", "federated", "--json")
    with monkeypatch.context() as full:
        full.setattr(training, "complete_run", lambda *_: (_ for _ in ()).throw(ConfigError("no space is left")))
        rows = json.loads(run(capsys, full, *command)[1])["rows"]
    assert {row["row"]: row["failed"] for row in rows} == {"zero-shot": "", "federated": "no space is left"}
    rows = json.loads(run(capsys, monkeypatch, *command)[1])["rows"]
    assert [(row["failed"], row["mean"] is None) for row in rows] == [("", False)] * 2


def test_a_site_that_holds_nobody_out_has_no_rows():
    found = training.Judged(values={"Dice": {"site-a": [[0.5, None]], "site-b": []}}).of("Dice")
    assert found["site-b"].shape == (0, 2)
    assert found["site-a"].shape == (1, 2)


def test_a_label_that_was_corrected_is_another_training():
    cohort = load_cohort(None, study())
    cell = next(cells(study(), {}, chosen(["federated"]), [8.0], 1))
    before = training.folders_of([cell], cohort, Path())
    assert training.folders_of([cell], cohort, Path()) == before
    site = next(iter(cohort))
    first, *rest = cohort[site].train
    corrected = replace(first, label=1 - np.minimum(first.label, 1))
    changed = {**cohort, site: replace(cohort[site], train=(corrected, *rest))}
    assert training.folders_of([cell], changed, Path()) != before


def test_a_site_that_is_left_out_is_judged_on_by_a_model_that_never_saw_it(file, tmp_path, capsys, monkeypatch):
    command = ("evaluate", file, "--leave-out", "site-b", "--out", tmp_path / "runs", "--json")
    code, said, told = run(capsys, monkeypatch, *command)
    assert code == 0
    assert f"run {tmp_path}" in told
    found = json.loads(said)  # and nothing else: a program reads it
    assert {case["site"] for case in found["cases"]} == {"site-b"}
    assert found["dice"]["mean"]["n"] == len(found["cases"]) == 5
    (model,) = (tmp_path / "runs").glob("*/*/model.safetensors")
    events = [json.loads(line) for line in (model.parent / "events.jsonl").read_text().splitlines()]
    assert {site for event in events for site in event.get("included", ())} == {"site-a", "site-c"}
    again = run(capsys, monkeypatch, *command)[1]
    assert again == said  # nothing is trained a second time
    code, said, _ = run(capsys, monkeypatch, "evaluate", model, "--json", "--site", "site-b", "--everybody")
    assert json.loads(said)["dice"] == found["dice"]
    code, said, _ = run(capsys, monkeypatch, "evaluate", model, "--site", "site-b")
    assert "HD95 mm: mean" in said
    assert "site-b/sub-00" in said
    code, _, error = run(capsys, monkeypatch, "evaluate", file, "--leave-out", "site-x")
    assert code == 1
    assert is_one_sentence(error)


def test_the_noiseless_twin_clips_and_nothing_else():
    model = build_model(tiny_study())
    parameters = list(model.parameters())

    def losses(scale: float):
        return [scale * model(torch.ones(1, 1, 32, 32) * k).square().mean() for k in (1.0, 2.0)]

    long = clipped_gradient(parameters, losses(1e3), 0.1, 2)
    assert float(long.norm()) <= 0.1 + 1e-6
    whole = plain_gradient(parameters, losses(1.0), 2)
    torch.testing.assert_close(clipped_gradient(parameters, losses(1.0), 1e9, 2), whole)
    within = Within(Space.of(flatten(model), Sharing(method="random-mask", share=0.1)))
    sent = clipped_gradient(parameters, losses(1e3), 0.1, 2, within)
    assert 0 < int((sent != 0).sum()) <= within.length  # the twin of a study that sends a part trains that part
    assert float(clipped_gradient(parameters, losses(1e3)[:1], 0.1, 1, within).norm()) > 0.0999
    assert not MECHANISMS["clipped"].trust.claims_epsilon
    with pytest.raises(ConfigError, match="batch = 2 with mechanism = 'clipped': a batch of several patients"):
        tiny_study(mechanism="clipped").replace(training={"batch": 2})
    with pytest.raises(ConfigError, match="clip_norm is missing and mechanism = 'clipped' needs it"):
        tiny_study().replace(privacy={"mechanism": "clipped", "clip_norm": None})
