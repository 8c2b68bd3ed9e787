"""Image data: nothing held out is trained on, any cursor and any number of workers agree, labels stay distributions."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import toy
from composed import choice
from corpora import equal, error_of
from omegaconf import OmegaConf
from PIL import Image

from mlrun.config import choices
from mlrun.data.images import mixup
from mlrun.data.images import randaugment as ra
from mlrun.data.images.augment import Augment, _crop_box, _erase, evaluated, trained
from mlrun.data.images.collections import Stored
from mlrun.data.images.decode import converted, decoded
from mlrun.data.images.digits import Digits, last_of_each_class
from mlrun.data.images.files import ImageFiles
from mlrun.data.images.frame import Frame
from mlrun.data.images.hub import ImageHub
from mlrun.data.images.mixup import Mix
from mlrun.data.images.source import MappedImages
from mlrun.data.source import Broken
from mlrun.errors import UserError
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.network import build
from mlrun.train.checkpoint.store import ALONE
from mlrun.train.model_folder import save_model
from mlrun.train.snapshot import Snapshot

ROOT = Path(__file__).resolve().parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
WIDTH = {"embed": 8, "head": 1, "head_dim": 8, "ffn": 8, "layer": 1}
PLAIN = Augment(crop=None, flip=0, operations=0, erase=0)
NO_MIX = Mix(mixup=0, cutmix=0, smoothing=0)
GREY = {"classes": 10, "mean": [0.13], "std": [0.31]}
COLOUR = {"classes": 3, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def deit(image: int = 16, channel: int = 3, classes: int = 3) -> DeiT:
    return DeiT(image=image, channel=channel, patch=4, classes=classes, **WIDTH)


def picture(seed: int = 0, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """Return a smooth picture with some noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(40, 200, size[0]), np.linspace(0, 50, size[1]))
    pixels = (x + y)[..., None] + rng.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def flat(value: int, side: int = 20) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def parquet(file: Path, labels: list, first: int = 0) -> str:
    """Write solid pictures whose grey level is their number, so that a batch tells which pictures are in it."""
    import pyarrow
    import pyarrow.parquet

    pictures = [{"bytes": png(flat(first + n)), "path": None} for n in range(len(labels))]
    pyarrow.parquet.write_table(pyarrow.table({"image": pictures, "label": labels}), file)
    return str(file)


def folder(root: Path, per_class: int = 10) -> Path:
    for number, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            flat(50 * number + n).save(root / name / f"{n:02d}.png")
    return root


@pytest.fixture
def labelled(tmp_path: Path) -> ImageFiles:
    file = parquet(tmp_path / "x.parquet", [n % 3 for n in range(60)])
    return ImageFiles(files=[file], format="parquet", held_out=0.1, **COLOUR)


def numbers(batch: dict) -> list[int]:
    """Return which pictures of `parquet` a plain batch holds."""
    return [round(float(image.mean() * 0.25 + 0.5) * 255) for image in batch["images"]]


# --- sources ---------------------------------------------------------------------------------------------


def test_digits_hold_out_the_last_fifth_of_each_class(tmp_path: Path) -> None:
    source = Digits(augment=PLAIN, mix=NO_MIX, **GREY).open(deit(28, 1, 10), 0, str(tmp_path))
    assert (source.samples, source.describe()["validation_samples"]) == (4000, 1000)
    epoch, held = next(source.batches(0, 4000)), next(source.validation(1000))
    assert np.bincount(held["labels"]).tolist() == [100] * 10 and np.bincount(epoch["labels"]).tolist() == [400] * 10
    rows = [{image.numpy().tobytes() for image in batch["images"]} for batch in (epoch, held)]
    assert len(rows[0]) == 4000 and not rows[0] & rows[1]
    assert epoch["images"].shape[1:] == (1, 28, 28) and abs(float(epoch["images"].mean())) < 0.1


def test_last_of_each_class() -> None:
    assert last_of_each_class(np.array([0, 1, 0, 1, 1, 1, 1]), 0.4).tolist() == [0, 0, 1, 0, 0, 1, 1]


