"""`minires evaluate`: its scores against plain definitions and another runtime, and its output."""

import argparse
import json
import math

import numpy as np
import pytest
from test_imagenet import ODD, WORDNET, Image, encoded, photograph, write_tar

import minires.onnx
from minires.commands import evaluate
from minires.data import imagenet
from minires.training import metrics

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")

SIZE = 16


def write_network(
    path, classes=3, layout="NCHW", batch="N", size=SIZE, softmax=False, dropout=False, seed=0
):
    """A small network with a live batch norm: convolution, batch norm, ReLU, pooling, dense.

    batch   "N" for any number of images, or a number that the graph itself insists on
    """
    rng = np.random.default_rng(seed)
    filters = 6
    arrays = {
        "kernel": rng.normal(size=(filters, 3, 3, 3)) / 3,
        "scale": rng.uniform(0.5, 1.5, filters),
        "shift": rng.normal(size=filters),
        "mean": rng.normal(size=filters) / 9,
        "variance": rng.uniform(0.5, 1.5, filters),
        "dense": 3 * rng.normal(size=(filters, classes)),
        "bias": rng.normal(size=classes),
    }
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "kernel"], ["a"], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"],
             momentum=0.9),
        node("Relu", ["b"], ["c"]),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("Gemm", ["e", "dense", "bias"], ["logits"]),
    ]  # fmt: skip
    if dropout:
        arrays["ratio"] = np.array(0.5)
        nodes.insert(5, node("Dropout", ["e", "ratio"], ["f"]))
        nodes[-1].input[0] = "f"
    if batch != "N":
        flatten = next(n for n in nodes if n.op_type == "Flatten")
        flatten.CopyFrom(node("Reshape", ["d", "flat"], ["e"]))
        arrays["flat"] = np.array([batch, filters])
    last = "logits"
    if softmax:
        nodes.append(node("Softmax", ["logits"], ["probabilities"], axis=1))
        last = "probabilities"
    shape = [batch, 3, size, size]
    if layout == "NHWC":
        shape = [batch, size, size, 3]
        nodes[0].input[0] = "y"
        nodes.insert(0, node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2]))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value(last, onnx.TensorProto.FLOAT, [batch, classes])],
        [
            onnx.numpy_helper.from_array(a if a.dtype.kind == "i" else a.astype(np.float32), n)
            for n, a in arrays.items()
        ],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def write_pictures(folder, each=4, names=WORDNET, size=(24, 20)):
    """Class folders of noise; every picture differs."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            content = encoded(photograph(100 * number + index, size))
            (folder / name / f"{index}.png").write_bytes(content)
    return folder


def command(*words):
    """Run a command as the command line does; returns the exit code."""
    from minires.commands import improve

    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    evaluate.add_parser(subparsers)
    improve.add_parser(subparsers)
    options = parser.parse_args([str(word) for word in words])
    return options.run(options)


def random_predictions(count=200, classes=12, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.where(
        rng.random(count) < 0.5, logits.argmax(axis=1), rng.integers(classes, size=count)
    )
    return probabilities, labels


# The scores


def test_scores_equal_their_plain_definitions():
    probabilities, labels = random_predictions()
    scores = evaluate.summarize(evaluate.Outcomes.of(probabilities, labels))
    best = np.argsort(-probabilities, axis=1, kind="stable")
    top1 = (best[:, 0] == labels).mean()
    top5 = (best[:, :5] == labels[:, None]).any(axis=1).mean()
    costs = -np.log(probabilities[np.arange(200), labels])
    assert scores["images"] == 200
    assert scores["top1"] == top1 == metrics.accuracy(probabilities, labels)
    assert scores["top5"] == top5
    assert scores["nll"] == pytest.approx(metrics.nll(probabilities, labels), rel=1e-12)
    assert scores["ece"] == pytest.approx(metrics.ece(probabilities, labels), rel=1e-12)
    assert scores["top1_error"] == pytest.approx(math.sqrt(top1 * (1 - top1) / 200))
    assert scores["top5_error"] == pytest.approx(math.sqrt(top5 * (1 - top5) / 200))
    assert scores["nll_error"] == pytest.approx(costs.std(ddof=1) / math.sqrt(200))


def test_the_error_of_the_calibration_is_its_scatter_over_new_pictures():
    """The bootstrap must say what drawing other pictures says: here they can be drawn."""
    found = [
        evaluate.summarize(evaluate.Outcomes.of(*random_predictions(seed=seed)))
        for seed in range(40)
    ]
    scatter = np.std([scores["ece"] for scores in found], ddof=1)
    promised = np.mean([scores["ece_error"] for scores in found])
    assert 0.7 < promised / scatter < 1.4


def test_a_single_picture_has_no_standard_error():
    probabilities, labels = random_predictions(1)
    scores = evaluate.summarize(evaluate.Outcomes.of(probabilities, labels))
    assert scores["top1"] in (0, 1)
    for key in ("top1", "top5", "nll", "ece"):
        assert math.isnan(scores[f"{key}_error"]), key
        assert evaluate.with_error(scores, key, 2).endswith(" ± –")


def test_of_equal_probabilities_the_first_class_counts():
    probabilities = np.full((8, 8), 0.125, np.float32)
    outcomes = evaluate.Outcomes.of(probabilities, np.arange(8))
    np.testing.assert_array_equal(outcomes.top1, [True] + [False] * 7)
    np.testing.assert_array_equal(outcomes.top5, [True] * 5 + [False] * 3)
    assert outcomes.top1.mean() == metrics.accuracy(probabilities, np.arange(8))


def test_a_prediction_that_is_no_number_is_wrong():
    probabilities, labels = random_predictions(20)
    probabilities[3] = np.nan
    labels[3] = 0
    scores = evaluate.summarize(evaluate.Outcomes.of(probabilities, labels))
    assert scores["top1"] == metrics.accuracy(probabilities, labels)
    assert math.isnan(scores["nll"])
    assert math.isnan(scores["ece"])


def test_fewer_than_five_classes_are_all_among_the_first_five():
    probabilities, labels = random_predictions(classes=3)
    assert evaluate.Outcomes.of(probabilities, labels).top5.all()


# A network and its pictures


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("softmax", [False, True])
def test_predictions_equal_another_runtimes(tmp_path, layout, softmax):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = write_network(tmp_path / "n.onnx", layout=layout, softmax=softmax)
    network = minires.onnx.load(path)
    pictures = imagenet.load(write_pictures(tmp_path / "val"))
    examination = evaluate.Examination(network, pictures, "keras")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shown = 0
    for images, labels, _ in examination.batches(evaluate.plan_of(len(pictures), 5)):
        expected = session.run(None, {"x": np.ascontiguousarray(images)})[0]
        if not softmax:
            expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        found = examination.predict(network.theta, images, network.stats)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        shown += len(labels)
    assert shown == 12


def test_the_background_is_left_out_as_if_its_logit_were_not_there(tmp_path):
    network = minires.onnx.load(write_network(tmp_path / "n.onnx", classes=4))
    pictures = imagenet.load(write_pictures(tmp_path / "val"))
    examination = evaluate.Examination(network, pictures, "keras", background=True)
    assert examination.offset == 1
    assert "output 0 is the background" in examination.outputs
    images, _, _ = next(iter(examination.batches([[0, 5, 9]])))
    logits = network.logits(network.theta, images, network.stats)[:, 1:]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = examination.predict(network.theta, images, network.stats)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_among_the_classes_of_the_pictures(tmp_path, capsys):
    model = write_network(tmp_path / "n.onnx", classes=5)
    folder = write_pictures(tmp_path / "val")
    names = ["n00000001", WORDNET[1], "n00000002", WORDNET[0], WORDNET[2]]
    (tmp_path / "synsets").write_text("\n".join(names))
    line = ["evaluate", model, "--images", folder, "--synsets", tmp_path / "synsets", "--json"]
    assert command(*line, "--among") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["among"] == 3
    network = minires.onnx.load(model)
    pictures = imagenet.load(folder, tmp_path / "synsets")
    (batch,) = imagenet.batches(pictures, [np.arange(12)], "keras", SIZE)
    logits = network.logits(network.theta, batch.images.transpose(0, 3, 1, 2)).astype(float)
    logits[:, [0, 2]] = -np.inf
    own = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = np.arange(12)
    np.testing.assert_allclose(found["nll"], -np.log(own[rows, batch.labels]).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["top1"], (own.argmax(axis=1) == batch.labels).mean())


def test_a_network_built_here_takes_the_weights(tmp_path, capsys, rng):
    model = minires.mobilenet_v1(0.25, (SIZE, SIZE, 3), 3)
    theta, stats = model.init(rng), model.init_stats()
    minires.onnx.export(model, theta, stats, tmp_path / "n.onnx")
    folder, found = write_pictures(tmp_path / "val"), []
    for native in ([], ["--native"]):
        line = ["evaluate", tmp_path / "n.onnx", "--images", folder, "--json"]
        assert command(*line, *native) == 0
        found.append(json.loads(capsys.readouterr().out))
    np.testing.assert_allclose(found[0]["nll"], found[1]["nll"], rtol=1e-5)


def test_preparation_by_options(tmp_path, capsys):
    model, folder = write_network(tmp_path / "n.onnx"), write_pictures(tmp_path / "val")
    line = ["evaluate", model, "--images", folder, "--json"]
    found = []
    for own in (["--preset", "keras"], ["--scale", "1/127.5", "--mean", "1"]):
        assert command(*line, *own) == 0
        found.append(json.loads(capsys.readouterr().out)["nll"])
    assert found[0] == found[1]
    assert command(*line, "--channels", "bgr") == 0
    assert json.loads(capsys.readouterr().out)["nll"] != found[0]
    with pytest.raises(ValueError, match="--crop and --resize"):
        command(*line, "--crop", "0.5", "--resize", "99")
    with pytest.raises(SystemExit):
        command(*line, "--mean", "1,2")


def test_a_graph_with_a_fixed_batch_is_shown_all_pictures(tmp_path):
    free = minires.onnx.load(write_network(tmp_path / "free.onnx"))
    fixed = minires.onnx.load(write_network(tmp_path / "fixed.onnx", batch=5))
    assert (free.fixed_batch, fixed.fixed_batch) == (None, 5)
    pictures = imagenet.load(write_pictures(tmp_path / "val"))
    found = []
    for network in (free, fixed):
        examination = evaluate.Examination(network, pictures, "keras")
        outcomes, _ = evaluate.examine(examination, batch=7, quiet=True)
        assert len(outcomes) == 12
        found.append(outcomes.nll)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_a_network_for_pictures_of_any_size(tmp_path):
    """Neither its size nor its classes stand in the file: one image of the size tells them."""
    path = write_network(tmp_path / "n.onnx", size=SIZE)
    model = onnx.load(path)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "S"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "any.onnx")
    pictures = imagenet.load(write_pictures(tmp_path / "val"))
    with pytest.raises(ValueError, match="any size: say which with --size"):
        evaluate.Examination(minires.onnx.load(tmp_path / "any.onnx"), pictures, "keras")
    found = []
    for name, size in (("n", None), ("any", SIZE), ("any", 24)):
        network = minires.onnx.load(tmp_path / f"{name}.onnx")
        examination = evaluate.Examination(network, pictures, "keras", size=size)
        found.append(evaluate.examine(examination, quiet=True)[0].nll)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    network = minires.onnx.load(tmp_path / "any.onnx")
    with pytest.raises(ValueError, match=r"does not take pictures of 1 × 1: Conv .* a window of 3"):
        evaluate.Examination(network, pictures, "keras", size=1)


def test_a_network_that_takes_other_things_than_photographs_is_refused(tmp_path):
    pictures = imagenet.load(write_pictures(tmp_path / "val"))
    network = minires.onnx.load(write_network(tmp_path / "n.onnx"))
    with pytest.raises(ValueError, match=r"size 16, --size is 32"):
        evaluate.Examination(network, pictures, "keras", size=32)
    many = minires.onnx.load(write_network(tmp_path / "many.onnx", classes=10))
    with pytest.raises(ValueError, match="3 classes, the network has 10 outputs"):
        evaluate.Examination(many, pictures, "keras")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w"], ["y"])],
        "dense",
        [value("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [value("y", onnx.TensorProto.FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "d.onnx")
    with pytest.raises(ValueError, match="expected photographs"):
        evaluate.Examination(minires.onnx.load(tmp_path / "d.onnx"), pictures, "keras")


@pytest.mark.parametrize(("classes", "count"), [(1000, 200), (100, 50), (1000, 19), (10, 200)])
def test_predictions_as_good_as_guessing_are_recognised(classes, count):
    rng = np.random.default_rng(3)
    probabilities = rng.random((count, classes))
    labels = rng.integers(classes, size=count)
    guessed = evaluate.Outcomes.of(probabilities, labels)
    assert evaluate.is_no_better_than_chance(guessed, classes) == (count >= 20)
    probabilities[np.arange(0, count, 3), labels[::3]] = 2
    better = evaluate.Outcomes.of(probabilities, labels)
    assert not evaluate.is_no_better_than_chance(better, classes)


# The command


def write_colours(folder, classes, each=4):
    """Pictures of one colour each, a class for each colour: the colours (classes, 3)."""
    rng = np.random.default_rng(5)
    colours = rng.integers(30, 226, size=(classes, 3))
    for number, colour in enumerate(colours):
        name = folder / f"n{number:08}"
        name.mkdir(parents=True)
        for index in range(each):
            pixels = colour + rng.integers(-3, 4, size=(20, 20, 3))
            (name / f"{index}.png").write_bytes(encoded(Image.fromarray(pixels.astype(np.uint8))))
    return colours


def write_colour_network(path, colours, divisor=1.0, mean=0.0, takes_bytes=False):
    """A network that names the nearest colour, of pixels (x / divisor − mean).

    takes_bytes   the input is uint8, and the graph itself casts it
    """
    centres = (colours / divisor - mean).astype(np.float32)
    sharp = np.float32(divisor**2 / 50)  # logits −|x − c|² / 50 of bytes, less what all share
    arrays = {"w": 2 * sharp * centres.T, "b": -sharp * (centres**2).sum(axis=1)}
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Cast", ["x"], ["c"], to=onnx.TensorProto.FLOAT),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("Gemm", ["e", "w", "b"], ["y"]),
    ]
    kind = onnx.TensorProto.UINT8 if takes_bytes else onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "colours",
        [value("x", kind, ["N", 3, SIZE, SIZE])],
        [value("y", onnx.TensorProto.FLOAT, ["N", len(colours)])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize("classes", [8, 16])
def test_near_chance_another_preset_that_explains_it_is_named(tmp_path, capsys, classes):
    folder, path = tmp_path / "val", tmp_path / "n.onnx"
    write_colour_network(path, write_colours(folder, classes))
    line = ("evaluate", path, "--images", folder)
    command(*line, "--preset", "keras")
    printed = capsys.readouterr()
    assert "guessing would do as well" in printed.err
    assert "--preset keras-raw gives 100 %" in printed.err
    command(*line, "--preset", "keras-raw")
    printed = capsys.readouterr()
    assert "100.00" in printed.out
    assert "guessing" not in printed.err
    # Where no preset helps, none is named.
    rng = np.random.default_rng(0)
    write_colour_network(path, rng.integers(30, 226, size=(classes, 3))[:1].repeat(classes, 0))
    command(*line, "--preset", "keras")
    printed = capsys.readouterr()
    assert "guessing would do as well" in printed.err
    assert "gives" not in printed.err


def test_a_network_that_takes_bytes_is_shown_the_pictures_as_they_are(tmp_path, capsys):
    folder, path = tmp_path / "val", tmp_path / "n.onnx"
    colours = write_colours(folder, 12)
    write_colour_network(path, colours, takes_bytes=True)
    line = ("evaluate", path, "--images", folder, "--json")
    command(*line, "--preset", "keras-raw")
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == 1
    write_colour_network(tmp_path / "floats.onnx", colours)
    line = ("evaluate", tmp_path / "floats.onnx", "--images", folder, "--json")
    command(*line, "--preset", "keras-raw")
    assert json.loads(capsys.readouterr().out)["nll"] == pytest.approx(found["nll"], abs=1e-6)
    line = ("evaluate", path, "--images", folder, "--json")
    command(*line, "--preset", "keras-raw", "--crop", "0.9")  # another cut keeps the numbers
    assert json.loads(capsys.readouterr().out)["top1"] == 1
    for words in (["--preset", "keras"], ["--preset", "keras-raw", "--scale", "1/255"]):
        with pytest.raises(ValueError, match=r"takes bytes.*--preset keras-raw"):
            command(*line, *words)


def test_json_is_one_object_on_stdout(tmp_path, capsys):
    model = write_network(tmp_path / "n.onnx")
    folder = write_pictures(tmp_path / "val")
    for name in ("empty.JPEG", "bomb.png", "grey.JPEG"):
        (folder / WORDNET[0] / name).write_bytes(ODD[name][1])
    assert command("evaluate", model, "--images", folder, "--json", "--batch", 4) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    found = json.loads(printed.out)
    assert {"top1", "top5", "nll", "ece", "images"} <= set(found)
    assert found["images"] == 13
    assert 0 <= found["top1"] <= found["top5"] == 1
    assert found["left_out"] == 2
    assert found["notes"] == {"empty": 1, "too large": 1, "grey": 1}
    assert "empty.JPEG: empty (0 bytes)" in printed.err
    assert "3 outputs for 3 classes" in printed.err


def test_text_says_the_same_as_json(tmp_path, capsys):
    model, folder = write_network(tmp_path / "n.onnx"), write_pictures(tmp_path / "val")
    command("evaluate", model, "--images", folder, "--json")
    scores = json.loads(capsys.readouterr().out)
    command("evaluate", model, "--images", folder)
    text = capsys.readouterr().out
    assert f"{100 * scores['top1']:.2f} ± {100 * scores['top1_error']:.2f} %" in text
    assert f"{scores['nll']:.4f} ± {scores['nll_error']:.4f} nats" in text
    assert "12 pictures" in text


def test_a_tar_gives_the_scores_of_the_folder(tmp_path, capsys):
    model, folder = write_network(tmp_path / "n.onnx"), write_pictures(tmp_path / "val")
    pictures = imagenet.load(folder)
    order = np.random.default_rng(0).permutation(len(pictures))
    files, labels = {}, []
    for number, index in enumerate(order, 1):
        files[f"ILSVRC2012_val_{number:08}.JPEG"] = pictures.read(index)
        labels.append(pictures.classes[pictures.labels[index]])
    tar = write_tar(tmp_path / "val.tar", files)
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    found = []
    for source in ([folder], [tar, "--labels", tmp_path / "labels.txt"]):
        assert command("evaluate", model, "--images", *source, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["images"] == found[1]["images"] == 12
    for score in ("top1", "nll", "ece"):
        assert found[1][score] == pytest.approx(found[0][score], rel=1e-5), score


def test_classes_in_another_order_are_asked_about(tmp_path, capsys):
    names = [f"n{number:08}" for number in range(60)]
    model = write_network(tmp_path / "n.onnx", classes=60)
    folder = write_pictures(tmp_path / "val", each=1, names=names)
    network, pictures = minires.onnx.load(model), imagenet.load(folder)
    examination = evaluate.Examination(network, pictures, "keras")
    best = np.empty(60, np.int64)  # of each picture: then its folder is named after that class
    for images, labels, _ in examination.batches([np.arange(60)]):
        best[labels] = examination.predict(network.theta, images).argmax(axis=1)
    assert command("evaluate", model, "--images", folder, "--limit", 1) == 0
    assert "on 1 picture of" in capsys.readouterr().out
    command("evaluate", model, "--images", folder)
    assert "guessing would do as well: is the order of the classes" in capsys.readouterr().err
    for number, name in enumerate(names):
        (folder / name).rename(folder / f"old{number}")
    for number in range(60):
        right = folder / names[best[number]]
        right.mkdir(exist_ok=True)
        (folder / f"old{number}" / "0.png").rename(right / f"{number}.png")
        (folder / f"old{number}").rmdir()
    (tmp_path / "synsets.txt").write_text("\n".join(names))
    command("evaluate", model, "--images", folder, "--synsets", tmp_path / "synsets.txt")
    printed = capsys.readouterr()
    assert "guessing" not in printed.err
    assert "top-1  100.00 ± 0.00 %" in printed.out


def test_after_control_c_there_are_no_scores(tmp_path, capsys, monkeypatch):
    model, folder = write_network(tmp_path / "n.onnx"), write_pictures(tmp_path / "val")

    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.Examination, "predict", interrupted)
    assert command("evaluate", model, "--images", folder) == 130
    printed = capsys.readouterr()
    assert "stopped: there are no scores" in printed.err
    assert printed.out == ""


def test_presets_and_limits_reach_the_network(tmp_path, capsys):
    model, folder = write_network(tmp_path / "n.onnx"), write_pictures(tmp_path / "val")
    found = {}
    for preset in imagenet.PRESETS:
        command("evaluate", model, "--images", folder, "--json", "--preset", preset)
        found[preset] = json.loads(capsys.readouterr().out)["nll"]
    assert len(set(found.values())) == len(imagenet.PRESETS)
    command("evaluate", model, "--images", folder, "--json", "--limit", 5)
    assert json.loads(capsys.readouterr().out)["images"] == 5
    with pytest.raises(ValueError, match="--limit is 0"):
        command("evaluate", model, "--images", folder, "--limit", 0)


def test_a_folder_of_broken_pictures_is_a_clear_error(tmp_path):
    (tmp_path / "val" / WORDNET[0]).mkdir(parents=True)
    (tmp_path / "val" / WORDNET[0] / "a.jpg").write_bytes(b"")
    model = write_network(tmp_path / "n.onnx", classes=1)
    with pytest.raises(ValueError, match=r"none of 1 pictures can be used .*a\.jpg: empty"):
        command("evaluate", model, "--images", tmp_path / "val")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected_right"), [("mobilenet_v1_0.25_224", 278), ("mobilenet_v2_1.0_224", 438)]
)
def test_published_weights_give_what_another_runtime_gives(data_dir, name, expected_right):
    """Published networks on 500 photographs: the same prediction for each."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = data_dir / "onnx" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"the data folder has no onnx/{name}.onnx")
    network = minires.onnx.load(path)
    pictures = imagenet.load(data_dir / "imagenet/val", data_dir / "imagenet/synsets.txt")
    examination = evaluate.Examination(network, pictures, "keras")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = 0
    for images, labels, _ in examination.batches(evaluate.plan_of(len(pictures), 50)):
        expected = session.run(None, {network.input_name: np.ascontiguousarray(images)})[0]
        found = network.logits(network.theta, images, network.stats)
        np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
        right += (found.argmax(axis=1) == labels).sum()
    assert right == expected_right


def test_names_that_are_no_utf_8_have_a_hash():
    pictures = argparse.Namespace(names=["caf\udce9.png", "one.png"], labels=np.array([0, 1]))
    assert len(evaluate.hash_of_pictures(pictures)) == 64
