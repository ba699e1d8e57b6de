"""Whether a deletion finds what it deletes: which rows and records it is about, and where ``check`` warns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.check_deletes import examine_deletes
from workers.codecs.parquet import ParquetRenderer
from workers.codecs.qdrant import QdrantRenderer, point_id
from workers.codecs.tombstone import render_tombstone
from workers.records import Document, Embedding, Origin, Record
from workers.settings import Settings

TOPIC, FILES = {"topic": "vectors"}, {"kind": "parquet", "uri": "s3://bucket/vectors"}
RECORD = Record(Origin("documents", 0, 7, 0), b"key", b"{}", 0)
EMBEDDING = Embedding(Document("an id of fields", "text"), np.array([0.6, 0.8], np.float32), 1, False)


def test_what_a_deletion_and_what_it_deletes_have_in_common():
    """The key, in rows and in records; the id of fields is in rows that are deleted, and in no deletion."""
    vector, gone = EMBEDDING.vector, replace(RECORD, value=None)
    rows = ParquetRenderer(dim=2, precision="float32", model="m", fingerprint="f")
    row, deletion = rows.row(RECORD, EMBEDDING, vector, None), rows.deletion(gone)
    assert (row.key, deletion.key) == (b"key", b"key")
    assert (row.id, deletion.id) == ("an id of fields", "key")
    points = QdrantRenderer("vectors", "c", 2, "float32", "m", "f")
    point = points.render(RECORD, EMBEDDING, vector)
    assert point.key == render_tombstone(gone, "vectors").key == b"key"
    assert point.value is not None and point_id(b"key").encode() in point.value


@pytest.mark.parametrize(
    ("source", "outputs", "names"),
    [
        ({"id": "{id}"}, [TOPIC], None),
        ({}, [TOPIC, FILES], None),
        ({"id": "{id}"}, [TOPIC, FILES], "source.id"),
        ({"mappings": [{"topics": ["b"], "id": "{isbn}"}]}, [FILES, TOPIC], "source.mappings.0.id"),
        ({"id": "{id}", "mappings": [{"topics": ["a", "b"]}]}, [FILES], "source.id"),
        ({"id": "{id}", "mappings": [{"topics": ["a", "b"], "format": "text"}]}, [FILES], None),
        ({"id": "{id}", "mappings": [{"topics": ["b"], "format": "text"}]}, [FILES], "source.id"),
    ],
)
def test_check_warns_where_a_deletion_is_not_found_by_id(
    source: dict[str, Any], outputs: list[dict[str, str]], names: str | None
):
    found = list(examine_deletes(Settings(source={"topics": ["a", "b"], **source}, outputs=outputs)))
    assert len(found) == (names is not None)
    for finding in found:
        assert finding.may_never_happen and finding.wrong is not None
        assert finding.wrong.startswith(f"{names} takes ids from the value")
        assert f"(outputs.{outputs.index(FILES)})" in finding.wrong and "\n" not in finding.wrong
