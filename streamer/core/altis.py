"""The profile `altis`: value for value what the PHP integration of Altis sends, its faults included.

What the two profiles have in common is in `streamer.core.mapping` and `streamer.core.compile`; here is what PHP does
otherwise. The integration decodes a line with `json_decode($line, true)`, which knows no objects: an object and a list
are one kind of array, so an empty object is an empty list, and an object whose keys are 0, 1, 2… in order is a list.
What it sends goes through `json_encode`. All of it was held against PHP 8.2.

Different on purpose: keys of merged objects that are only digits keep their names, which PHP's `array_merge` numbers
anew; a character of a text is one of Unicode, not a byte; and what stops PHP's whole export with an error rejects one
record.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import string
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring_ascii
from typing import Any, cast

import orjson

from streamer.core.compile import Profile, Rejected, UnusableTimeError
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping, kind
from streamer.core.model import Reason, Reject

_MAX_INTEGER = 2**63 - 1
_MAX_LEVELS = 511
"""So deep may lists and objects stand in one another: beyond it `json_decode` gives null."""


def altis_mapping() -> dict[str, dict[str, Any]]:
    """Give the mapping of the profile `altis`: a fresh tree for each type of call.

    The same but for the ids, which are the event's md5, none in group calls, and for `context.library`, which is empty.
    """
    mapping = default_mapping()
    for call_type, tree in mapping.items():
        tree["messageId"] = None if call_type == "group" else "|hash_event"
    for call_type in ("page", "track"):
        mapping[call_type]["context"]["library"] = {"name": "", "version": ""}
    return mapping


# --- PHP's JSON --------------------------------------------------------------------------------------------------


def json_decode(json_text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Decode JSON as orjson does, but for numbers beyond a double, which orjson refuses and PHP takes for infinities.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return orjson.loads(json_text)
    except orjson.JSONDecodeError as error:
        if "infinity" not in error.msg:
            raise
        try:
            decoded = json.loads(json_text, parse_int=_decoded_integer, parse_constant=_no_constant)
            json.dumps(decoded, ensure_ascii=False).encode()  # a lone surrogate is a ValueError
        except (ValueError, RecursionError):
            raise error from None
        return decoded


def _decoded_integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= len(str(-(2**63))) else float(digits)


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} isn't JSON")


def json_encode(value: object) -> str:
    """Give what PHP's `json_encode` makes of what its `json_decode($json, true)` made of a JSON value.

    Args:
        value: as orjson decodes it: keys in order, of equal ones the last value at the first one's place, integers that
            don't fit 64 bits as floats. PHP has the same in each of these.

    Raises:
        OverflowError: it holds an infinity, of which PHP can make no JSON.
        ValueError: lists and objects stand deeper in one another than PHP decodes.
    """
    return _encoded(value, 0)


def _encoded(value: Any, level: int) -> str:  # noqa: ANN401 - any JSON value
    if type(value) is str:
        return _text(value)
    if type(value) is dict or type(value) is list:
        if level == _MAX_LEVELS:
            raise ValueError(
                f"it is nested too deeply: over {_MAX_LEVELS} levels, as many as PHP decodes"
            )
        if type(value) is dict and _is_list(value):
            value = list(value.values())
        written = []  # in loops, since a comprehension would take a level of Python's stack too
        if type(value) is list:
            for element in value:
                written.append(_encoded(element, level + 1))  # noqa: PERF401 - see above
            return f"[{','.join(written)}]"
        for key, element in value.items():
            written.append(f"{_text(key)}:{_encoded(element, level + 1)}")
        return f"{{{','.join(written)}}}"
    if value is None:
        return "null"
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int and -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
        return str(value)
    return _number(float(value))


def _text(characters: str) -> str:
    # Python escapes as PHP does, but for DEL, which PHP leaves as it is, and the slash.
    escaped = "\x7f".join(map(_without_quotes, characters.split("\x7f")))
    return f'"{escaped}"'.replace("/", "\\/")


def _without_quotes(characters: str) -> str:
    return encode_basestring_ascii(characters)[1:-1]


def _number(number: float) -> str:
    """Write a float as PHP does with `serialize_precision = -1`, its default: the shortest digits that read the same.

    They are Python's digits too.
    """
    if math.isinf(number):
        raise OverflowError("PHP's JSON has no infinity")
    return _written(repr(number), 17)


def _written(number: str, precision: int) -> str:
    """Write the digits of a number in PHP's form.

    There is no fraction that is zero. An exponent stands where the whole part would have more digits than the
    precision, and below 1e-4; it isn't padded and never follows a single digit.

    Args:
        number: as Python writes floats.
        precision: how many digits PHP writes at most.
    """
    sign = "-" if number[0] == "-" else ""
    mantissa, _, exponent_text = number.removeprefix("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = whole + fraction
    point = len(whole) + int(exponent_text or 0)  # where it stands among the digits
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    if not digits:
        return f"{sign}0"
    if point > precision or point < -3:
        return f"{sign}{digits[0]}.{digits[1:] or '0'}e{point - 1:+d}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = digits[point:]
    return f"{sign}{digits[:point]:0<{point}}{'.' if fraction else ''}{fraction}"


def _is_list(pairs: dict[str, Any]) -> bool:
    """Say whether an object is a list in PHP: if it is empty, or its keys are 0, 1, 2… in order."""
    return not pairs or (
        "0" in pairs and all(key == str(number) for number, key in enumerate(pairs))
    )


def hash_event(value: object) -> str:
    """Give the md5 of PHP's JSON of a value: the ids of the PHP integration are those of the decoded event.

    PHP's `json_encode` gives false for what holds an infinity, and false is the empty text to its `hash`.
    """
    try:
        return _md5(json_encode(value))
    except OverflowError:
        return _md5("")


def _md5(characters: str) -> str:
    return hashlib.md5(characters.encode(), usedforsecurity=False).hexdigest()


# --- PHP's functions for text and numbers -----------------------------------------------------------------------------

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)


def _text_of(value: object) -> str:
    """Give a scalar as PHP's text of it: a float has 14 digits at most, PHP's default `precision`."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, int) and -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
        return str(value)
    if isinstance(value, int | float):
        number = float(value)
        if math.isinf(number):
            return "INF" if number > 0 else "-INF"
        return _written(f"{number:.13e}", 14).upper()
    raise TypeError(f"expected text or a number, found {kind(value)}")


