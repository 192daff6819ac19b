"""From the job's `prompts` section to a stream of prompts.

The place where files, formats and rows meet; each of them knows nothing of the others.
"""

from collections.abc import Iterator
from itertools import islice

from negtemp_data.errors import PromptSourceError
from negtemp_data.jobspec import PromptsConfig
from negtemp_data.prompts.formats import read_rows
from negtemp_data.prompts.records import Prompt
from negtemp_data.prompts.rows import RowParser
from negtemp_data.prompts.sources import find_files


def read_prompts(config: PromptsConfig) -> Iterator[Prompt]:
    """Streams the prompts of a source, in the order of its rows, files sorted by path.

    One row is in memory at a time, with two exceptions: a `.json` file is loaded whole, and
    parquet and Arrow files by the batch. The system message is not added.

    Raises:
        PromptSourceError: While iterating: the source can't be found or read, or holds no row.
        JobError: While iterating: the template is not valid jinja.
    """
    return islice(_read_all(config), config.limit)


def _read_all(config: PromptsConfig) -> Iterator[Prompt]:
    parser = RowParser(config)
    is_empty = True
    for file in find_files(config.source):
        for row in read_rows(file, config.text_column):
            is_empty = False
            yield parser.parse(row, file.name)
    if is_empty:
        raise PromptSourceError(f"prompts.source: {config.source} holds no rows.")
