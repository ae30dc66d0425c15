"""Tables of the group piece by piece: what is kept of all scans is small, and what is large is never whole in memory.

The long table has a row for each value of each label of each scan, so that of ten thousand scans has millions. It is read,
joined with the participants and written some hundred scans at a time. Kept are a number for each scan and column of the
volumes, or line of the summary, and what compares scans with each other: landmarks, and sessions of one participant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import atomic_path, read_table, table_text
from popatlas.measures.dictionary import ATLASES, COLUMNS, KEYS
from popatlas.measures.landmarks import LANDMARKS, landmark_errors
from popatlas.measures.sessions import COORDINATES as OF_AFFINES
from popatlas.measures.sessions import session_distances
from popatlas.measures.summary import Spread
from popatlas.measures.wide import WHO, Volumes, as_numbers, number_columns, with_missing, with_participants
from popatlas.renamed import COLUMNS as OLD_COLUMNS
from popatlas.renamed import with_columns_of_today

if TYPE_CHECKING:
    from collections.abc import Iterable

SCANS = 500  # of a piece


def read_scan_tables(tables: Iterable[Path]) -> pd.DataFrame:
    """Read and stack the tidy tables of scans; keys are text, absent sessions are empty text.

    Tables of earlier versions, which called the participant otherwise, are taken too.
    """
    kinds = dict.fromkeys([*KEYS, *OLD_COLUMNS, "metric", "unit"], str)
    frames = []
    for table in tables:
        frame = with_columns_of_today(read_table(table, dtype=kinds))
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise InputError(f"columns {missing} are missing", file=table, remedy="delete the file and run again")
        if len(frame):
            frames.append(frame)
    stacked = pd.concat(frames, ignore_index=True)[COLUMNS] if frames else pd.DataFrame(columns=COLUMNS)
    texts = [column for column in COLUMNS if column != "value"]
    stacked[texts] = stacked[texts].fillna("").astype(str)
    stacked["value"] = stacked["value"].astype(float)
    return stacked


class Pieces:
    """The long table of a group in pieces, and what is kept of those that have been read.

    Parameters
    ----------
    tables : sequence of Path
        Tables of the scans, those of a participant together.
    extra : sequence of Path
        More tidy tables of the same scans.
    scans : DataFrame
        Columns participant_id, session_id and, where there are any, atlases.
    participants : DataFrame, optional
        See `popatlas.measures.wide.with_participants`.

    Attributes
    ----------
    volumes : Volumes
        Of the pieces that have been read.
    spread : Spread
        Values of the summary.
    """

    def __init__(
        self, tables: Sequence[Path], extra: Sequence[Path], scans: pd.DataFrame, participants: pd.DataFrame | None
    ) -> None:
        self.tables, self.extra, self.scans, self.participants = tables, extra, scans, participants
        self.volumes, self.spread = Volumes(), Spread()
        repeated = scans["participant_id"].duplicated(keep=False)
        self._visitors = frozenset(scans.loc[repeated, "participant_id"])
        self._compared: list[pd.DataFrame] = []

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Yield the pieces, joined with the participants; at least one, which may be empty."""
        for rows in self._read():
            self._keep(rows)
            yield self.joined(rows)
        compared = pd.concat(self._compared, ignore_index=True)
        more = [rows for rows in (landmark_errors(compared), session_distances(compared)) if len(rows)]
        if more:
            rows = pd.concat(more, ignore_index=True)
            self._keep(rows)
            yield self.joined(rows)

    def _read(self) -> Iterator[pd.DataFrame]:
        left = iter(self.tables)
        while part := list(islice(left, SCANS)):
            yield read_scan_tables(part)
        if self.extra or not self.tables:
            yield read_scan_tables(self.extra)

    def _keep(self, rows: pd.DataFrame) -> None:
        self.volumes.add(rows)
        self.spread.add(rows)
        of_visits = rows["metric"].isin(OF_AFFINES) & rows["participant_id"].isin(self._visitors)
        self._compared.append(rows[rows["metric"].isin(LANDMARKS) | of_visits])

    def joined(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return rows with the number of atlases of their scans and what is known of the participants."""
        known = rows.merge(self.scans, on=WHO, how="left") if ATLASES in self.scans else rows
        return with_participants(known, self.participants)

    def numbers(self) -> list[str]:
        """Return the columns of the participants that hold numbers and nothing else."""
        blank = self.scans.reindex(columns=[*COLUMNS, *self.scans.columns.difference(COLUMNS)])
        table = with_participants(blank, self.participants)
        return number_columns(table, [str(name) for name in table if name not in blank])


def write_pieces(pieces: Pieces, parquet: Path, tsv: Path) -> list[str]:
    """Write the long table as Parquet and as TSV, and return its columns.

    Parameters
    ----------
    pieces : Pieces
        Those that are written, and kept of.
    parquet, tsv : Path
        Output files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers, columns = pieces.numbers(), list[str]()
    writer, schema = None, None
    with atomic_path(parquet, check=False) as binary, atomic_path(tsv, check=False) as text, text.open("w") as stream:
        try:
            for piece in pieces:
                typed = as_numbers(piece, numbers)
                if schema is None or writer is None:
                    columns, schema = [str(name) for name in piece], _schema(typed, numbers)
                    writer = pq.ParquetWriter(binary, schema)
                    stream.write(table_text(with_missing(piece.iloc[:0])))
                writer.write_table(pa.Table.from_pandas(typed, schema=schema, preserve_index=False))
                stream.write(table_text(with_missing(piece)).partition("\n")[2])
        finally:
            if writer is not None:
                writer.close()
    return columns


def _schema(first: pd.DataFrame, numbers: Sequence[str]) -> object:
    """Return the types of the columns: what is empty in the first piece is text or a number all the same."""
    import pyarrow as pa

    found = pa.Schema.from_pandas(first, preserve_index=False)
    fixed: Mapping[str, object] = {"value": pa.float64(), ATLASES: pa.int64()} | dict.fromkeys(numbers, pa.float64())
    types = {field.name: pa.string() if pa.types.is_null(field.type) else field.type for field in found} | {
        name: kind for name, kind in fixed.items() if name in first
    }
    return pa.schema([(name, types[name]) for name in map(str, first)], metadata=found.metadata)
