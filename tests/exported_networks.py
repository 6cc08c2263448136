"""The networks that people have, as their exporters write them: random weights, other statistics.

    module, side = module_of("resnet18")
    export_module(module, side, "torchscript, folded", path)
    export_keras("MobileNetV2", path)

    python tests/exported_networks.py DIR [--exporter "dynamo, folded"] [--side 224] [NAME …]

Needs the packages that the networks come from: torchvision or timm, and onnxscript; Keras with
TensorFlow, and tf2onnx. Images are as small as a network allows.
"""

import argparse
import contextlib
import io
import logging
import os
import warnings
from pathlib import Path

import numpy as np

CLASSES = 20


@contextlib.contextmanager
def silence():
    """Exporters print, log and warn about themselves."""
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# --- PyTorch ------------------------------------------------------------------------------


def of_torchvision(name, **settings):
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **settings)


def of_timm(name, **settings):
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **settings)


def small_transformer():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 3, 4, 48, 96, num_classes=CLASSES)


INCEPTION = {"aux_logits": False, "init_weights": False}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
# name → the side of its images, how it is built
NETWORKS = {
    name: (64, lambda name=name: of_torchvision(name))
    for name in (
        "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "resnet18",
        "resnet50", "shufflenet_v2_x0_5", "squeezenet1_1", "densenet121", "regnet_y_400mf",
        "mnasnet0_5", "convnext_tiny",
    )
} | {
    "googlenet": (64, lambda: of_torchvision("googlenet", **INCEPTION)),
    "inception_v3": (96, lambda: of_torchvision("inception_v3", transform_input=True, **INCEPTION)),
    "tiny ViT": (32, small_transformer),
} | {
    f"timm {name}": (64, lambda name=name: of_timm(name))
    for name in (
        "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0",
        "resnet18", "convnext_atto",
    )
} | {
    "timm inception_v3": (96, lambda: of_timm("inception_v3", aux_logits=False)),
    "timm tiny ViT": (32, lambda: of_timm("vit_tiny_patch16_224", **VIT)),
}  # fmt: skip

EXPORTERS = {
    "torchscript, folded": {"dynamo": False, "opset_version": 17},
    "torchscript, live": {"dynamo": False, "opset_version": 17, "do_constant_folding": False},
    "dynamo, folded": {"dynamo": True, "external_data": False},
    "dynamo, live": {"dynamo": True, "external_data": False, "optimize": False},
}


def module_of(name, seed=0, side=None):
    """A module of PyTorch; no array holds the special numbers that it begins with.

    Batch norms are given the statistics of random images, and then others: exact ones would hide
    what is done wrong with them.
    Returns  the module, to be used for predictions; the side of its images
    """
    import torch

    torch.manual_seed(seed)
    least, build = NETWORKS[name]
    side = side or least
    with silence():
        module = build()
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in module.parameters():
            spread = float(parameter.std()) if parameter.dim() > 1 else 0.0
            if parameter.abs().max() < 1e-4 and parameter.dim() > 1:  # a layer scale of 10⁻⁶
                parameter += 0.5
            parameter += 0.2 * (spread if spread > 1e-3 else 0.5) * torch.randn_like(parameter)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        module.train()
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.eval()
        module(torch.randn(8, 3, side, side))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var *= 0.7 + 0.6 * torch.rand_like(norm.running_var)
            norm.running_var += 0.05
            shift = 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_mean += shift
    return module.eval(), side


def export_module(module, side, exporter, path):
    """Write a module as a file: images "x" (any number), one output."""
    import torch

    settings = dict(EXPORTERS[exporter])
    if exporter == "torchscript, live":
        settings["training"] = torch.onnx.TrainingMode.PRESERVE
    if settings["dynamo"]:
        settings["dynamic_shapes"] = ({0: torch.export.Dim("N")},)
    else:
        settings["dynamic_axes"] = {"x": {0: "N"}, "y": {0: "N"}}
    images = torch.randn(2, 3, side, side)
    with silence():
        torch.onnx.export(
            module, (images,), str(path), input_names=["x"], output_names=["y"], **settings
        )


