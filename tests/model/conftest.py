"""The embedded pipeline, loaded once."""

import pytest

from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.weights.nano import load_nano


@pytest.fixture(scope="session")
def nano() -> OviPipeline:
    pipeline = load_nano()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
