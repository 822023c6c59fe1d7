"""How a model goes from round to round: what a sum moves, what stays at a site, and the average that is given out."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedseg.course import Course
from fedseg.credentials import make_credentials
from fedseg.data.loading import load_cohort, load_site
from fedseg.errors import ConfigError
from fedseg.evidence import HELD
from fedseg.models import build_model, load_model
from fedseg.runfolder import OWN_MODELS, RunFolder
from fedseg.simulate import Options, simulate
from fedseg.site import Options as SiteOptions
from fedseg.site import Site
from fedseg.start import starting_model
from fedseg.train import local_steps
from fedseg.update import flatten, moving
from fedseg.verifying import verify_run
from secagg.steps import MASKED_INPUT_COLLECTION
from tests.support.federation import COORDINATOR, Federation
from tests.support.tiny import tiny_study

SITES = ["site-a", "site-b", "site-c"]


def run(study, folder, *listeners, **options):
    with RunFolder.create(folder, study, *listeners) as made:
        return simulate(made, load_cohort(None, study), Options(**options))


def weights(path, study):
    return flatten(load_model(path, study))


def test_the_average_that_is_given_out_is_what_a_hand_calculates():
    """Three rounds of one value, ema 0.5: 4, 2, 1 of 7 parts of the models from the last to the first."""
    study = tiny_study(mechanism="none").replace(federation={"ema": 0.5})
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    course = Course(study, model)
    state = course.opened(model)
    assert course.weights(state).tolist() == [1.0]  # before any round the start
    for total in (3.0, 6.0, -12.0):  # of three sites: 2, 4, 0
        state = course.following(state, np.array([total]), SITES, course.policy())
    assert state[0] == 0.0  # training goes on from the model itself
    assert course.weights(state)[0] == pytest.approx((0 * 4 + 4 * 2 + 2 * 1) / 7)
    assert course.given_out(model, state).weight.item() == course.weights(state)[0]
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("trainable", ["head", "norm-bias-head", "lora:1"])
def test_few_trained_values_are_a_short_vector(trainable):
    whole = tiny_study(mechanism="distributed")
    study = whole.replace(training={"trainable": trainable})
    model = build_model(study)
    course = Course(study, model)
    assert course.policy().length < Course(whole, build_model(whole)).policy().length
    assert course.moved == sum(one.numel() for one in model.parameters() if one.requires_grad) < course.parameters
    assert len(course.opened(model)) == course.parameters + course.moved  # velocity of what moves


def test_of_frozen_features_a_sum_moves_the_trained_values_and_an_average_is_given_out(tmp_path, monkeypatch):
    """Secure and plain alike, bit for bit; what is frozen is the start's; and whoever verifies it makes it again."""
    study = tiny_study(mechanism="distributed", patients=2).replace(
        study={"optimizer": "adam", "lr": 0.01}, training={"trainable": "head"}, federation={"ema": 0.5}
    )
    secure = run(study, tmp_path / "secure", transcripts=True)
    plain = run(study, tmp_path / "plain", plain=True)
    start, ended = starting_model(study), weights(secure / "model.safetensors", study)
    assert ended.tobytes() == weights(plain / "model.safetensors", study).tobytes()
    changed = ended != flatten(start)
    assert not changed[~moving(start)].any()
    assert changed[moving(start)].mean() > 0.9
    evidence = verify_run([secure], secure / "federation.toml")
    assert not evidence.violations
    held = [found.sentence for found in evidence.findings if (found.check, found.state) == ("T-16", HELD)]
    assert any("is the running average of the models up to round 2, bit for bit" in said for said in held)
    monkeypatch.setattr(Course, "weights", lambda self, state: state[: self.parameters])
    assert "T-16" in {finding.check for finding in verify_run([secure], secure / "federation.toml").violations}


OWN = tiny_study(patients=2).replace(data={"size": 16}, federation={"personal": "norm", "ema": 0.5})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(OWN, tmp_path_factory.mktemp("whole"), plain=True)


