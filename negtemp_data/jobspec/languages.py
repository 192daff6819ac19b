"""The languages that a check can tell."""

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from negtemp_data.errors import quote

_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et "
    "eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id "
    "ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms "
    "mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr "
    "st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu"
)

LANGUAGES = tuple(_CODES.split())
"""ISO 639 codes, of two letters where there are such.

Source: the labels of py3langid 0.4.0's model, less `zxx`, which is no language. They stand here
because loading the model takes longer than validating a job may.
"""


def _check_language(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError(
            f"{quote(code)} is no language that can be told; known are {', '.join(LANGUAGES)}"
        )
    return code


Language = Annotated[
    str, AfterValidator(_check_language), WithJsonSchema({"enum": list(LANGUAGES)})
]
"""Code of a language, such as en."""
