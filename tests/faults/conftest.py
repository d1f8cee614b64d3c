"""Counts of what was done to runs, records and files, shown at the end."""

from collections import Counter

import pytest

COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="session")
def counts() -> Counter[str]:
    return COUNTS


def pytest_terminal_summary(terminalreporter) -> None:
    if COUNTS:
        terminalreporter.write_line("faults: " + ", ".join(f"{n:,} {name}" for name, n in COUNTS.items()))
