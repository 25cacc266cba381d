"""Compile the Triton kernels for a GPU that need not exist: COMPUTE_CAPABILITY and type of values."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from groundtune.model import deformable_triton as kernels

SIZES = {"HEADS": 8, "LEVELS": 4, "POINTS": 4, "WIDTH": 24, "PADDED": 32, "BLOCK": 16, "NEEDS_VALUE": True}
capability, dtype = int(sys.argv[1]), sys.argv[2]
for kernel in (kernels._forward, kernels._backward):
    names = [parameter.name for parameter in kernel.params]
    types = dict.fromkeys(("value", "output", "gradient"), f"*{dtype}")
    types |= {"levels": "*i32", "queries": "i32", "positions": "i32"} | dict.fromkeys(SIZES, "constexpr")
    signature = {name: types.get(name, "*fp32") for name in names}
    constants = {(index,): SIZES[name] for index, name in enumerate(names) if name in SIZES}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
    )
    assert compiled.asm["cubin"]
