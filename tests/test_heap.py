"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

KEPT = """
import ctypes, sys
from ece.heap import one_heap, memory_returned
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
    one_heap()
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

MULTIPLIED = """
import ctypes, pathlib, torch
from ece.heap import memory_returned
library = ctypes.CDLL(str(pathlib.Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
blocks = ctypes.c_int()
def kept():
    library.mkl_serv_mem_stat(ctypes.byref(blocks))
    return blocks.value
torch.rand(512, 512) @ torch.rand(512, 512)
before = kept()
with memory_returned():
    pass
print(before, kept())
"""

HEAPS = """
import ctypes, sys, threading
from ece.heap import one_heap
libc = ctypes.CDLL(None)
libc.fdopen.restype, libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fflush.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
if "one" in sys.argv:
    one_heap()
together = threading.Barrier(4)
threads = [threading.Thread(target=lambda: (bytearray(5000), together.wait())) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fdopen(1, b"w")
libc.malloc_info(0, file)
libc.fflush(file)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")


@glibc
def test_freed_blocks_go_back():
    def kept(*arguments: str) -> int:
        """MB of 80 that stay."""
        return int(subprocess.run([sys.executable, "-c", KEPT, *arguments], capture_output=True, check=True).stdout)

    assert kept() > 60
    assert kept("apart") < 10
    assert kept("returned") < 10


@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.mkl.is_available(), reason="only MKL keeps blocks")
def test_what_multiplication_kept_goes_back():
    found = subprocess.run([sys.executable, "-c", MULTIPLIED], capture_output=True, check=True).stdout.split()
    before, after = map(int, found)
    assert before > 0
    assert after == 0


@glibc
def test_threads_share_a_heap():
    def heaps(*arguments: str) -> int:
        found = subprocess.run([sys.executable, "-c", HEAPS, *arguments], capture_output=True, check=True).stdout
        return found.count(b"<heap nr=")

    assert heaps() > 1
    assert heaps("one") == 1
