"""What judges ask of an engine, as vLLM's parameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams

QuestionKind = Literal["labels", "text", "likelihood", "reward"]
"""Which of some tokens comes next; a text, greedily; how likely the prompt's own tokens are; the
number that a reward model gives."""


def question_params(
    kind: QuestionKind, label_ids: Sequence[int] = (), max_tokens: int = 1
) -> "SamplingParams | PoolingParams":
    """Parameters of a question; labels have `label_ids`, a text has `max_tokens`."""
    from vllm import PoolingParams, SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    if kind == "reward":
        # Without the activation, which would press the reward into 0 to 1.
        return PoolingParams(task="classify", use_activation=False)
    return SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        logprob_token_ids=list(label_ids) or None,
        logprobs=0 if kind == "text" else None,
        prompt_logprobs=0 if kind == "likelihood" else None,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
