"""Federated averaging as one vector, and parties that live in folders: what the adapters share."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secagg
from secagg.driver import Completed, Exposed, Failed, NeedInput, Published, Save, Send
from secagg.federated import layout_for, mean_of, model_hash, values_for
from secagg.home import Home, Task, trial

SITES = [f"site-{i}" for i in range(5)]
MODEL = {"conv.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "batches": np.array(7)}


def update(site: int) -> tuple[dict[str, np.ndarray], int, dict[str, float]]:
    change = np.random.default_rng(site).uniform(-0.1, 0.1, (3, 4)).astype(np.float32)
    arrays = {"conv.weight": MODEL["conv.weight"] + change, "batches": MODEL["batches"] + 4}
    return arrays, 10 * (site + 1), {"loss": 0.5 + site}


def agreed(folder, **task):
    layout = layout_for(MODEL, clip_range=0.2, largest_weight=50, metrics={"loss": 10.0})
    return trial(folder, SITES, layout, Task(**task))


def training(folder):
    return Home.read(folder)


def evaluating(folder):
    return Home.read(folder).evaluation


def asked(home, model):
    return model_hash(model, "evaluate") if home.evaluates else model_hash(model)


def play(folder, model, dead=(), other=None, of=training):
    """A round in which every message goes through a fresh driver of the site, as where each has its own process.

    Sites are sent `model`, but those in `other`, which get that one.
    """
    server, told = of(folder / "server"), {"exposed": 0, "refused": set()}
    driver = server.server(step_seconds=1.0)
    queue = [(action, None) for action in driver.begin(asked(server, model))]
    result = None
    while queue:
        action, _ = queue.pop(0)
        match action:
            case Save():
                server.save_book(action.book)
            case Completed():
                base = {} if server.evaluates else model
                result = mean_of(driver.session.result, driver.policy, action.included, base)
                told["included"] = action.included
            case Published() if action.transcript is not None:
                told["transcript"] = action.transcript
            case Send():
                site = of(folder / action.to)
                with Home.read(folder / action.to).store() as store:
                    client = site.client(store)
                    with site.live(client):
                        said = site.receive(client, store, action.data)
                        if any(isinstance(one, NeedInput) for one in said) and action.to not in dead:
                            came = (other or {}).get(action.to, model)
                            try:
                                site.takes(client, came, asked(site, came))
                                arrays, weight, metrics = update(SITES.index(action.to))
                                arrays, base = ({}, None) if site.evaluates else (arrays, MODEL)
                                said += client.provide(values_for(site.policy.fields, arrays, weight, metrics, base))
                            except secagg.InconsistentViewError as error:
                                said.append(Failed(str(error), error))
                told["refused"] |= {one.reason for one in said if isinstance(one, Failed)}
                told["exposed"] += sum(isinstance(one, Exposed) for one in said)
                for sent in said:
                    if isinstance(sent, Send):
                        queue += [(one, None) for one in driver.receive(action.to, sent.data)]
        if not queue and driver.deadline is not None:
            queue += [(one, None) for one in driver.tick(driver.deadline)]
    return result, told


@pytest.mark.parametrize("dead", [(), ("site-4",)])
def test_a_weighted_mean_comes_out_and_a_site_that_dies_is_left_out(tmp_path, dead):
    result, told = play(agreed(tmp_path, private=True), MODEL, dead)
    assert told["included"] == tuple(site for site in SITES if site not in dead)
    stayed = [update(i) for i, site in enumerate(SITES) if site not in dead]
    whole = sum(weight for _, weight, _ in stayed)
    mean = sum(arrays["conv.weight"].astype(float) * weight for arrays, weight, _ in stayed) / whole
    assert np.abs(result.arrays["conv.weight"] - mean).max() < 1e-4
    assert result.arrays["conv.weight"].dtype == np.float32
    assert result.arrays["batches"] == 11
    assert result.arrays["batches"].dtype == MODEL["batches"].dtype
    assert result.weight == whole
    assert result.metrics["loss"] == pytest.approx(sum(m["loss"] * w for _, w, m in stayed) / whole, abs=1e-3)


def test_without_privacy_no_site_joins_before_it_has_replayed_the_round(tmp_path):
    folder = agreed(tmp_path)
    first, told = play(folder, MODEL)
    moved = {**MODEL, **first.arrays}
    nothing, refused = play(folder, moved)
    assert nothing is None
    assert refused["exposed"] >= len(SITES)
    for name in SITES:
        site = Home.read(folder / name)
        with site.store() as store:
            assert site.client(store).receive(told["transcript"].read_bytes()) == []
    second, told = play(folder, moved)
    assert told["included"] == tuple(SITES)
    assert second.weight == first.weight


@pytest.mark.parametrize("private", [False, True])
def test_a_model_whose_sum_was_seen_is_not_trained_again_unless_updates_are_private(tmp_path, private):
    folder = agreed(tmp_path, private=private)
    _, told = play(folder, MODEL)
    for name in SITES if not private else []:
        site = Home.read(folder / name)
        with site.store() as store:
            assert site.receive(site.client(store), store, told["transcript"].read_bytes()) == []
    second, told = play(folder, MODEL, dead=("site-4",))  # its update would be the difference
    assert (second is None) == (not private)
    assert private or ["second sum" in reason for reason in told["refused"]] == [True]


def replays(folder, transcript, sites=SITES):
    for name in sites:
        site = Home.read(folder / name)
        with site.store() as store:
            assert site.receive(site.client(store), store, transcript.read_bytes()) == []


def nearly(model):
    return {**model, "conv.weight": model["conv.weight"] + np.float32(1e-6)}


def test_a_site_that_is_sent_another_model_than_the_others_does_not_train_it(tmp_path):
    result, told = play(agreed(tmp_path, private=True), MODEL, other={"site-2": nearly(MODEL)})
    assert told["included"] == ("site-0", "site-1", "site-3", "site-4")
    assert result is not None
    assert ["another model or config" in reason for reason in told["refused"]] == [True]


def test_nearly_the_same_model_is_not_summed_again_without_one_site(tmp_path):
    folder = agreed(tmp_path)
    first, told = play(folder, MODEL)
    replays(folder, told["transcript"])
    second, told = play(folder, nearly(MODEL), dead=("site-4",))  # its update would nearly be the difference
    assert second is None
    assert any("the mean of the last sum, as this site computed it" in reason for reason in told["refused"])
    third, told = play(folder, {**first.arrays, "batches": first.arrays["batches"].astype(float)})  # as Flower has it
    assert told["refused"] == set()
    assert third.weight == first.weight


def test_a_site_that_was_away_takes_the_model_that_the_others_computed_and_computes_the_next(tmp_path):
    folder = agreed(tmp_path)
    first, told = play(folder, MODEL, dead=("site-4",))
    replays(folder, told["transcript"])
    second, told = play(folder, first.arrays)
    assert told["included"] == tuple(SITES)
    replays(folder, told["transcript"])
    _, told = play(folder, second.arrays, other={"site-4": nearly(second.arrays)})
    assert told["included"] == tuple(SITES[:4])
    with pytest.raises(secagg.InconsistentViewError, match="as this site computed it"):
        Home.read(folder / "site-4").following.demand(nearly(second.arrays))


def test_a_server_with_a_step_of_its_own_is_followed_where_all_agreed(tmp_path):
    folder = agreed(tmp_path, next="server")
    _, told = play(folder, MODEL)
    replays(folder, told["transcript"])
    second, _ = play(folder, nearly(MODEL))
    assert second is not None
    assert not (folder / "site-0/model.npz").exists()


def test_evaluations_have_sums_of_their_own_on_the_model_that_sites_computed(tmp_path):
    folder = agreed(tmp_path, evaluate="sum", evaluation={"loss": 10.0})
    first, told = play(folder, MODEL)
    _, refused = play(folder, first.arrays, of=evaluating)
    assert refused["exposed"] >= len(SITES), "shares were released for a round that nobody has replayed"
    replays(folder, told["transcript"])
    nothing, refused = play(folder, nearly(first.arrays), of=evaluating)
    assert nothing is None
    assert any("as this site computed it" in reason for reason in refused["refused"])
    found, told = play(folder, first.arrays, dead=("site-4",), of=evaluating)
    stayed = [update(i) for i in range(4)]
    assert (found.arrays, found.weight) == ({}, sum(weight for _, weight, _ in stayed))
    assert found.metrics["loss"] == pytest.approx(sum(m["loss"] * w for _, w, m in stayed) / found.weight, abs=1e-4)
    for name in SITES:
        site = evaluating(folder / name)
        with Home.read(folder / name).store() as store:
            assert site.receive(site.client(store), store, told["transcript"].read_bytes()) == []
    again, refused = play(folder, first.arrays, of=evaluating)  # with the fifth: the difference would be its metrics
    assert again is None
    assert any("second sum" in reason for reason in refused["refused"])
    second, _ = play(folder, first.arrays)
    assert second.weight == first.weight, "training goes on"


def test_the_server_goes_on_with_its_book(tmp_path):
    folder = agreed(tmp_path, private=True)
    play(folder, MODEL)
    book = Home.read(folder / "server").server().book
    assert (book.number, len(book.receipts)) == (2, 1)


def test_transcripts_of_rounds_that_a_site_names_are_found(tmp_path):
    folder = agreed(tmp_path)
    _, told = play(folder, MODEL)
    server = Home.read(folder / "server")
    (receipt,) = server.server().book.receipts
    assert server.transcripts([receipt], [receipt.round_id.hex()]) == [told["transcript"].read_bytes()]
    assert server.transcripts([receipt], [bytes(32).hex()]) == []


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["name", "value", "shape", "type"]))
def test_a_model_hash_is_of_everything_in_it(what):
    array = MODEL["conv.weight"]
    other = {
        "name": {"conv.bias": array},
        "value": {"conv.weight": array + np.float32(1e-6)},
        "shape": {"conv.weight": array.reshape(4, 3)},
        "type": {"conv.weight": array.astype(np.float64)},
    }[what]
    assert model_hash({"conv.weight": array}) != model_hash(other)
    assert model_hash({"conv.weight": array}) == model_hash({"conv.weight": array.copy()})
    assert model_hash({"conv.weight": array}) != model_hash({"conv.weight": array}, "evaluate")


def test_every_field_of_a_task_is_in_its_hash():
    tasks = [Task(), Task(private=True), Task(changes=False), Task(weighted_by="n"), Task(next="server")]
    tasks += [Task(evaluate="clear"), *(Task(evaluate="sum", evaluation={"loss": bound}) for bound in (1, 2.0))]
    assert len({task.hash() for task in tasks}) == len(tasks)
    assert Task(evaluate="sum", evaluation={"loss": 1}).hash() == Task(evaluate="sum", evaluation={"loss": 1.0}).hash()


def test_what_a_folder_lacks_is_said_in_a_sentence(tmp_path):
    folder = agreed(tmp_path)
    site = folder / "site-0"
    for name, told in (("policy.toml", "lacks policy.toml"), ("site-0.signing", "exactly one key")):
        kept = (site / name).read_bytes()
        (site / name).unlink()
        with pytest.raises(secagg.ConfigError, match=told):
            Home.read(site)
        (site / name).write_bytes(kept)
        (site / name).chmod(0o600)
    text = (site / "policy.toml").read_text()
    for wrong, told in (
        ("privat = true", "unknown field 'privat'"),
        ("private = 1", "must be a bool"),
        ('next = "adam"', 'must be "mean" or "server"'),
        ('evaluate = "yes"', 'must be "refuse", "sum" or "clear"'),
        ('evaluate = "sum"', "belong together"),
        ("evaluation = 5", "must be a"),
    ):
        (site / "policy.toml").write_text(text.partition("[task]")[0] + f"[task]\n{wrong}\n")
        with pytest.raises(secagg.ConfigError, match=told):
            Home.read(site)
    (site / "policy.toml").write_text(text)
    assert Home.read(site).task == Task()


def test_a_site_with_more_examples_than_agreed_is_refused_before_anything_is_masked():
    layout = layout_for(MODEL, clip_range=0.2, largest_weight=50)
    with pytest.raises(secagg.ConfigError, match="largest weight"):
        layout.pack(values_for(layout, update(0)[0], 51, {}, MODEL))
    with pytest.raises(secagg.ConfigError, match="other arrays"):
        values_for(layout, {"conv.weight": MODEL["conv.weight"]}, 5, {}, MODEL)


def test_nobody_has_an_example(tmp_path):
    policy = Home.read(agreed(tmp_path) / "server").policy
    zeros = np.zeros(policy.length, np.uint32)
    with pytest.raises(secagg.ConfigError, match="add up to nothing"):
        mean_of(zeros, policy, SITES, MODEL)


def test_a_damaged_book_is_refused(tmp_path):
    folder = agreed(tmp_path)
    for text in ("", "[]", "{}", '{"start": "00"}', "7", json.dumps({"start": "zz"})):
        (folder / "server/book.json").write_text(text)
        with pytest.raises(secagg.ConfigError, match=r"book\.json: "):
            Home.read(folder / "server").server()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.array([250, 3], np.uint8), [255, 0]),
        (np.array([2**53 + 1, 5]), [2**53 + 11, -5]),
        (np.array([-120, 3], np.int8), [-110, -7]),
    ],
    ids=["uint8", "int64", "int8"],
)
def test_a_mean_of_whole_numbers_stays_in_their_type_and_keeps_their_last_digit(before, after):
    layout = layout_for({"n": before}, clip_range=0.2, largest_weight=50)
    policy = secagg.Policy(project="p", clients=3, layout=layout)
    changes = {"weight": 5.0, "buffers": {"n": np.array([10.0, -10.0])}}
    total = secagg.simulate(dict.fromkeys("abc", changes), policy).total
    mean = mean_of(total, policy, list("abc"), {"n": before}).arrays["n"]
    assert mean.dtype == before.dtype
    assert mean.tolist() == after
