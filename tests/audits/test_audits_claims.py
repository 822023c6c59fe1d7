"""claims.yaml: what it quotes is said, what it names is there, and what is gone is told by name."""

import pytest

from audits.claims import book, texts
from audits.table import AUDITS


def test_every_claim_is_said_where_it_is_quoted_and_its_evidence_is_there():
    assert book.wrong() == []


def test_audits_name_claims_that_exist():
    ids = {claim.id for claim in book.claims()}
    assert {each for audit in AUDITS for each in audit.claims} <= ids


@pytest.fixture
def one(monkeypatch):
    """Puts one claim in place of all; gives what is wrong with it."""

    def wrong(**fields):
        claim = {"id": "a", "status": "supported", "evidence": ["test_an_unsafe_policy_cannot_be_built"], **fields}
        monkeypatch.setattr(book, "claims", lambda: (book.Claim.model_validate(claim),))
        return book.wrong()

    return wrong


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"says": {"README.md": ["The moon is made of cheese."]}}, "does not say any more: The moon"),
        ({"says": {"docs/gone.md": ["x"]}}, "there is no docs/gone.md"),
        ({"says": {"secagg sing --help": ["x"]}}, "there is no secagg sing --help"),
        ({"rows": {"README.md": ["^moon"]}}, "no sentence like"),
        ({"evidence": ["test_that_never_was"]}, "test_that_never_was is gone"),
        ({"evidence": ["tests/secagg/test_secagg_moon.py"]}, "is gone"),
        ({"evidence": ["audit dp.moon"]}, "no audit or room is called dp.moon"),
        ({"evidence": ["once python studies/moon.py"]}, "the command is gone"),
        ({"evidence": ["once make moon"]}, "the command is gone"),
        ({"evidence": ["read docs/spec.md#moon"]}, "has no section moon"),
        ({"evidence": ["believe me"]}, "no kind of evidence"),
        ({"evidence": []}, "without evidence"),
        ({"status": "partial"}, "does not say why"),
    ],
)
def test_what_is_gone_is_told(one, fields, told):
    assert one() == []
    (sentence,) = one(**fields)
    assert told in sentence


def test_sentences_with_a_claims_words_are_found_and_covered_by_a_piece_of_them(monkeypatch, tmp_path):
    (tmp_path / "page.md").write_text(
        "# Never\n\nIt is never\nwrong. It rains.\n\n| what | who never |\n|---|---|\n| `a` | never [b](c) |\n"
        "- cannot fail\n\n```\nnever\n```\n"
    )
    monkeypatch.setattr(texts, "ROOT", tmp_path)
    texts.sentences.cache_clear()
    found = texts.claiming("page.md")
    assert found == ("It is never wrong.", "| `a` | never [b](c) |", "- cannot fail")
    claim = book.Claim(id="a", status="supported", says={"page.md": ("is never",)}, rows={"page.md": (r"^\| `a`",)})
    assert [claim.covers("page.md", each) for each in found] == [True, True, False]


def test_every_command_is_asked_for_its_help():
    assert {"secagg --help", "fedseg ledger verify --help", "secagg verify-transcript --help"} <= texts.helps().keys()
    assert len(texts.helps()) > 50
