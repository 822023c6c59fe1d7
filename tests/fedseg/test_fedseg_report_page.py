"""How the report looks: nothing is cut at any width or on paper, and nobody needs to tell red from green to read it."""

import html
import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from fedseg import palette
from fedseg.report import write_report
from fedseg.report.canvas import mark
from fedseg.report.timeline import STEPS
from secagg import steps
from tests.support.run_folder import make_run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of a run with seven structures and long names."""
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "run", drop_round=7)).read_text()


@pytest.fixture(scope="module")
def readme_page(tmp_path_factory):
    """Of a run as the README's: one structure, and a baseline with a long name."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "lgg", structures=["lesion"], rounds=5, drop_round=None)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["baselines"] = {"zero-shot, before any training here": metrics["baselines"]["zero-shot"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return write_report(folder).read_text()


# --- Colours ----------------------------------------------------------------------------------------------------------

DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.1."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def seen_by_deuteranopes(colour):
    """CIE L*a*b*."""
    x = np.array(XYZ) @ np.clip(np.array(DEUTERANOPIA) @ linear(colour), 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


THEMES = pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])


@THEMES
def test_all_letters_can_be_read_on_all_grounds(theme):
    pairs = {
        (text, ground): contrast(theme[text], theme[ground]) for text in palette.TEXT for ground in palette.GROUNDS
    }
    assert min(pairs.values()) >= 4.5, pairs
    marks = {name: contrast(theme[name], theme["paper"]) for name in (*palette.SERIES, "train")}
    assert min(marks.values()) >= 3, marks


def test_the_page_uses_no_other_colours_for_letters_and_grounds(page, readme_page):
    """What the test above computes is all that there is."""
    for text in (page, readme_page):
        style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
        used = set(re.findall(r"(?<![-\w])color: *([^;}]+)", style)) | set(re.findall(r'style="color:([^";]+)', text))
        assert used <= {f"var(--{name})" for name in palette.TEXT}
        drawn = re.findall(r"<text [^>]*style=\"([^\"]*)\"", text)
        assert drawn
        for found in drawn:
            assert re.search(r"fill: ([^;]+)", found)[1] in {f"var(--{name})" for name in palette.TEXT}, found
        grounds = set(re.findall(r"background: *(var\(--[\w-]+\))", style))
        assert grounds <= {f"var(--{name})" for name in (*palette.GROUNDS, "line", "accent")}


@THEMES
def test_deuteranopes_tell_structures_and_steps_apart(theme):
    shown = [theme[name] for name in palette.SERIES]
    for colours in (shown, list(palette.OKABE_ITO)):
        places = map(seen_by_deuteranopes, colours)
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > 15


def test_colour_is_never_the_only_sign(page):
    """Each structure has a marker of its own, each step a height of its own."""
    assert len({mark(i) for i in range(7)}) == 7
    assert len({re.search(r' d="([^"]+)"', mark(i))[1] for i in range(7)}) == 7
    assert all(str(mark(i)) in page for i in range(7))
    assert "1 external CSF" in page
    assert tuple(STEPS) == steps.STEPS[:-1]


# --- Width ------------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=20000 --dump-dom"
PAPER = 703  # CSS pixels between the margins of A4
WIDTHS = (360, 480, 768, 1024, 1280, 1440, 1920)
MEASURE = """
<script>
addEventListener("load", () => {
const cut = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument;
  for (const node of page.querySelectorAll("body, body *:not(svg *)")) {
    const pan = node.closest(".pan"), box = node.getBoundingClientRect(), what = node.tagName + "." + node.className;
    if (pan && frame.width < 900 && !frame.title) continue;  // wide drawings are moved sideways on small screens
    if (box.right > +frame.width + 1) cut.push([frame.title + frame.width, what, "right of the page"]);
    if (node.scrollWidth > node.clientWidth + 1 && node.clientWidth && getComputedStyle(node).display != "inline")
      cut.push([frame.title + frame.width, what, node.scrollWidth, node.clientWidth]);
  }
}
document.title = JSON.stringify(cut);
});
</script>
"""


def measured(text, folder):
    """What sticks out of the page or of its place, at every width and on paper."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text)
    on_paper = text.replace("@media print", "@media all")
    frames = [f'<iframe width="{w}" height="900" srcdoc="{html.escape(text)}"></iframe>' for w in WIDTHS]
    frames.append(f'<iframe title="paper " width="{PAPER}" height="900" srcdoc="{html.escape(on_paper)}"></iframe>')
    (folder / "frames.html").write_text(f"<!doctype html><body>{''.join(frames)}{MEASURE}")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make chromium`")
@pytest.mark.parametrize("kind", ["page", "readme_page"])
def test_nothing_is_cut_at_any_width_or_on_paper(kind, request, tmp_path):
    assert measured(request.getfixturevalue(kind), tmp_path) == []
