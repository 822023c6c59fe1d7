"""An import contract that allows: what a package takes from outside itself, room by room, and nothing else.

import-linter forbids what is listed; here whatever is not listed is forbidden, so that a module that does not exist yet
has no way out either. The lists are in pyproject.toml; `make floors` holds the code against them.
"""

from collections.abc import Iterator

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class Outside(Contract):
    """What modules of `package` import from outside it.

    `anywhere` may be imported by every module of the package. A line of `rooms` is ``room: name name``: the modules of
    this room, itself or below it, may import these as well. A dotted name stands for what is below it too; one without
    a dot stands for itself alone, so that ``secagg`` is what the package exports and not each of its modules. A name in
    a room that does not import it is refused as well: the lists stay as short as they can be.
    """

    type_name = "outside"
    package = fields.StringField()
    anywhere = fields.ListField(subfield=fields.StringField())
    rooms = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """See `Contract.check`."""
        wrong = list(self._wrong(graph))
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def _wrong(self, graph: ImportGraph) -> Iterator[str]:
        package = str(self.package)
        lines = [(room.strip(), set(names.split())) for room, _, names in (line.partition(":") for line in self.rooms)]
        used = set()
        for module in sorted({package} | graph.find_descendants(package)):
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                if covers(package, imported) or imported.startswith(package + "."):
                    continue
                here = [(room, name) for room, names in lines if below(module, room) for name in names]
                found = [(room, name) for room, name in here if covers(name, imported)]
                used |= set(found)
                if not found and not any(covers(name, imported) for name in self.anywhere):
                    detail = graph.get_import_details(importer=module, imported=imported)
                    line = min((each["line_number"] for each in detail), default=0)
                    yield f"{module} imports {imported} (line {line}), but neither its line nor `anywhere` has it"
        for room, names in lines:
            for name in sorted(names - {name for where, name in used if where == room}):
                yield f"{room} does not import {name}: take it from its line"

    def render_broken_contract(self, check: ContractCheck) -> None:
        """See `Contract.render_broken_contract`."""
        for sentence in check.metadata["wrong"]:
            output.print_error(f"- {sentence}", bold=False)
        output.new_line()


def below(module: str, room: str) -> bool:
    """Whether a module is the room or in it; a package's own name stands for its `__init__` alone."""
    return module == room or ("." in room and module.startswith(room + "."))


def covers(name: str, imported: str) -> bool:
    """Whether a name of a list stands for what is imported."""
    return imported == name or ("." in name and imported.startswith(name + "."))