def test_parquet_pictures_are_each_seen_once_an_epoch_and_held_out_evenly(labelled: ImageFiles, tmp_path: Path) -> None:
    source = replace(labelled, augment=PLAIN, mix=NO_MIX).open(deit(), 0, str(tmp_path))
    epochs = [numbers(next(source.batches(start, 54))) for start in (0, 54)]
    held = numbers(next(source.validation(100)))
    assert held == [9, 19, 29, 39, 49, 59]
    assert sorted(epochs[0] + held) == sorted(epochs[1] + held) == list(range(60)) and epochs[0] != epochs[1]
    batch = next(source.batches(0, 54))
    assert batch["labels"].tolist() == [n % 3 for n in numbers(batch)]


def test_a_folder_per_class_gives_the_classes_by_name(tmp_path: Path) -> None:
    paths = {"files": [str(folder(tmp_path / "t"))], "validation_files": [str(folder(tmp_path / "v", 2))]}
    data = ImageFiles(format="imagefolder", augment=PLAIN, mix=NO_MIX, **COLOUR, **paths)
    source = data.open(deit(), 0, str(tmp_path / "cache"))
    held = next(source.validation(10))
    assert source.samples == 30 and held["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert numbers(held) == [0, 1, 50, 51, 100, 101]


@pytest.mark.parametrize("workers", [0, 3])
def test_any_cursor_resumes_with_any_number_of_workers(labelled: ImageFiles, tmp_path: Path, workers: int) -> None:
    whole = list(islice(labelled.open(deit(), 5, str(tmp_path)).batches(0, 8), 9))  # epochs end within batches
    source = labelled.open(deit(), 5, str(tmp_path)).with_workers(workers)
    assert all(equal(a, b) for a, b in zip(whole[4:], source.batches(32, 8), strict=False))
    assert not equal(whole[0], whole[1])


def test_batch_sizes_agree_on_samples(labelled: ImageFiles, tmp_path: Path) -> None:
    source = replace(labelled, mix=NO_MIX).open(deit(), 0, str(tmp_path))
    large, small = next(source.batches(3, 12)), list(islice(source.batches(3, 4), 3))
    assert equal(large, {k: np.concatenate([b[k] for b in small]) for k in large})


@pytest.mark.parametrize("mix", [Mix(cutmix=0), Mix(mixup=0), NO_MIX], ids=["mixup", "cutmix", "none"])
def test_rows_are_those_of_the_whole_batch(labelled: ImageFiles, tmp_path: Path, mix: Mix) -> None:
    source = replace(labelled, mix=mix).open(deit(), 0, str(tmp_path))
    whole, share = next(source.batches(8, 12)), next(source.batches(8, 12, rows=slice(2, 5)))
    assert equal({k: v[2:5] for k, v in whole.items()}, share)


def test_validation_is_plain_and_the_same_every_time(labelled: ImageFiles, tmp_path: Path) -> None:
    one, other = (replace(labelled, validation_samples=4).open(deit(), s, str(tmp_path)) for s in (0, 1))
    a, b = (list(source.validation(size)) for source, size in ((one, 3), (other, 2)))
    assert [len(batch["labels"]) for batch in a] == [3, 1] and str(a[0]["labels"].dtype) == "torch.int64"
    assert equal(*({k: np.concatenate([batch[k] for batch in part]) for k in a[0]} for part in (a, b)))


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    data = ImageFiles(files=[str(tmp_path / "x.parquet")], format="parquet", augment=PLAIN, mix=NO_MIX, **COLOUR)
    for first in (0, 100):
        parquet(tmp_path / "x.parquet", [0, 1] * 20, first)
        source = data.open(deit(), 0, str(tmp_path / "cache"))
        assert min(numbers(next(source.batches(0, 38)))) == first


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageHub:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "set").mkdir()
    for n, part in enumerate(np.array_split(np.arange(150), 3)):
        parquet(tmp_path / "set" / f"train-{n}.parquet", [0] * len(part), first=int(part[0]))
    parquet(tmp_path / "set" / "validation-0.parquet", [1] * 20, first=200)
    return ImageHub(path=str(tmp_path / "set"), validation_samples=5, augment=PLAIN, mix=NO_MIX, **COLOUR)


def test_hub_pictures_downloaded(hub: ImageHub, tmp_path: Path) -> None:
    source = hub.open(deit(), 0, str(tmp_path))
    assert source.samples == 150 and sorted(numbers(next(source.batches(0, 150)))) == list(range(150))
    assert numbers(next(source.validation(9))) == [200, 204, 208, 212, 216]


