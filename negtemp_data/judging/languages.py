"""The language and the script of a completion."""

from functools import lru_cache
from typing import Any

import regex

from negtemp_data.jobspec import LanguageCheckConfig, ScriptCheckConfig

_LONGEST_CHARS = 20_000
"""Enough to tell a language by."""


def check_language(config: LanguageCheckConfig, completion: str) -> tuple[bool, str]:
    """Whether the text is in one of the languages, and which it is taken for."""
    identifier = _identifier()
    known = set(identifier.labels)
    unknown = [code for code in config.allowed if code not in known]
    if unknown:
        return False, f"{unknown[0]!r} is no language that can be told; known are {sorted(known)}"
    if not regex.search(r"\p{L}", completion):
        return False, "no letters"
    text = completion[:_LONGEST_CHARS].encode("utf-8", "replace").decode()
    language, probability = identifier.classify(text)
    return language in config.allowed, f"{language} with probability {probability:.2f}"


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_script(config: ScriptCheckConfig, completion: str) -> tuple[bool, str]:
    """Whether enough of the letters are of the scripts, and how many are."""
    n_letters = len(regex.findall(r"\p{L}", completion))
    if not n_letters:
        return False, "no letters"
    scripts = "".join(rf"\p{{Script={script}}}" for script in config.allowed)
    n_allowed = len(regex.findall(rf"[[{scripts}]&&\p{{L}}]", completion, regex.VERSION1))
    share = n_allowed / n_letters
    return share >= config.min_share, f"{share:.3f} of {n_letters} letters"
