"""What the processes of tests/e2e/test_distributed.py do."""

import os
import signal

import torch

from shared.errors import JobError
from shared.ml.rank import Rank


def add_up_and_fail(here: Rank) -> None:
    """Says the sums of some tensors; then the second process raises, while the first waits for it."""
    tensors = [torch.full(shape, 1.0 + here.group.rank) for shape in ((3,), (2, 2), ())]
    here.group.all_reduce(tensors)
    here.worker.ask("found", rank=here.group.rank, values=[tensor.flatten().tolist() for tensor in tensors])
    if here.group.rank == 1:
        raise JobError("There is too little of everything.", code="too_little", param="items")
    here.group.all_reduce(tensors)


def die(here: Rank) -> None:
    """The second process is killed, while the first waits for it."""
    here.worker.ask("started", pid=os.getpid())
    if here.group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    here.group.all_reduce([torch.zeros(1)])


def wait_for_ever(here: Rank) -> None:
    """The second process waits for something that never comes, and the first for it."""
    here.worker.ask("started", pid=os.getpid())
    if here.group.rank == 1:
        signal.pause()
    here.group.all_reduce([torch.zeros(1)])
