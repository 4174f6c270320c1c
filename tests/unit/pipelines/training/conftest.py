"""One tiny dataset for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import put_samples


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return put_samples(tmp_path_factory.mktemp("tiny") / "12", 12)
