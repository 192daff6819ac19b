r"""Numbers as people and models write them, read exactly.

`$1,234.50`, `−3 %`, `6.02e23` and `6.02 \times 10^{23}` are read; currency, unit and percent sign
are of no account. A decimal comma is not known. What would have to be computed (a fraction, power
or root) is no number, because its last part alone would be a wrong one.
"""

from decimal import Context, Decimal

import regex

from negtemp_data.judging.patterns import find_last

_EXACT = Context(prec=50, traps=[])
"""Overflows give infinity and nan, which equal nothing, instead of raising."""

# Every repetition is possessive or short, so that the time is linear in the text.
_NUMBER = regex.compile(
    r"""
    (?: (?<! [\p{L}\p{N})\]}] ) (?P<sign>[-+−]) )?   # after a number or letter it is an operator
    (?: \\?\p{Sc} \s? )?
    (?<! \p{Latin}_? ) (?<! [}\d]_ ) (?<! _\{ )      # nothing of a name: x2, x_2, x_{2}
    (?<! \d ) (?<! \d\. )                            # nor of a version: 1.2.3
    (?P<digits>
        (?: \d{1,3} (?: (?: [,'’\u00a0\u2009\u202f] | \{,\} | \\, ) \d{3} (?!\d) )++ | \d++ )
        (?: \.\d++ )?
        | (?<! \. ) \.\d++
    )
    (?! \.\d )
    (?:
        [eE] (?P<exponent> [-+−]? \d++ ) (?! \p{L} )
        | \s? (?: [x×·*] | \\times | \\cdot ) \s? 10 \s? (?: \^ | \*\* )
          (?: (?P<exponent> [-+−]? \d++ ) | \{ (?P<exponent> [-+−]? \d++ ) \} )
    )?
    """,
    regex.VERBOSE,
)
_SEPARATORS = regex.compile(r"[^\d.]")
_COMPUTED_BEFORE = regex.compile(
    r"""
    (?: [/÷^√] | \\[dt]?frac\{ | \}\{ | \\sqrt (?:\[\d+\])? \{
        | [\d)] \*\* | [\d)] \s \*\* \s )            # where Markdown's bold begins, no digit ends
    [\s({]* [-−]? \\? \p{Sc}? $
    """,
    regex.VERBOSE,
)
_COMPUTED_AFTER = regex.compile(r"[\s)}]*\^|[⁰¹²³⁴-⁹⁻½⅓⅔¼¾]")
_NEAR_CHARS = 20


def read_number(text: str) -> Decimal:
    """The last number of the text.

    Raises:
        ValueError: There is none, or it is part of something to be computed.
        TimeoutError: The text is too long.
    """
    match = find_last(_NUMBER, text)
    if match is None:
        raise ValueError("no number found")
    before = text[max(0, match.start() - _NEAR_CHARS) : match.start()]
    after = text[match.end() : match.end() + _NEAR_CHARS]
    if _COMPUTED_BEFORE.search(before) or _COMPUTED_AFTER.match(after):
        raise ValueError("the last number is part of a fraction, power or root")
    sign = "-" if match["sign"] in ("-", "−") else ""
    exponent = (match["exponent"] or "0").replace("−", "-")
    return Decimal(f"{sign}{_SEPARATORS.sub('', match['digits'])}e{exponent}", _EXACT)


def is_close(found: Decimal, expected: Decimal, tolerance: float) -> bool:
    """Whether the relative error is within the tolerance; never with a nan or an infinity."""
    error = _EXACT.abs(_EXACT.subtract(found, expected))
    limit = _EXACT.multiply(Decimal(tolerance), _EXACT.abs(expected))
    return error.is_finite() and _EXACT.compare(error, limit) <= 0
