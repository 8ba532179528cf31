"""Which student came from which teacher."""

from __future__ import annotations

from distillation.dashboard.catalogue import Entry, Listing
from distillation.runs.metrics import main_values


def lineage(listing: Listing) -> dict:
    """{"nodes": […], "edges": [{"teacher", "student"}]}; one not in the store is "missing"."""
    nodes = [_node(entry) for entry in listing.entries.values()]
    edges = []
    missing: dict[str, dict] = {}
    for entry in listing.entries.values():
        for teacher in entry.teachers:
            edges.append({"teacher": teacher, "student": entry.uuid})
            if teacher not in listing.entries:
                missing[teacher] = {
                    "uuid": teacher,
                    "name": None,
                    "experiment": None,
                    "status": "missing",
                    "metric": None,
                    "created": None,
                    "hidden": False,
                }
    return {"nodes": [*nodes, *missing.values()], "edges": edges}


def main_metric(entry: Entry) -> dict | None:
    """The metric to show where there is room for one: {"name", "value"}."""
    for name, value in main_values(entry.facts["metrics"], most=1).items():
        return {"name": name, "value": value}
    return None


def _node(entry: Entry) -> dict:
    shown = ("uuid", "name", "experiment", "status", "created", "hidden")
    return {**{key: entry.facts[key] for key in shown}, "metric": main_metric(entry)}
