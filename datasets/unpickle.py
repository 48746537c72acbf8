"""A reader of pickled arrays that cannot run code: it rebuilds numpy arrays, lists and tuples, and nothing else.

It interprets the pickle itself, because Python's unpickler hands a file's values to ``numpy.dtype.__setstate__``, which
takes flags that make numpy read raw bytes as pointers to objects, and allocates whatever size a file declares.
"""

from __future__ import annotations

import mmap
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.files import impostor
from pointadapterx.errors import DataError, shown

DEEPEST = 16  # lists within lists; a data set has two
_NUMBER = re.compile(r"[<>=|]?(?:f[248]|[iu][1248]|b1)")
_PLAIN_STATE = (None, None, None, -1, -1, 0)  # of a dtype, behind its version and byte order
_MARK = object()


class _Refused(Exception):
    """The pickle asks for something that is not part of an array."""


class _Function:
    """A name in the file that refers to something an array needs."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dtype:
    """The type of an array's numbers; its byte order follows in the file."""

    def __init__(self, code: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not (isinstance(text, str) and _NUMBER.fullmatch(text)):
            raise _Refused(f"numpy.dtype({shown(code)})")
        self.value = np.dtype(text)

    def build(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) >= 2 else None
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "=") or len(state) != 8 or state[2:] != _PLAIN_STATE:
            raise _Refused(f"numpy.dtype of the state {shown(state)}")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array whose shape, type and numbers follow in the file."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) in (4, 5)):
            raise _Refused(f"numpy.ndarray of the state {shown(state)}")
        shape, dtype, fortran, raw = state[-4:]
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(raw, str):  # Python 2's strings
        raw = raw.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
        raise _Refused(f"numpy.ndarray of {type(raw).__name__}")
    if not (isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**40 for n in shape)):
        raise ValueError(f"an array of shape {shown(shape)}")
    wanted = dtype.value.itemsize
    for n in shape:
        wanted *= n
    if wanted != len(raw):
        raise ValueError(f"an array of shape {shape} needs {wanted} bytes, and {len(raw)} are there")
    return np.frombuffer(raw, dtype.value).reshape(shape, order=order)


def _reconstruct(cls: Any, shape: Any, code: Any) -> _Array:
    """Arrays of the older protocols."""
    if not (isinstance(cls, _Function) and cls.name == "numpy.ndarray"):
        raise _Refused("numpy's _reconstruct of another class")
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Rebuilds an array that pickle protocol 5 stored as a buffer."""
    return _array(raw, dtype, shape, order)


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _Dtype:
    return _Dtype(code)


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes of protocols 0 to 2, which write them as text; the codec registry itself stays out of reach."""
    if encoding != "latin1" or not isinstance(text, str):
        raise _Refused(f"codec {shown(encoding)}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_CALLABLE: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), _no_bytes),  # empty ones, of protocols 0 to 2
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},  # numpy 1 and 2
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
_NAMES = {"numpy.ndarray", *_CALLABLE}


class _Machine:
    """The opcodes that lists, tuples, numbers, texts and arrays need; any other is refused by its name."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.room = 0  # bytes that texts and arrays may take: a file may name one of its texts any number of times

    def run(self, data: mmap.mmap) -> Any:
        """The object that the pickle describes."""
        self.room = 2 * len(data)  # each number once as bytes, of which some are first a text
        for code, argument, _ in pickletools.genops(data):
            name = code.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            else:
                step = getattr(self, f"do_{name.lower()}", None)
                if step is None:
                    raise _Refused(_DESCRIBED.get(name, f"opcode {name}"))
                step(argument)
        raise ValueError("it has no end")

    def _since_mark(self) -> list[Any]:
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:  # an IndexError where there is none
            position -= 1
        taken = self.stack[position + 1 :]
        del self.stack[position:]
        return taken

    def _use(self, made: Any) -> None:
        self.room -= made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
        if self.room < 0:
            raise ValueError("its arrays need more bytes than it has")

    def do_proto(self, _: Any) -> None:
        """A header, as FRAME is; both say nothing of the content."""

    do_frame = do_proto

    def do_none(self, _: Any) -> None:
        self.stack.append(None)

    def do_newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def do_newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("too few values for a tuple")
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(taken)

    def do_tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def do_tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def do_tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def do_append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: Any) -> None:
        if type(self.stack[-1]) is not list:
            raise _Refused(f"appending to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(module, name)

    def do_inst(self, argument: str) -> None:
        raise _Refused(argument.replace(" ", "."))

    def _push_name(self, module: Any, name: Any) -> None:
        found = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else shown((module, name))
        if found not in _NAMES:
            raise _Refused(found)
        self.stack.append(_Function(found))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Function) or function.name not in _CALLABLE or type(arguments) is not tuple:
            raise _Refused("a call of something else than numpy's functions for arrays")
        made = _CALLABLE[function.name](*arguments)
        self._use(made)
        self.stack.append(made)

    def do_build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype | _Array):
            raise _Refused(f"a state of {type(self.stack[-1]).__name__}")
        built = self.stack[-1]
        built.build(state)
        if isinstance(built, _Array):
            self._use(built.value)


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Opcodes that put their argument on the stack."""
_DESCRIBED = {
    **dict.fromkeys(("PERSID", "BINPERSID"), "a persistent object"),
    **dict.fromkeys(("EMPTY_DICT", "DICT"), "a dictionary"),
    **dict.fromkeys(("EMPTY_SET", "FROZENSET"), "a set"),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "a registered extension"),
    **dict.fromkeys(("OBJ", "NEWOBJ", "NEWOBJ_EX"), "an object of a class"),
}


def _finished(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Completes lists and tuples with their arrays; each object is completed once, even if it is referred to often."""
    if isinstance(value, _Dtype | _Function) or value is _MARK:
        raise _Refused("a part of an array by itself")
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without its numbers")
        return value.value
    if not isinstance(value, list | tuple):
        return value
    if id(value) not in done:
        if depth == DEEPEST:
            raise ValueError(f"lists within lists, more than {DEEPEST} deep")
        done[id(value)] = value  # a list that holds itself stays what it is; no tuple can
        parts = [_finished(part, done, depth + 1) for part in value]
        if isinstance(value, list):
            value[:] = parts
        else:
            done[id(value)] = tuple(parts)
    return done[id(value)]


def read_pickled_arrays(path: Path) -> Any:
    """Read a pickle of numpy arrays of numbers, lists and tuples.

    Memory and time follow from the size of the file, whatever it declares.

    Raises:
        DataError: if the file asks for anything else (the message names it; nothing of it has run), or is
            truncated or damaged.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            content = _Machine().run(data)
        return _finished(content, {})
    except _Refused as refused:
        raise DataError(
            f"{path}: refused, the pickle asks for {refused}, which is no part of an array of numbers and could run "
            "code; use the text files or the HDF5 layout instead"
        ) from None
    except MemoryError:
        raise DataError(f"{path}: does not fit into memory; use the HDF5 layout instead") from None
    except Exception as error:  # a damaged pickle raises almost anything: EOFError, IndexError, KeyError, ...
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: the pickle is truncated or damaged ({reason}); obtain it again") from error
