"""Registers the formats that data comes in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.data.arrow_rows import SAVED, SPLITS, arrow_rows, parquet_rows, saved_rows
from lorakit.data.json_rows import json_rows
from lorakit.data.rows import Counted, Row, Rows
from lorakit.data.table_rows import csv_rows, paragraphs
from lorakit.hooks.specs import hookimpl


@dataclass(frozen=True)
class Format:
    """A format and what reads it."""

    name: str
    summary: str
    reader: Rows
    suffixes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    named_only: bool = False

    def rows(self, path: Path, progress: Counted) -> Iterator[Row]:
        """Yield the records of a file, or of a folder that holds a mark."""
        return self.reader(path, progress)


@hookimpl
def lorakit_data_formats() -> list[Format]:
    return [
        Format("JSON", "Objects, one a line or in an array.", json_rows, (".jsonl", ".json", ".ndjson")),
        Format("CSV", "Tables whose first line names the columns.", csv_rows, (".csv", ".tsv")),
        Format("parquet", "Tables in columns.", parquet_rows, (".parquet",)),
        Format("Arrow", "Arrow's files and streams.", arrow_rows, (".arrow",)),
        # many a folder of data holds a README
        Format(
            "text", "Paragraphs, with blank lines between.", paragraphs, (".txt", ".text", ".md", ""), named_only=True
        ),
        Format("datasets", "Folders that `datasets` saved.", saved_rows, marks=(SAVED, SPLITS)),
    ]
