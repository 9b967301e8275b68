"""What several tests of the training room look at."""

import pytest

from ovi_studio.training.toyland import Toyland
from ovi_studio.training.voices import TEST_VOICES, WordBank
from tests.training import tiny


@pytest.fixture(scope="session")
def bank() -> WordBank:
    return tiny.bank()


@pytest.fixture(scope="session")
def world(bank: WordBank) -> Toyland:
    return Toyland(3, bank)


@pytest.fixture(scope="session")
def test_world(bank: WordBank) -> Toyland:
    return Toyland(3, bank, "test", TEST_VOICES)
