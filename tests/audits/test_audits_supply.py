"""Dependencies fit table, pins and licences; the bill of materials is valid; what differs in two wheels is found."""

import json
import zipfile

import pytest

from audits.supply import dependencies, packages, sbom, wheel


def test_every_dependency_has_a_row_a_pin_and_its_licence():
    assert dependencies.wrong() == []


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Changes the table of dependencies."""

    def changed(old, new):
        text = dependencies.TABLE.read_text()
        assert old in text
        (tmp_path / "table.md").write_text(text.replace(old, new))
        monkeypatch.setattr(dependencies, "TABLE", tmp_path / "table.md")
        return dependencies.wrong()

    return changed


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "| typer | core |",
            "| tiper | core |",
            ["tiper has a row and is not", "typer is in pyproject.toml and has no row"],
        ),
        (
            "| typer | core | MIT |",
            "| typer | core | GPL-3.0 |",
            ["typer says that its licence is MIT, its row GPL-3.0"],
        ),
        ("| torch | fedseg |", "| torch | core |", ["torch is needed by fedseg, and its row says otherwise"]),
    ],
)
def test_a_table_that_does_not_fit_is_told(table, old, new, told):
    found = table(old, new)
    assert len(found) == len(told)
    for sentence, piece in zip(found, told, strict=True):
        assert piece in sentence


def test_a_package_without_pin_of_another_version_or_licence_is_told(monkeypatch):
    monkeypatch.setattr(packages, "pins", lambda: {"rich": "1.0"})
    monkeypatch.setattr(dependencies, "pins", packages.pins)
    monkeypatch.setattr(dependencies, "PERMISSIVE", packages.PERMISSIVE - {"MIT"})
    told = "\n".join(dependencies.wrong())
    assert "typer is brought by a dependency and has no pin" in told
    assert "rich is installed in version" in told
    assert "rich has a licence that nobody looked at: MIT" in told


def test_the_bill_of_materials_is_valid_whole_and_the_same_again():
    bill = sbom.made(("fedseg",))
    assert sbom.complaints(bill) == ""
    content = json.loads(bill)
    names = {each["name"] for each in content["components"]}
    assert {"cryptography", "torch", "cffi"} <= names
    assert "pytest" not in names
    needs = {each["ref"].partition("@")[0]: each.get("dependsOn", []) for each in content["dependencies"]}
    assert any(each.startswith("pkg:pypi/cffi@") for each in needs["pkg:pypi/cryptography"])
    assert sbom.made(("fedseg",)) == bill
    content["components"][0]["type"] = "moon"
    assert "moon" in sbom.complaints(json.dumps(content))


def test_what_differs_in_two_wheels_is_named(tmp_path):
    def made(name, **files):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for inside, text in files.items():
                archive.writestr(zipfile.ZipInfo(inside), text)
        return tmp_path / name

    same = made("a", x="1", y="2")
    assert wheel.different(same, made("b", x="1", y="2")) == []
    assert wheel.different(same, made("c", x="1", y="3")) == ["y"]
    assert wheel.different(same, made("d", x="1", z="2")) == ["y", "z"]
