"""What all tests of the project start with, those of the lessons in ``notebooks`` too."""

import os
import tempfile
from pathlib import Path

pytest_plugins = ["lesson_runs"]  # of ``tests``

# Ultralytics writes its settings when it is imported: here, into a folder that goes when the tests end.
_settings = tempfile.TemporaryDirectory(prefix="ultralytics-settings-", ignore_cleanup_errors=True)
os.environ["YOLO_CONFIG_DIR"] = _settings.name
# Exercises that tests and their kernels solve are no progress of whoever runs the tests.
os.environ["YOLO_SLIM_PROGRESS"] = os.path.join(_settings.name, "progress.json")
# Every Python that tests start, and so the kernel of every lesson, ends if it asks the network for anything.
_paths = [str(Path(__file__).parent / "tests" / "no_network"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))


def pytest_runtest_logreport(report):
    """Say at once what failed, for the summary at the end is lost when a run is cut off."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}")
