"""The language and the script of a completion. Where nothing can be told, nothing has passed."""

from functools import cache
from typing import Any

import regex

from negtemp_data.jobspec import LanguageCheckConfig, ScriptCheckConfig
from negtemp_data.judging.result import CheckResult

_LEAST_PROBABILITY = 0.02
"""Below it nothing is known: a text without features has 2 of 141 columns, 0.014, for `sr`.

Source: py3langid 0.4.0, langid.py (`_raw_score`) and its model.
"""

_LETTER = regex.compile(r"\p{L}")


def check_language(config: LanguageCheckConfig, completion: str) -> CheckResult:
    """Whether the text is in one of the languages, and which it is taken for."""
    if not _LETTER.search(completion):
        return CheckResult(config.kind, False, "no letters")
    language, probability = _identifier().classify(completion)
    if probability < _LEAST_PROBABILITY:
        return CheckResult(config.kind, False, "no language can be told")
    detail = f"{language} with probability {probability:.2f}"
    return CheckResult(config.kind, language in config.allowed, detail)


def check_script(config: ScriptCheckConfig, completion: str) -> CheckResult:
    """Whether enough of the letters are of the scripts, and how many are."""
    n_letters = len(_LETTER.findall(completion))
    if not n_letters:
        return CheckResult(config.kind, False, "no letters")
    n_allowed = len(_letters_of(tuple(config.allowed)).findall(completion))
    share = n_allowed / n_letters
    return CheckResult(
        config.kind, share >= config.min_share, f"{share:.3f} of {n_letters} letters"
    )


@cache
def _letters_of(scripts: tuple[str, ...]) -> "regex.Pattern[str]":
    # By extensions, so that the long vowel of コーヒー, which has no script, is Katakana.
    classes = "".join(rf"\p{{Script_Extensions={script}}}" for script in scripts)
    return regex.compile(rf"[\p{{L}}&&[{classes}]]", regex.VERSION1)


@cache
def _identifier() -> Any:
    # Loading takes half a second, which only jobs with such a check should pay.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
