"""Hooks below SQLite: what this process writes, truncates and syncs is told, and may be made to fail.

SQLite's own layer for files stays in place, with its locks and its shared memory (which a VFS written in Python cannot
have): only the addresses of a few of its methods are exchanged. No compiler is needed, and no other SQLite.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import apsw

_Pointer = ctypes.c_void_p
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, _Pointer, ctypes.c_int, _Pointer)
_DELETE = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_char_p, ctypes.c_int)
_CLOSE = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_int)


class _Vfs(ctypes.Structure):
    """The beginning of sqlite3_vfs."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("max_path", ctypes.c_int),
        ("next", _Pointer),
        ("name", ctypes.c_char_p),
        ("data", _Pointer),
        ("open", _Pointer),
        ("delete", _Pointer),
    )


class _Methods(ctypes.Structure):
    """sqlite3_io_methods."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("close", _Pointer),
        ("read", _Pointer),
        ("write", _Pointer),
        ("truncate", _Pointer),
        ("sync", _Pointer),
        ("others", _Pointer * 13),
    )


class Observer(Protocol):
    """Each method gets the path of the file and `do`, which does it and returns SQLite's result code (0: well done);
    it returns the code that SQLite shall see. Called in any thread."""

    def opened(self, path: str) -> int:
        """Before a file is opened; not 0: it is not."""
        ...

    def write(self, path: str, data: bytes, offset: int, do: Callable[[], int]) -> int: ...
    def truncate(self, path: str, size: int, do: Callable[[], int]) -> int: ...
    def sync(self, path: str, do: Callable[[], int]) -> int: ...
    def delete(self, path: str, do: Callable[[], int]) -> int: ...


class _Hooks:
    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._paths: dict[int, str] = {}  # by the address of the open file
        self._tables: dict[int, _Methods] = {}  # ours, by the address of SQLite's
        self._kept: list[Any] = []  # callbacks that SQLite may call
        self._vfs = _default_vfs()
        self._open = _OPEN(self._vfs.open)
        self._delete = _DELETE(self._vfs.delete)
        self._before = (self._vfs.open, self._vfs.delete)

    def install(self) -> None:
        self._vfs.open = self._callback(_OPEN(self._opened))
        self._vfs.delete = self._callback(_DELETE(self._deleted))

    def remove(self) -> None:
        """Every file must have been closed."""
        assert not self._paths, self._paths
        self._vfs.open, self._vfs.delete = self._before

    def _callback(self, function: Any) -> int | None:
        self._kept.append(function)
        return ctypes.cast(function, _Pointer).value

    def _opened(self, vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else None
        if path is not None and (refused := self._observer.opened(path)):
            _Pointer.from_address(file).value = None  # no methods: nothing to close
            return refused
        code: int = self._open(vfs, name, file, flags, out)
        methods = _Pointer.from_address(file)
        if code == 0 and path is not None and methods.value:
            self._paths[file] = path
            if methods.value not in self._tables:
                self._tables[methods.value] = self._table(methods.value)
            methods.value = ctypes.addressof(self._tables[methods.value])
        return code

    def _deleted(self, vfs: int, name: bytes, sync_folder: int) -> int:
        return self._observer.delete(os.fsdecode(name), lambda: self._delete(vfs, name, sync_folder))

    def _table(self, address: int) -> _Methods:
        real = _Methods.from_address(address)
        ours = _Methods()
        ctypes.memmove(ctypes.addressof(ours), address, ctypes.sizeof(_Methods))
        real_close, real_write = _CLOSE(real.close), _WRITE(real.write)
        real_truncate, real_sync = _TRUNCATE(real.truncate), _SYNC(real.sync)
        observer, paths = self._observer, self._paths

        def close(file: int) -> int:
            paths.pop(file)
            return int(real_close(file))

        def write(file: int, data: int, size: int, offset: int) -> int:
            content = ctypes.string_at(data, size)
            return observer.write(paths[file], content, offset, lambda: real_write(file, data, size, offset))

        def truncate(file: int, size: int) -> int:
            return observer.truncate(paths[file], size, lambda: real_truncate(file, size))

        def sync(file: int, flags: int) -> int:
            return observer.sync(paths[file], lambda: real_sync(file, flags))

        ours.close = self._callback(_CLOSE(close))
        ours.write = self._callback(_WRITE(write))
        ours.truncate = self._callback(_TRUNCATE(truncate))
        ours.sync = self._callback(_SYNC(sync))
        return ours


@contextmanager
def hooked(observer: Observer) -> Iterator[None]:
    """SQLite of this process is observed while the block runs. Connections opened in it must be closed in it."""
    hooks = _Hooks(observer)
    hooks.install()
    try:
        yield
    finally:
        hooks.remove()


def hook_for_good(observer: Observer) -> None:
    """SQLite of this process is observed until it ends."""
    hooks = _Hooks(observer)
    _forever.append(hooks)
    hooks.install()


_forever: list[_Hooks] = []


def _default_vfs() -> _Vfs:
    db = apsw.Connection("")
    try:
        address = _Pointer()
        assert db.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(address))
        assert address.value
        return _Vfs.from_address(address.value)
    finally:
        db.close()
