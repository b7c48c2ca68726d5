"""Memory that was freed is used again; in a process of its own, since it is the process's."""

import subprocess
import sys

_CODE = """
import resource
from snapshotter.blob.freed_memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):  # larger each time: a block that was as large once is kept anyway
        sizes.append(sizes[-1] + (64 << 10))
        bytes(bytearray(sizes[-1]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

sizes = [4 << 20]
before = page_faults()
keep_freed_memory()
page_faults()
print(before, page_faults())
"""


def test_blocks_of_a_chunks_size_are_given_out_again_without_new_pages() -> None:
    said = subprocess.run([sys.executable, "-c", _CODE], stdout=subprocess.PIPE, check=True).stdout

    before, after = map(int, said.split())

    assert before > 20_000, "glibc by itself"
    assert after < before / 10
