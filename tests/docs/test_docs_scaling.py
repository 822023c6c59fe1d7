"""The page on how the cost grows: tables and drawing are those of the figures, and the figures are of real rounds."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/scaling.md"
FIGURES = ROOT / "tests/benchmarks/scaling.json"

_spec = importlib.util.spec_from_file_location("scaling_page", ROOT / "docs/tools/scaling.py")
page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(page)


@pytest.fixture
def benchmarks(monkeypatch):
    """The scripts import each other by name, as they do where they are run."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import scaling

    yield scaling
    for name in {"scaling", "light", "bench_memory", "bench_round"} - before:
        sys.modules.pop(name, None)


def test_page_and_drawing_are_those_of_the_figures():
    figures, text = FIGURES.read_bytes(), PAGE.read_text(encoding="utf-8")
    assert page.refreshed(text, json.loads(figures)) == text, "docs/scaling.md is behind: run make walks"
    assert page.source_of(figures) in page.DRAWING.read_text(encoding="utf-8"), "the drawing is behind: run make walks"


def test_the_drawing_changes_its_colours_on_dark_pages():
    figures = json.loads(FIGURES.read_text())
    drawing = page.drawn(figures, "here")
    assert "prefers-color-scheme: dark" in drawing
    assert drawing == page.drawn(figures, "here"), "the same figures make another drawing"


def test_the_formulas_give_known_terms_back():
    cells = [
        {
            "suite": page.DEFAULT, **page.beyond(n, d, k),
            "client_cpu_s": 1e-9 * n * d + 1e-3 * n + 5e-3,
            "server_cpu_s": 2e-9 * (n - k) * (1 + k) * d + 1e-5 * n * n,
            "client_up_bytes": page.beyond(n, d, k)["vector_bytes"] + 2000 * n,
            "client_down_bytes": page.beyond(n, d, k)["vector_bytes"] + 5000 * n,
            "server_above_bytes": 3000 * n * n + 0.5 * page.beyond(n, d, k)["vector_bytes"],
        }
        for n in (10, 30, 100) for d in (10**4, 10**5, 10**6) for k in (0, n // 10)
    ]  # fmt: skip
    fitted = page.models({"cells": cells, "dealing_s": {}})
    far = page.beyond(1000, 10**7, 100)
    assert all(model.error < 1e-6 for model in fitted.values())
    assert fitted["server_cpu_s"].at(far) == pytest.approx(2e-9 * 900 * 101 * 1e7 + 1e-5 * 1e6)
    assert fitted["client_down_bytes"].at(far) == pytest.approx(5000 * 1000)


def test_light_clients_cost_the_server_the_same_bytes_as_real_ones(benchmarks):
    cell = benchmarks.Cell(benchmarks.Suite.MLKEM768_X25519, 5, 100, 1)
    found = benchmarks.Cohort(cell).play()
    import bench_round

    real = bench_round.one_round(bench_round.policy_for(5, 100, cell.suite), 1, bench_round.Meter())
    assert abs(max(real.values()) - found["client_up_bytes"]) <= 2  # lengths of ids and numbers differ by a varint


def test_exponents_are_slopes_of_logarithms(benchmarks):
    cells = [
        dict.fromkeys(benchmarks.FITTED, n**2 * d) | {"suite": "x", "n": n, "d": d, "dropped": 0}
        for n in (10, 30, 100)
        for d in (10, 100, 1000)
    ]
    slopes = Counter((row["over"], row["exponent"], row["plus_minus"]) for row in benchmarks.exponents(cells))
    assert slopes == {("n", 2.0, 0.0): 12, ("d", 1.0, 0.0): 12}