def test_what_stays_at_a_site_is_trained_there_and_in_no_sum(tmp_path, whole):
    study = OWN
    start, own = build_model(study), ~moving(build_model(study), "norm")
    taken = local_steps(start, load_cohort(None, study)["site-a"], study, site="site-a", round_number=1)
    assert len(taken.update("site-a", "e", lambda _: bytes(32)).vector) == (~own).sum() == Course(study, start).moved

    def stop(event) -> None:
        if event.kind == "end_round" and event.round == 1:
            raise KeyboardInterrupt

    broken = RunFolder.create(tmp_path / "broken", study, stop)
    with pytest.raises(KeyboardInterrupt), broken:
        simulate(broken, load_cohort(None, study), Options(plain=True))
    with RunFolder.reopen(broken.path) as folder:
        again = simulate(folder, load_cohort(None, study), Options(plain=True))
    shared = weights(whole / "model.safetensors", study)
    assert (shared[own] == flatten(start)[own]).all()  # what a site that is not in the federation gets
    models = {site: weights(whole / OWN_MODELS / f"{site}.safetensors", study) for site in SITES}
    for site, model in models.items():
        assert (model[~own] == shared[~own]).all()
        assert (model[own] != shared[own]).mean() > 0.9  # noised, like all that shapes what is sent
        assert model.tobytes() == weights(again / OWN_MODELS / f"{site}.safetensors", study).tobytes()
    assert len({model.tobytes() for model in models.values()}) == 3
    alike = [json.loads((done / "metrics.json").read_text())["dice"] for done in (whole, again)]
    assert alike[0] == alike[1]


def test_executables_agree_on_average_and_keep_what_is_their_own(tmp_path, whole):
    """The coordinator's file is the sites' and a simulation's, bit for bit; each site judges by its own."""
    study = OWN

    async def scenario():
        async with Federation(study, tmp_path / "real") as federation:
            federation.start()
            return await federation.finished(), {site: federation.tasks[site].result() for site in study.site_ids}

    coordinator, sites = asyncio.run(scenario())
    shared = (coordinator / "model.safetensors").read_bytes()
    assert shared == (whole / "model.safetensors").read_bytes()
    assert not (coordinator / OWN_MODELS).exists()
    for site, folder in sites.items():
        assert (folder / "model.safetensors").read_bytes() == shared
        own = folder / OWN_MODELS / f"{site}.safetensors"
        assert own.read_bytes() == (whole / OWN_MODELS / own.name).read_bytes() != shared
    assert COORDINATOR in {path.name for path in (tmp_path / "real").iterdir()}
    assert not verify_run([coordinator, *sites.values()], None).violations


@pytest.mark.parametrize("number", [1, 2])
def test_a_site_killed_between_its_update_and_the_sum_keeps_what_it_trained_there(tmp_path, number):
    """It kept the norms of the round before, beside a model that has its update: a round behind."""
    study = tiny_study(sites=5).replace(data={"size": 16}, federation={"personal": "norm"})
    simulated = run(study, tmp_path / "simulated", plain=True)
    killed: list[str] = []

    def kill(who: str, event: dict) -> None:
        if who != COORDINATOR or event.get("round") != number:
            return
        if (event["kind"], event.get("site"), event.get("step")) == ("step", "site-b", MASKED_INPUT_COLLECTION):
            federation.kill("site-b")
            killed.append("site-b")
        if event["kind"] == "end_round":
            assert "site-b" in event["included"]
            federation.start("site-b")

    async def scenario() -> Path:
        async with federation:
            federation.start()
            await federation.finished()
            return federation.tasks["site-b"].result()

    federation = Federation(study, tmp_path / "real", on=kill)
    folder = asyncio.run(scenario())
    assert killed == ["site-b"]
    own = Path(OWN_MODELS) / "site-b.safetensors"
    assert (folder / own).read_bytes() == (simulated / own).read_bytes()


@pytest.mark.parametrize("damage", [b"", b"no array"], ids=["empty", "other"])
def test_a_damaged_file_of_what_is_a_sites_own_is_a_sentence(tmp_path, damage):
    make_credentials(tmp_path / "credentials", OWN, "run")
    options = SiteOptions(
        site="site-b", address="127.0.0.1:1", credentials=tmp_path / "credentials", state=tmp_path / "state"
    )

    def site():
        return Site(RunFolder.create(tmp_path / "runs", OWN), load_site(None, "site-b", OWN), options)

    first = site()
    first.settle_own(included=False)
    first.store.close()
    (path,) = (tmp_path / "state").glob("*.own.npy")
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"\.own\.npy: cannot be read .* remove it: then the site's own values begin"):
        site()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"mechanism": "distributed"}}, "in none, but shapes its gradients"),
        ({"privacy": {"mechanism": "svt", "released": 0.1}}, "nothing would protect what stays there"),
        ({"sharing": {"method": "random-mask", "share": 0.5}}, "a site trains within what is sent"),
    ],
)
def test_what_could_not_be_protected_does_not_stay_at_a_site(changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny_study().replace(federation={"personal": "norm"}, **changes)
