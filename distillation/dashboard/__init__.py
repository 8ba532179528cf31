"""`distill dashboard`: the run store in a browser.

`create_app(root)` is an ASGI application that reads the runs under `root`; all it writes are notes
and hides. `security` says who may ask, `catalogue` lists the runs, `series` and `curves` read their
metrics, `pages/` holds what the browser gets.
"""

from __future__ import annotations

from distillation.dashboard.app import create_app

__all__ = ["create_app"]
