"""The text of each token of a completion, for display. Loads neither torch nor transformers."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from negtemp_data.errors import ModelError


def token_pieces(model_path: str, token_ids: Sequence[int]) -> list[str]:
    """Text that each token adds; together they are the completion, control tokens included.

    A token that ends within a character adds nothing; the token that completes it adds it all.

    Raises:
        ModelError: The model's folder has no tokenizer.json.
    """
    file = Path(model_path, "tokenizer.json")
    if not file.is_file():
        raise ModelError(f"{model_path}: has no tokenizer.json, so tokens can't be shown.")
    tokenizer = Tokenizer.from_file(str(file))
    pieces: list[str] = []
    shown = ""
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(list(token_ids[:end]), skip_special_tokens=False)
        is_whole = not text.endswith("\ufffd")
        pieces.append(text[len(shown) :] if is_whole else "")
        shown = text if is_whole else shown
    return pieces
