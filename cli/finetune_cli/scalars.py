"""Plain YAML scalars as kubectl reads them, which is neither YAML 1.2 nor what PyYAML does.

kubectl turns YAML into JSON by sigs.k8s.io/yaml (goyaml.v2, resolve.go) before anything else looks at it. There
``1e-4`` is a number (PyYAML: a string), ``y`` is true, ``1:30`` is a string (PyYAML: 90), a date stays a string, and
``8.0`` becomes the integer 8, because that is how Go writes it as JSON.
"""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_JSON_EXPONENT = 1e21
"""From here on Go writes a float with an exponent, so that it stays a float."""


def resolve_plain(text: str) -> Scalar:
    """The value of the unquoted, untagged scalar ``text``.

    Raises:
        ValueError: infinity or not-a-number, which JSON does not have.
    """
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _NOT_JSON.fullmatch(text):
        raise ValueError(f"{text} is no number that Kubernetes takes; quote it if it is meant as text")
    digits = text.replace("_", "") if text[0] in "+-0123456789" else text
    whole = _INT.fullmatch(digits)
    if whole:
        kind = next(name for name in _BASES if whole[name] is not None)
        return int(whole["sign"] + whole[kind], _BASES[kind])
    if _FLOAT.fullmatch(digits):
        number = float(digits)
        if math.isinf(number):
            return text
        return int(number) if number.is_integer() and abs(number) < _JSON_EXPONENT else number
    return text
