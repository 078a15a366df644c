"""What holds for all tests."""

import logging

import pytest


@pytest.fixture(autouse=True)
def level_of_the_log():
    """The command sets the level of the package's log; other tests want it as it was."""
    logger = logging.getLogger("monai_attention")
    level = logger.level
    yield
    logger.setLevel(level)
