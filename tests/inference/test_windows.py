import pytest

from monai_attention.inference.windows import Layout, rows, sum_bytes, window_starts


def test_windows_are_monais_or_evenly_spread():
    assert window_starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert window_starts(101, 40, 0.5) == [0, 20, 40, 60, 61]
    assert window_starts(101, 40, 0.5, even=True) == [0, 15, 30, 46, 61]
    assert window_starts(40, 40, 0.5) == [0]


def test_rows_finish_everything_once():
    starts = [[0, 3, 6], [0, 4], [0]]
    for whole in (False, True):
        finished = [row.finished for row in rows([10, 8, 5], [4, 4, 5], starts, whole=whole)]
        cells = [(x, y) for a, b in finished for x in range(a.start, a.stop) for y in range(b.start, b.stop)]
        assert sorted(cells) == [(x, y) for x in range(10) for y in range(8)]


def test_a_row_is_finished_where_the_next_begins():
    assert [row.finished for row in rows([10, 8, 5], [5, 4, 5], [[0, 5], [0, 4], [0]], whole=True)] == [
        (slice(0, 5), slice(0, 8)),
        (slice(5, 10), slice(0, 8)),
    ]


def test_the_last_windows_leave_no_more_at_once_than_others():
    last = rows([10, 8, 5], [6, 4, 5], [[0, 2, 4], [0, 4], [0]], whole=True)[-2:]
    assert [(row.ys, row.finished[0]) for row in last] == [([0, 4], slice(4, 6)), ([], slice(6, 10))]


def test_what_sums_need_does_not_grow_with_the_longest_axis():
    small, large = (Layout((20, n, 24), 8, 0.5) for n in (40, 400))
    held = [sum_bytes(7, *layout.three(), whole=False) for layout in (small, large)]
    assert held == [4 * 8 * 20 * (4 * 8 + 4 * 24)] * 2


def test_an_axis_whose_last_window_overlaps_a_lot_is_not_the_first():
    """Windows at 0, 48, ..., 432, 448: 48 voxels are shared at the end, against 16 along the shorter axis."""
    layout = Layout((512, 512, 400), 64, 0.25)
    assert layout.order[0] == 2
    assert sum_bytes(0, *layout.three(), whole=False) == 4 * 512 * (48 * 64 + 16 * 512)
    assert Layout((512, 512, 400), 64, 0.25, even=True).order[0] == 0


def test_small_images_are_padded_on_both_sides():
    layout = Layout((5, 20), 8)
    assert layout.pads == [(1, 2), (0, 0)]
    assert layout.padded == [8, 20]


def test_axes_a_little_longer_than_a_window_may_get_one_of_their_own_length():
    assert Layout((7, 12, 13), 8, stretch=1.5).roi == (8, 12, 8)
    assert Layout((7, 12, 13), 8, stretch=1.5).starts == [[0], [0], [0, 5]]


def test_an_overlap_of_one_is_refused():
    with pytest.raises(ValueError, match="less than 1; got"):
        Layout((5, 20), 8, 1.0)
