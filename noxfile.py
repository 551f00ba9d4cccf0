"""The suite on every supported Python, with the oldest and the newest python-socketio.

`nox` runs what this machine has interpreters for and skips the rest. `nox -s "tests-3.10(oldest)"` runs one.
"""

from __future__ import annotations

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "venv"


@nox.session(python=PYTHONS)
@nox.parametrize("libraries", [nox.param(name, id=name) for name in ("oldest", "newest")])
def tests(session: nox.Session, libraries: str) -> None:
    """Run the suite with the lower bounds of setup.cfg, or with the newest releases."""
    constraints = ["--constraint", "tests/oldest.txt"] if libraries == "oldest" else []
    session.install("--editable", ".[test]", *constraints)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.11")
def check(session: nox.Session) -> None:
    """Format, lint and types; the Makefile installs what they need."""
    session.run("make", "lint", "types", f"VENV={session.virtualenv.location}", external=True)
