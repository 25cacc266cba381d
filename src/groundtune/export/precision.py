"""ONNX files in fewer bits: weights as float16, or convolutions and linear layers as int8.

float16 is how the weights are stored: the file is half as large and the arithmetic stays float32, so that no logit
overflows and no coordinate loses its cell, on any runtime. int8 is post-training quantization of the backbone, the neck and
the encoder's linear layers from the ranges that the user's own images give; the residual streams, the language side and
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


class _Images:
    """What the calibration reads: one image after another, each with the same prompt."""

    def __init__(self, images: Iterable[Tensor], tokens: dict[str, np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = ({"image": p[None].numpy(), **tokens} for p in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize(path: Path, images: Iterable[Tensor], tokens: dict[str, np.ndarray]) -> None:
    """Rewrite an ONNX file with int8 convolutions and linear layers.

    Args:
        path: the float32 file.
        images: (3, h, w) normalized, the model's size; at least one.
        tokens: the inputs of an open vocabulary for a prompt as it will be asked; {} for a closed set.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(path)
    layers, limits = _prepare(model)
    # otherwise users are advised to fold by hand what the exporter has folded
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    float32 = path.with_suffix(".float32.onnx")
    onnx.save(model, float32)
    quantize_static(
        str(float32),
        str(path),
        _Images(images, tokens),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "VideoStream", "Relu"],
        nodes_to_quantize=layers,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]
        },  # residual streams and biases
    )
    float32.unlink()
    model = onnx.load(path)  # of limits that nobody reads any more ONNX Runtime would warn at every start
    limits -= {name for node in model.graph.node for name in node.input}
    _replace_nodes(model, [node for node in model.graph.node if not limits & set(node.output)])
    onnx.save(model, path)


def _prepare(model: onnx.ModelProto) -> tuple[list[str], set[str]]:
    """Part each layer that becomes int8 from the others that read its input, as a tensor is quantized for all who read it.

    Returns:
        The nodes to quantize, among them the activations of convolutions, so that a convolution's range is what these leave
        of it; and the limits of these, which they will not need.
    """
    weights = {weight.name for weight in model.graph.initializer}
    nodes, layers, convolved, limits = [], [], set(), set()
    for node in model.graph.node:
        chosen = node.name.startswith(_INT8) and not any(part in node.name for part in _FLOAT)
        if chosen and node.op_type in ("Conv", "Gemm", "MatMul") and weights & set(node.input):
            own = helper.make_node("Identity", [node.input[0]], [f"{node.name}.input"])
            nodes.append(own)
            node.input[0] = own.output[0]
            layers.append(node.name)
            if node.op_type == "Conv":
                convolved |= set(node.output)
        elif node.op_type in ("VideoStream", "Relu") and node.input[0] in convolved:
            layers.append(node.name)
            limits |= set(node.input[1:])
        nodes.append(node)
    _replace_nodes(model, nodes)
    return layers, limits


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