# --- Keras --------------------------------------------------------------------------------

KERAS = {  # name → the side of its images, its settings
    "MobileNet": (64, {"alpha": 0.25}),
    "MobileNetV2": (64, {"alpha": 0.35}),
    "MobileNetV3Small": (64, {}),
    "MobileNetV3Large": (64, {}),
    "InceptionV3": (96, {}),
    "EfficientNetB0": (64, {}),
}


def export_keras(name, path):
    """Write one of Keras' networks as a file, by tf2onnx; its softmax stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with silence():
        import keras
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    side, settings = KERAS[name]
    network = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=CLASSES, **settings
    )
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.gamma is not None:
            norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(0.1 * rng.standard_normal(norm.beta.shape))
    images = rng.uniform(-1, 1, (8, side, side, 3)).astype(np.float32)
    within = name.startswith(("MobileNetV3", "Eff"))  # they scale 0 … 255 by themselves
    network(127.5 * (images + 1) if within else images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        variance = np.array(norm.moving_variance)
        norm.moving_variance.assign(variance * rng.uniform(0.7, 1.3, variance.shape) + 0.05)
        shift = 0.1 * np.sqrt(variance) * rng.standard_normal(variance.shape)
        norm.moving_mean.assign(np.array(norm.moving_mean) + shift)
    with silence():
        network.export(str(path), format="onnx", verbose=False)


# --- what is done to files ----------------------------------------------------------------


def simplified(path, new):
    """By onnxslim."""
    import onnx
    import onnxslim

    with silence():
        onnx.save(onnxslim.slim(str(path)), new)


def simplified_by_onnxsim(path, new):
    import onnx
    import onnxsim

    with silence():
        model, fine = onnxsim.simplify(onnx.load(path))
    assert fine
    onnx.save(model, new)


def halved(path, new):
    """float16 throughout, images and outputs too, as by ONNX Runtime's own converter."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with silence():
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=False), new)


def with_small_weights(path, new):
    """Weights as whole numbers of one byte with a scale for each channel, DequantizeLinear behind.

    The graph computes in floats: this is what weight-only quantisation writes.
    """
    import onnx

    model = onnx.load(path)
    arrays = {array.name: array for array in model.graph.initializer}
    uses = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in arrays:
            uses.setdefault(node.input[1], node)
    for name, user in uses.items():
        floats = onnx.numpy_helper.to_array(arrays[name])
        transposed = any(a.name == "transB" and a.i for a in user.attribute)
        axis = 0 if user.op_type == "Conv" or transposed else floats.ndim - 1
        others = tuple(k for k in range(floats.ndim) if k != axis)
        scale = np.abs(floats).max(axis=others) / 127
        shape = [-1 if k == axis else 1 for k in range(floats.ndim)]
        whole = np.rint(floats / scale.reshape(shape)).astype(np.int8)
        for array, end in ((whole, "q"), (scale, "s"), (np.zeros(scale.shape, np.int8), "z")):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}.{end}"))
        model.graph.initializer.remove(arrays[name])
        node = onnx.helper.make_node(
            "DequantizeLinear", [f"{name}.{end}" for end in "qsz"], [name], axis=axis
        )
        model.graph.node.insert(0, node)
    onnx.save(model, new)


CHANGES = {
    "onnxslim": simplified,
    "onnxsim": simplified_by_onnxsim,
    "float16": halved,
    "DequantizeLinear": with_small_weights,
}


def main():
    parser = argparse.ArgumentParser(description="Write networks of torchvision and timm as files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="all, unless named")
    parser.add_argument("--exporter", default="torchscript, folded", choices=EXPORTERS)
    parser.add_argument("--side", type=int, default=224, help="of the images, pixels")
    options = parser.parse_args()
    for name in options.names or NETWORKS:
        least = NETWORKS[name][0]
        side = least if "ViT" in name else options.side  # a transformer takes one size only
        module, side = module_of(name, side=side)
        path = options.folder / f"{name.replace(' ', '_')}.onnx"
        export_module(module, side, options.exporter, path)
        print(path)


if __name__ == "__main__":
    main()
