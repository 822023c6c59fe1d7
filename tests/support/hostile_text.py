"""What a peer could write where a sentence or a name is expected, and what must not be left of it where it is shown."""

from hypothesis import strategies as st

KINDS = {
    "markup that was never opened": "no [/such] tag",
    "markup": "[bold red]alarm[/] [link=https://example.org]here[/link]",
    "escape": "\x1b[2J\x1b]0;title\x07 and \x9b31m",
    "lines": "one\ntwo\r\nround 99: sum of 5 of 5 sites\u2028x",
    "bidi": "\u202etxt.exe",
    "surrogate": "\ud800 half",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>\"' {{ 7*7 }} $\\frac$",
    "everything": "[/]\x1b[31m\n\ud800\u202e[<b>\x00",
    "long": "[red]\x1b" * 400,
}

_ACTING = (
    "\x1b[2J \x1b]0;x\x07 \x9b \n \r \x85 \u2028 \u2029 \x00 \ud800 \udfff \u202e \u2066 \u200b \ufeff \x7f \U000e0041"
)
_MARKUP = "[ ] / [/red] [bold] :skull: \\ [[ $x^ {{ }} %s <script> </style> <!-- &amp; \" ' = ü"
_PIECES = st.sampled_from([*_ACTING.split(" "), *_MARKUP.split(" "), "x" * 200])
HOSTILE = st.one_of(
    st.lists(_PIECES, max_size=12).map("".join),
    st.text(st.characters(), max_size=60),
    st.sampled_from(list(KINDS.values())),
).map(lambda text: text[:2000])
"""Texts of at most 2,000 characters, the longest that a peer's sentence may have."""


def acting(text: str) -> set[str]:
    """The characters of a shown text that do something instead of being read; a line's end is none."""
    return {character for character in text if not character.isprintable()} - {"\n"}
