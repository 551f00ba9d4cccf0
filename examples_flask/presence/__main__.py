"""`python -m gevent_mesh_examples.presence` is the same as `python app.py`."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("gevent_mesh_examples.presence.app", run_name="__main__", alter_sys=True)
