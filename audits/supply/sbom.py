"""A bill of materials of what is installed: CycloneDX 1.6, by the standard's own library, and validated by it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import NAMESPACE_URL, uuid5

import typer

from audits.base import Result, Task
from audits.running import OUT


def made(extras: tuple[str, ...]) -> str:
    """The bill as JSON. The same packages at the same commit give the same bytes.

    Args:
        extras: of this project, with all that they bring.
    """
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    from audits.scope import scope
    from audits.supply.packages import closure, installed, licence, project

    def component(name: str, version: str, told: str, kind: ComponentType = ComponentType.LIBRARY) -> Component:
        """One package of the bill."""
        url = PackageURL("pypi", name=name, version=version)
        return Component(
            name=name,
            version=version,
            type=kind,
            purl=url,
            bom_ref=str(url),
            licenses=[LicenseFactory().make_from_string(told)],
        )

    own, below = project(), closure(extras)
    root = component(own["name"], own["version"], own["license"], ComponentType.APPLICATION)
    packages = {name: (found.version, licence(found)) for name in below if (found := installed(name))}
    parts = {name: component(name, *about) for name, about in sorted(packages.items())}
    bom = Bom(components=parts.values())
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.fromtimestamp(0, UTC)
    bom.serial_number = uuid5(NAMESPACE_URL, f"{scope().contents} {sorted(packages.items())}")
    bom.register_dependency(root, parts.values())
    for name, part in parts.items():
        bom.register_dependency(part, [parts[other] for other in sorted(below[name]) if other in parts])
    return str(JsonV1Dot6(bom).output_as_string(indent=2))


def complaints(bill: str) -> str:
    """What the standard's schema finds wrong with a bill; empty where it is valid."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill)
    return "" if found is None else str(found)


def audit(task: Task) -> Result:
    """The bill is valid, names every installed dependency, and is the same when it is made again."""
    import json

    from audits.supply.dependencies import INSTALLED_WITH
    from audits.supply.packages import closure, installed

    bill = made(INSTALLED_WITH)
    (task.out / "sbom.cdx.json").write_text(bill)
    names = {each["name"] for each in json.loads(bill)["components"]}
    missing = {name for name in closure(INSTALLED_WITH) if installed(name)} - names
    wrong = complaints(bill) or (f"not in it: {', '.join(sorted(missing))}" if missing else "")
    figures: dict[str, float | int | str] = {
        "components": len(names),
        "bytes": len(bill),
        "format": "CycloneDX 1.6 (JSON)",
    }
    if wrong or made(INSTALLED_WITH) != bill:
        return Result("violated", wrong or "made twice, the bill differs", figures)
    return Result("holds", f"a valid bill of {len(names)} components, byte for byte the same when made again", figures)


def command(
    to: Annotated[Path, typer.Option("--out", help="Where the bill goes.")] = OUT / "sbom.cdx.json",
    extra: Annotated[list[str] | None, typer.Option(help="Of what is installed with it; again for several.")] = None,
) -> None:
    """Write a bill of materials (CycloneDX 1.6) of what is installed here."""
    from secagg.terminal import errors, say

    bill = made(tuple(extra or ("fedseg",)))
    if wrong := complaints(bill):
        say(f"audits: the bill is not valid: {wrong}", console=errors)
        raise typer.Exit(1)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(bill)
    say(f"{to}: valid CycloneDX 1.6")
