"""The value types of GGUF metadata, and the Python value that stands for each so that no type is lost.

    UINT8 INT8 UINT16 INT16 UINT32 INT32 UINT64 INT64 FLOAT32 FLOAT64     a NumPy scalar of that type
    BOOL                                                                  bool
    STRING                                                                str
    ARRAY of numbers or of BOOL                                           a NumPy array of that dtype, one axis
    ARRAY of STRING                                                       list of str
    ARRAY of ARRAY                                                        Nested, a list of any of these arrays

A plain int or float is accepted where a file is written; `typed` says which type it gets.
"""

import numpy as np

from refquant.errors import BadInput

STRING, ARRAY = 8, 9
NUMBERS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in NUMBERS.items()}
_INTEGERS = (np.uint32, np.int32, np.uint64, np.int64)


class Nested(list):
    """An array of arrays. The specification allows it; llama.cpp refuses such a file."""


def typed(value, key: str):
    """Give a plain Python value the type it has in a file; a value that has one already is returned as it is.

    An int becomes the first of UINT32, INT32, UINT64, INT64 that holds it, a float FLOAT32; a list of int becomes INT32
    where all fit (as llama.cpp expects of its own arrays), else INT64, and a list of float FLOAT32.
    """
    if isinstance(value, str | bool | Nested) or (isinstance(value, np.generic) and value.dtype in _CODES):
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, int):
        fitting = [kind for kind in _INTEGERS if np.iinfo(kind).min <= value <= np.iinfo(kind).max]
        if fitting:
            return fitting[0](value)
    elif isinstance(value, float):
        return np.float32(value)
    elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in _CODES:
        return value
    elif isinstance(value, list | tuple):
        return _typed_list(list(value), key)
    raise BadInput(
        f"{key}: a metadata value must be a number, bool, str, or a flat array or list of those, "
        f"got {type(value).__name__} {getattr(value, 'dtype', '')}"
    )


def _typed_list(items: list, key: str):
    if all(isinstance(item, str) for item in items):
        return items
    if all(isinstance(item, bool | np.bool_) for item in items):
        return np.array(items, bool)
    if all(isinstance(item, list | tuple | np.ndarray) for item in items):
        return Nested(items)
    if all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in items):
        if all(-(2**31) <= item < 2**31 for item in items):
            return np.array(items, np.int32)
        if all(-(2**63) <= item < 2**63 for item in items):
            return np.array(items, np.int64)
    elif all(isinstance(item, int | float | np.number) and not isinstance(item, bool) for item in items):
        return np.array(items, np.float32)
    raise BadInput(f"{key}: the items of an array must all have one type, and integers must fit in 64 bits")


def encode_string(text: str, what: str) -> bytes:
    """Length as uint64, then UTF-8."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise BadInput(f"{what}: {problem}") from None
    return len(data).to_bytes(8, "little") + data


def type_code(value) -> int:
    """Return the number that stands for the type of a value which `typed` has returned."""
    if isinstance(value, str):
        return STRING
    if isinstance(value, list | np.ndarray):
        return ARRAY
    return _CODES[np.asarray(value).dtype]


def encode(value, key: str) -> bytes:
    """Return the bytes of a typed value, without its own type number."""
    code = type_code(value)
    if code == STRING:
        return encode_string(value, key)
    if code != ARRAY:
        return np.asarray(value, NUMBERS[code]).tobytes()
    if isinstance(value, np.ndarray):
        item, body = _CODES[value.dtype], np.asarray(value, NUMBERS[_CODES[value.dtype]]).tobytes()
    elif isinstance(value, Nested):
        inner = [typed(array, key) for array in value]
        if any(type_code(array) != ARRAY for array in inner):
            raise BadInput(f"{key}: every item of an array of arrays must be an array")
        item, body = ARRAY, b"".join(encode(array, key) for array in inner)
    else:
        item, body = STRING, b"".join(encode_string(text, key) for text in value)
    return item.to_bytes(4, "little") + len(value).to_bytes(8, "little") + body
