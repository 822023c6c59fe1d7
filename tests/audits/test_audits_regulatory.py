"""Neither word is used anywhere, a planted one is found, and the template keeps its blanks."""

from audits.regulatory import words


def test_nobody_says_what_only_a_lawyer_may():
    files = [path for pattern in words.LOOKED_AT for path in words.ROOT.glob(pattern) if path.is_file()]
    assert len(files) > 300
    assert [where for path in files for where in words.used(path)] == []
    assert list(words.used_in("one\nAnonymous data, fully compliant.", "page.md")) == ["Anonymous in page.md:2"]


def test_the_template_keeps_its_blanks():
    assert words.ASSESSMENT.read_text(encoding="utf-8").count(words.BLANK) >= words.FEWEST_BLANKS
