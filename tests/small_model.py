"""A random model of a few hundred tokens, for engines that are slow per token of the vocabulary."""

from pathlib import Path
from typing import Any

WORDS = [
    "a", "I", "is", "it", "of", "to", "cat", "dog", "fox", "and", "the", "rain", "runs", "think",
    "answer", "because", "question", "yes", "no", "0", "1", "2", "42",
]  # fmt: skip
"""Tokens of more than a byte: each as it is, and with a space before it."""
ENDS = [".", "!", "?", "\n", ".\n", "</think>", ", ", '."', "...", "\n\n"]
"""Tokens that end sentences, lines and more."""


def write_tokenizer(folder: Path) -> int:
    """Writes a byte-level tokenizer with those tokens into `folder`; the number of its tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    spaced = [f"Ġ{word}" for word in WORDS]
    ends = [end.replace("\n", "Ċ").replace(" ", "Ġ") for end in ENDS]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = dict.fromkeys(["<s>", "</s>", "<pad>", *letters, *WORDS, *spaced, *ends])
    vocabulary = {text: i for i, text in enumerate(texts)}
    # Without merges a text is encoded byte by byte; the other tokens are the model's to write.
    tokenizer = Tokenizer(BPE(vocabulary, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return len(vocabulary)


def two_layers(vocab_size: int, **settings: Any) -> Any:
    """The configuration of a Llama of two small layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        **settings,
    )


def write_model(folder: Path) -> str:
    """Writes tokenizer and weights into `folder`; its path.

    The logits are as wide as the next multiple of 64, so some ids are no tokens.
    """
    import torch
    from transformers import LlamaForCausalLM

    width = -(-write_tokenizer(folder) // 64) * 64
    torch.manual_seed(0)
    config = two_layers(
        width,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=2.5 / 64**0.5)
    model.save_pretrained(folder)
    return str(folder)
