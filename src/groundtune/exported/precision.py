"""ONNX files in fewer bits: weights as float16, or convolutions and linear layers as int8.

float16 is how the weights are stored: the file is half as large and the arithmetic stays float32, so that no logit
overflows and no coordinate loses its cell, on any runtime. int8 is post-training quantisation of the backbone, the neck and
the encoder's linear layers from the ranges that the user's own pictures give; the residual streams, the language side and
what places points, scores and boxes stay float32.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

_INT8 = ("/backbone/", "/neck/", "/encoder/layers.")
_FLOAT = ("sampling_offsets", "attention_weights")  # where to look: an error there moves a box, not a shade
_FEWEST = 1024  # values of a weight, below which nothing is gained


def store_float16(path: Path) -> None:
    """Rewrite an ONNX file with its large float32 weights as float16, each with a cast back."""
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type == TensorProto.FLOAT and values.size >= _FEWEST and np.abs(values).max() < 65000:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    for place, cast in enumerate(casts):
        model.graph.node.insert(place, cast)
    onnx.save(model, path)


class _Pictures:
    """What the calibration reads: one picture after another, each with the same prompt."""

    def __init__(self, pictures: Iterable[Tensor], tokens: dict[str, np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = ({"image": p[None].numpy(), **tokens} for p in pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantise(path: Path, pictures: Iterable[Tensor], tokens: dict[str, np.ndarray]) -> None:
    """Rewrite an ONNX file with int8 convolutions and linear layers.

    Args:
        path: the float32 file.
        pictures: (3, h, w) normalised, the model's size; at least one.
        tokens: the inputs of an open vocabulary for a prompt as it will be asked; {} for a closed set.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    nodes, layers, of_convolutions = [], [], set()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and weights & set(node.input) and _in_int8(node.name):
            # A tensor is quantised for all who read it: the layer reads under a name of its own, the residual stream stays.
            nodes.append(helper.make_node("Identity", [node.input[0]], [f"{node.name}.input"]))
            node.input[0] = nodes[-1].output[0]
            layers.append(node.name)
            of_convolutions |= set(node.output) if node.op_type == "Conv" else set()
        elif node.op_type in ("Clip", "Relu") and node.input[0] in of_convolutions:
            layers.append(node.name)  # so that the convolution's range is the one that is left of it
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    float32 = path.with_suffix(".float32.onnx")
    onnx.save(model, float32)
    quantize_static(
        str(float32),
        str(path),
        _Pictures(pictures, tokens),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Clip", "Relu"],
        nodes_to_quantize=layers,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},  # residual streams and biases
    )
    float32.unlink()


def _in_int8(name: str) -> bool:
    return name.startswith(_INT8) and not any(part in name for part in _FLOAT)
