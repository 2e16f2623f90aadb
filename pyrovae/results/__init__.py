"""What every measurement returns: plain arrays in, one checked `xarray.DataTree` out; tables, sentences, files.

`SCHEMA` is the documentation of a result tree: which groups it may have, their variables and dims.
"""

from pyrovae.results.groups import (
    Evidence,
    build_tree,
    evidence_group,
    evidence_labels,
    group,
    latent_names,
    sample_stats_group,
)
from pyrovae.results.schema import DIRECTIONS, SANDWICH_VERDICTS, SCHEMA, SOURCES, VERDICTS, check
from pyrovae.results.storage import content_hash, read, read_lazily, write, written_in_parts

__all__ = [
    "DIRECTIONS",
    "SANDWICH_VERDICTS",
    "SCHEMA",
    "SOURCES",
    "VERDICTS",
    "Evidence",
    "build_tree",
    "check",
    "content_hash",
    "evidence_group",
    "evidence_labels",
    "group",
    "latent_names",
    "read",
    "read_lazily",
    "sample_stats_group",
    "write",
    "written_in_parts",
]
