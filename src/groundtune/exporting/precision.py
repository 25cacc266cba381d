"""Shrink ONNX files: weights as float16, or convolutions and linear layers as int8.

float16 is only the storage type; the arithmetic stays float32, so that nothing overflows on any
runtime. int8 is post-training quantization of the backbone, the neck and the encoder's linear
layers, calibrated on images of the user. Residual streams, the language model, and the layers that
place sampling points or compute scores and boxes stay float32.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

_INT8 = ("/backbone/", "/neck/", "/encoder/layers.")
_FLOAT = ("sampling_offsets", "attention_weights")  # an error there moves boxes
_MIN_VALUES = 1024  # smaller weights are not worth it


def store_float16(path: Path) -> None:
    """Rewrite an ONNX file with its large weights as float16, each with a cast to float32."""
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        large = weight.data_type == TensorProto.FLOAT and values.size >= _MIN_VALUES
        if large and np.abs(values).max() < 65000:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    for index, cast in enumerate(casts):
        model.graph.node.insert(index, cast)
    onnx.save(model, path)


class _Calibration:
    """A data reader for ONNX Runtime: images, all with the same prompt."""

    def __init__(self, images: Iterable[Tensor], tokens: dict[str, np.ndarray]) -> None:
        self._feeds = ({"image": image[None].numpy(), **tokens} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize(path: Path, images: Iterable[Tensor], tokens: dict[str, np.ndarray]) -> None:
    """Rewrite an ONNX file with int8 convolutions and linear layers.

    Args:
        path: the float32 file.
        images: at least one; normalized (3, h, w) of the model's size.
        tokens: `graph.TEXT_INPUTS` of a typical prompt; {} for fixed classes.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(path)
    layers, limits = _isolate_layers(model)
    # mark the model as preprocessed; otherwise ONNX Runtime advises to do so
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    float32 = path.with_suffix(".float32.onnx")
    onnx.save(model, float32)
    quantize_static(
        str(float32),
        str(path),
        _Calibration(images, tokens),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Clip", "Relu"],
        nodes_to_quantize=layers,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        # residual streams and biases stay float32
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )
    float32.unlink()
    model = onnx.load(path)
    # remove limits that nothing reads any more: ONNX Runtime would warn at every start
    limits -= {name for node in model.graph.node for name in node.input}
    _replace_nodes(model, [node for node in model.graph.node if not limits & set(node.output)])
    onnx.save(model, path)


def _isolate_layers(model: onnx.ModelProto) -> tuple[list[str], set[str]]:
    """Give each layer that becomes int8 its own input: a tensor is quantized for all its readers.

    Returns: Names of the nodes to quantize, including the activations of convolutions, so that the
    range of a convolution is what they leave of it; and the limits of these activations, then
    unused.
    """
    weights = {weight.name for weight in model.graph.initializer}
    nodes, layers, convolved, limits = [], [], set(), set()
    for node in model.graph.node:
        chosen = node.name.startswith(_INT8) and not any(part in node.name for part in _FLOAT)
        if chosen and node.op_type in ("Conv", "Gemm", "MatMul") and weights & set(node.input):
            copied = helper.make_node("Identity", [node.input[0]], [f"{node.name}.input"])
            nodes.append(copied)
            node.input[0] = copied.output[0]
            layers.append(node.name)
            if node.op_type == "Conv":
                convolved |= set(node.output)
        elif node.op_type in ("Clip", "Relu") and node.input[0] in convolved:
            layers.append(node.name)
            limits |= set(node.input[1:])
        nodes.append(node)
    _replace_nodes(model, nodes)
    return layers, limits


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
