"""Published weights give the published outputs and gradients."""

import pytest

from tests import parity


@pytest.mark.parametrize("name", parity.names())
def test_our_network_gives_the_numbers_of_the_published_one(name):
    assert parity.compare(name).within
