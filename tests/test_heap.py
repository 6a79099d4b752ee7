"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

KEPT = """
import ctypes, sys
from ece.heap import large_blocks_apart, memory_returned
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
def rss():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
def block(size):
    place = libc.malloc(size)
    ctypes.memset(place, 1, size)
    return place
if "apart" in sys.argv:
    large_blocks_apart()
libc.free(block(16 << 20))
before = rss()
pairs = [(block(8 << 20), block(64 << 10)) for _ in range(10)]
for large, _ in pairs:
    libc.free(large)
if "returned" in sys.argv:
    with memory_returned():
        pass
print((rss() - before) // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_freed_blocks_go_back():
    def kept(*arguments: str) -> int:
        """MB of 80 that stay."""
        return int(subprocess.run([sys.executable, "-c", KEPT, *arguments], capture_output=True, check=True).stdout)

    assert kept() > 60
    assert kept("apart") < 10
    assert kept("returned") < 10
