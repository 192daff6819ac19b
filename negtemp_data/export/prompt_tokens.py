"""Token ids of prompts, which the data set only counts, made again as the engine made them."""

import sys

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.engine.tokens import PromptEncoder, load_tokenizer
from negtemp_data.errors import ExportError, PromptError, quote
from negtemp_data.export.base import Row
from negtemp_data.jobspec import Job
from negtemp_data.prompts import Message, Prompt


class PromptTokens:
    """Encodes the prompts of one job's rows."""

    def __init__(self, job: Job) -> None:
        """Loads the tokenizer of the job's generator.

        Raises:
            ModelError: The model can't be had here.
            ExportError: Its tokenizer can't be loaded.
        """
        self._system = job.prompts.system
        self._model = job.generate.model
        self._encoder = PromptEncoder(
            load_tokenizer(resolve_model(job.generate.model).path, job.generate.engine),
            sys.maxsize,
            job.generate.chat_template_kwargs,
        )
        self._last: tuple[Prompt, list[int]] | None = None

    def encode(self, row: Row) -> list[int]:
        """The prompt's token ids, as many as the engine had.

        Raises:
            ExportError: The tokenizer or its chat template is not the one that the run had.
        """
        chat = row["messages"]
        messages = None if chat is None else tuple(Message(m["role"], m["content"]) for m in chat)
        prompt = Prompt(row["prompt_id"], row["prompt"], messages, source=None, error=None)
        # Siblings come one after the other.
        if self._last is None or self._last[0] != prompt:
            try:
                self._last = prompt, self._encoder.encode(prompt, self._system)
            except PromptError as error:
                raise ExportError(f"row {quote(row['id'])}: {error}.") from error
        token_ids = self._last[1]
        if len(token_ids) != row["prompt_tokens"]:
            raise ExportError(
                f"row {quote(row['id'])}: its prompt has {len(token_ids)} tokens with the "
                f"tokenizer of {self._model} as it is here, and had {row['prompt_tokens']} in the "
                "run; bring back the revision of the model that the run used, or export a format "
                "of texts (sft, dpo, kto)."
            )
        return list(token_ids)
