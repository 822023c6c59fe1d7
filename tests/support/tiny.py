"""The smallest federation that is still one: three phantom sites, a thousand parameters, seconds."""

import re

from fedseg.study import Study, parse_study

STRUCTURES = (
    "external CSF",
    "grey matter",
    "white matter",
    "ventricles",
    "cerebellum",
    "deep grey matter",
    "brainstem",
)


def tiny_study(
    *,
    sites: int = 3,
    rounds: int = 2,
    mechanism: str = "local",
    seed: int | None = 7,
    patients: int = 4,
    steps: int = 1,
) -> Study:
    names = ", ".join(f'"{name}"' for name in STRUCTURES)
    seeded = "" if seed is None else f"seed = {seed}"
    members = "\n".join(f'[[sites]]\nid = "site-{c}"\npatients = {patients}' for c in "abcdefgh"[:sites])
    return parse_study(
        f"""
        [study]
        name = "tiny"
        structures = [{names}]
        rounds = {rounds}
        local_steps = {steps}
        lr = 0.05
        {seeded}
        [data]
        layout = "phantom"
        modality = ["T2w"]
        dims = 2
        size = 32
        slices_per_patient = 2
        holdout = 0.2
        [model]
        name = "unet-small"
        channels = [4, 8]
        [privacy]
        mechanism = "{mechanism}"
        epsilon = 8.0
        delta = 1e-2
        sample_rate = 1.0
        clip_norm = 0.1
        denominator = 2
        [secagg]
        clip_range = 0.5
        {members}
        """,
        "tiny",
    )


def tiny_classes(
    *,
    classes: tuple[str, ...] = ("clear", "cloudy"),
    mechanism: str = "none",
    rounds: int = 1,
    steps: int = 1,
    patients: int = 6,
    seed: int | None = 7,
    size: int = 16,
) -> Study:
    """The same with classes: made chest radiographs at three sites."""
    names = ", ".join(f'"{name}"' for name in classes)
    seeded = "" if seed is None else f"seed = {seed}"
    members = "\n".join(f'[[sites]]\nid = "site-{c}"\npatients = {patients}' for c in "abc")
    return parse_study(
        f"""
        [study]
        name = "tiny"
        task = "classification"
        classes = [{names}]
        rounds = {rounds}
        local_steps = {steps}
        lr = 0.1
        {seeded}
        [data]
        layout = "phantom"
        modality = ["CR"]
        dims = 2
        size = {size}
        holdout = 0.4
        [model]
        name = "cnn-small"
        channels = [4, 8]
        [privacy]
        mechanism = "{mechanism}"
        epsilon = 8.0
        delta = 1e-2
        sample_rate = 1.0
        clip_norm = 0.1
        denominator = 2
        [secagg]
        clip_range = 2.0
        {members}
        """,
        "tiny",
    )


def study_with(network: str, size: int = 32, channels: str = "[]", **others: object) -> Study:
    """The tiny study of a network's task, with this network."""
    text = (tiny_classes() if network in ("cnn-small", "resnet18") else tiny_study()).toml()
    text = re.sub(r"(?m)^size = \d+", f"size = {size}", text)
    text = re.sub(r'name = "(unet|cnn)-small"\nchannels = .*', f'name = "{network}"\nchannels = {channels}', text)
    for name, value in others.items():
        text = re.sub(rf"(?m)^{name} = .*", f"{name} = {value}", text)
    return parse_study(text, network)
