"""Commands that take what is not typed from the environment and from a configuration file, in this order."""

from pathlib import Path

import typer
from typer.core import TyperArgument, TyperCommand

STUDY = "study"
_DECISIONS = ("accept_exposure", "replay", "approve", "pause", "go_on", "leave")
_NOT_KEPT = ("help", "quiet", "json", "check", *_DECISIONS)
"""Options that do something once: they stand in no file."""


class Configured(TyperCommand):
    """A command whose argument STUDY may be a configuration file; see `fedseg.configuration`.

    Every option `--a-b` of `fedseg COMMAND` may also stand in the environment, as FEDSEG_COMMAND_A_B.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """See `TyperCommand.parse_args`."""
        from fedseg.configuration import is_configuration, read_configuration

        named = fields_of(self)
        for field, parameter in named.items():
            self._named(parameter).envvar = f"FEDSEG_{self.name}_{field}".upper()
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        given = str(typed.get(STUDY) or self._named(STUDY).value_from_envvar(ctx) or "")
        values = {}
        if given and is_configuration(Path(given)):
            values = read_configuration(Path(given), str(self.name))
            ctx.default_map = {named[field]: value for field, value in values.items() if field != STUDY}
        rest = super().parse_args(ctx, args)
        if values:
            ctx.params[STUDY] = Path(values[STUDY])
        return rest

    def _named(self, parameter: str) -> "typer.core.TyperOption | TyperArgument":
        return next(each for each in self.params if each.name == parameter)  # type: ignore[return-value]


def fields_of(command: TyperCommand) -> dict[str, str]:
    """The fields that a command's configuration file may have, each with the name of the parameter that takes it."""
    found = {}
    for each in command.params:
        given = str(each.metavar or each.name) if isinstance(each, TyperArgument) else max(each.opts, key=len)
        field = given.lstrip("-").replace("-", "_").lower()
        if field not in _NOT_KEPT:
            found[field] = str(each.name)
    return found
