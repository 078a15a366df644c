"""The benchmark of training in small."""

import pytest

from benchmarks.training import measure, table


@pytest.mark.parametrize(
    ("bundle", "batch"), [("brain_mri_anatomy_nnformer", 2), ("brain_mri_registration_transmorph", 1)]
)
def test_a_bundle_is_measured_as_its_configuration_says(bundle, batch, people):
    found = measure(bundle, people, "cpu", 1, rounds=2, roi_size=[32, 32, 32], held_out=1, batch_size=batch)
    assert found["batch"] == batch
    assert found["drawn_per_second"] > 0
    assert found["learned_per_second"] > 0


def test_a_line_tells_what_a_step_takes():
    one = {"drawn_per_second": 8.0, "learned_per_second": 2.0, "batch": 3}
    assert table({"plain": one}).splitlines()[2:] == ["| plain | 8.0 | 2.0 | 1.50 |"]
