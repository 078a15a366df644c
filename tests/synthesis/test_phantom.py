import numpy as np

from monai_attention.synthesis.phantom import T1, head_image, head_labels


def test_convention_left_structures_lie_at_negative_x():
    labels, affine = head_labels(4.0)
    for left, right in ((3, 42), (2, 41), (4, 43), (10, 49), (11, 50), (12, 51), (8, 47), (7, 46)):
        for label, sign in ((left, -1), (right, 1)):
            where = np.argwhere(labels == label)
            assert len(where) > 0, label
            assert np.sign((where @ affine[:3, :3].T + affine[:3, 3])[:, 0].mean()) == sign


def test_the_head_is_the_same_at_every_spacing():
    fine, coarse = (head_labels(mm)[0] for mm in (2.0, 4.0))
    for label in (3, 2, 8, 16, 507):
        ml = [(array == label).sum() * mm**3 / 1000 for array, mm in ((fine, 2.0), (coarse, 4.0))]
        assert abs(ml[0] - ml[1]) < 0.1 * ml[0] + 2


def test_every_label_has_a_brightness_and_the_image_is_reproducible():
    image, labels, _ = head_image(4.0)
    assert set(np.unique(labels)) - {0} <= set(T1)
    assert np.array_equal(image, head_image(4.0)[0])
    assert image[labels == 2].mean() > image[labels == 3].mean() > image[labels == 24].mean()
