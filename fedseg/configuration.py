"""The configuration files of the two executables: what else would be typed, in TOML; unknown fields are errors.

`fedseg coordinator coordinator.toml` and `fedseg site site.toml` read them. A field is called as its option is, with
`_` for `-`; paths are relative to the file. The command line and the environment come first. No secret is in them:
secrets are files in the folder `credentials`, which their owner only may read.
"""

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedseg.errors import ConfigError
from fedseg.files import read_text

_PATH = "path"
PathText = Annotated[str, Field(min_length=1, json_schema_extra={"format": _PATH})]
Seconds = Annotated[float, Field(ge=0)]
Port = Annotated[int, Field(ge=0, lt=65536)]
Address = Annotated[str, Field(pattern=r"^.+:[0-9]{1,5}$")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    study: PathText
    credentials: PathText
    out: PathText | None = None
    patience: Seconds | None = None
    tls: Literal["mtls", "tls"] | None = None
    log_format: Literal["text", "json"] | None = None
    log_file: PathText | None = None
    watch: str | None = None


class CoordinatorFile(_File):
    """`coordinator.toml`."""

    host: str | None = None
    port: Port | None = None
    rejoin_seconds: Seconds | None = None
    training_seconds: Seconds | None = None
    grace: Seconds | None = None
    farewell_seconds: Seconds | None = None
    quota: Annotated[float, Field(gt=0)] | None = None
    transcripts: Literal["whole", "hashes", "none"] | None = None


class SiteFile(_File):
    """`site.toml`."""

    site: str
    coordinator: Address
    proxy: str | None = None
    data: PathText | None = None
    state: PathText | None = None
    audit: PathText | None = None


FILES: dict[str, type[_File]] = {"coordinator": CoordinatorFile, "site": SiteFile}
"""By the name of the command."""


def is_configuration(path: Path) -> bool:
    """Whether a file is a configuration and no study file: it names one in its field `study`."""
    try:
        return isinstance(tomllib.loads(read_text(path, "")).get("study"), str)
    except ValueError:  # missing, or no TOML: whoever loads it says so
        return False


def read_configuration(path: Path, command: str) -> dict[str, Any]:
    """The fields that are in a configuration file; paths are made absolute.

    Args:
        path: the file.
        command: "coordinator" or "site".

    Raises:
        ConfigError: it cannot be read, or a field is unknown, missing or not what it must be; names file and field.
    """
    kind = FILES[command]
    table = tomllib.loads(read_text(path, "give the name of a configuration file"))
    try:
        found = kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {_sentence(name, first['type'], first['msg'], kind)}") from None
    values = found.model_dump(exclude_none=True)
    for name, field in kind.model_fields.items():
        if name in values and _is_path(field.annotation, field.json_schema_extra):
            values[name] = os.path.abspath(path.parent / values[name])
    return values


def _is_path(annotation: Any, extra: Any) -> bool:
    if isinstance(extra, dict) and extra.get("format") == _PATH:
        return True
    inner = [meta for each in getattr(annotation, "__args__", ()) for meta in getattr(each, "__metadata__", ())]
    return any(getattr(meta, "json_schema_extra", None) == {"format": _PATH} for meta in inner)


def _sentence(name: str, problem: str, said: str, kind: type[_File]) -> str:
    if problem == "extra_forbidden":
        near = get_close_matches(name, kind.model_fields, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(kind.model_fields)}"
        return f"unknown field {name!r}; {known}"
    if problem == "missing":
        return f"{name!r} is missing; add it"
    return f"{name}: {said[0].lower()}{said[1:]}"
