"""Photographs: the order of the classes, the rules of the presets, and files that deceive."""

import io
import struct
import tarfile
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.data import imagenet

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra onnx)")

WORDNET = ("n02000001", "n01000007", "n03000003")


def photograph(seed=0, size=(70, 50), mode="RGB"):
    """Smooth noise, so that JPEG keeps it and every pixel differs from its neighbours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(picture, kind="PNG", **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def write_folder(folder, counts=(2, 3, 1), names=WORDNET):
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            content = encoded(photograph(10 * number + index), "JPEG")
            (folder / name / f"{index}.JPEG").write_bytes(content)
    return folder


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def gather(pictures, preset="keras", size=32, batch=2, **options):
    notes = imagenet.Notes()
    plan = [
        np.arange(start, min(start + batch, len(pictures)))
        for start in range(0, len(pictures), batch)
    ]
    found = list(imagenet.batches(pictures, plan, preset, size, notes, **options))
    joined = [
        np.concatenate([getattr(b, what) for b in found])
        for what in ("images", "labels", "indices")
    ]
    return *joined, notes


# The order of the classes


def test_classes_are_numbered_by_wordnet_id(tmp_path):
    pictures = imagenet.load(write_folder(tmp_path))
    assert pictures.classes == ["n01000007", "n02000001", "n03000003"]
    assert pictures.names[:4] == [
        "n01000007/0.JPEG",
        "n01000007/1.JPEG",
        "n01000007/2.JPEG",
        "n02000001/0.JPEG",
    ]
    np.testing.assert_array_equal(pictures.labels, [0, 0, 0, 1, 1, 2])
    assert pictures.labels.dtype == np.int64


def test_a_synsets_file_names_the_order_even_of_classes_without_pictures(tmp_path):
    write_folder(tmp_path / "val")
    (tmp_path / "synsets").write_text(
        "n03000003 third, drei\nn09999999 absent\nn02000001\tb\nn01000007\n"
    )
    pictures = imagenet.load(tmp_path / "val", tmp_path / "synsets")
    assert len(pictures.classes) == 4
    assert [pictures.names[i].split("/")[0] for i in (0, 1, 5)] == [
        "n03000003",
        "n02000001",
        "n01000007",
    ]
    np.testing.assert_array_equal(pictures.labels, [0, 2, 2, 3, 3, 3])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("n01000007\nn02000001", "has the class 'n03000003'"),
        ("n01000007\nn02000001\nn01000007\n", "'n01000007' more than once"),
        ("n01000007\n\nn02000001\nn03000003", "line 2 of .* is empty"),
        ("\n", "is empty"),
    ],
)
def test_a_synsets_file_that_does_not_fit_is_refused(tmp_path, lines, message):
    write_folder(tmp_path / "val")
    (tmp_path / "synsets").write_text(lines)
    with pytest.raises(ValueError, match=message):
        imagenet.load(tmp_path / "val", tmp_path / "synsets")


def test_other_class_names_need_a_synsets_file(tmp_path):
    """Sorted, 10 would come before 2."""
    write_folder(tmp_path / "val", names=("0", "2", "10"))
    with pytest.raises(ValueError, match=r"'0' .* is not a WordNet id.*--synsets"):
        imagenet.load(tmp_path / "val")
    (tmp_path / "synsets").write_text("0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n")
    pictures = imagenet.load(tmp_path / "val", tmp_path / "synsets")
    np.testing.assert_array_equal(pictures.labels, [0, 0, 2, 2, 2, 10])


@pytest.mark.parametrize("layout", ["nothing", "no pictures", "flat"])
def test_a_folder_without_class_folders_is_refused(tmp_path, layout):
    if layout == "no pictures":
        (tmp_path / "n01000007").mkdir()
        (tmp_path / "n01000007" / "notes.txt").write_text("no picture")
    if layout == "flat":
        (tmp_path / "a.jpg").write_bytes(encoded(photograph(), "JPEG"))
    with pytest.raises(ValueError, match=r"class folder|--labels"):
        imagenet.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a tar"):
        imagenet.load(tmp_path / "missing")


def test_files_that_are_no_pictures_are_listed_and_hidden_ones_too(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "n01000007" / "readme.txt").write_text("")
    (tmp_path / "n01000007" / "._0.JPEG").write_text("left behind by another system")
    (tmp_path / ".git").mkdir()
    (tmp_path / "synsets.txt").write_text("")
    pictures = imagenet.load(tmp_path)
    assert len(pictures) == 6
    assert pictures.ignored == ["n01000007/._0.JPEG", "n01000007/readme.txt", "synsets.txt"]


def test_pictures_in_folders_of_a_class_folder_are_read(tmp_path):
    write_folder(tmp_path)
    deep = tmp_path / "n02000001" / "2024" / "march"
    deep.mkdir(parents=True)
    (deep / "a.png").write_bytes(encoded(photograph()))
    (tmp_path / "__MACOSX" / "n02000001").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "n02000001" / "b.png").write_bytes(encoded(photograph()))
    pictures = imagenet.load(tmp_path)
    assert len(pictures) == 7
    place = pictures.names.index("n02000001/2024/march/a.png")
    assert pictures.labels[place] == 1


def test_links_that_lead_nowhere_or_in_circles_are_listed(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "n01000007" / "gone.JPEG").symlink_to(tmp_path / "nowhere.JPEG")
    (tmp_path / "n01000007" / "loop.JPEG").symlink_to(tmp_path / "n01000007" / "loop.JPEG")
    (tmp_path / "n02000001" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "n09000000").symlink_to(tmp_path / "n09000000")
    pictures = imagenet.load(tmp_path)
    assert pictures.ignored == ["n02000001/up/", "n09000000"]
    images, _, _, notes = gather(pictures)
    assert len(images) == 6
    assert notes.counts == {"unreadable": 2}
    assert [line.partition(":")[0] for line in notes.lines()] == [
        "n01000007/gone.JPEG",
        "n01000007/loop.JPEG",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_names_may_have_spaces_accents_and_marks(tmp_path, encoding):
    names = ("golden retriever", "cafe\u0301", "tabby")  # the second as macOS writes it
    write_folder(tmp_path / "val", names=names)
    lines = "tabby\ngolden retriever\ncaf\u00e9\nother thing\n"
    (tmp_path / "synsets").write_bytes(lines.encode(encoding))
    pictures = imagenet.load(tmp_path / "val", tmp_path / "synsets")
    np.testing.assert_array_equal(pictures.labels, [0, 1, 1, 2, 2, 2])
    # With more words behind a tab.
    lines = lines.replace("\n", "\tand more words\n")
    (tmp_path / "synsets").write_text(lines, "utf-8")
    pictures = imagenet.load(tmp_path / "val", tmp_path / "synsets")
    np.testing.assert_array_equal(pictures.labels, [0, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("a.png 2\nb.png 0\nc.png 2\n", [2, 0, 2]),
        ("file,label\nb.png,n01000007\na.png,n03000003\nc.png,n03000003\n", [2, 0, 2]),
        ("ImageId,PredictionString\nc,n03000003 1 2 3\na,n03000003 8\nb,n01000007 9\n", [2, 0, 2]),
        ("a.png\tn02000001\nb.png\tn02000001\nc.png\tn01000007\n", [1, 1, 0]),
    ],
)  # fmt: skip
def test_labels_by_the_name_of_the_picture(tmp_path, lines, labels):
    (tmp_path / "val").mkdir()
    for name in "abc":
        (tmp_path / "val" / f"{name}.png").write_bytes(encoded(photograph()))
    (tmp_path / "synsets").write_text("n01000007\nn02000001\nn03000003\n")
    (tmp_path / "labels").write_text(lines)
    pictures = imagenet.load(tmp_path / "val", tmp_path / "synsets", tmp_path / "labels")
    np.testing.assert_array_equal(pictures.labels, labels)
    (tmp_path / "labels").write_text(lines.replace("c", "d"))
    with pytest.raises(ValueError, match=r"does not say the class of c\.png"):
        imagenet.load(tmp_path / "val", tmp_path / "synsets", tmp_path / "labels")


def test_numbers_of_classes_need_the_order_of_the_classes(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(photograph()))
    (tmp_path / "labels").write_text("a.png 5\n")
    with pytest.raises(ValueError, match="--synsets"):
        imagenet.load(tmp_path, None, tmp_path / "labels")
    (tmp_path / "synsets").write_text("n01000007\n")
    with pytest.raises(ValueError, match="the class 5"):
        imagenet.load(tmp_path, tmp_path / "synsets", tmp_path / "labels")


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "JPEG2000"])
def test_other_formats_where_pillow_can(tmp_path, kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {kind}")
    content = encoded(photograph(), kind)
    (tmp_path / "n01000007").mkdir()
    suffix = {"JPEG2000": "jp2"}.get(kind, kind.lower())
    (tmp_path / "n01000007" / f"a.{suffix}").write_bytes(content)
    images, *_ = gather(imagenet.load(tmp_path))
    assert len(images) == 1


@pytest.mark.parametrize("classes", [3, 9, 999])
def test_one_output_more_is_a_background_only_when_told(classes):
    """A folder may lack a class: then every label would be one too high, without a word."""
    with pytest.raises(ValueError, match=r"--synsets.*--background"):
        imagenet.match_outputs(classes, classes + 1)
    offset, words = imagenet.match_outputs(classes, classes + 1, background=True)
    assert offset == 1
    assert "output 0 is the background" in words
    with pytest.raises(ValueError, match="1001 outputs"):
        imagenet.match_outputs(1000, 1001, background=False)


@pytest.mark.parametrize(
    ("outputs", "offset", "words"),
    [(1000, 0, "class n is output n"), (1001, 1, "output 0 is the background and left out")],
)
def test_outputs_with_and_without_background(outputs, offset, words):
    found, sentence = imagenet.match_outputs(1000, outputs)
    assert found == offset
    assert words in sentence


def test_too_few_classes_for_the_outputs_ask_for_a_synsets_file():
    with pytest.raises(ValueError, match=r"500 classes, the network has 1000 outputs.*--synsets"):
        imagenet.match_outputs(500, 1000)


# The tar


def validation_files(count=6):
    return {
        f"ILSVRC2012_val_{index:08}.JPEG": encoded(photograph(index), "JPEG")
        for index in range(1, count + 1)
    }


def test_the_validation_tar_with_a_file_of_wordnet_ids(tmp_path):
    files = validation_files()
    shuffled = dict(sorted(files.items(), key=lambda item: zlib.crc32(item[1])))
    assert list(shuffled) != list(files)
    tar = write_tar(tmp_path / "val.tar", shuffled)
    (tmp_path / "labels").write_text("\n".join([*WORDNET, *WORDNET[::-1]]))
    pictures = imagenet.load(tar, labels=tmp_path / "labels")
    np.testing.assert_array_equal(pictures.labels, [1, 0, 2, 2, 0, 1])
    assert pictures.names == list(files)
    assert [pictures.read(index) for index in range(6)] == list(files.values())


def test_the_ground_truth_counts_in_an_order_of_its_own(tmp_path):
    """As in the development kit: numbers, and a table that says which WordNet id each is."""
    from scipy.io import savemat

    tar = write_tar(tmp_path / "val.tar", validation_files())
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n3\n3\n2\n1\n")
    with pytest.raises(ValueError, match=r"holds numbers.*meta\.mat"):
        imagenet.load(tar, labels=truth)
    table = np.zeros((4, 1), [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for row, (number, name) in enumerate(
        zip((1, 2, 3, 1001), (*WORDNET, "n00001740"), strict=True)
    ):
        table[row, 0] = number, name, "word"
    savemat(tmp_path / "meta.mat", {"synsets": table})
    pictures = imagenet.load(tar, labels=truth)
    np.testing.assert_array_equal(pictures.labels, [1, 0, 2, 2, 0, 1])
    assert len(pictures.classes) == 3


def test_a_tar_of_class_folders_equals_the_folder(tmp_path):
    folder = write_folder(tmp_path / "val")
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        archive.add(folder, "val")
    one, other = imagenet.load(folder), imagenet.load(tmp_path / "val.tar")
    assert [f"val/{name}" for name in one.names] == other.names
    np.testing.assert_array_equal(one.labels, other.labels)
    for found, expected in zip(gather(one)[:3], gather(other)[:3], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_macos_adds_to_a_tar_is_no_picture(tmp_path):
    content = encoded(photograph())
    names = "n01000007/a.png", "__MACOSX/n01000007/a.png"
    pictures = imagenet.load(write_tar(tmp_path / "val.tar", dict.fromkeys(names, content)))
    assert pictures.names == ["n01000007/a.png"]


@pytest.mark.parametrize("damage", ["cut", "compressed", "other", "labels", "links"])
def test_a_tar_that_cannot_be_used_is_refused(tmp_path, damage):
    tar = write_tar(tmp_path / "val.tar", validation_files())
    labels = tmp_path / "labels"
    labels.write_text("\n".join(WORDNET * 2))
    message = "cannot be read as a tar"
    if damage == "cut":
        tar.write_bytes(tar.read_bytes()[:300])
    if damage == "compressed":
        with tarfile.open(tar, "w:gz") as archive:
            archive.add(labels)
    if damage == "other":
        tar.write_bytes(b"<html>" * 300)
    if damage == "labels":
        labels.write_text("\n".join(WORDNET))
        message = "3 labels, .* 6 pictures"
    if damage == "links":
        with tarfile.open(tar, "w") as archive:
            member = tarfile.TarInfo("n01000007/a.jpg")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(member)
        message = "holds no picture"
    with pytest.raises(ValueError, match=message):
        imagenet.load(tar, labels=labels)


def test_a_tar_that_ends_within_a_picture_loses_only_that(tmp_path):
    files = {f"n01000007/{index}.png": encoded(photograph(index)) for index in range(3)}
    tar = write_tar(tmp_path / "val.tar", files)
    content = tar.read_bytes()
    start = content.index(files["n01000007/2.png"])
    pictures = imagenet.load(tar)
    tar.write_bytes(content[: start + 100])
    images, _, indices, notes = gather(pictures)
    assert len(images) == 2
    np.testing.assert_array_equal(indices, [0, 1])
    assert notes.counts == {"corrupt": 1}


# The presets


@pytest.mark.parametrize(("size", "short"), [(224, 256), (299, 342), (32, 37)])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (333, 500), (501, 501)])
def test_the_middle_is_cut_as_each_program_rounds(size, short, shape):
    picture = photograph(size=shape)
    width, height = shape
    for preset, whole_side, whole_offset in (
        ("torchvision", int, round),
        ("keras", round, lambda x: int(x // 1)),
    ):
        if width < height:
            new = short, whole_side(short * height / width)
        else:
            new = whole_side(short * width / height), short
        pixels = np.asarray(picture.resize(new, Image.Resampling.BILINEAR)).astype(np.float64)
        top, left = (whole_offset((length - size) / 2) for length in (new[1], new[0]))
        pixels = pixels[top : top + size, left : left + size]
        if preset == "torchvision":
            expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        else:
            expected = pixels / 127.5 - 1
        found = imagenet.PRESETS[preset](picture, size)
        assert found.dtype == np.float32
        assert found.shape == (size, size, 3)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_programs_cut_at_different_pixels():
    """A picture where both roundings differ: the two presets must not agree."""
    picture = photograph(size=(500, 338))
    one = imagenet.torchvision(picture, 224) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    other = (imagenet.keras(picture, 224) + 1) / 2
    assert abs(one - other).max() > 1e-3


@pytest.mark.parametrize("shape", [(123, 200), (40, 90), (20, 20)])
def test_slim_cuts_first_and_reads_between_pixels(shape):
    picture = photograph(size=shape)
    pixels = np.asarray(picture).astype(np.float64) / 255
    starts = [int((length - 0.875 * length) / 2) for length in pixels.shape[:2]]
    cut = pixels[starts[0] : pixels.shape[0] - starts[0], starts[1] : pixels.shape[1] - starts[1]]
    size = 24
    expected = np.empty((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = i * cut.shape[0] / size, j * cut.shape[1] / size
            a, b = int(y), int(x)
            c, d = min(a + 1, cut.shape[0] - 1), min(b + 1, cut.shape[1] - 1)
            top = cut[a, b] + (cut[a, d] - cut[a, b]) * (x - b)
            bottom = cut[c, b] + (cut[c, d] - cut[c, b]) * (x - b)
            expected[i, j] = 2 * (top + (bottom - top) * (y - a) - 0.5)
    np.testing.assert_allclose(imagenet.tf_slim(picture, size), expected, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("cut", ["short side", "square"])
def test_a_preparation_of_ones_own_in_plain_steps(cut, interpolation):
    picture = photograph(size=(60, 40))
    prepare = imagenet.Preparation(
        cut, crop=0.8, interpolation=interpolation, divisor=2.0, mean=(1, 2, 3), std=(4, 5, 6),
        channels="bgr",
    )  # fmt: skip
    resample = Image.Resampling[interpolation.upper()]
    if cut == "square":
        pixels = picture.resize((16, 16), resample, (6, 4, 54, 36))
    else:
        pixels = picture.resize((30, 20), resample).crop((7, 2, 23, 18))
    expected = np.asarray(pixels)[..., ::-1] / 2.0
    expected = (expected - np.array([1, 2, 3])) / np.array([4, 5, 6])
    np.testing.assert_allclose(prepare(picture, 16), expected, rtol=1e-5, atol=1e-5)


def test_the_numbers_of_each_preset():
    white, red = (Image.new("RGB", (40, 40), colour) for colour in ("white", "red"))
    seen = {name: prepare(white, 8)[0, 0] for name, prepare in imagenet.PRESETS.items()}
    np.testing.assert_allclose(seen["keras-raw"], 255)
    np.testing.assert_allclose(seen["keras"], 1)
    np.testing.assert_allclose(seen["tf-slim"], 1)
    np.testing.assert_allclose(seen["keras-caffe"], [151.061, 138.221, 131.32], rtol=1e-6)
    np.testing.assert_allclose(seen["keras-torch"], seen["torchvision"])
    np.testing.assert_allclose(seen["torchvision"], [2.2489, 2.4286, 2.64], rtol=1e-4)
    np.testing.assert_allclose(imagenet.PRESETS["keras-caffe"](red, 8)[0, 0, 2], 131.32, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": 0}, {"crop": 1.1}, {"std": (1, 0, 1)}, {"mean": (1, 2)}, {"channels": "gbr"},
        {"interpolation": "area"}, {"divisor": 0}, {"resize": 0}, {"cut": "round"},
    ],
)  # fmt: skip
def test_a_preparation_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings)).replace("divisor", "scale")):
        imagenet.Preparation(**settings)


@given(
    width=st.integers(1, 80), height=st.integers(1, 80), preset=st.sampled_from([*imagenet.PRESETS])
)
def test_pictures_of_any_size_are_prepared(width, height, preset):
    picture = Image.new("RGB", (width, height), (255, 127, 0))
    found = imagenet.PRESETS[preset](picture, 16)
    assert found.shape == (16, 16, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(found[0, 0], found.shape))


def test_an_unknown_preset_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="'caffe', expected one of torchvision, keras, tf-slim"):
        imagenet.batches(None, [], "caffe", 32)


def test_without_pillow_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'minires\[onnx\]'"):
        imagenet.batches(None, [], "keras", 32)


# Files that are not what they seem


def png_header(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


ODD = {
    "empty.JPEG": ("empty", b""),
    "cut.JPEG": ("corrupt", encoded(photograph(1, (200, 200)), "JPEG")[:-500]),
    "head.JPEG": ("corrupt", encoded(photograph(1), "JPEG")[:100]),
    "text.JPEG": ("corrupt", b"<!DOCTYPE html><html>"),
    "pointer.JPEG": ("corrupt", b"version https://git-lfs.github.com/spec/v1\n"),
    "script.JPEG": ("corrupt", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
    "other_format.JPEG": ("corrupt", encoded(photograph(), "PPM")),
    "bomb.png": ("too large", png_header(60_000, 60_000)),
    "warned.png": ("too large", png_header(10_000, 10_000)),
    "large.png": ("too large", png_header(8_200, 8_200)),
    "line.png": ("too large", encoded(Image.new("RGB", (1, 60_000)))),
    "grey.JPEG": ("grey", encoded(photograph(mode="L"), "JPEG")),
    "alpha.png": ("grey", encoded(photograph(mode="LA"))),
    "bilevel.png": ("grey", encoded(photograph(mode="1"))),
    "deep.png": ("grey", encoded(Image.fromarray(np.full((9, 9), 0x40FF, np.uint16)))),
    "cmyk.JPEG": ("CMYK", encoded(photograph(mode="CMYK"), "JPEG")),
    "palette.gif": ("other colours", encoded(photograph(mode="P"), "GIF")),
    "transparent.png": ("other colours", encoded(photograph(mode="P"), transparency=bytes(99))),
    "rgba.png": ("other colours", encoded(photograph(mode="RGBA"))),
    "moving.webp": (
        "animated",
        encoded(photograph(1), "WEBP", save_all=True, append_images=[photograph(2)]),
    ),
    "really_png.JPEG": (None, encoded(photograph())),
    "good.JPEG": (None, encoded(photograph(), "JPEG")),
}


def test_odd_files_are_named_and_counted_and_none_stops_the_run(tmp_path):
    (tmp_path / "n01000007").mkdir()
    for name, (_, content) in ODD.items():
        (tmp_path / "n01000007" / name).write_bytes(content)
    pictures = imagenet.load(tmp_path)
    _, _, indices, notes = gather(pictures)
    expected = {}
    for kind, _ in ODD.values():
        if kind:
            expected[kind] = expected.get(kind, 0) + 1
    assert notes.counts == expected
    usable = sorted(name for name, (kind, _) in ODD.items() if kind not in imagenet.SKIPPED)
    assert [pictures.names[index].split("/")[1] for index in indices] == usable
    assert notes.skipped == len(ODD) - len(usable) == 11
    lines = "\n".join(notes.lines())
    for name, (kind, _) in ODD.items():
        assert kind is None or f"n01000007/{name}: {kind} (" in lines
    assert str(notes).startswith(
        "11 left out (1 empty, 6 corrupt, 4 too large), 9 converted (4 grey"
    )


def test_what_was_converted_keeps_its_colours():
    grey, _ = imagenet.decode(ODD["deep.png"][1])
    np.testing.assert_array_equal(np.asarray(grey), 0x40)
    original = np.asarray(photograph()).astype(int)
    for name in ("cmyk.JPEG", "rgba.png", "really_png.JPEG"):
        found, _ = imagenet.decode(ODD[name][1])
        assert found.mode == "RGB"
        assert abs(np.asarray(found) - original).mean() < 6, name
    first, _ = imagenet.decode(ODD["moving.webp"][1])
    assert abs(np.asarray(first) - np.asarray(photograph(1)).astype(int)).mean() < 6


@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]))
def test_any_damage_is_a_note_or_harmless(data, kind):
    content = bytearray(encoded(photograph(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    pictures = imagenet.Pictures("", ["x"], np.zeros(1, int), [], [], lambda index: bytes(content))
    found = list(imagenet.batches(pictures, [[0]], "keras", 8, threads=1))
    assert len(found) == 1
    assert len(found[0].images) <= 1


def test_a_file_that_vanishes_is_noted(tmp_path):
    pictures = imagenet.load(write_folder(tmp_path))
    (tmp_path / "n02000001" / "0.JPEG").unlink()
    _, labels, _, notes = gather(pictures)
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 2])
    assert notes.counts == {"unreadable": 1}


def test_a_file_read_again_is_counted_once(tmp_path):
    (tmp_path / "n01000007").mkdir()
    (tmp_path / "n01000007" / "a.png").write_bytes(b"")
    notes = imagenet.Notes()
    pictures = imagenet.load(tmp_path)
    sizes = [len(b.images) for b in imagenet.batches(pictures, [[0], [0, 0]], "keras", 8, notes)]
    assert sizes == [0, 0]
    assert notes.counts == {"empty": 1}


# Ahead of the caller


def slow_pictures(count):
    """Pictures of which some take longer, so that threads finish out of order."""
    contents = [encoded(Image.new("RGB", (8, 8), (index, 0, 0))) for index in range(count)]
    read = []

    def fetch(index):
        time.sleep(0.004 * (index % 3 == 0))
        read.append(index)
        return contents[index]

    labels = np.arange(count)
    return imagenet.Pictures("", list(map(str, labels)), labels, [], [], fetch), read


@pytest.mark.parametrize("threads", [1, 5])
def test_the_order_is_the_plans_whatever_the_threads(threads):
    pictures, _ = slow_pictures(20)
    plan = np.random.default_rng(1).permutation(20).reshape(5, 4)
    found = list(imagenet.batches(pictures, plan, "keras", 8, threads=threads))
    np.testing.assert_array_equal([batch.indices for batch in found], plan)
    for batch in found:
        np.testing.assert_array_equal(batch.labels, batch.indices)
        red = np.rint((batch.images[:, 0, 0, 0] + 1) * 127.5)
        np.testing.assert_array_equal(red, batch.indices)


def test_no_more_is_read_ahead_than_promised():
    pictures, read = slow_pictures(40)
    plan = np.arange(40).reshape(10, 4)
    for number, _ in enumerate(imagenet.batches(pictures, plan, "keras", 8, threads=5)):
        time.sleep(0.02)
        # The caller's batch, and at most ahead + 1 more.
        assert len(read) <= 4 * (number + 1 + 3)
    assert sorted(read) == list(range(40))


def test_a_caller_that_stops_leaves_no_thread_reading():
    pictures, read = slow_pictures(40)
    stream = imagenet.batches(pictures, np.arange(40).reshape(10, 4), "keras", 8, threads=2)
    next(stream)
    stream.close()
    before = len(read)
    time.sleep(0.03)
    assert len(read) == before < 40


def test_the_sample_of_photographs(data_dir):
    folder = data_dir / "imagenet"
    if not (folder / "val").is_dir():
        pytest.skip("the data folder has no imagenet/val")
    pictures = imagenet.load(folder / "val", folder / "synsets.txt")
    assert len(pictures.classes) == 1000
    np.testing.assert_array_equal(pictures.labels, np.arange(0, 1000, 2))


def test_labels_of_pictures_with_the_same_name_in_other_folders(tmp_path):
    for folder in ("s1", "s2"):
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / "one.png").write_bytes(encoded(photograph()))
    labels = tmp_path / "labels.csv"
    labels.write_text("./s2\\one.png,n02000001\ns1/one.png,n01000007\n")
    pictures = imagenet.load(tmp_path / "val", labels=labels)
    assert [pictures.classes[k] for k in pictures.labels] == ["n01000007", "n02000001"]
    for content in ("one,n01000007\n", "one,n01000007\none,n02000001\ns1/one,n01000007\n"):
        labels.write_text(content)
        with pytest.raises(ValueError, match=r"does not say which class .* Write each"):
            imagenet.load(tmp_path / "val", labels=labels)


def test_two_classes_for_one_picture_are_refused(tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(photograph()))
    (tmp_path / "labels").write_text("one.png n01000007\none.png n02000001\n")
    with pytest.raises(ValueError, match=r"which class one\.png"):
        imagenet.load(tmp_path, labels=tmp_path / "labels")


def test_an_accent_may_be_a_character_of_its_own(tmp_path):
    """As macOS writes names."""
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "e\u0301.v2.png").write_bytes(encoded(photograph()))
    (tmp_path / "labels").write_text("\u00e9.v2.png n01000007\n", "utf-8")
    assert imagenet.load(tmp_path / "val", labels=tmp_path / "labels").classes == ["n01000007"]
