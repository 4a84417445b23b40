"""torch.compile: the parts of a run that it compiles, and whether it works here."""
import torch

from plumbing.cli import BadInput
from plumbing.distributed import WORLD_SIZE


def compile_networks(learner, device):
    """Compiles a Learner, in place. With several processes, the networks alone: communication
    between the processes stays out. Raises BadInput where torch.compile does not work."""
    check_compiler(device)
    modules = [learner]
    if WORLD_SIZE > 1:
        modules = [learner.method.encoder, learner.method.projector]
    for module in modules:
        module.compile()


def check_compiler(device):
    """torch.compile needs a C++ compiler on a CPU, for one: better said now than in a traceback."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:      # torch raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"--compile yes: torch.compile does not work here ({reason})") from error
