"""The processes that train one model together: each takes its share of a batch, and what they find is added up."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

#: Tensors are added up in pieces of about so many numbers: few enough to need little memory, many enough to be quick.
_NUMBERS_AT_ONCE = 8_000_000


class ProcessGroup(Protocol):
    """As training sees it: which of how many this process is (from 0 on), and how they add up."""

    rank: int
    world_size: int

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes, float32 on their device, in the place of each tensor."""
        ...


class Alone:
    """One process: nothing is shared, nothing to add up."""

    rank, world_size = 0, 1

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """They are the sum already."""


class Several:
    """This process and others, through accelerate: NCCL on GPUs, one for each process; gloo on the CPU."""

    def __init__(self, rank: int, world_size: int):
        self.rank, self.world_size = rank, world_size

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """See ProcessGroup. All processes must come here with tensors of the same sizes."""
        from accelerate.utils import reduce

        for part in _parts(tensors):
            flat: Tensor = reduce(torch.cat([tensor.reshape(-1) for tensor in part]), reduction="sum")
            totals = torch.split(flat, [tensor.numel() for tensor in part])
            for tensor, total in zip(part, totals, strict=True):
                tensor.copy_(total.view_as(tensor))


@contextmanager
def join(rank: int, world_size: int, meeting: Path, *, cpu: bool) -> Iterator[Several]:
    """Waits for the others, who name the same file, which must not exist yet; on GPUs, the one of this rank is current.

    They talk over the loopback interface only.
    """
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {name: str(world_size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    from accelerate import PartialState
    from accelerate.utils import check_cuda_p2p_ib_support

    if not cpu and not check_cuda_p2p_ib_support():
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    state = PartialState(cpu=cpu, init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    try:
        yield Several(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()


def _parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    for tensor in tensors:
        if part and sum(t.numel() for t in part) + tensor.numel() > _NUMBERS_AT_ONCE:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part
