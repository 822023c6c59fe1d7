"""The page of a comparison: one HTML file that works offline, of means and intervals and nothing of single patients."""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from fedseg import palette
from fedseg.compare.drawing import drawn
from fedseg.compare.outcome import Comparison
from fedseg.page import save, template
from fedseg.report.claims import MEASURES_SAID

PAGE = "comparison.html"
MINUS = "\N{MINUS SIGN}"


def write_page(comparison: Comparison, out: Path) -> Path:
    """Write the page beside the tables; ConfigError where it cannot be."""
    page = template(Path(__file__).parent, "comparison.html", minutes=minutes, size=size, signed=signed)
    text = page.render(comparison=comparison, palette=palette, drawings=list(_drawings(comparison)), said=MEASURES_SAID)
    save(out / PAGE, text)
    return out / PAGE


def _drawings(comparison: Comparison) -> Iterator[tuple[str, str, list[tuple[str, Markup]]]]:
    """(heading, what it says, (caption, drawing) of each part)."""
    whole = drawn(comparison, lambda row: row.mean, "whole", "Dice against epsilon, all held-out patients")
    if not whole:
        return
    yield "All patients, all structures", "", [("", whole)]
    if len(comparison.structures) > 1:
        parts = [
            (name, drawn(comparison, lambda row, name=name: row.structures.get(name), f"structure{k}", name))  # type: ignore[misc]
            for k, name in enumerate(comparison.structures)
        ]
        yield "By structure", "All held-out patients who have it.", parts
    sites = [site for site in comparison.sites if comparison.patients.get(site)]
    if len(sites) > 1:
        parts = [
            (
                f"{site}, n = {comparison.patients[site]}",
                drawn(comparison, lambda row, s=site: row.sites[s].mean if s in row.sites else None, f"site{k}", site),  # type: ignore[misc]
            )
            for k, site in enumerate(sites)
        ]
        yield "By site", "Each site's own held-out patients, all structures.", parts


def minutes(seconds: float) -> str:
    """CPU time in the unit that fits it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def size(count: int) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:.1f} MB" if count else ""


def signed(value: float) -> str:
    """A difference with its sign; the minus is a minus."""
    return f"{value:+.2f}".replace("-", MINUS)