def _strval(value: object) -> str:
    return "Array" if isinstance(value, list | dict) else _text_of(value)


def _ucfirst(value: object) -> str:
    characters = _text_of(value)
    return characters[:1].translate(_UPPER) + characters[1:]


def _intval(value: object) -> int:
    """Give what text begins with within 64 bits; of a number beyond them PHP keeps the lowest 64 bits."""
    if isinstance(value, list | dict):
        return int(bool(value))
    if isinstance(value, str):
        return cast("int", BUILTIN_CALLBACKS["intval"](value))
    number = float(value) if isinstance(value, int | float) else 0.0
    if math.isinf(number):
        return 0
    whole = int(value) if isinstance(value, int) and abs(value) <= _MAX_INTEGER else int(number)
    return (whole + 2**63) % 2**64 - 2**63


def _floatval(value: object) -> float:
    if isinstance(value, list | dict):
        return float(bool(value))
    return cast("float", BUILTIN_CALLBACKS["floatval"](value))


# --- PHP's time --------------------------------------------------------------------------------------------------

# What PHP calls a numeric string, white space on both sides included. Neither "12px" nor "0x1A" is one.
# No digit can be matched in two ways: a text of 30,000 digits and a letter would be tried in each of them.
_NUMERIC = re.compile(
    r"[ \t\n\r\v\f]*(?:([+-]?)0*([0-9]+)|[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t\n\r\v\f]*",
    re.ASCII,
)
_DAYS = 146_097  # in 400 years, after which the calendar is the same again
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_SECONDS = 946_684_800


def milliseconds_to_iso8601(value: object) -> str:
    """Give `2022-02-01T00:05:11+00:00` for milliseconds since 1970, with the seconds cut towards zero.

    The integration's function takes an `int`, for which PHP takes floats and numeric strings that fit 64 bits (their
    fraction is cut off) and booleans; it divides by 1000 and gives that to `date('c', …)`, which cuts once more.

    Raises:
        UnusableTimeError: PHP would raise a TypeError, which stops the whole export there.
    """
    milliseconds = _integer(value)
    # An integer if it can be divided, else the quotient of two doubles, which counts beyond 2**53.
    quotient = milliseconds // 1000 if milliseconds % 1000 == 0 else int(float(milliseconds) / 1000)
    cycles, seconds = divmod(quotient - _EPOCH_SECONDS, _DAYS * 86_400)
    moment = _EPOCH + timedelta(seconds=seconds)
    year = moment.year + 400 * cycles
    # PHP writes a year with as many characters as it has, four at least: the sign counts.
    return f"{year:04d}{moment:-%m-%dT%H:%M:%S}+00:00"


def _integer(value: object) -> int:
    """Give what PHP's coercion makes of an argument for an `int`."""
    number = value
    if isinstance(value, str):
        match = _NUMERIC.fullmatch(value)
        if match is None:
            raise UnusableTimeError(f"text that is no number, {value[:40]!a}")
        number = float(value)
        # 64 bits or little more; beyond it is a float in PHP too
        if match[2] and abs(number) < 1e19:
            number = int(match[1] + match[2])
    if isinstance(number, int) and -_MAX_INTEGER - 1 <= number <= _MAX_INTEGER:
        return int(number)
    if not isinstance(number, int | float):
        raise UnusableTimeError(kind(value))
    if not -(2.0**63) <= float(number) < 2.0**63:  # an infinity is beyond it too
        raise UnusableTimeError("a number beyond 64 bits")
    return int(number)


