"""Fuzzing with atheris: `python -m tests.fuzz [--seconds 60] [TARGET ...]`.

Each target gets an equal part of the time, in a process of its own. What makes a target go a new way is kept in
`tests/fuzz/corpus/TARGET`, as far as it is small; what breaks one is written to `crash-...` and ends with code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gevent_mesh"]):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
MAX_KEPT_BYTES = 2048


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target in a child, starting from its seeds and its corpus. Returns whether it held."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as found:
        for seed in TARGETS[name].seeds():
            keep(Path(found), seed)
        flags = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
        command = [sys.executable, "-m", "tests.fuzz", "--run", name, "--", found, str(CORPUS / name), *flags]
        held = subprocess.run(command, check=False).returncode == 0
        # Then what is needed to go all ways is merged into the corpus.
        subprocess.run([*command[:6], "-merge=1", str(CORPUS / name), found], check=False, capture_output=True)
    for path in (CORPUS / name).iterdir():
        if path.stat().st_size > MAX_KEPT_BYTES:
            path.unlink()
    return held


def keep(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def run(name: str, flags: list[str]) -> None:
    # The fuzzer starts itself by its name, through a shell, when it merges.
    atheris.Setup([f"{sys.executable} -m tests.fuzz --run {name} --", *flags], TARGETS[name])
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--run", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help=f"some of: {', '.join(TARGETS)}")
    options = parser.parse_args()
    if options.run:
        run(options.run, options.targets)
        return
    names = options.targets or list(TARGETS)
    failed = [name for name in names if not fuzz(name, max(1, options.seconds // len(names)))]
    print(f"{len(names) - len(failed)} of {len(names)} targets held" + "".join(f"; {name} broke" for name in failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
