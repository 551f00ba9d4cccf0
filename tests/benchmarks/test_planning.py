from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.children import BenchmarkError
from benchmarks.planning import Limits, plan, read_limits

ENOUGH = Limits(descriptors=20_000, all_descriptors=1 << 30, tracked=None, ports=28_232, free_bytes=64_000_000_000)


def test_clients_are_divided_evenly_and_completely() -> None:
    planned = plan(60_001, 6, ENOUGH)
    assert sum(planned.nodes) == sum(planned.swarms) == 60_001
    assert max(planned.nodes) - min(planned.nodes) <= 1
    assert max(planned.swarms) <= 19_700
    portions = planned.portions()
    assert [sum(shares) for shares in portions] == planned.swarms
    assert [sum(shares) for shares in zip(*portions, strict=True)] == planned.nodes


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (replace(ENOUGH, descriptors=5_000), "--nodes 13 or more, .*ulimit -Hn 10300"),
        (replace(ENOUGH, descriptors=200), "raise it with `ulimit -Hn"),
        (replace(ENOUGH, all_descriptors=100_000), "fs.file-max"),
        (replace(ENOUGH, tracked=59_999), "nf_conntrack_max"),
        (replace(ENOUGH, free_bytes=2_000_000_000), "--clients [1-9]"),
        (replace(ENOUGH, free_bytes=1_000_000), "--clients 0"),
    ],
)
def test_a_limit_that_does_not_allow_it_is_named_with_what_to_do(limits: Limits, says: str) -> None:
    with pytest.raises(BenchmarkError, match=says) as refused:
        plan(60_000, 6, limits)
    assert refused.value.exit_code == 2


def test_following_the_advice_helps() -> None:
    with pytest.raises(BenchmarkError, match="use --nodes 4 or more"):
        plan(60_000, 2, ENOUGH)
    assert plan(60_000, 4, ENOUGH)


def test_this_machines_limits_are_read() -> None:
    limits = read_limits()
    assert limits.descriptors > 0
    assert limits.free_bytes > 0
