"""The processes that train one model together: each takes its share of a batch, and what they find is added up."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

#: Tensors are added up in pieces of about so many numbers: few enough to need little memory, many enough to be quick.
_NUMBERS_AT_ONCE = 8_000_000
#: The first may wait out an outage of object storage with a checkpoint; who ends that is the worker, not the others.
_PATIENCE = timedelta(days=30)


class ProcessGroup(Protocol):
    """As training sees it: which of how many this process is (from 0 on), and how they add up."""

    rank: int
    world_size: int

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes in the place of each tensor, of floats on their device."""
        ...

    def leave(self) -> None:
        """Nothing more is added up. All come here at the same time; from here on none waits for another."""
        ...


class Alone:
    """One process: nothing is shared, nothing to add up."""

    rank, world_size = 0, 1

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """They are the sum already."""

    def leave(self) -> None:
        """Nobody is left."""


class Several:
    """This process and others, through accelerate: NCCL on GPUs, one for each process; gloo on the CPU."""

    def __init__(self, state: Any):
        """`state` is accelerate's PartialState."""
        self.rank, self.world_size, self._state = int(state.process_index), int(state.num_processes), state

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """See ProcessGroup. All processes must come here with tensors of the same sizes."""
        from accelerate.utils import reduce

        for part in _parts(tensors):
            flat: Tensor = reduce(torch.cat([tensor.reshape(-1) for tensor in part]), reduction="sum")
            totals = torch.split(flat, [tensor.numel() for tensor in part])
            for tensor, total in zip(part, totals, strict=True):
                tensor.copy_(total.view_as(tensor))

    def leave(self) -> None:
        """See ProcessGroup. Once is enough."""
        self._state.destroy_process_group()


def add_up(group: ProcessGroup, values: Sequence[float], device: torch.device) -> list[float]:
    """The sum of each over all processes."""
    if group.world_size == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    group.all_reduce([sums])
    found: list[float] = sums.tolist()
    return found


def add_up_gradients(group: ProcessGroup, parameters: Sequence[nn.Parameter], loss: float) -> float:
    """Puts the sum over all processes in the place of each gradient, and returns that of the losses.

    A parameter that no process has used keeps none, as in one process. All must come here with the same parameters.
    """
    if group.world_size == 1:
        return loss
    here = [float(parameter.grad is not None) for parameter in parameters]
    total, *used = add_up(group, [loss, *here], parameters[0].device)
    chosen = [parameter for parameter, count in zip(parameters, used, strict=True) if count]
    for parameter in chosen:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    group.all_reduce([p.grad for p in chosen if p.grad is not None])
    return total


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
    group = Several(
        PartialState(cpu=cpu, init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=_PATIENCE)
    )
    try:
        yield group
    finally:
        group.leave()


def _parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    for tensor in tensors:
        if part and sum(t.numel() for t in part) + tensor.numel() > _NUMBERS_AT_ONCE:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part
