"""Cases of a test of which most are left to the slow tier: each compiles programs of its own."""

from collections.abc import Iterable

import pytest


def seldom(cases: Iterable, *often: object) -> list:
    """All cases; those that are not among `often` run with -m slow alone."""
    cases = list(cases)
    assert set(often) <= set(cases), f"no case {set(often) - set(cases)}"
    return [case if case in often else pytest.param(case, marks=pytest.mark.slow) for case in cases]
