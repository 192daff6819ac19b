"""The packages that a cluster installs for a job, as the `uv` field of Ray's runtime environment.

Ray itself is left out: the cluster has one, and may not have another.
"""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from negtemp_data.errors import ClusterError

VARIANTS = ("cpu", "gpu")
"""Pinned requirement files that come with the package."""
NO_PINS = "none"
"""For a cluster whose image has everything."""


def uv_field(choice: str) -> dict[str, Any] | None:
    """What uv installs on the cluster; None: nothing.

    Args:
        choice: `cpu` or `gpu` for the package's own pins, `none`, or a requirements file.

    Raises:
        ClusterError: The file can't be read, or asks for a Ray of its own.
    """
    if choice == NO_PINS:
        return None
    path = _pin_file(choice) if choice in VARIANTS else Path(choice)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"--pip {choice}: can't be read: {error}; accepted are cpu, gpu, none and a "
            "requirements file."
        ) from error
    packages = [line for line in lines if line and not line.startswith("#")]
    if choice not in VARIANTS:
        return {"packages": packages}
    packages = [package for package in packages if not package.startswith("ray==")]
    # The pins are complete. What they leave out on purpose (requirements/overrides.txt) would be
    # resolved anew otherwise.
    options = ["--no-deps"]
    if choice == "cpu" and not {"UV_FIND_LINKS", "PIP_FIND_LINKS"} & os.environ.keys():
        # The CPU build of torch lies in PyTorch's own index, as in the Makefile.
        options.append("--torch-backend=cpu")
    return {"packages": packages, "uv_pip_install_options": options}


def _pin_file(variant: str) -> Path:
    """In a wheel the files lie inside the package, in a checkout beside it."""
    package = Path(str(resources.files("negtemp_data")))
    inside = package / "requirements" / f"{variant}.txt"
    return inside if inside.is_file() else package.parent / "requirements" / f"{variant}.txt"
