"""What several tests of reports look at."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from del_lightning.report.site import load, write_site

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="session")
def committed_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First page of the site of all committed results; nobody changes it."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # that of all workers: the first to come here builds for all
    page = place / "committed" / "site" / "index.html"
    with FileLock(place / "committed.lock"):
        return page if page.is_file() else write_site(page.parent, load([RESULTS]).runs)