def test_a_set_of_pictures_that_does_not_load_is_told_by_its_key(hub: ImageHub) -> None:
    absent = replace(hub, path=f"{hub.path}-absent")
    with pytest.raises(UserError, match=r"^data\.path: .*-absent train cannot be loaded"):
        absent.open(deit(), 0, "unused")


def test_hub_pictures_streamed_resume_anywhere(hub: ImageHub, tmp_path: Path) -> None:
    streamed = replace(hub, streaming=True, block=32)
    source = streamed.open(deit(), 0, str(tmp_path))
    assert source.samples is None and numbers(next(source.validation(9))) == [200, 201, 202, 203, 204]
    whole = [n for batch in islice(source.batches(0, 10), 30) for n in numbers(batch)]
    assert sorted(whole[:128]) == list(range(128)) and whole[:32] != sorted(whole[:32])
    assert sorted(whole[:160]) != sorted(whole[160:])[:160]
    for start in (31, 64, 200):
        again = streamed.open(deit(), 0, str(tmp_path))
        assert numbers(next(again.batches(start, 20))) == whole[start : start + 20]


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 of ../shared is absent")
def test_cifar_batches_are_normalised(tmp_path: Path) -> None:
    node = choice("data", "cifar10")
    node.files = [str(CIFAR / "test.parquet")]
    node.update({"held_out": 0.5, "validation_samples": 256, "augment": None, "mix": None})
    del node["augment"], node["mix"]
    source = choices.build(node, "data").open(deit(32, 3, 10), 0, str(tmp_path))
    images = next(source.validation(256))["images"]
    assert images.shape == (256, 3, 32, 32)
    assert images.mean((0, 2, 3)).abs().max() < 0.15 and (images.std((0, 2, 3)) - 1).abs().max() < 0.15


# --- augmentation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_augmented_pictures_have_the_models_shape_and_differ_by_sample_only(mode: str) -> None:
    channels = len(Image.new(mode, (1, 1)).getbands())
    frame = Frame(16, [0.5] * channels, [0.25] * channels, 0.875)
    augment = Augment(jitter=0.4)
    views = [trained(picture(mode=mode), frame, augment, np.random.default_rng([0, n])) for n in range(40)]
    assert {view.shape for view in views} == {(channels, 16, 16)} and {view.dtype.name for view in views} == {"float32"}
    assert len({view.tobytes() for view in views}) == 40
    again = trained(picture(mode=mode), frame, augment, np.random.default_rng([0, 7]))
    assert (again == views[7]).all()
    calm = [
        trained(picture(n, mode=mode), frame, replace(augment, erase=0), np.random.default_rng(n)) for n in range(40)
    ]
    assert max(abs(view).max() for view in calm) <= 2  # the range of normalised pixels; only erasing leaves it


def test_everything_off_is_the_resized_picture() -> None:
    frame = Frame(16, [0.5] * 3, [0.25] * 3, 1.0)
    square = picture(size=(20, 20))
    assert (trained(square, frame, PLAIN, np.random.default_rng(0)) == evaluated(square, frame)).all()


def test_flip_mirrors_about_as_often_as_asked() -> None:
    frame, image = Frame(20, [0.5] * 3, [0.25] * 3, 1.0), picture(size=(20, 20))
    plain = evaluated(image, frame)
    views = [trained(image, frame, replace(PLAIN, flip=0.3), np.random.default_rng(n)) for n in range(300)]
    mirrored = [(view == plain[..., ::-1]).all() for view in views]
    assert all(flip or (view == plain).all() for flip, view in zip(mirrored, views, strict=True))
    assert 0.2 < np.mean(mirrored) < 0.4


def test_evaluation_looks_at_the_centre() -> None:
    image = flat(0, 32)
    image.paste((255, 255, 255), (4, 4, 28, 28))
    frame = Frame(8, [0.0] * 3, [1.0] * 3, 0.75)
    assert (evaluated(image, frame)[:, 2:-2, 2:-2] == 1).all()
    assert (evaluated(image, replace(frame, eval_crop=1.0))[:, 0, 0] < 0.5).all()


