"""Where the code comes from: what it depends on, what is installed, and whether a wheel can be built again."""

from audits.base import Audit, later
from audits.supply import sbom, wheel

AUDITS = (
    Audit(
        "supply.dependencies",
        "each dependency has its reason, licence and review, and is installed as pinned",
        ("installation-size",),
        {"quick": 2, "full": 2},
        later("supply.dependencies"),
    ),
    Audit(
        "supply.sbom",
        "the bill of materials is valid, complete and the same again",
        (),
        {"quick": 3, "full": 3},
        sbom.audit,
    ),
    Audit(
        "supply.wheel",
        "built twice in different folders, the wheel is the same file",
        (),
        {"quick": 20, "full": 20},
        wheel.audit,
    ),
)
COMMANDS = {"sbom": sbom.command}
