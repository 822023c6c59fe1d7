"""A plan: working grid, network and batch that follow from what a site's images are like, by nnU-Net's rules.

The rules are Isensee et al. 2021's (Supplementary Note 2), cut to one processor: median spacing; of an axis that is
three times coarser than another one, a low percentile; the grid holds nearly every image; a patch is as much of it as a
step can take; the network halves as often as the smallest side allows, and doubles its features each time. A plan comes
from patients' images and no epsilon covers it: what of it stands in the study, all parties know.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg.data.fingerprint import Fingerprint, Spread
from fedseg.data.grid import ANISOTROPIC
from fedseg.errors import ConfigError
from fedseg.study import Study, parse_study

COARSE = 3.0
"""Times another axis' spacing, from which on an axis is taken finer than its median."""
VOXELS = {2: 192 * 192, 3: 64 * 64 * 64}
"""Of a patch at most, by dims: a step then takes about a second of one processor for an image."""
LEAST, MOST = 16, 512
"""Voxels of a side."""
BOTTOM = 4
"""Voxels of the smallest side at the network's lowest level, at least."""
LEVELS, FIRST, WIDEST = 5, 16, 128
BATCH = {2: 8, 3: 2}
SHARE = 0.05
"""Of all images or slices, that a batch may be at most."""


@dataclass(frozen=True)
class Plan:
    """What the images suggest.

    Attributes:
        fields: section and field of the study to value.
        because: a sentence for each decision.
    """

    fields: Mapping[str, Mapping[str, Any]]
    because: tuple[str, ...]


def planned(prints: Sequence[Fingerprint], study: Study) -> Plan:
    """The plan of a study for images like these.

    Args:
        prints: of one site or several.
        study: gives dims and mechanism.

    Raises:
        ConfigError: no image could be read, or the study is no segmentation.
    """
    if study.study.task != "segmentation":
        raise ConfigError(f"[study] task = '{study.study.task}': nnU-Net plans segmentation; choose size and network")
    prints = [one for one in prints if one.cases]
    if not prints:
        raise ConfigError("no image could be read: there is nothing to plan by; `fedseg data check` says why")
    median = np.median([_cut(one.voxel, "50") for one in prints], axis=0)
    fine = np.min([_cut(one.voxel, "5") for one in prints], axis=0)
    wide = np.max([_cut(one.extent, "95") for one in prints], axis=0)
    target = np.where(median >= COARSE * median.min(), fine, median)
    stacked = int(np.argmax(median)) if median.max() > ANISOTROPIC * median.min() else 2
    axes = [axis for axis in range(3) if study.data.dims == 3 or axis != stacked]
    spacing = [round(float(target[axis]), 3) for axis in axes]
    levels = LEVELS
    size = _sides([wide[axis] / target[axis] for axis in axes], 2 ** (levels - 1))
    patch = _patch(size, VOXELS[study.data.dims])
    while levels > 2 and min(patch) // 2 ** (levels - 1) < BOTTOM:
        levels -= 1
        size = _sides([wide[axis] / target[axis] for axis in axes], max(2 ** (levels - 1), 8))
        patch = _patch(size, VOXELS[study.data.dims])
    channels = [min(FIRST * 2**level, WIDEST) for level in range(levels)]
    fields: dict[str, dict[str, Any]] = {
        "data": {"spacing": spacing, "size": patch, "patch": []},
        "model": {"name": "dynunet", "channels": channels},
    }
    names = "xyz"
    because = [
        f"spacing {_times(spacing)} mm: the median of {' and '.join(names[axis] for axis in axes)}"
        + (f", of {names[int(np.argmax(median))]} a low percentile" if (target != median).any() else ""),
        f"images reach over {_times(size)} voxels of it (95th percentile); the network sees {_times(patch)} at once"
        + ("" if size == patch else ", and a window of that size slides over larger ones"),
        f"{levels} levels: {min(patch)} voxels halve {levels - 1} times, features {channels[0]} to {channels[-1]}",
    ]
    if not study.trust.claims_epsilon:
        images = sum(one.cases for one in prints)
        if study.data.dims == 2:
            images *= round(float(np.median([one.size[_slices(one)].percentiles["50"] for one in prints])))
        batch = max(2, min(BATCH[study.data.dims], int(SHARE * images)))
        fields["training"] = {"batch": batch, "optimizer": "adamw", "schedule": "cosine", "augmentation": "full"}
        because.append(f"batch {batch}: at most {100 * SHARE:g} % of {images} images or slices, and at least 2")
    return Plan(fields, tuple(because))


def written(text: str, plan: Plan, where: str) -> str:
    """A study's text with the plan's fields, and everything else as it was, comments too.

    Raises:
        ConfigError: the text is laid out so that a field cannot be replaced by a line; or the plan does not fit it.
    """
    lines = text.splitlines()
    for section, fields in plan.fields.items():
        for name, value in fields.items():
            lines = _with(lines, section, name, f"{name} = {_toml(value)}")
    result = "\n".join(lines) + "\n"
    try:
        found = tomllib.loads(result)
    except tomllib.TOMLDecodeError:
        found = {}
    if any(
        found.get(section, {}).get(name) != value
        for section, fields in plan.fields.items()
        for name, value in fields.items()
    ):
        raise ConfigError(f"{where}: its fields do not stand in one line each; write the plan's lines yourself")
    parse_study(result, where)
    return result


def _with(lines: list[str], section: str, name: str, line: str) -> list[str]:
    heads = [number for number, text in enumerate(lines) if text.strip().startswith("[")]
    begin = next((number for number in heads if lines[number].split("#")[0].strip() == f"[{section}]"), None)
    if begin is None:
        before = next((number for number in heads if lines[number].split("#")[0].strip() == "[privacy]"), len(lines))
        return [*lines[:before], f"[{section}]", line, "", *lines[before:]]
    end = next((number for number in heads if number > begin), len(lines))
    for number in range(begin + 1, end):
        if lines[number].split("=")[0].strip() == name:
            return [*lines[:number], line, *lines[number + 1 :]]
    return [*lines[: begin + 1], line, *lines[begin + 1 :]]


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _cut(axes: Sequence[Spread], percentile: str) -> list[float]:
    return [axis.percentiles[percentile] for axis in axes]


def _slices(found: Fingerprint) -> int:
    """The axis of the file along which slices are stacked."""
    spacing = _cut(found.spacing, "50")
    return int(np.argmax(spacing)) if max(spacing) > ANISOTROPIC * min(spacing) else 2


def _sides(voxels: Sequence[float], multiple: int) -> list[int]:
    return [min(max(math.ceil(side / multiple) * multiple, LEAST), MOST) for side in voxels]


def _patch(size: Sequence[int], most: int) -> list[int]:
    """As much of the size as fits: the longest side is shortened first."""
    patch = list(size)
    while math.prod(patch) > most and max(patch) > LEAST:
        patch[int(np.argmax(patch))] -= LEAST
    return [max(side, LEAST) for side in patch]


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