@pytest.mark.parametrize("size", [(32, 32), (40, 30), (31, 53), (500, 375), (24, 20)])
@pytest.mark.parametrize(("side", "eval_crop"), [(28, 0.875), (16, 1.0)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_hugging_face_makes_the_pixels_of_an_evaluation(
    size: tuple[int, int], side: int, eval_crop: float, mode: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    image = picture(size=size, mode=mode)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if mode == "RGB" else ([0.13], [0.31])
    frame = Frame(side, mean, std, eval_crop)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(frame.hf_preprocessor()))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    given = np.asarray(image).reshape(image.height, image.width, -1)  # a grey picture with its one channel
    theirs = processor(given, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    assert theirs.shape == (3 if mode == "RGB" else 1, side, side)
    assert np.abs(theirs - evaluated(image, frame)).max() < 1e-5


def test_a_run_of_pictures_keeps_how_its_pixels_are_made(tmp_path: Path) -> None:
    from mlrun.interop.folders import export_hf, import_hf

    data = Digits(**GREY, eval_crop=0.5, validation_samples=8)
    model = deit(28, 1, 10)
    target = {"_target_": "mlrun.models.deit.DeiT", **asdict(model)}
    weights = Snapshot({"weights": dict(build(model, 0).state_dict())})
    opened = data.open(model, 0, str(tmp_path))
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model", target, weights, opened.model_files(), ALONE)
    export_hf(tmp_path / "run", tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "back")
    kept = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (kept["size"], kept["crop_size"]) == ({"shortest_edge": 56}, {"height": 28, "width": 28})
    assert (kept["image_mean"], kept["image_std"]) == (GREY["mean"], GREY["std"])
    assert json.loads((tmp_path / "back" / "model" / "preprocessor_config.json").read_text()) == kept


def test_crops_keep_the_published_areas_and_ratios() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([_crop_box((400, 300), 0.08, rng) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 120_000, width / height
    assert (boxes >= 0).all() and (boxes[:, 2] <= 400).all() and (boxes[:, 3] <= 300).all()
    assert 0.078 < area.min() < 0.15 and area.max() > 0.9 and 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    assert _crop_box((100, 10), 1.0, rng) == (43, 0, 56, 10)  # too narrow for any legal box of the whole area


def test_erasing_fills_a_box_of_2_to_33_percent_with_noise() -> None:
    shares = []
    for seed in range(200):
        image = np.full((3, 32, 32), 9, np.float32)
        _erase(image, np.random.default_rng(seed))
        gone = (image != 9).all(0)
        rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
        assert gone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        shares.append(gone.mean())
    assert 0.01 < min(shares) < 0.05 and 0.25 < max(shares) < 0.36


def test_randaugment_operations_have_the_published_strengths() -> None:
    dot = Image.new("L", (101, 101))
    dot.putpixel((50, 50), 255)

    def where(image: Image.Image) -> tuple[int, int]:
        y, x = np.unravel_index(np.asarray(image).argmax(), (101, 101))
        return int(x), int(y)

    assert where(ra.translate_x(dot, 0.9, 0)) == (50 - round(0.45 * 0.9 * 101), 50)
    assert where(ra.translate_y(dot, -0.9, 0)) == (50, 50 + round(0.45 * 0.9 * 101))
    left = dot.transform(dot.size, Image.Transform.AFFINE, (1, 0, 40, 0, 1, 0))
    assert abs(where(ra.rotate(left, 1.0, 0))[1] - (50 + 40 * np.sin(np.pi / 6))) <= 1
    assert where(ra.shear_x(dot, 1.0, 0))[0] == 50 - 15 and where(ra.shear_y(dot, 1.0, 0))[1] == 50 - 15
    tone = partial(Image.new, "L", (1, 1))
    assert [ra.posterize(tone(255), part, 0).getpixel((0, 0)) for part in (0, 0.9, 1)] == [240, 128, 0]
    assert [ra.solarize(tone(v), 0.9, 0).getpixel((0, 0)) for v in (20, 200)] == [20, 55]
    assert [ra.solarize_add(tone(v), 0.9, 0).getpixel((0, 0)) for v in (20, 200)] == [119, 200]
    assert [ra.brightness(tone(100), part, 0).getpixel((0, 0)) for part in (0.9, -0.9, -1)] == [181, 19, 10]
    assert ra.invert(tone(30), 0.9, 0).getpixel((0, 0)) == 225


@pytest.mark.parametrize("operation", ra.OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_operation_changes_a_picture_and_keeps_its_kind(operation: ra.Operation) -> None:
    for mode in ("L", "RGB"):
        before = picture(size=(32, 32), mode=mode)
        after = operation(before, 0.9, 0 if mode == "L" else (0, 0, 0))
        assert (after.mode, after.size) == (mode, (32, 32))
        same = np.array_equal(np.asarray(after), np.asarray(before))
        assert same == (mode == "L" and operation is ra.color)  # a grey picture has no colour to change


def test_randaugment_applies_each_of_two_operations_half_of_the_time() -> None:
    image, fill = picture(), (0, 0, 0)
    made = [ra.randaugment(image, np.random.default_rng(n), 2, 9.0, 0.5, fill) for n in range(400)]
    assert 0.2 < np.mean([out is image for out in made]) < 0.3


# --- mixing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=0), Mix(cutmix=0), Mix(mixup=0, cutmix=0)])
def test_soft_labels_are_distributions_over_the_right_classes(labelled: ImageFiles, tmp_path: Path, mix: Mix) -> None:
    labels = next(replace(labelled, mix=mix).open(deit(), 0, str(tmp_path)).batches(0, 12))["labels"]
    assert labels.shape == (12, 3) and str(labels.dtype) == "torch.float32"
    assert (labels.sum(1) - 1).abs().max() < 1e-6 and labels.min() >= 0.1 / 3 - 1e-6


def test_mixup_blends_sample_i_with_the_last_but_i(labelled: ImageFiles, tmp_path: Path) -> None:
    plain = replace(labelled, augment=PLAIN, mix=NO_MIX).open(deit(), 0, str(tmp_path))
    mixed = replace(labelled, augment=PLAIN, mix=Mix(cutmix=0, smoothing=0)).open(deit(), 0, str(tmp_path))
    a, b = next(plain.batches(0, 8)), next(mixed.batches(0, 8))
    share = mixup.draw(Mix(cutmix=0), 16, 0, 0).share
    expected = share * a["images"] + (1 - share) * a["images"].flip(0)
    assert 0 < share < 1 and (b["images"] - expected).abs().max() < 1e-5
    one_hot = np.eye(3)[a["labels"]]
    assert abs(b["labels"].numpy() - share * one_hot - (1 - share) * one_hot[::-1]).max() < 1e-6


def test_cutmix_counts_the_pixels_that_it_pastes() -> None:
    own, other = np.zeros((4, 3, 20, 20), np.float32), np.ones((4, 3, 20, 20), np.float32)
    shares = []
    for first in range(300):
        blend = mixup.draw(Mix(mixup=0), 20, 0, first)
        assert abs(1 - blend.images(own, other).mean() - blend.share) < 1e-6
        shares.append(blend.share)
    assert min(shares) < 0.3 and max(shares) > 0.95 and not own.any()


def test_mixing_switches_between_both_and_differs_by_batch() -> None:
    blends = [mixup.draw(Mix(), 20, 0, first) for first in range(300)]
    assert 0.4 < np.mean([blend.box is not None for blend in blends]) < 0.6
    assert 0.6 < np.mean([mixup.draw(Mix(probability=0.3), 20, 0, n).share == 1 for n in range(300)]) < 0.8
    assert mixup.draw(Mix(), 20, 0, 5) == blends[5] != mixup.draw(Mix(), 20, 1, 5)


def test_smoothing_spreads_over_all_classes() -> None:
    assert np.allclose(mixup.distribution(np.array([1]), 4, 0.1), [[0.025, 0.925, 0.025, 0.025]])


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classes": 4}, "model.classes=3"),
        ({"mean": [0.5]}, "data.mean=[0.5]"),
        ({"std": [0.0, 1.0, 1.0]}, "data.std=[0.0, 1.0, 1.0]"),
        ({"eval_crop": 0.0}, "data.eval_crop=0.0"),
        ({"validation_samples": 0}, "data.validation_samples=0"),
        ({"held_out": 1.0}, "data.held_out=1.0"),
        ({"format": "parkett"}, "did you mean parquet?"),
        ({"files": ["none/*.png"]}, "data.files=none/*.png"),
        ({"files": []}, "data.files=[]"),
        ({"augment": Augment(crop=0.0)}, "data.augment.crop=0.0"),
        ({"augment": Augment(magnitude=11)}, "data.augment.magnitude=11"),
        ({"mix": Mix(switch=1.5)}, "data.mix.switch=1.5"),
    ],
)
def test_wrong_settings_are_one_line_each(labelled: ImageFiles, change: dict, expected: str) -> None:
    (line,) = replace(labelled, **change).problems(deit())
    assert expected in line and "\n" not in line


def test_a_picture_is_not_trained_on_and_validated_with(labelled: ImageFiles) -> None:
    (line,) = replace(labelled, validation_files=labelled.files).problems(deit())
    assert line.startswith("data.validation_files=") and "not in data.files" in line


def test_images_need_an_image_model(labelled: ImageFiles) -> None:
    (line,) = labelled.problems(GPT(vocab=8, position=8, **WIDTH))
    assert "text data set" in line
    assert (labelled.targets(deit()), labelled.sequence) == (1, 1)


def test_what_only_reading_shows(labelled: ImageFiles, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert "fewer than one batch=55" in error_of(lambda: labelled.open(deit(), 0, cache, batch=55))
    assert "data.label=labl" in error_of(lambda: replace(labelled, label="labl").open(deit(), 0, cache))
    assert "data.image=label" in error_of(
        lambda: replace(labelled, image="label", label="image").open(deit(), 0, cache)
    )
    few = replace(labelled, classes=2)
    assert "at least 3: a picture has label 2" in error_of(lambda: few.open(deit(classes=2), 0, cache))
    named = replace(labelled, files=[parquet(tmp_path / "n.parquet", ["a", "b"] * 20)])
    assert "a column of class numbers" in error_of(lambda: named.open(deit(), 0, cache))
    (tmp_path / "broken.parquet").write_text("no parquet")
    broken = replace(labelled, files=[str(tmp_path / "broken.parquet")])
    assert "cannot be read" in error_of(lambda: broken.open(deit(), 0, cache))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    (root / "bee" / "03.png").write_bytes((root / "bee" / "03.png").read_bytes()[:40])
    data = ImageFiles(files=[str(root)], format="imagefolder", **COLOUR)
    source = data.open(deit(), 0, str(tmp_path / "cache"))
    here, beside = (error_of(lambda s=s: list(islice(s.batches(0, 9), 4))) for s in (source, source.with_workers(2)))
    assert "03.png cannot be read" in here and beside == here


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagefolder", "imagenet"])
def test_every_image_yaml_builds_its_spec_and_names_every_setting(name: str, tmp_path: Path) -> None:
    node = choice("data", name)
    if OmegaConf.is_missing(node, "files"):
        node.files = [parquet(tmp_path / "x.parquet", [0])]
    if OmegaConf.is_missing(node, "classes"):
        node.classes = 37
    data = choices.build(node, "data")
    assert data.problems(deit(28, len(data.mean), data.classes)) == []
    assert set(node) - {"_target_"} == {field.name for field in fields(data)}
    assert set(node.augment) == set(Augment.__dataclass_fields__) and set(node.mix) == set(Mix.__dataclass_fields__)


# --- what may lie in a folder or a file ------------------------------------------------------------------


def pets(root: Path, **changes) -> ImageFiles:
    given = {"files": [str(root)], "format": "imagefolder", "augment": PLAIN, "mix": NO_MIX, **COLOUR}
    return ImageFiles(**{**given, **changes})


def content(data: ImageFiles | ImageHub | Digits, cache: Path, model: DeiT | None = None) -> dict:
    return data.open(deit() if model is None else model, 0, str(cache)).describe()


def test_a_folder_is_known_by_its_classes_files_and_sizes(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    before = content(pets(root), tmp_path)
    shutil.copytree(root, tmp_path / "copy")
    assert content(pets(tmp_path / "copy"), tmp_path)["identity"] == before["identity"]
    changes = [
        lambda: (root / "ant").rename(root / "dog"),
        lambda: (root / "cat" / "00.png").rename(root / "cat" / "99.png"),
        lambda: flat(99, 64).save(root / "bee" / "03.png"),
        (root / "bee" / "05.png").unlink,
    ]
    seen = [before]
    for change in changes:
        change()
        seen.append(content(pets(root), tmp_path))
    assert len({told["content"] for told in seen}) == len({told["identity"]["train"] for told in seen}) == 5


def test_packed_streamed_and_embedded_pictures_have_an_identity(
    labelled: ImageFiles, hub: ImageHub, tmp_path: Path
) -> None:
    streamed = replace(hub, streaming=True, block=32)
    for data in (labelled, hub, streamed):
        told = content(data, tmp_path)
        assert told["content"] is not None and content(data, tmp_path / "other") == told
    assert content(replace(labelled, held_out=0.2), tmp_path)["content"] != content(labelled, tmp_path)["content"]
    digits = Digits(augment=PLAIN, mix=NO_MIX, **GREY)
    assert content(digits, tmp_path, deit(28, 1, 10))["content"] is not None


def test_pictures_that_are_streamed_have_another_order_and_others_held_out(hub: ImageHub, tmp_path: Path) -> None:
    def told(**changes: object) -> dict[str, str]:
        found: dict[str, str] = content(replace(hub, **changes), tmp_path)["identity"]
        return found

    whole, streamed, shorter = told(), told(streaming=True, block=32), told(streaming=True, block=8)
    assert whole["held_out"] != streamed["held_out"] == shorter["held_out"]
    assert len({one["train"] for one in (whole, streamed, shorter)}) == 3


def test_two_classes_that_swap_names_are_other_data_whatever_their_files_are_called(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for number, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for n in range(10):
            flat(50 * number + n).save(root / name / f"{n:02d}.bmp")  # all of one size
    before = content(pets(root), tmp_path)
    for old, new in (("ant", "x"), ("cat", "ant"), ("x", "cat")):
        (root / old).rename(root / new)
    after = content(pets(root), tmp_path)
    assert after["content"] != before["content"] and after["identity"]["train"] != before["identity"]["train"]


def test_preprocessing_is_part_of_the_identity(labelled: ImageFiles, tmp_path: Path) -> None:
    plain = content(labelled, tmp_path)["identity"]
    for change in ({"mix": NO_MIX}, {"augment": PLAIN}, {"eval_crop": 0.5}, {"mean": [0.4, 0.4, 0.4]}):
        other = content(replace(labelled, **change), tmp_path)["identity"]
        assert {key for key in plain if plain[key] != other[key]} == {"preprocessing"}
    few = content(replace(labelled, validation_samples=2), tmp_path)["identity"]
    assert {key for key in plain if plain[key] != few[key]} == {"held_out"}


def test_a_damaged_pack_of_pictures_is_made_anew(
    labelled: ImageFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = next(labelled.open(deit(), 0, str(tmp_path)).batches(0, 8))
    (packed,) = (tmp_path / "images").glob("*/pictures.bin")
    packed.write_bytes(bytes(packed.stat().st_size))
    assert equal(next(labelled.open(deit(), 0, str(tmp_path)).batches(0, 8)), before)
    assert "prepared anew" in capsys.readouterr().err


def test_the_number_of_classes_is_that_of_the_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    line = error_of(lambda: pets(root, classes=2).open(deit(classes=2), 0, str(tmp_path)))
    assert "data.classes=2" in line and "3, the folders that pictures lie in (ant, bee, cat)" in line
    line = error_of(lambda: pets(root / "ant", classes=2).open(deit(classes=2), 0, str(tmp_path)))
    assert "data.classes=2" in line and "1, the folders that pictures lie in (ant)" in line
    same = parquet(tmp_path / "same.parquet", [1] * 20)
    data = ImageFiles(files=[same], format="parquet", **COLOUR)
    assert "every label is 1" in error_of(lambda: data.open(deit(), 0, str(tmp_path)))


def test_what_is_no_picture_is_ignored_with_a_word(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    for name in ("metadata.csv", "README.md", "bee/notes.txt"):
        (root / name).write_text("file_name,label\n00.png,1\n")
    notes = content(pets(root), tmp_path)["notes"]
    assert len(notes) == 2 and all("\n" not in note for note in notes)
    assert "metadata.csv is not read: a picture's class is the name of its folder" in notes[0]
    assert "2 files are no pictures, such as " in notes[1]
    assert content(pets(root), tmp_path)["samples"] + content(pets(root), tmp_path)["validation_samples"] == 30


def levels(image: Image.Image, tmp_path: Path, name: str = "x.png", mode: str = "L") -> np.ndarray:
    """Return what a saved picture is read as."""
    image.save(tmp_path / name)
    return np.asarray(decoded(Stored(str(tmp_path / name), 0, name), mode))


@pytest.mark.parametrize(("name", "mode"), [("x.png", "I;16"), ("x.tiff", "I;16"), ("x.pgm", "I")])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str, mode: str) -> None:
    deep = Image.fromarray(np.array([[0, 257, 128 * 257, 40_000, 65_535]], np.uint16))
    assert levels(deep.convert(mode), tmp_path, name).tolist() == [[0, 1, 128, round(40_000 / 257), 255]]


def test_every_mode_of_pillow_is_converted_or_refused(tmp_path: Path) -> None:
    grey, red = Image.new("L", (4, 4), 102), Image.new("RGB", (4, 4), (204, 0, 0))
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"):
        for target, image in (("L", grey), ("RGB", red)):
            made = np.asarray(converted(image.convert("RGB").convert(mode), target)).astype(int)
            wanted = np.asarray(image.convert(target)).astype(int)
            assert mode == "1" or mode in ("L", "LA") or abs(made - wanted).max() <= 3, (mode, target)
    for mode, through in (("La", "LA"), ("RGBa", "RGBA"), ("RGBX", "RGB")):
        picture = Image.new(mode, (2, 2)) if mode == "RGBX" else grey.convert(through).convert(mode)
        assert converted(picture, "RGB").mode == "RGB" and converted(picture, "L").mode == "L"
    for mode in ("I;16", "I;16L", "I;16B"):
        assert np.asarray(converted(Image.new(mode, (2, 2), 65_535), "L")).tolist() == [[255, 255], [255, 255]]
    for mode in ("I", "F"):
        Image.new(mode, (4, 4), 70_000).save(tmp_path / "deep.tiff")
        line = error_of(lambda: decoded(Stored(str(tmp_path / "deep.tiff"), 0, "deep.tiff"), "L"))
        assert f"the picture deep.tiff cannot be read (pixels of Pillow's mode {mode}" in line


def test_pictures_stand_upright(tmp_path: Path) -> None:
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 16, 2))  # a bright line at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top lies at the right
    image.rotate(90, expand=True).save(tmp_path / "x.png", exif=exif)
    seen = np.asarray(decoded(Stored(str(tmp_path / "x.png"), 0, "x"), "L"))
    assert seen.shape == (8, 16) and (seen[:2] == 255).all() and (seen[2:] == 0).all()


def test_a_bomb_is_one_line_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "pets")
    flat(3, 300).save(root / "bee" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = pets(root).open(deit(), 0, str(tmp_path / "cache"))
    line = error_of(lambda: next(source.batches(0, source.samples)))
    assert "bomb.png cannot be read" in line and "decompression bomb" in line


def test_a_renamed_class_is_refused_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "pets")
    model = DeiT(image=16, channel=3, patch=4, classes=3, embed=16, head=2, head_dim=8, ffn=32, layer=2)
    config = replace(
        toy.make(model=model, cache=str(tmp_path / "cache"), checkpoint=toy.Checkpoint("2 steps")), data=pets(root)
    )
    real = MappedImages.batches

    def batches(self: MappedImages, *where):
        for number, batch in enumerate(real(self, *where)):
            if number == 4:
                raise Broken("the disk is gone")
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(MappedImages, "batches", batches)
        toy.run(tmp_path / "run", config)
    (root / "ant").rename(root / "dog")
    with pytest.raises(UserError, match="the data that this run began with"):
        toy.run(tmp_path / "run", config)
    (root / "dog").rename(root / "ant")
    toy.run(tmp_path / "run", config)
    # What an export says of the classes.
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    published = json.loads((tmp_path / "run" / "model" / "published.json").read_text())
    assert published["id2label"] == {str(n): name for n, name in enumerate(classes)}
