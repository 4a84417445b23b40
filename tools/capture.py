"""A training step as one CUDA graph: its thousand kernels are recorded, then launched as one.

    step = CapturedStep(step, optimizer, device)        # step(batch, progress) → (logs, kept)
    for …:
        set_learning_rates(optimizer, …)
        logs, kept = step(batch, progress)              # overwritten by the next call

A small network on a fast GPU waits for the processor, which launches kernels one by one; a
recorded step does not. What is recorded are kernels and addresses. So whatever changes from step
to step has to be the content of a tensor: batch, progress, α and, from here on, the optimiser's
learning rates. bench.py times it and test_gpu.py checks it; train.py does not use it as long as
no GPU has shown what it gains.

Not for fp16, whose scaler looks at gradients, nor for other optimisers than LARS, nor with
--w2-weight, whose eigenvalues wait for the device, nor for methods that take other ways at some
steps, as DINO does while its prototypes are frozen; and with images on the device, for a thread
that pins memory meanwhile would break the recording.
"""
import torch

STEPS_BEFORE = 3        # that run as they are: kernels are chosen, momenta are made


def record(function):
    """(what function() returns, a function that does the same again, in the same places)."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay


class CapturedStep:
    """A step that runs as it is at first, is recorded once, and then replayed."""

    def __init__(self, step, optimizer, device):
        self.step = step
        self.calls = 0
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)

    def __call__(self, batch, progress):
        self.calls += 1
        if self.calls <= STEPS_BEFORE:
            return self.step(batch, progress)
        if self.calls == STEPS_BEFORE + 1:
            self.inputs = [x.clone() for x in (*batch, progress)]   # the places to read from
            *places, progress_place = self.inputs
            self.optimizer.zero_grad()
            self.result, self.replay = record(lambda: self.step(places, progress_place))
        for place, x in zip(self.inputs, (*batch, progress)):
            place.copy_(x)
        self.replay()       # recording does not compute
        return self.result
