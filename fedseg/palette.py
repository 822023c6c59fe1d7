"""All colours of what is shown: the report as a page and on paper, and pictures.

Hues are those of Okabe and Ito (2008, "Color universal design"), which people with red-green blindness tell apart. On
white they are darkened to a contrast of 3 to 1. No colour is the only sign: lines have markers and dashes, steps have
their own height, words stand beside everything. Text has a contrast of 4.5 to 1 on all grounds (WCAG 2.1, 1.4.3).
"""

OKABE_ITO = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Of structures in pictures, by label value, which lie on black; and of series on dark paper."""

WRONG = "#ff5f1f"
"""In pictures: where a prediction differs from the truth."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))

TEXT = ("ink", "muted", "accent", "alarm")
"""Colours that letters have, on every one of `GROUNDS`."""

GROUNDS = ("paper", "wash", "alarm-wash")

SERIES = tuple(f"s{i}" for i in range(len(OKABE_ITO)))
"""Of structures in charts, and of the steps of a round, in order."""

LIGHT = {
    "ink": "#17212b",
    "muted": "#556370",
    "line": "#dde3e7",
    "paper": "#ffffff",
    "wash": "#f4f7f7",
    "accent": "#0b6f74",
    "alarm": "#b8243f",
    "alarm-wash": "#fdeef0",
    "train": "#8a96a0",
    **dict(zip(SERIES, ("#2b8cc4", "#c18500", "#00553d", "#4d4800", "#003a70", "#a84800", "#c9689c"), strict=True)),
}
DARK = {
    "ink": "#e6ecf0",
    "muted": "#a3b0bb",
    "line": "#2c3741",
    "paper": "#12181e",
    "wash": "#1a222a",
    "accent": "#4cc3c0",
    "alarm": "#ff8596",
    "alarm-wash": "#3a1a21",
    "train": "#6f7d89",
    **dict(zip(SERIES, OKABE_ITO, strict=True)),
}


def series(index: int) -> str:
    """The name of the colour of the structure, or step, at this index."""
    return SERIES[index % len(SERIES)]


def tint(label: int) -> str:
    """The colour of a label value in a picture, in hexadecimal."""
    return OKABE_ITO[(label - 1) % len(OKABE_ITO)]


def style_sheet() -> str:
    """CSS variables for light and paper, and for dark screens."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
