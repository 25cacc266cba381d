"""Run the Triton kernels on a CPU, in Triton's interpreter: FILE with inputs → the same with results.

A process of its own, because Triton chooses the interpreter when the kernels are defined.
"""

import sys

import torch

from groundtune.model.deformable_triton import kernel_problem, sample_fused

cases = torch.load(sys.argv[1])
results = {"problem": kernel_problem(torch.device("cpu"))}
for name, (shapes, upstream, value, locations, weights) in cases.items():
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = sample_fused(inputs[0], shapes, inputs[1], inputs[2])
    results[name] = [output.detach(), *torch.autograd.grad(output, inputs, upstream.to(output.dtype))]
value, locations, weights = (tensor.detach() for tensor in (value, locations, weights))
results["frozen values"] = torch.autograd.grad(
    sample_fused(value, shapes, locations.requires_grad_(), weights.requires_grad_()),
    (locations, weights),
    upstream.to(value.dtype),
)
torch.save(results, sys.argv[1])
