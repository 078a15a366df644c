import nibabel
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from monai_attention.synthesis.dataset import ContinueFrom, LabelMapDataset
from monai_attention.synthesis.images import ImageGenerator

CLASSES = {"grey": [3, 42], "white": [2, 41]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    paths = []
    for k in range(2):
        array = np.zeros((20, 22, 24), np.int16)
        array[4:16, 4:18, 4:20] = 3
        array[10:16, 4:18, 4:20] = 42
        array[6:9, 8:14, 8:16], array[11:14, 8:14, 8:16] = 2, 41
        array[:, :3] = 510 + k
        paths.append(folder / f"{k}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-2.0, 2, 2, 1])), paths[-1])  # LAS: mirrored on reading
    return paths


def _dataset(files, **options):
    generator = ImageGenerator((16, 16, 16), spacing=2.0)
    options = {"length": 6, "jitter_mm": 2.0, "pairs": [[3, 42], [2, 41]], "strip": [0, 510, 511], **options}
    return LabelMapDataset(files, **{"generator": generator, "classes": CLASSES, **options})


def test_items_are_pairs_of_image_and_class_numbers(files):
    item = _dataset(files)[0]
    assert item["image"].shape == item["label"].shape == (1, 16, 16, 16)
    assert set(item["label"].unique().tolist()) <= {0, 1, 2}
    assert (item["label"] > 0).any()


def test_an_item_is_the_same_every_time_and_in_every_process(files):
    dataset = _dataset(files)
    here = [dataset[i]["image"] for i in range(4)]
    assert not torch.equal(here[0], here[2])
    workers = [batch["image"][0] for batch in DataLoader(dataset, num_workers=2)]
    for one, other in zip(here, workers, strict=False):
        assert torch.equal(one, other)
    assert not torch.equal(here[0], _dataset(files, seed=1)[0]["image"])


def test_images_are_drawn_on_the_device_of_the_set(files):
    """Whatever else was the default: what a draw makes says where it lies."""
    given = {"strip": [0, 510, 511], "tissues": [[3], [2]], "seats": [2], "classes": CLASSES | {"tumour": [901, 903]}}
    dataset = _dataset(files, **given)
    dataset.generator.strip_probability, dataset.generator.contrasts = 1.0, [[0.4, 0.8]]
    dataset.generator.contrast_probability = 0.5
    here = [dataset[i]["image"] for i in range(6)]
    with torch.device("meta"):
        there = [dataset[i]["image"] for i in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_images_are_drawn_on_a_gpu(files):
    item = _dataset(files, device="cuda")[0]
    assert item["image"].is_cuda
    assert item["label"].is_cuda
    assert 0 <= item["image"].min() < item["image"].max() <= 1


def test_it_ends(files):
    assert len(list(_dataset(files))) == 6


def test_left_and_right_are_one_brightness_and_files_are_read_as_ras(files):
    dataset = _dataset(files)
    values = np.array([0, 2, 3, 41, 42, 510, 511])
    classes = dict(zip(values.tolist(), dataset.intensity_class.tolist(), strict=True))
    assert classes[2] == classes[41]
    assert classes[3] == classes[42]
    assert len(set(classes.values())) == 5
    labels = values[dataset.maps[0][0].numpy()]
    assert labels[4, 10, 10] == 42  # the last voxels of the file's first axis come first in RAS
    assert [values[i] for i in dataset.generator.strip_labels] == [0, 510, 511]


def test_left_stays_left_where_a_person_is_mirrored(tmp_path):
    array = np.zeros((20, 22, 24), np.int16)
    array[4:10, 4:18, 4:20], array[10:16, 4:18, 4:20] = 2, 41
    array[4:7, 4:7, 4:7] = 25  # the left alone has a lesion
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii.gz")
    dataset = LabelMapDataset(
        [tmp_path / "a.nii.gz"],
        generator=ImageGenerator((20, 22, 24), rotation_deg=0.0, elastic_mm=0.0, shear=0.0, scaling=0.0),
        classes={"left": [2], "right": [41], "left lesion": [25], "right lesion": [57]},
        pairs=[[2, 41], [25, 57]],
        length=12,
        jitter_mm=0.0,
    )
    lesions = set()
    for item in dataset:
        left, right = (torch.nonzero(item["label"][0] == c)[:, 0] for c in (1, 2))
        assert left.max() < right.min()
        lesions |= {
            (int(c), int(torch.nonzero(item["label"][0] == c)[0, 0]) > 10) for c in (3, 4) if c in item["label"]
        }
    assert lesions == {(3, False), (4, True)}  # both occur, each on its side


def test_a_resumed_training_goes_on_with_new_items(files):
    from types import SimpleNamespace

    dataset, fresh = _dataset(files), _dataset(files)
    ContinueFrom(dataset, batch_size=2)(SimpleNamespace(state=SimpleNamespace(iteration=2)))
    assert torch.equal(dataset[0]["image"], fresh[4]["image"])


def test_no_files_and_fractional_labels_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match="expected label maps, got an empty list"):
        _dataset([])
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(ValueError, match=r"bad\.nii\.gz.*whole numbers"):
        _dataset([tmp_path / "bad.nii.gz"])


def _saved(path, array):
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.eye(4)), path)
    return path


def test_maps_that_cannot_be_drawn_from_are_refused_by_name(files, tmp_path):
    plain = np.zeros((20, 20, 20))
    with pytest.raises(ValueError, match=r"low\.nii\.gz.*from 0 on.*from -1"):
        _dataset([files[0], _saved(tmp_path / "low.nii.gz", plain - 1)])
    for align in (False, True):
        with pytest.raises(ValueError, match=r"empty\.nii\.gz.*one of the classes"):
            _dataset([files[0], _saved(tmp_path / "empty.nii.gz", plain)], align=align)
    many = plain.copy()
    many.flat[:254] = np.arange(1000, 1254)
    with pytest.raises(ValueError, match=r"at most 256 values.*got 261"):  # 0, 2, 3, 41, 42, 510 and 511 as well
        _dataset([*files, _saved(tmp_path / "many.nii.gz", many)])


def test_around_a_map_without_background_is_background(tmp_path):
    full = np.full((12, 12, 12), 2)
    full[4:8, 4:8, 4:8] = 3
    dataset = _dataset([_saved(tmp_path / "full.nii.gz", full)], jitter_mm=40.0, strip=())
    labels = [dataset[i]["label"] for i in range(4)]
    assert all((label == 0).any() for label in labels)
    assert any((label == 2).any() for label in labels)


def test_sets_that_share_a_generator_strip_each_its_own(files, tmp_path):
    generator = ImageGenerator((16, 16, 16), spacing=2.0)
    more = np.full((12, 12, 12), 1)
    more[4:8, 4:8, 4:8] = 3
    one = _dataset(files, generator=generator)
    before = one.generator.strip_labels
    _dataset([_saved(tmp_path / "more.nii.gz", more)], generator=generator)
    assert one.generator.strip_labels == before
