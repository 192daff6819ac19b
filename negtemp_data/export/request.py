"""What an export is asked for, and what it says of itself afterwards."""

from dataclasses import dataclass
from pathlib import Path

from negtemp_data.export.base import Format
from negtemp_data.export.split import PromptSplit
from negtemp_data.storage import Output


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and where."""

    output: Output
    """The run's output."""
    dest: Path
    """Folder that the export makes."""
    format_name: str
    """For people."""
    format: Format
    """What becomes of the rows."""
    split: PromptSplit
    """How prompts fall into splits."""
    arms: tuple[str, ...] = ()
    """Arms whose rows are read; empty: all."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    rows: dict[str, int]
    """By split."""
    kinds: dict[str, dict[str, int]]
    """By kind of record, then by split."""
    files: int
    """Data files."""
    committed_shards: int
    """Shards that were read."""
    planned_shards: int | None
    """Shards of the whole run; None: not planned yet."""

    @property
    def is_complete(self) -> bool:
        """Whether the run is finished."""
        return self.committed_shards == self.planned_shards
