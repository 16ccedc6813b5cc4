"""Hypothesis strategies for values that travel over a wire: plain values, and values of any message type.

Used by the tests of the codec. They never make a value that the codec may refuse.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from ipc.codec import encode

Scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=10)
)


Plain = st.recursive(
    Scalar | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of `kind`, as msgspec sees it: a Struct, a union, a container or a constrained scalar."""
    return of_info(msgspec.inspect.type_info(kind))


def of_info(info: Any) -> st.SearchStrategy[Any]:
    i = msgspec.inspect
    match info:
        case i.StructType():
            return st.deferred(lambda: struct_values(info.cls))
        case i.UnionType():
            return st.one_of([of_info(kind) for kind in info.types])
        case i.IntType():
            low = info.ge if info.ge is not None else info.gt if info.gt is not None else -(2**63)
            return st.integers(int(low), int(info.le if info.le is not None else 2**63 - 1))
        case i.FloatType():
            exclusive = info.gt is not None
            least = info.gt if exclusive else info.ge
            return st.floats(least, info.le, exclude_min=exclusive, allow_nan=False, allow_infinity=False)
        case i.StrType():
            return st.text(min_size=info.min_length or 0, max_size=20)
        case i.BoolType():
            return st.booleans()
        case i.NoneType():
            return st.none()
        case i.ListType():
            return st.lists(of_info(info.item_type), max_size=3)
        case i.VarTupleType():
            return st.lists(of_info(info.item_type), max_size=3).map(tuple)
        case i.DictType():
            return st.dictionaries(of_info(info.key_type), of_info(info.value_type), max_size=3)
        case i.AnyType():
            return Plain
        case i.LiteralType():
            return st.sampled_from(info.values)
        case i.RawType():
            return Plain.map(lambda value: msgspec.Raw(encode(value)))
    raise AssertionError(f"no strategy for {info}")


def struct_values(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
    return st.builds(kind, **{field.name: of_info(field.type) for field in fields})
