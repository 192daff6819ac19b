"""A TRL trainer for the `unlikelihood` format. Needs the extra `train`."""

from typing import Any

from torch import Tensor
from trl.trainer.sft_trainer import SFTTrainer

from negtemp_data.export.unlikelihood import NegativesCollator, unlikelihood_loss


class UnlikelihoodTrainer(SFTTrainer):
    """SFTTrainer with the loss of arXiv 1908.04319; its arguments, and `alpha`.

    Takes rows as `negtemp export --format unlikelihood` writes them: they are not packed, and
    truncated to `max_length` only when a batch is made.
    """

    def __init__(self, *args: Any, alpha: float = 1.0, **kwargs: Any) -> None:
        """Takes what SFTTrainer takes.

        Args:
            *args: SFTTrainer's.
            alpha: Weight of the unlikelihood.
            **kwargs: SFTTrainer's.
        """
        super().__init__(*args, **kwargs)
        self.alpha = alpha
        # SFTTrainer has decided on the pad token when it made its own collator.
        sft_args: Any = self.args
        sft_collator: Any = self.data_collator
        self.data_collator = NegativesCollator(sft_collator.pad_token_id, sft_args.max_length)
        # The loss is a mean of its own terms, which Trainer can't count: so it averages over the
        # steps of an accumulation instead.
        self.model_accepts_loss_kwargs = False

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # SFTTrainer's would drop rows without a label, which is what rejected rows are.
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["input_ids", "labels", "negative_ids"]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch of `NegativesCollator`; see Trainer."""
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        loss = unlikelihood_loss(
            outputs.logits, inputs["labels"], inputs["negative_ids"], self.alpha
        )
        return (loss, outputs) if return_outputs else loss