# --- PHP's arrays ------------------------------------------------------------------------------------------------

_SCALARS = frozenset({str, bool, type(None)})
_MAX_SENT_LEVELS = 250
"""A call can be nested so deeply: see `streamer.core.compile`."""
_TOO_DEEP = Reject(
    Reason.INVALID_CALL,
    f"A value of the event is nested too deeply: over {_MAX_SENT_LEVELS} levels.",
)
_INFINITE = Reject(
    Reason.INVALID_CALL,
    "A number of the event that would stand in a call is beyond what JSON can hold.",
)


def as_sent(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give a value as it comes out of PHP's `json_decode` and `json_encode`, in types of its own.

    An object that is a list in PHP is one; a number that PHP writes without a fraction is an integer.

    Raises:
        Rejected: no call can hold it.
    """
    return _sent(value, 0)


def _sent(value: Any, level: int) -> Any:  # noqa: ANN401 - any JSON value
    if type(value) in _SCALARS:
        return value
    if type(value) is dict or type(value) is list:
        if level == _MAX_SENT_LEVELS:
            raise Rejected(_TOO_DEEP)
        if type(value) is dict and not _is_list(value):
            return {key: _sent(element, level + 1) for key, element in value.items()}
        elements = list(value.values()) if isinstance(value, dict) else value
        return [_sent(element, level + 1) for element in elements]
    if type(value) is int and -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
        return value
    number = float(value)
    if math.isinf(number):
        raise Rejected(_INFINITE)
    # -0.0 is "-0" there, which is no integer of ours
    if number.is_integer() and abs(number) < 1e17 and (number or math.copysign(1, number) > 0):
        return int(
            _number(number)
        )  # its shortest digits, which from 2**53 on may be another integer
    return number


def item(value: Any, index: int) -> Any:  # noqa: ANN401 - any JSON value
    """Give the element at an index: of a list, of an object with that key, or of a text the character there."""
    if type(value) is list or type(value) is str:
        return value[index] if index < len(value) else None
    if type(value) is dict:
        return value.get(str(index))
    return None


def merge(*parts: Any) -> dict[str, Any] | list[Any]:  # noqa: ANN401 - any JSON value
    """Merge arrays as `array_merge` does, each flattened by `current` before: an empty element becomes false.

    Both are arrays in PHP, so lists are flattened too, and the elements of a list that meets an object have their
    numbers for names. What has the keys of a list in the end is one. A branch of the mapping, which comes as a tuple of
    one, gives its keys as they are.
    """
    merged: dict[str, Any] = {}
    numbers = 0
    for part in parts:
        if type(part) is list:
            for element in part:
                while str(numbers) in merged:  # the name of an object's key
                    numbers += 1
                merged[str(numbers)] = _current(element)
        elif type(part) is dict:
            merged.update({key: _current(element) for key, element in part.items()})
        elif type(part) is tuple:
            merged.update(part[0])
    sent: dict[str, Any] | list[Any] = as_sent(merged)
    return sent


def _current(element: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give the first element of an array, false if it has none; what is no array is itself."""
    if type(element) is list:
        return element[0] if element else False
    if type(element) is dict:
        return next(iter(element.values())) if element else False
    return element


def group_ids(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - any JSON value
    """Give a groupId, if it isn't one of those that PHP's `empty` holds for empty, which make no group call."""
    return () if is_empty(value) else (value,)


def is_empty(value: object) -> bool:
    """Say whether PHP's `empty` is true: for null, false, 0, an empty text, "0", and an empty list or object."""
    return not value or value == "0"


ALTIS = Profile(
    name="altis",
    mapping=altis_mapping,
    callbacks={
        "ucfirst": _ucfirst,
        "strtolower": lambda value: _text_of(value).translate(_LOWER),
        "strtoupper": lambda value: _text_of(value).translate(_UPPER),
        "trim": lambda value: _text_of(value).strip(" \t\n\r\0\x0b"),
        "strval": _strval,
        "intval": _intval,
        "floatval": _floatval,
        "md5": lambda value: _md5(_text_of(value)),
        "json_encode": json_encode,
        "hash_event": hash_event,
        "milliseconds_to_iso8601": milliseconds_to_iso8601,
    },
    mends=False,
    functions={"as_sent": as_sent, "group_ids": group_ids, "item": item, "merged": merge},
    decode=json_decode,
    skips=is_empty,
)
"""The profile, for the compiler."""
