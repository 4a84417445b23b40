"""Several processes, one on each GPU, started by torchrun: who this one is, and how they share.

    torchrun --nproc_per_node=8 train.py …

Each process trains on its part of every batch. A loss over the whole batch gathers the parts
first; DistributedDataParallel then averages the gradients.
"""
import datetime
import inspect
import os

import torch
import torch.distributed as dist
from torch import nn


def from_torchrun(name, otherwise):
    """A number that torchrun leaves in the environment; without torchrun, `otherwise`."""
    started_by_torchrun = {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    return int(os.environ[name]) if started_by_torchrun else otherwise


RANK = from_torchrun("RANK", 0)                             # this process's number, from 0
WORLD_SIZE = from_torchrun("WORLD_SIZE", 1)                 # how many there are
LOCAL_RANK = from_torchrun("LOCAL_RANK", 0)                 # the same two on this machine
LOCAL_WORLD_SIZE = from_torchrun("LOCAL_WORLD_SIZE", 1)


def own_device(name):
    """--device's name for this process: of several on GPUs, each takes the next GPU."""
    wants_gpu = name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{LOCAL_RANK}" if WORLD_SIZE > 1 and wants_gpu else name


def start(device):
    """Joins the other processes of this run. device: this process's."""
    if WORLD_SIZE > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=2))


def finish():
    if dist.is_initialized():
        dist.destroy_process_group()


def parallel(module, device):
    """The module as it trains on several processes: gradients are averaged over them and, on
    GPUs, batch norms see the whole batch. Of a single process, the module itself.

    torch's SyncBatchNorm makes the processor wait for its GPU once in every layer and step, in
    case that some process has no rows. A small network on many GPUs feels it.
    """
    if WORLD_SIZE == 1:
        return module
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # buffers (queues, α, running statistics) follow from what is gathered and so are equal
    # everywhere, but for a CPU's running statistics, of which the first process's are used
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True,
                                               **{sync: False})


def smallest(number, device):
    """The smallest of the processes' numbers."""
    if not dist.is_initialized():
        return number
    found = torch.tensor(float(number), dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return found.item()


def mean(x):
    """The mean of a tensor over the processes; no gradient flows through it."""
    if not dist.is_initialized():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


class Gather(torch.autograd.Function):
    """The rows of all processes, one process after the other.

    Each process then computes the loss of the whole batch, so the gradient of its own rows is
    all that it needs: nothing has to travel back.
    """

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        # DistributedDataParallel averages over the processes what should be a sum
        world_size = dist.get_world_size()
        return gradient.chunk(world_size)[dist.get_rank()] * world_size


def gather(x):
    """x (n × d) of this process → that of the whole batch (world size · n × d), with gradient.

    In float32, but for a single process, which gets x as it is.
    """
    if not dist.is_initialized():
        return x
    return Gather.apply(x.float())


def gather_at_once(*parts):
    """gather() of several tensors with n rows each, in one message between the processes."""
    if not dist.is_initialized():
        return parts
    widths = [x.shape[1] for x in parts]
    together = torch.cat([x.float() for x in parts], 1)     # n × the sum of the widths
    return gather(together).split(widths, 1)
