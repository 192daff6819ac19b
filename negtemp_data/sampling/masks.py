"""The vocabularies of all schedules seen so far, as masks on the device.

Shapes: N masks, V vocabulary.
"""

import torch
from torch import Tensor

from negtemp_data.sampling.records import Vocabulary
from negtemp_data.sampling.vocabulary import TokenTable


class MaskTable:
    """Masks by index; a vocabulary that many rules share is one mask."""

    def __init__(self, tokens: TokenTable, vocab_size: int, device: torch.device) -> None:
        """Starts empty, for logits of width `vocab_size` on `device`."""
        self._tokens = tokens
        self._index: dict[Vocabulary | tuple[str, ...], int] = {}
        self.mask_NV = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def register(self, vocabulary: Vocabulary) -> int:
        """Index of the mask of `vocabulary`.

        Raises:
            ValueError: It names an unknown class, or leaves fewer than two tokens.
        """
        if vocabulary not in self._index:
            self._add(
                vocabulary,
                self._tokens.mask(vocabulary, self.mask_NV.shape[1], self.mask_NV.device),
            )
        return self._index[vocabulary]

    def register_classes(self, names: tuple[str, ...]) -> int:
        """Index of the mask of the tokens that are of one of these classes.

        Raises:
            ValueError: A class is unknown.
        """
        if names not in self._index:
            mask_V = torch.zeros(self.mask_NV.shape[1], dtype=torch.bool)
            for name in names:
                mask_V |= self._tokens.members(name, len(mask_V))
            self._add(names, mask_V.to(self.mask_NV.device))
        return self._index[names]

    def _add(self, key: Vocabulary | tuple[str, ...], mask_V: Tensor) -> None:
        self._index[key] = len(self.mask_NV)
        self.mask_NV = torch.cat([self.mask_NV, mask_V[None]])
