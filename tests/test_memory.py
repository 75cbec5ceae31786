"""What a stage tells the allocator of the C library."""

import subprocess
import sys

import pytest
from helpers import ROOT

PROGRAM = """
import resource
import torch
from stagecraft.runtime.threads import keep_freed_memory
{tell}
def round():
    a, b = torch.ones(12, 2**20), torch.ones(10, 2**20)
    del a, b
    torch.ones(11, 2**20)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    round()
before = faults()
for _ in range(5):
    round()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of glibc")
def test_memory_that_is_freed_is_kept_for_the_next_tensor():
    found = []
    for tell in ("", "keep_freed_memory()"):
        program = PROGRAM.replace("{tell}", tell)
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
        found.append(int(done.stdout))
    assert found[1] < found[0] / 2, found
