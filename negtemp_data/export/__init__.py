"""From a data set to training: trainer formats, their losses, and readers.

    Output ─ build_format ─ export_output ─ a folder that `datasets.load_dataset` opens
    Output ─ open_dataset ─ Hugging Face, pyarrow, polars, torch

`unlikelihood` (a loss) and `trainer` (TRL) are imported by who trains. Knows nothing of how rows
came about.
"""

from negtemp_data.export.base import Format, Record
from negtemp_data.export.formats import FORMATS, build_format
from negtemp_data.export.reader import CommittedRows, open_dataset
from negtemp_data.export.request import ExportRequest, ExportResult
from negtemp_data.export.run import export_output
from negtemp_data.export.split import TRAIN_ONLY, PromptSplit, parse_split

__all__ = [
    "FORMATS",
    "TRAIN_ONLY",
    "CommittedRows",
    "ExportRequest",
    "ExportResult",
    "Format",
    "PromptSplit",
    "Record",
    "build_format",
    "export_output",
    "open_dataset",
    "parse_split",
]
