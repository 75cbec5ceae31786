"""Random streams: every draw belongs to (seed, stream, index) and to nothing else."""

import hashlib

import torch


def generator_for(seed: int, stream: str, index: int) -> torch.Generator:
    """A CPU generator for draw `index` of a named stream.

    torch's CPU generator keeps only the low 32 bits of a seed, so (seed, stream) is hashed to an offset and `index` is spread
    by an odd multiplier: within a stream no two indices below 2^32 share a seed.
    """
    offset = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:4], "little")
    return torch.Generator().manual_seed((offset + index * 2654435761) % 2**32)
