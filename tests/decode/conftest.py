"""The built-in model, loaded once for all tests of this package."""

import pytest

from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel


@pytest.fixture(scope="session")
def builtin() -> LoadedModel:
    return load_model(dtype="float32", device="cpu")
