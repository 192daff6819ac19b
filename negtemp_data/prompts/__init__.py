"""Where prompts come from, and the plan that cuts them into shards.

`read_prompts` streams the rows of a source as `Prompt` records; `write_plan` puts them into the
run's folder, one record batch a shard, and `read_shard` gives one shard back to whoever generates
it. A row that can't be used is a `Prompt` with an error, so that nothing vanishes.

Knows nothing of schedules, engines or judges. Importing it loads neither pyarrow nor fsspec nor
jinja2: they come in with the first row that needs them.
"""

from negtemp_data.prompts.ids import group_seed
from negtemp_data.prompts.plan import (
    Plan,
    PlannedRow,
    load_plan,
    planned_ids,
    prompts_per_shard,
    read_shard,
    row_seed,
    write_plan,
)
from negtemp_data.prompts.readers import read_prompts
from negtemp_data.prompts.records import Message, Prompt, request_text
from negtemp_data.prompts.rows import MAX_PROMPT_BYTES
from negtemp_data.prompts.sources import source_digest

__all__ = [
    "MAX_PROMPT_BYTES",
    "Message",
    "Plan",
    "PlannedRow",
    "Prompt",
    "group_seed",
    "load_plan",
    "planned_ids",
    "prompts_per_shard",
    "read_prompts",
    "read_shard",
    "request_text",
    "row_seed",
    "source_digest",
    "write_plan",
]
