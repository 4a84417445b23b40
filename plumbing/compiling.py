"""torch.compile: what of a run it compiles, and whether it is worth its time there.

Compiling takes from half a minute to minutes, and then saves a tenth of each step, or a sixth, or
nothing at all: it depends on machine and network. --compile auto tries it on copies of them.
"""
import copy
import gc
import statistics
import time

import torch

from plumbing import distributed
from plumbing.process import duration

TRIAL_STEPS = 5
LEAST_SECONDS = 30      # that compiling takes
LARGEST_GAIN = 0.4      # of a step's time, as far as was seen


def compile_networks(learner):
    """Compiles a Learner, in place. With several processes, the networks alone: what the
    processes say to each other stays out."""
    modules = [learner]
    if distributed.WORLD_SIZE > 1:
        modules = [learner.method.encoder, learner.method.projector]
    for module in modules:
        module.compile()


def works_here(device):
    """Whether torch.compile works, on every process; without a C++ compiler, for one, it cannot."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
        works = True
    except Exception as error:      # torch raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"not compiled: torch.compile does not work here ({reason})")
        works = False
    return distributed.smallest(works, device) == 1


def decide(*trial):
    """"yes" or "no": see is_worth_it. Leaves no memory behind."""
    worth_it = is_worth_it(*trial)
    gc.collect()        # a compiled module refers to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return "yes" if worth_it else "no"


def is_worth_it(learner, batch_size, image_size, layout, device, autocast, steps_left):
    """Whether compiling earns back its time in the steps that a run still has; says why.

    batch_size: of this process. All processes come to the same answer. The learner stays as it
    is: the trial has its own copy, and random images. So it does not see where a run waits for
    its files, and could not gain.
    """
    size = (2 * batch_size, 3, image_size, image_size)
    views = torch.randn(size, device=device).contiguous(memory_format=layout)
    index = torch.arange(batch_size, device=device)
    progress = torch.tensor(0.5, dtype=torch.float64, device=device)
    trial = copy.deepcopy(learner)

    def step():
        started = time.perf_counter()
        with autocast:
            objective, _, _ = trial(views, index, torch.zeros_like(index), progress)
        trial.zero_grad()
        objective.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def usual_time():
        """Of a step once it is warm, in seconds: the fastest process's."""
        times = [step() for _ in range(2 + TRIAL_STEPS)]
        return distributed.smallest(statistics.median(times[2:]), device)

    plain = usual_time()
    if plain * LARGEST_GAIN * steps_left < LEAST_SECONDS:
        print(f"not compiled: {duration(plain * steps_left)} of training are too short for it")
        return False

    if not works_here(device):
        return False
    compile_networks(trial)
    cost = distributed.smallest(step(), device)
    compiled = usual_time()
    gain = (plain - compiled) * steps_left
    verdict = "compiled" if gain > cost else "not compiled"
    print(f"{verdict}: a step takes {compiled / plain:.2f} of its time when compiled, which takes "
          f"{duration(cost)}; {duration(plain * steps_left)} of steps are to come")
    return gain > cost
