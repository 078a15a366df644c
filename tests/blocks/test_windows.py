import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_attention.blocks.windows import Boxes, cut, from_boxes, inside_window, relative_index, to_boxes


@st.composite
def cuts(draw):
    """Grid, window and shift, of one to three axes."""
    axes = draw(st.integers(1, 3))
    window = [draw(st.integers(1, 4)) for _ in range(axes)]
    return [w * draw(st.integers(1, 3)) for w in window], window, [draw(st.integers(0, w - 1)) for w in window]


@given(cuts())
def test_every_token_is_in_one_box_and_comes_back_to_its_place(arguments):
    grid, window, shift = arguments
    x = torch.arange(2 * math.prod(grid) * 3).view(2, *grid, 3)
    out, seen = torch.full_like(x, -1), []
    for boxes in cut(grid, window, shift):
        inside = to_boxes(x, boxes)
        assert inside.shape == (2 * math.prod(boxes.number), math.prod(boxes.size), 3)
        seen += inside.flatten().tolist()
        from_boxes(inside, boxes, out)
    assert sorted(seen) == list(range(x.numel()))
    assert torch.equal(out, x)


def test_the_boxes_of_a_line_are_the_windows_and_what_the_shift_leaves_at_both_ends():
    assert cut([12], [4], [0]) == [Boxes((0,), (4,), (3,), (0,))]
    assert cut([12], [4], [1]) == [
        *(Boxes((0,), (1,), (1,), (3,)), Boxes((1,), (4,), (2,), (0,)), Boxes((9,), (3,), (1,), (0,))),
    ]
    assert [boxes.size for boxes in cut([4], [4], [2])] == [(2,), (2,)]


@pytest.mark.parametrize(("n", "shift"), [(10, 0), (8, 4), (8, -1)])
def test_cuts_that_do_not_fit_are_refused(n, shift):
    with pytest.raises(ValueError, match="multiple of the window and a smaller shift"):
        cut([n], [4], [shift])


def test_tokens_of_a_box_are_numbered_as_in_their_window():
    assert inside_window(Boxes((0, 0), (2, 2), (1, 1), (1, 0)), (3, 2)).tolist() == [2, 3, 4, 5]
    assert inside_window(Boxes((0, 0), (3, 2), (1, 1), (0, 0)), (3, 2)) is None


@pytest.mark.parametrize("window", [(5,), (2, 3), (3, 2, 4), (1, 3, 2, 2)])
def test_every_relative_position_has_a_row_of_its_own(window):
    index = relative_index(window)
    tokens = list(itertools.product(*map(range, window)))
    rows = {}
    for i, j in itertools.product(range(len(tokens)), repeat=2):
        offset = tuple(a - b for a, b in zip(tokens[i], tokens[j], strict=True))
        rows.setdefault(offset, set()).add(int(index[i, j]))
    assert all(len(found) == 1 for found in rows.values())
    assert sorted(found.pop() for found in rows.values()) == list(range(math.prod(2 * w - 1 for w in window)))
