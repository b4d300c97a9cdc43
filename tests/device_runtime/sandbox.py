"""Run a program as systemd's filter of system calls would: ``python sandbox.py CALLS FAMILIES PROGRAM [ARGUMENT]...``.

CALLS and FAMILIES are names of system calls and numbers of address families, with commas between them. What is not
among them fails with EPERM, as do pages of memory that are both writable and executable, or that become executable.
The filter is built by libseccomp, which systemd itself uses, and is kept across the program's start.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

ALLOW = 0x7FFF0000
ERRNO_EPERM = 0x00050000 | errno.EPERM
EQUAL, MASKED_EQUAL = 4, 7
WRITE, EXECUTE = 2, 4


class Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def confine(calls: list[str], families: list[int]) -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison),
    ]  # fmt: skip
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(ERRNO_EPERM)

    def allow(name: str, *comparisons: Comparison) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # another architecture's
            return
        array = (Comparison * len(comparisons))(*comparisons)
        if library.seccomp_rule_add_array(context, ALLOW, number, len(comparisons), array) != 0:
            raise OSError(f"can't allow {name}")

    for name in calls:
        if name == "socket":
            for family in families:
                allow(name, Comparison(0, EQUAL, family))
        elif name == "mmap":
            for protection in (0, WRITE, EXECUTE):
                allow(name, Comparison(2, MASKED_EQUAL, WRITE | EXECUTE, protection))
        elif name in ("mprotect", "pkey_mprotect"):
            allow(name, Comparison(2, MASKED_EQUAL, EXECUTE, 0))
        else:
            allow(name)
    if library.seccomp_load(context) != 0:
        raise OSError("can't load the filter")


if __name__ == "__main__":
    confine(sys.argv[1].split(","), [int(family) for family in sys.argv[2].split(",")])
    os.execv(sys.argv[3], sys.argv[3:])
