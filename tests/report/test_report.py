import subprocess
import sys

import pytest

from del_lightning import report


def test_public_functions_are_there() -> None:
    assert all(callable(getattr(report, name)) for name in report.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        report.nope  # noqa: B018


def test_records_do_not_wait_for_the_plots() -> None:
    code = "import sys, del_lightning.report.schema; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
