"""Events, mapping trees and group maps for Hypothesis: well-formed, and as hostile as JSON and the grammar allow."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import strategies as st

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 1, -1, 0.0, -0.0, 42.0, "", "0", "text", "Ünï\0", 1_643_673_911_400])
    | st.text(max_size=5)
)

json_values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)


def _weighted(
    usual: st.SearchStrategy[Any], unusual: st.SearchStrategy[Any], weight: int
) -> st.SearchStrategy[Any]:
    """The one, and once in a while the other."""
    strategies = [*[usual] * weight, unusual]
    return st.integers(0, weight).flatmap(lambda number: strategies[number])


def _either(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what stands there, at times anything at all."""
    return _weighted(usual, json_values, 9)


_names = st.sampled_from(["DeviceMake", "DeviceModel", "DeviceType", "plan", "Company"])
_texts = st.sampled_from(["", "x", "Apple", "ü"]) | st.text(max_size=4)
_times = st.integers(1_600_000_000_000, 1_700_000_000_000) | st.sampled_from(
    [0, -1, 253_402_300_799_999, 253_402_300_800_000, 1e12, 1.5, True, "1643673911400"]
)
_named = st.dictionaries(_names, _either(st.lists(_texts, min_size=1, max_size=2)), max_size=4)

_attributes = st.dictionaries(
    st.sampled_from(
        ["title", "url", "search", "referrer", "qv_utm_source", "elapsed", "plan", "é"]
    ),
    _either(_texts),
    max_size=5,
)
_user = st.fixed_dictionaries(
    {}, optional={"UserId": _either(_texts), "UserAttributes": _either(_named)}
)
_endpoint = st.fixed_dictionaries(
    {"Id": _either(st.sampled_from(["visitor", "ü"]))},
    optional={
        "EndpointStatus": _either(_texts),
        "Attributes": _either(_named),
        "Metrics": _either(st.dictionaries(_names, _either(st.floats(0, 9)))),
        "Demographic": _either(
            st.dictionaries(st.sampled_from(["Locale", "Platform"]), _either(_texts))
        ),
        "Location": _either(st.dictionaries(st.sampled_from(["Country", "City"]), _either(_texts))),
        "User": _either(_user),
    },
)

altis_events = st.fixed_dictionaries(
    {
        "event_type": _either(st.sampled_from(["pageView", "scroll"])),
        "endpoint": _either(_endpoint),
    },
    optional={
        "event_timestamp": _either(_times),
        "arrival_timestamp": _either(_times),
        "attributes": _either(_attributes),
        "metrics": _either(st.dictionaries(st.sampled_from(["elapsed", "day"]), st.integers(0, 9))),
    },
)
"""Events in the shape of Altis Analytics, of which any part may be missing or something else."""

_HOSTILE_VALUES = [
    # numbers that JSON has and Python or PHP may not, and what some writers send for others
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"1" * 300, b"-0", b"-0.0",
    b"1e-999", b"0.1e1", b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b".5", b"0x1A",
    # texts: lone surrogates, NULs, bytes that are no UTF-8, long ones
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"a\\u0000b"', b'"\xff"', b'"\xed\xa0\x80"',
    b'"\0"', b'"\x01"', b'"\\x"', b'"open', b'"%b"' % (b"x" * 31_900), b'"%b"' % (b"\\u0001" * 6000), b'"0"', b'" "',
    # other types than what should stand there, and rubbish
    b"null", b"true", b"false", b"0", b"{}", b"[]", b"[[]]", b"[null]", b'[[],{"a":[{}]}]', b'{"0":{"1":[]},"1":{}}',
    b'{"a":1,"a":[2],"\\u0061":{}}', b"tru", b"", b"'x'", b"/**/1",
    # more than a value: its key stands there once more, or another one
    b'"first","event_type":"pageView"', b'1,"endpoint":{"Id":"other"}', b'1,"Id":{}', b'1}}}',
]  # fmt: skip


_BOUNDLESS_VALUES = [
    b"1e999", b"-1E+999", b"1" * 400, b"1" * 5000,
    b"[" * 200 + b"]" * 200, b'{"x":' * 253 + b"1" + b"}" * 253, b"[" * 600 + b"]" * 600, b"[" * 1100,
]  # fmt: skip


@st.composite
def hostile_records(draw: st.DrawFn, *, boundless: bool = True) -> bytes:
    """Records in the shape of Altis's events, which have JSON that nobody should send in any place.

    Args:
        draw: given by Hypothesis.
        boundless: whether they may have numbers beyond a double, and be nested more deeply than a call may be.
    """
    event = draw(altis_events)
    values = _HOSTILE_VALUES + _BOUNDLESS_VALUES * boundless
    hostile = draw(st.lists(st.sampled_from(values), max_size=3))
    for number in range(len(hostile)):
        parent: Any = event
        while True:
            key = draw(st.sampled_from([*parent, "extra"]))
            inner = parent.get(key)
            if not isinstance(inner, dict) or draw(st.booleans()):
                break
            parent = inner
        parent[key] = f"\1{number}"
    record = orjson.dumps(event)
    for number, value in enumerate(hostile):
        record = record.replace(b'"\\u0001%d"' % number, value)
    return (
        draw(st.sampled_from([b"%b", b"%b", b"%b", b" \r\n%b\t", b"\xef\xbb\xbf%b", b"[%b]"]))
        % record
    )


