"""Functions of the user's own, named in the job file as `package.module:function`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from negtemp_data.errors import JobError


def load_function(name: str, where: str) -> Callable[..., Any]:
    """The function; modules of the working directory are found too.

    Args:
        name: `package.module:function`.
        where: Path in the job file, for errors.

    Raises:
        JobError: There is no such module or function.
    """
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module raises whatever it raises
        raise JobError(
            f"{where}: {name!r} can't be loaded: {type(error).__name__}: {error}; it is written as "
            "package.module:function, and the module must be importable where the run works."
        ) from error
    if not callable(found):
        raise JobError(f"{where}: {name!r} is no function but {type(found).__name__}.")
    return found  # type: ignore[no-any-return]
