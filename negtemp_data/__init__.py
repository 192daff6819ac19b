"""Judge-verified, high-variance completions from scheduled negative-temperature sampling.

Importing the package loads nothing heavy: torch, ray and vllm come in with the part that needs
them (`negtemp_data.sampling`, `negtemp_data.pipeline`, `negtemp_data.engine`).
"""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from negtemp_data.export.reader import CommittedRows

__version__ = "0.1.0"


def open_dataset(out: "str | PathLike[str]") -> "CommittedRows":
    """Opens the committed rows of an output folder, for datasets, pyarrow, polars or torch.

    Raises:
        OutputError: The folder is no output.
        ExportError: Nothing is committed there yet.
    """
    from negtemp_data.export.reader import open_dataset as open_output  # noqa: PLC0415

    return open_output(out)
