"""Draws docs/scaling.svg and fills the tables of docs/scaling.md from tests/benchmarks/scaling.json.

`make walks` runs this; a test fails where the page or the drawing is behind the figures. What lies beyond 256 clients
is computed here, by a sum of terms that is fitted to the cells (non-negative least squares of relative errors).
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

ROOT = Path(__file__).parents[2]
FIGURES, PAGE, DRAWING = (ROOT / p for p in ("tests/benchmarks/scaling.json", "docs/scaling.md", "docs/scaling.svg"))
TABLES = re.compile(r"(<!-- (\w+), written by make walks -->\n).*?(<!-- end -->)", re.DOTALL)
DEFAULT, VALUE_BITS = "MLKEM768_X25519", 16
BEYOND, LENGTHS_BEYOND = (256, 1000, 10_000), (10**6, 10**7)
NAMES = {
    "client_cpu_s": "client, CPU time",
    "server_cpu_s": "server, CPU time",
    "client_up_bytes": "a client sends",
    "client_down_bytes": "a client receives",
}

Cell = dict[str, Any]
Terms = dict[str, Callable[[Cell], float]]

SIZE: Terms = {"n": lambda c: c["n"], "1": lambda c: 1}
MODELS: dict[str, Terms] = {  # k is the number of clients that dropped out; log is to the base 2
    "client_cpu_s": {"n d": lambda c: c["n"] * c["d"], "d": lambda c: c["d"], **SIZE},
    "server_cpu_s": {
        "(n - k) (1 + k) d": lambda c: (c["n"] - c["dropped"]) * (1 + c["dropped"]) * c["d"],
        "n d": lambda c: c["n"] * c["d"],
        "n^2": lambda c: c["n"] ** 2,
        "n k": lambda c: c["n"] * c["dropped"],
        **SIZE,
    },
    "client_up_bytes": SIZE,
    "client_down_bytes": {"n log n": lambda c: c["n"] * math.log2(c["n"]), **SIZE},
    "server_above_bytes": {"n^2": lambda c: c["n"] ** 2, "b d / 8": lambda c: c["vector_bytes"], **SIZE},
}


class Model(NamedTuple):
    """A fitted sum of terms, and its largest error over the cells, as a share of what was fitted there."""

    what: str
    weights: dict[str, float]
    error: float

    def at(self, cell: Cell) -> float:
        """What the terms add up to."""
        return sum(weight * MODELS[self.what][term](cell) for term, weight in self.weights.items())


def known(what: str, cell: Cell, dealing: dict[str, float]) -> float:
    """What is not fitted: the vector, whose size is known, and the dealing of shares, which is measured by itself."""
    if what.endswith("_bytes"):
        return 0.0 if what.startswith("server") else float(cell["vector_bytes"])
    return dealing.get(str(cell["n"]), 0.0) if what == "client_cpu_s" else 0.0


def models(figures: dict[str, Any]) -> dict[str, Model]:
    """Fitted to the cells of the default suite: relative errors; of memory, which comes in pages, plain ones."""
    cells, fitted = [cell for cell in figures["cells"] if cell["suite"] == DEFAULT], {}
    for what, terms in MODELS.items():
        rest = np.array([max(cell[what] - known(what, cell, figures["dealing_s"]), 1e-9) for cell in cells])
        unit = np.full(len(rest), rest.max()) if what == "server_above_bytes" else rest
        rows = np.array([[term(cell) for term in terms.values()] for cell in cells]) / unit[:, None]
        scale = rows.max(axis=0)
        weights, _ = nnls(rows / scale, rest / unit)
        error = float(np.abs(rows / scale @ weights - rest / unit).max())
        fitted[what] = Model(what, dict(zip(terms, map(float, weights / scale), strict=True)), error)
    return fitted


def beyond(n: int, d: int, dropped: int) -> Cell:
    """A cell that nobody measured: the modulus has the bits that the sum of n values needs."""
    bits = (2 * n << (VALUE_BITS - 1)).bit_length()
    return {"n": n, "d": d, "dropped": dropped, "bits": bits, "vector_bytes": d * bits / 8}


# --- The page ----------------------------------------------------------------------------------------------------


def refreshed(text: str, figures: dict[str, Any]) -> str:
    """The page with these figures."""
    return TABLES.sub(lambda found: f"{found[1]}\n{globals()['_' + found[2]](figures)}\n\n{found[3]}", text)


def _machine(figures: dict[str, Any]) -> str:
    m, rounds = figures["machine"], [cell["rounds"] for cell in figures["cells"]]
    return (
        f"{m['date']} UTC, commit `{m['commit']}`: one core of {m['cores']} of {m['cpu']}, {m['system']}, Python "
        f"{m['python']}, numpy {m['numpy']}, cryptography {m['cryptography']}, compiled kernel "
        f"{'in use' if m['kernel'] else 'not in use'}. The core made {m['keystream_gb_per_s']} GB/s of keystream, "
        f"hashed {m['blake3_gb_per_s']} GB/s with BLAKE3 and added vectors at {m['numpy_addition_gb_per_s']} GB/s. "
        f"Load of the machine: {m['load_before']} before and {m['load_after']} after {m['took_s'] / 60:.0f} minutes; "
        f"1 is this benchmark alone. {len(figures['cells'])} cells of 48, each of {min(rounds)} to {max(rounds)} "
        "rounds, of which the best counts."
    )


def _measured(figures: dict[str, Any]) -> str:
    head = ("n", "d", "client", "server", "client sends", "client receives", "client memory", "server memory")
    return _by_size(figures, DEFAULT, head)


def _classic(figures: dict[str, Any]) -> str:
    return _by_size(figures, "X25519", ("n", "d", "client", "server", "client sends", "client receives"))


def _by_size(figures: dict[str, Any], suite: str, head: Sequence[str]) -> str:
    found = {(c["n"], c["d"], c["dropped"] > 0): c for c in figures["cells"] if c["suite"] == suite}
    rows = []
    for n, d in sorted({key[:2] for key in found}):
        both = [found.get((n, d, drop)) for drop in (False, True)]
        times = [" / ".join(_time(c[f"{who}_cpu_s"]) if c else "-" for c in both) for who in ("client", "server")]
        last = next(c for c in reversed(both) if c)
        sizes = [_size(last[f"client_{way}_bytes"]) for way in ("up", "down")]
        memory = [_size(max(c[f"{who}_above_bytes"] for c in both if c)) for who in ("client", "server")]
        rows.append([n, _power(d), *times, *sizes, *memory][: len(head)])
    return _table(head, rows)


def _exponents(figures: dict[str, Any]) -> str:
    rows, found = [], [row for row in figures["exponents"] if row["suite"] == DEFAULT]
    for over, fixed in (("n", "d"), ("d", "n")):
        for what, name in NAMES.items():
            for drop in (False, True):
                cells = [
                    f"{fixed} = {row[fixed] if fixed == 'n' else _power(row[fixed])}: "
                    f"{row['exponent']:.2f} ± {row['plus_minus']:.2f}"
                    for row in found
                    if (row["over"], row["what"], row["with_dropouts"]) == (over, what, drop)
                ]
                rows.append([name, over, "10 %" if drop else "none", "; ".join(sorted(cells))])
    return _table(("what", "over", "dropped", "exponent, with its interval of 95 %"), rows)


def _formulas(figures: dict[str, Any]) -> str:
    rows = []
    for what, model in models(figures).items():
        show = _time if what.endswith("_s") else _size
        terms = [
            f"{w:.2g} x {t}" if t == "b d / 8" else f"{show(w)}" + (f" x {t}" if t != "1" else "")
            for t, w in model.weights.items()
            if w > 0
        ]
        if what in ("client_up_bytes", "client_down_bytes"):
            terms.insert(0, "b d / 8")
        if what == "client_cpu_s":
            terms.append("dealing")
        name = NAMES.get(what, "server, memory above one vector and the sum")
        rows.append([name, " + ".join(terms), f"{100 * model.error:.0f} %"])
    return _table(("what", "formula", "largest error in a cell"), rows)


def _beyond(figures: dict[str, Any]) -> str:
    fitted, dealing, rows = models(figures), figures["dealing_s"], []
    for n in BEYOND:
        for d in LENGTHS_BEYOND:
            cells = [beyond(n, d, k) for k in (0, n // 10)]
            value = {what: [m.at(c) + known(what, c, dealing) for c in cells] for what, m in fitted.items()}
            up, down = value["client_up_bytes"][1], value["client_down_bytes"][1]
            times = [" / ".join(map(_time, value[f"{who}_cpu_s"])) for who in ("client", "server")]
            rows.append(
                [f"{n:,}", _power(d), times[0], _time(dealing[str(n)]), times[1]]
                + [_size(size) for size in (up, down, n * (up + down), max(value["server_above_bytes"]))]
            )
    head = ("n", "d", "client", "of it dealing", "server", "client sends", "client receives")
    return _table((*head, "server, all traffic", "server memory"), rows)


def _huge(figures: dict[str, Any]) -> str:
    huge = figures["huge"]
    if not huge:
        return "Not measured in this run."
    rows = [
        [who, _time(huge[who]["seconds"]), _size(huge[who]["bytes"]),
         _size(huge[who]["bytes"] - 4 * huge["d"] - huge["bits"] * huge["d"] / 8)]
        for who in ("client", "server")
    ]  # fmt: skip
    return _table(("party", "CPU time", "peak memory", "above one vector in 32 and one in 19 bits"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= (2 if unit in ("h", "min") else 1) * size:
            return f"{_figures(seconds / size)} {unit}"
    return f"{seconds * 1e9:.2g} ns"


def _size(octets: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(octets) >= size:
            return f"{_figures(octets / size)} {unit}"
    return f"{octets:.0f} B"


def _figures(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _power(d: int) -> str:
    return f"1e{len(str(d)) - 1}" if d == 10 ** (len(str(d)) - 1) else f"{d:,}"


# --- The drawing -------------------------------------------------------------------------------------------------


def source_of(figures: bytes) -> str:
    """What the drawing says it was drawn from."""
    return f"sha256 of scaling.json: {hashlib.sha256(figures).hexdigest()}"


def drawn(figures: dict[str, Any], source: str) -> str:
    """SVG: cost over n for each d. On dark pages its colours change, and its own ground makes it readable anywhere."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from fedseg.palette import DARK, LIGHT, MARKERS, SERIES

    settings = {"svg.fonttype": "none", "svg.hashsalt": "scaling", "font.family": "sans-serif", "font.size": 9}
    panels = (
        ("client_cpu_s", "client: CPU time, s"),
        ("server_cpu_s", "server: CPU time, s"),
        ("client_up_bytes", "a client sends, bytes"),
        ("client_down_bytes", "a client receives, bytes"),
        ("client_above_bytes", "client: memory above input and output, bytes"),
        ("server_above_bytes", "server: memory above input and output, bytes"),
    )
    cells = [cell for cell in figures["cells"] if cell["suite"] == DEFAULT]
    colours = {name: LIGHT[name] for name in ("ink", "line", "paper", "muted", *SERIES)}
    with mpl.rc_context(settings):
        sheet, axes = pyplot.subplots(3, 2, figsize=(8.5, 9.5), layout="constrained", facecolor=colours["paper"])
        for axis, (what, title) in zip(axes.flat, panels, strict=True):
            for i, d in enumerate(sorted({cell["d"] for cell in cells})):
                for dropped, line in ((False, "solid"), (True, "dashed")):
                    series = [c for c in cells if (c["d"], c["dropped"] > 0) == (d, dropped) and c[what] > 0]
                    points = sorted((c["n"], c[what]) for c in series) or [(math.nan, math.nan)]
                    label = f"d = {_power(d)}" + (", 10 % dropped" if dropped else "")
                    fill = colours["paper"] if dropped else colours[SERIES[i]]
                    axis.plot(*zip(*points, strict=True), color=colours[SERIES[i]], marker=MARKERS[i], linestyle=line,
                              markersize=5, markerfacecolor=fill, label=label)  # fmt: skip
            ns = sorted({cell["n"] for cell in cells})
            axis.set(xscale="log", yscale="log", title=title, xlabel="clients, n", facecolor=colours["paper"])
            axis.set_xticks(ns, [str(n) for n in ns])
            axis.minorticks_off()
            axis.grid(color=colours["line"])
            axis.tick_params(colors=colours["ink"])
            for text in (axis.title, axis.xaxis.label):
                text.set_color(colours["ink"])
            for side in axis.spines.values():
                side.set_color(colours["muted"])
        handles, labels = axes.flat[0].get_legend_handles_labels()
        sheet.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=colours["ink"])
        page = io.StringIO()
        sheet.savefig(page, format="svg", metadata={"Date": None, "Creator": None, "Description": source})
        pyplot.close(sheet)
    rules = "".join(
        f'[style*="{way}: {value}"]{{{way}:{DARK[name]} !important}}'
        for name, value in colours.items()
        for way in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>\n </defs>"
    return page.getvalue().replace("</defs>", style, 1)


def main() -> None:
    """Page and drawing."""
    octets = FIGURES.read_bytes()
    figures = json.loads(octets)
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
    if not DRAWING.is_file() or source_of(octets) not in DRAWING.read_text(encoding="utf-8"):
        DRAWING.write_text(drawn(figures, source_of(octets)), encoding="utf-8")


if __name__ == "__main__":
    main()
