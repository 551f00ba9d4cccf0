"""Only declared errors come out of whatever reads the network. `make fuzz SECONDS=60` looks for more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.acting import close
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).with_name("corpus")
ALL = pytest.mark.parametrize("name", TARGETS)

short = st.text(max_size=8)
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | short | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    """What other tests start is the first of its process."""
    yield
    close()


@ALL
def test_what_was_found_once_is_read_again(name: str) -> None:
    found = sorted((CORPUS / name).iterdir())
    assert found
    for path in found:
        TARGETS[name](path.read_bytes())


@ALL
def test_what_is_valid_is_read(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name](seed)


@st.composite
def broken(draw: st.DrawFn, target: Target) -> bytes:
    """A valid input with something else in the place of some of it: bytes, or a value of msgpack."""
    data = draw(st.sampled_from(list(target.seeds())))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 8)))
        data = data[:begin] + draw(st.binary(max_size=8) | junk.map(msgpack.packb)) + data[end:]
    return data


@ALL
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_is_nearly_valid_raises_declared_errors_only(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(broken(TARGETS[name])))
