"""What several tests of reports look at."""

from pathlib import Path

import pytest

from del_lightning.report.site import load, write_site

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="session")
def committed_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First page of the site of all committed results; nobody changes it."""
    return write_site(tmp_path_factory.mktemp("committed") / "site", load([RESULTS]).runs)
