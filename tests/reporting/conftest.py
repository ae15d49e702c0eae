"""A browser for the tests that look at pages with one; they are skipped where there is none, unless it is needed."""

from collections.abc import Iterator

import pytest

from tests.reporting.browser import Browser, needed, reason


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests of a process."""
    if (why := reason()) is not None:
        if needed():
            pytest.fail(why)
        pytest.skip(why)
    opened = Browser()
    yield opened
    opened.close()
