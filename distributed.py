"""Training in several processes, one per GPU, started by torchrun.

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
    """A number from torchrun's environment variables; `otherwise` if it did not start this."""
    return int(os.environ[name]) if dist.is_torchelastic_launched() else otherwise


RANK = from_torchrun("RANK", 0)                             # this process's number, from 0
WORLD_SIZE = from_torchrun("WORLD_SIZE", 1)                 # number of processes
LOCAL_RANK = from_torchrun("LOCAL_RANK", 0)                 # the same two within this machine
LOCAL_WORLD_SIZE = from_torchrun("LOCAL_WORLD_SIZE", 1)


def start(device):
    """Connects this process to the others of the run. device: this process's."""
    if WORLD_SIZE > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=2))


def finish():
    if dist.is_initialized():
        dist.destroy_process_group()


def parallel(module, device, sync_batch_norm=True):
    """Wraps a module for several processes: gradients are averaged over them and, on GPUs, batch
    norms see the whole batch. With a single process, returns the module itself.

    torch's SyncBatchNorm waits for the GPU three times per layer and step, which slows down small
    networks: sync_batch_norm=False leaves each process's batch norms its own part.
    """
    if WORLD_SIZE == 1:
        return module
    if device.type == "cuda" and sync_batch_norm:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # buffers need no synchronising: queues, α and running statistics follow from gathered
    # tensors and so are equal everywhere (on CPUs running statistics differ: rank 0's are used)
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True,
                                               **{sync: False})


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
    """This process's x (n, or n × d) → the whole batch's world size · n rows, with gradient.

    Floating-point numbers become float32, integers stay as they are.
    """
    if not dist.is_initialized():
        return x
    return Gather.apply(x.float() if x.is_floating_point() else x)


def gather_at_once(*parts):
    """gather() for several tensors with n rows each, in one communication."""
    if not dist.is_initialized():
        return parts
    widths = [x.shape[1] for x in parts]
    together = torch.cat([x.float() for x in parts], 1)     # n × the sum of the widths
    return gather(together).split(widths, 1)
