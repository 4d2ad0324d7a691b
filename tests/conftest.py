"""Fixtures shared by all tests."""

import os
import pathlib

# Eight simulated devices for the sharding tests; must be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder with the real datasets and the T5 vocabulary; tests that need it skip where it is absent."""
    folder = pathlib.Path(os.environ.get("DSBS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "dss").is_dir():
        pytest.skip(f"needs the real data: set DSBS_SHARED_DATA (looked in {folder})")
    return folder
