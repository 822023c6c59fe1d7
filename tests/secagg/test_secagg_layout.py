"""Fields of a vector: what goes in comes out, sums are sums, and no number is lost or changed without a word."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from secagg import (
    ClientSession,
    ConfigError,
    Field,
    Layout,
    MemoryStore,
    PinnedRoster,
    Policy,
    RoundContext,
    ServerSession,
    SigningKey,
    means,
    simulate,
    sums,
    unchecked_round,
)
from secagg.masking import slot_values
from secagg.packing import dtype_for, modulo
from secagg.prg import Stream
from secagg.quantize import Quantised, dequantize, quantize
from secagg.transcript.checks import t14_range
from secagg.transcript.vectors import Vectors
from secagg.transcript.violation import ViolationError

CLIENTS = "abcde"


def policy(layout=None, **changes) -> Policy:
    return Policy(**{"project": "p", "clients": 5, "layout": layout, **changes})


def total_of(rules: Policy, updates) -> np.ndarray:
    """The sum of quantised updates modulo 2^b, as masks leave it."""
    total = np.zeros(rules.length, dtype_for(rules.bits))
    for client, update in updates.items():
        total += quantize(update, rules, client, Stream())[0]
    return total & dtype_for(rules.bits).type(2**rules.bits - 1)


def alike(update) -> dict[str, object]:
    """The same update at every client."""
    return {client: update for client in CLIENTS}  # noqa: C420 - it is not changed


def round_of(rules: Policy, updates) -> tuple[ServerSession, dict[str, ClientSession]]:
    """A whole round through both sessions."""
    keys = {site: SigningKey.generate() for site in updates}
    pinned = PinnedRoster({site: key.verify_key for site, key in keys.items()})
    context = RoundContext("run", 1, 0, bytes(32), bytes(32))
    server, opened = ServerSession(rules, pinned, context), unchecked_round(context)
    clients = {site: ClientSession(rules, site, keys[site], pinned, opened, MemoryStore()) for site in updates}
    messages = {site: client.start() for site, client in clients.items()}
    for site, client in clients.items():
        client.provide(updates[site])
    while not server.finished:
        for site, message in messages.items():
            server.receive(site, message)
        messages = {site: clients[site].receive(reply) for site, reply in server.close_step().items()}
    return server, clients


class TestWrongNumbersThatWereFound:
    """Each of these came out wrong, in silence, where everything was floats of one clip range."""

    def test_histograms_are_exact_and_as_plain_floats_refused(self):
        bins = {client: np.random.default_rng(i).poisson(40, 20_000) for i, client in enumerate(CLIENTS)}
        rules = policy(Layout({"bins": Field.counts(20_000, largest=1000)}))
        result = sums(total_of(rules, bins), rules)["bins"]
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result, sum(bins.values()))
        plain = policy(length=20_000, clip_range=1000.0)
        with pytest.raises(ConfigError, match=r"declare Field\.counts for them"):
            quantize(bins["a"], plain, "a", Stream())

    def test_counts_to_a_million_are_exact(self):
        counts = {client: 1_000_000 - 7 * i for i, client in enumerate(CLIENTS)}
        server, _ = round_of(policy(Layout({"cells": Field.counts(largest=1_000_000)})), counts)
        rules = policy(Layout({"cells": Field.counts(largest=1_000_000)}))
        assert int(sums(server.result, rules)["cells"]) == sum(counts.values())

    def test_small_gradients_survive_beside_large_counts(self):
        layout = Layout({"gradient": Field.floats((4, 5), clip_range=2e-3), "seen": Field.counts(largest=10_000)})
        rules = policy(layout)
        updates = {
            client: {"seen": 10_000 - i, "gradient": np.random.default_rng(i).normal(0, 5e-4, (4, 5))}
            for i, client in enumerate(CLIENTS)
        }
        server, clients = round_of(rules, updates)
        result = sums(server.result, rules)
        assert int(result["seen"]) == 50_000 - 10
        expected = sum(update["gradient"] for update in updates.values())
        np.testing.assert_allclose(result["gradient"], expected, atol=5 * layout["gradient"].step())
        assert np.abs(expected).max() > 1000 * 5 * layout["gradient"].step()
        assert all(client.clip_rates == {"gradient": 0.0} for client in clients.values())

    @pytest.mark.parametrize("value", [1001, -1, 2**40, -(2**63), 2**63])
    def test_a_count_out_of_range_is_refused_and_not_clipped(self, value):
        rules = policy(Layout({"n": Field.counts(3, largest=1000)}))
        with pytest.raises(ConfigError, match=r"1 of 3 values of the field 'n' lie outside 0 to 1000") as caught:
            quantize({"n": [5, 7, value]}, rules, "a", Stream())
        assert str(value) not in str(caught.value)

    def test_private_weights_give_the_weighted_mean(self):
        weights = dict(zip(CLIENTS, [1.0, 20.0, 300.0, 4000.0, 2.5], strict=True))
        values = {client: np.array([float(i), -3.0 * i, 15.0]) for i, client in enumerate(CLIENTS)}
        layout = Layout.weighted_mean({"x": Field.floats(3, clip_range=15.0, value_bits=24)}, largest_weight=4000)
        rules = policy(layout)
        server, clients = round_of(rules, {c: {"weight": weights[c], "x": values[c]} for c in CLIENTS})
        result = means(server.result, rules, server.included)
        expected = sum(weights[c] * values[c] for c in CLIENTS) / sum(weights.values())
        np.testing.assert_allclose(result["x"], expected, atol=5 * layout["x"].step(4000) / sum(weights.values()))
        assert math.isclose(float(result["weight"]), sum(weights.values()) / 5, rel_tol=1e-4)
        assert all(client.clip_rates == {"x": 0.0} for client in clients.values())

    def test_a_private_weight_above_the_largest_is_refused(self):
        rules = policy(Layout.weighted_mean({"x": Field.floats(1, clip_range=1.0)}, largest_weight=10))
        for weight in (10.01, -1.0, math.nan, math.inf):
            with pytest.raises(ConfigError, match="outside 0 to 10") as caught:
                quantize({"weight": weight, "x": [1.0]}, rules, "a", Stream())
            assert "10.01" not in str(caught.value)

    def test_the_price_of_a_private_weight_is_said(self):
        layout = Layout.weighted_mean({"x": Field.floats(1, clip_range=1.0)}, largest_weight=1000)
        assert layout.lost_bits(1000) == 0
        assert layout.lost_bits(125) == 3
        assert Layout({"x": Field.floats(1, clip_range=1.0)}).lost_bits(3) == 0


class TestFields:
    def test_a_state_dict_goes_in_and_comes_out(self):
        """Of a torch model, with its integer buffer and a bfloat16 layer, without a copy of its own."""
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        model[0].weight.data = torch.full((2, 3), 0.03125)
        state = model.state_dict() | {"half": torch.full((4,), -0.0625, dtype=torch.bfloat16)}
        rules = policy(Layout.like(state, clip_range=1.5, largest=1000))
        assert {name: field.kind.value for name, field in rules.fields.items()} == {
            name: "count" if name == "1.num_batches_tracked" else "float" for name in state
        }
        played = simulate(alike(state), rules)
        back = means(played.total, rules, played.included)
        assert list(back) == list(state)
        for name, tensor in state.items():
            assert back[name].shape == tuple(tensor.shape)
            np.testing.assert_allclose(
                back[name], tensor.detach().float().numpy(), atol=rules.fields[name].step() + 1e-9
            )

    def test_an_example_with_whole_numbers_needs_their_largest(self):
        with pytest.raises(ConfigError, match="'n' holds whole numbers: say with `largest`"):
            Layout.like({"x": np.zeros(3), "n": np.zeros(3, int)}, clip_range=1.0)

    def test_nested_mappings_are_the_names_with_slashes(self):
        layout = Layout(
            {"a": {"b": Field.counts(2, largest=9), "c": {"d": Field.counts(largest=9)}}, "e": Field.counts(largest=9)}
        )
        assert list(layout) == ["a/b", "a/c/d", "e"]
        values = {"e": 3, "a": {"c": {"d": 2}, "b": [0, 1]}}
        rules = policy(layout)
        result = sums(total_of(rules, {"a": values, "b": {"e": 3, "a/b": [1, 1], "a/c/d": 0}}), rules)
        assert result["a"]["b"].tolist() == [1, 2]
        assert (int(result["a"]["c"]["d"]), int(result["e"])) == (2, 6)

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"e": 1}, "lacks the field 'a/b'"),
            ({"e": 1, "a": {"b": 1}, "z": 1}, "has the field 'z', which the policy's layout does not know"),
            ({"e": 1, "a": {"b": 1}, "a/b": 1}, "has the field 'a/b' twice"),
            ({"e": 1, "a": {3: 1}}, "has the field name 3; a name is a text"),
            (np.zeros(2), r"the policy has 2 fields: give a mapping with 'a/b', 'e'"),
            ({"e": 0.5, "a": {"b": 1}}, "the field 'e' has values that are not whole numbers"),
            ({"e": math.nan, "a": {"b": 1}}, "the field 'e' has values that are not whole numbers"),
        ],
    )
    def test_another_set_of_fields_is_refused(self, values, says):
        rules = policy(Layout({"a/b": Field.counts(largest=9), "e": Field.counts(largest=9)}))
        with pytest.raises(ConfigError, match=says):
            quantize(values, rules, "a", Stream())

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            (
                {"a": Field.counts(largest=1), "a/b": Field.counts(largest=1)},
                "the level of another",
            ),
            ({"ä": Field.counts(largest=1)}, "printable ASCII"),
            ({'a"': Field.counts(largest=1)}, "printable ASCII"),
            ({"": Field.counts(largest=1)}, "printable ASCII"),
            ({"a": Field.weight(largest=1), "b": Field.weight(largest=1)}, "two weights"),
        ],
    )
    def test_a_doubtful_layout_cannot_be_built(self, fields, says):
        with pytest.raises(ConfigError, match=says):
            Layout(fields)

    def test_clip_rates_are_told_by_field_and_in_all(self):
        layout = Layout(
            {"a": Field.floats(4, clip_range=1.0), "n": Field.counts(largest=9), "b": Field.floats(4, clip_range=0.1)}
        )
        update = {"a": [0.5, 2.0, -3.0, 1.0], "b": [0.05, 0.2, 0.0, 0.1], "n": 9}
        _, clients = round_of(policy(layout), alike(update))
        assert all(client.clip_rates == {"a": 0.5, "b": 0.25} for client in clients.values())
        assert all(client.clip_rate == 0.375 for client in clients.values())

    def test_public_weights_multiply_floats_and_nothing_else(self):
        layout = Layout({"x": Field.floats(1, clip_range=1.0, value_bits=20), "n": Field.counts(largest=1000)})
        rules = policy(layout, weights=dict(zip(CLIENTS, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True)))
        server, _ = round_of(rules, alike({"x": [0.5], "n": 1000}))
        result, mean = sums(server.result, rules), means(server.result, rules, server.included)
        assert int(result["n"]) == 5000
        assert result["x"][0] == pytest.approx(7.5, abs=5 * layout["x"].step(5))
        assert mean["x"][0] == pytest.approx(0.5, abs=1e-4)
        assert float(mean["n"]) == 1000
        with pytest.raises(ConfigError, match="public weights and the layout has private ones"):
            policy(Layout.weighted_mean(dict(layout), largest_weight=3), weights={"a": 2.0})

    def test_whole_private_weights_are_exact_and_none_at_all_has_no_mean(self):
        rules = policy(Layout.weighted_mean({"x": Field.floats(1, clip_range=1.0)}, largest_weight=32768))
        total = total_of(rules, {"a": {"weight": 32767, "x": [1.0]}, "b": {"weight": 3, "x": [1.0]}})
        assert float(sums(total, rules)["weight"]) == 32770
        nothing = total_of(rules, alike({"weight": 0, "x": [1.0]}))
        with pytest.raises(ConfigError, match="add up to nothing"):
            means(nothing, rules, "ab")

    def test_a_transcript_holds_each_field_to_its_own_range(self):
        """T-14: a sum that one field could hold is too large for another."""
        layout = Layout(
            {"n": Field.counts(largest=10), "x": Field.floats(3, clip_range=1.0), "i": Field.integers(1, bits=30)}
        )
        rules = policy(layout)
        assert rules.possible(layout["n"], CLIENTS) == (0, 50)
        assert rules.possible(layout["x"], "abc") == (-3 * 2**15, 3 * 2**15)
        assert rules.possible(layout["i"], "abc") == (-(2**29), 2**29 - 1)
        vectors = Vectors(rules)
        vectors._look_at(np.array([2**30 - 4, 7, 2**30 - 9, 8, 5], np.uint32), 0)
        assert vectors.ranges == [(-4, 0), (-9, 8), (0, 5)]
        vectors.slots = modulo(3 * slot_values(rules, bytes(32)), rules.bits).tolist()
        told = SimpleNamespace(policy=rules, round_id=bytes(32), inputs="abc", vectors=vectors, result=None)
        told.wrong = lambda check, record, sentence: ViolationError(check, sentence, 0)
        for low, high, says in ((-1, 0, "field 'n'"), (0, 31, "field 'n'"), (0, 30, "")):
            vectors.ranges[0] = low, high
            if says:
                with pytest.raises(ViolationError, match=f"of the {says} is larger than clipped inputs"):
                    t14_range(told)
            else:
                assert t14_range(told) == rules.length + rules.slots


class TestIntegers:
    def test_they_are_taken_as_they_are_and_of_either_sign(self):
        noised = {client: np.random.default_rng(i).integers(-(2**20), 2**20, 1000) for i, client in enumerate(CLIENTS)}
        rules = policy(Layout({"noised": Field.integers(1000, bits=30, step=0.5)}))
        assert rules.bits == 30
        server, clients = round_of(rules, noised)
        np.testing.assert_array_equal(dequantize(server.result, rules), 0.5 * sum(noised.values()))
        assert [client.clip_rate for client in clients.values()] == [0] * 5

    def test_a_sum_wraps_and_a_value_beyond_the_field_is_refused(self):
        rules = policy(Layout({"x": Field.integers(2, bits=8)}))
        assert sums(total_of(rules, {"a": [127, 0], "b": [1, -128]}), rules)["x"].tolist() == [-128, -128]
        for value in (256, -129):
            with pytest.raises(ConfigError, match="lie outside -128 to 255"):
                quantize([0, value], rules, "a", Stream())


def fields_of_every_kind():
    shape = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    floats = st.builds(
        lambda shape, clip, bits: Field.floats(shape, clip_range=clip, value_bits=bits),
        shape,
        st.floats(1e-6, 1e6),
        st.integers(2, 40),
    )
    counts = st.builds(lambda shape, largest: Field.counts(shape, largest=largest), shape, st.integers(1, 2**40))
    integers = st.builds(lambda shape, bits: Field.integers(shape, bits=bits), shape, st.integers(8, 60))
    return floats | counts | integers


def value_of(field: Field):
    """Any value that the field takes whole."""
    match field.kind.value:
        case "float":
            return arrays.arrays(np.float64, field.shape, elements=st.floats(-field.number, field.number))
        case "count":
            return arrays.arrays(np.int64, field.shape, elements=st.integers(0, int(field.number)))
        case _:
            low = -(2 ** (field.bits - 1)) // 8
            return arrays.arrays(np.int64, field.shape, elements=st.integers(low, -low - 1))


layouts = st.dictionaries(st.text("abc.", min_size=1, max_size=3), fields_of_every_kind(), min_size=1, max_size=5).map(
    Layout
)


class TestProperties:
    @given(st.data())
    @settings(max_examples=25, deadline=None)
    def test_unpacked_is_what_was_packed(self, data):
        layout = data.draw(layouts)
        values = {name: data.draw(value_of(field)) for name, field in layout.items()}
        back = layout.unpack(layout.pack(values))
        assert back.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(back[name], value)
            assert back[name].shape == layout[name].shape

    @given(st.data())
    @settings(max_examples=25, deadline=None)
    def test_a_sum_of_packs_unpacks_to_the_sum(self, data):
        """And no bit of one field reaches another: each has its own largest values around it."""
        layout = data.draw(layouts)
        rules = policy(layout)
        updates = {c: {name: data.draw(value_of(field)) for name, field in layout.items()} for c in "abcde"}
        total = total_of(rules, updates)
        result, driven = sums(total, rules), sums(dequantize(total, rules), rules)
        for name, field in layout.items():
            expected = sum(update[name] for update in updates.values())
            assert field.kind.value == "integer" or np.array_equal(driven[name], result[name])
            if field.kind.value == "float":
                step = field.step()
                np.testing.assert_allclose(result[name], expected, atol=5 * step * (1 + 1e-6), rtol=1e-12)
            else:
                np.testing.assert_array_equal(result[name], expected)

    @given(layouts, st.integers(3, 256))
    @settings(max_examples=25, deadline=None)
    def test_the_default_width_holds_the_largest_sums_of_every_field(self, layout, clients):
        rules = policy(layout, clients=clients)
        assert rules.bits == max(8, rules.bits_needed)
        for field in layout.values():
            if field.kind.value != "integer":
                assert clients * field.largest_value < 2 ** (rules.bits - 1)
        if rules.bits > 8:
            with pytest.raises(ConfigError, match="overflow"):
                policy(layout, clients=clients, bits=rules.bits - 1)

    @given(st.lists(st.integers(1, 40_000), max_size=6), st.sampled_from([24, 40]))
    @settings(max_examples=10, deadline=None)
    def test_any_pieces_are_the_whole(self, cuts, bits):
        layout = Layout(
            {
                "a": Field.floats(70_000, clip_range=1.0),
                "b": Field.counts(3, largest=100),
                "c": Field.floats((7, 11), clip_range=1e-3, value_bits=12),
                "d": Field.integers(40_000, bits=20),
            }
        )
        rules = policy(layout, bits=bits)
        noise = np.random.default_rng(1)
        update = {
            "a": noise.normal(0, 1, 70_000).astype(np.float32),
            "b": [1, 2, 100],
            "c": noise.normal(0, 1e-3, (7, 11)),
            "d": noise.integers(-(2**19), 2**19, 40_000).astype(np.int32),
        }
        whole, _ = quantize(update, rules, "a", Stream(bytes(32)))
        quantised, got = Quantised(update, rules, "a", Stream(bytes(32))), []
        for cut in [*cuts, rules.length]:
            piece = np.empty(min(cut, rules.length - sum(map(len, got))), dtype_for(bits))
            quantised.read_into(piece)
            got.append(piece)
        np.testing.assert_array_equal(np.concatenate(got) & dtype_for(bits).type(2**bits - 1), whole)
        assert quantised.clip_rates["a"] == np.mean(np.abs(update["a"]) > 1)
        assert quantised.clip_rates["c"] == np.mean(np.abs(update["c"]) > 1e-3)


# --- the last bit of a narrow type --------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [2**25 - 1, 2**45 - 1])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_a_count_above_the_largest_is_refused_whatever_its_type_rounds_the_largest_to(largest, kind):
    rules = policy(Layout({"n": Field.counts(2, largest=largest)}), clients=4)
    with pytest.raises(ConfigError, match="1 of 2 values"):
        quantize({"n": np.array([largest + 1, 0]).astype(kind)}, rules, "a", Stream())  # float32(largest) is that one


@pytest.mark.parametrize("value_bits", [2, 16, 48])
def test_a_weight_of_a_narrow_type_counts_for_the_largest_and_no_more(value_bits):
    layout = Layout.weighted_mean({"x": Field.floats(4, clip_range=1.0, value_bits=value_bits)}, largest_weight=0.1)
    rules = policy(layout)
    assert float(np.float32(0.1)) > 0.1
    total = total_of(rules, alike({"weight": np.float32(0.1), "x": np.ones(4)}))
    least, most = rules.possible(rules.fields["x"], CLIENTS)
    assert least <= total[1:].max() <= most, "T-14 refuses the transcript of a round with more"
    with pytest.raises(ConfigError, match="largest weight"):
        quantize({"weight": np.float32(0.11), "x": np.ones(4)}, rules, "a", Stream())


def test_a_sum_of_wide_integers_that_was_rounded_keeps_its_sign():
    rules = policy(Layout({"i": Field.integers(1, bits=64)}))
    total = np.array([2**63 - 1], np.uint64)
    assert sums(total, rules)["i"] == 2**63 - 1
    assert int(sums(dequantize(total, rules), rules)["i"][0]) == 2**63 - 2**10, "rounded, as float64 can"


@pytest.mark.parametrize("form", ["toml", "json"])
def test_a_written_policy_with_a_field_twice_is_refused(form):
    rules = policy(Layout({"i": Field.counts(1, largest=9), "j": Field.counts(2, largest=9)}))
    text = getattr(rules, f"to_{form}")().replace('"j"', '"i"')
    with pytest.raises(ConfigError, match="the field 'i' twice"):
        getattr(Policy, f"from_{form}")(text)


def test_an_example_of_complex_numbers_is_not_said_to_hold_whole_ones():
    with pytest.raises(ConfigError, match="complex"):
        Layout.like({"a": np.array([1j])}, clip_range=1.0, largest=3)