_keys = st.sampled_from(["a", "b", "c", "0", "1", "00", "", "call", "dict", "ü 'x'\n#"])
_values = st.recursive(
    st.sampled_from(
        [None, False, True, 0, 7, -0.0, 42.5, 1e300, "", "Text", "ü\0", 1_643_673_911_400]
    ),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_keys, children, max_size=4),
    max_leaves=6,
)
_ids: st.SearchStrategy[Any] = st.sampled_from([*["user"] * 9, 5, 1.0, ["first"], "", None, {}])

plain_events = st.builds(
    lambda event, known: {**event, **known},
    st.dictionaries(_keys, _values, max_size=6),
    st.fixed_dictionaries(
        {
            "Id": _ids,
            "Other": _ids,
            "Time": st.sampled_from([1_643_673_911_400, "now", None]),
            "event_type": st.sampled_from([*["pageView", "scroll"] * 4, 5, "", None]),
        }
    ),
)
"""Events of few keys, so that the paths of `trees` often meet something."""

_paths = st.lists(_keys, min_size=1, max_size=3).map(".".join)
# Callbacks that take whatever they are given, and a few that reject most records. Weights are written as repetitions
# of values: Hypothesis counts a strategy that is repeated once.
_total = ["json_encode", "hash_event", "milliseconds_to_iso8601", "boxed", "nulled", "emptied"]
# Those whose names end in "ed" are the tests' own, and may give objects.
_callbacks = st.sampled_from([*_total * 20, "strtolower", "trim", "intval", "md5", "raises"])
_path_leaves = st.one_of(_paths, st.builds("{}|{}".format, _paths | st.just(""), _callbacks))
_nothings: st.SearchStrategy[Any] = st.sampled_from(["", None]) | st.builds(dict) | st.builds(list)
_leaves = _path_leaves | _nothings | st.sampled_from(["Text|static", "|static", "a|b|static"])


def _objects(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Trees that give an object, but for lists that meet lists."""
    parts = _path_leaves | _nothings | st.dictionaries(_keys, children, max_size=2)
    return st.dictionaries(_keys, children, max_size=4) | st.lists(parts, max_size=3)


trees = st.recursive(_leaves, _objects, max_leaves=8)
"""Mapping trees of every form that the grammar knows."""

# The known callbacks give no object: at the top of an object's key they are an error at the start.
_maybe_objects = trees.filter(
    lambda tree: not isinstance(tree, str) or "|" not in tree or tree.endswith("ed")
)
_object_trees = _weighted(_objects(trees), _maybe_objects, 9)
_texts_at_top = st.sampled_from(["Id", "Other", "a", "b.0", "Text|static", "", ["a", "b"]]) | trees
_times_at_top = st.sampled_from(["Time|milliseconds_to_iso8601", "Time", "a", "", "now|static"])
_seldom = _weighted(st.just(""), trees, 19)


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, Any]:
    """A tree for each type of call, which often have parts in common."""
    optional = {
        "timestamp": _times_at_top,
        "receivedAt": _times_at_top,
        "userId": _texts_at_top,
        "messageId": _texts_at_top,
        "context": _object_trees,
        "name": _texts_at_top,
        "category": _seldom,
        "previousId": _seldom,
        "é'\n": trees,
    }
    common = draw(st.fixed_dictionaries({}, optional=optional))
    traits = draw(_object_trees)
    mapping = {}
    for call_type in ("identify", "group", "page", "track"):
        own = draw(st.fixed_dictionaries({}, optional={**optional, "properties": _object_trees}))
        tree = {**common, **own, "type": f"{call_type}|static"}
        tree["anonymousId"] = draw(st.sampled_from([*["Id"] * 6, "Other", "a"]))
        if draw(st.booleans()):
            tree["traits"] = traits
        if draw(st.booleans()):
            tree["context"] = {"traits": traits, "page": draw(trees)}
        if draw(st.booleans()):
            tree["properties"] = [{"traits": traits}, traits] if isinstance(traits, dict) else ["a"]
        if call_type == "track":
            tree["event"] = draw(st.sampled_from([*["event_type"] * 6, "a"]))
        mapping[call_type] = {key: tree[key] for key in draw(st.permutations(list(tree)))}
    return mapping


group_maps = st.lists(
    st.fixed_dictionaries(
        {"field": st.sampled_from(["Id", "Other", "a", "b.0", "Acme|static", "a|boxed"])},
        optional={
            "traits": _object_trees,
            "each": st.booleans(),
            "timestamp": _times_at_top,
            "context": _object_trees,
        },
    ),
    max_size=2,
)
