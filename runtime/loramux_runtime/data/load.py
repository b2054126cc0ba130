"""This module leads from a job's data settings to its rows.

`load_data` is the one call that the preparation of a job makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loramux_runtime.data.columns import unused_text
from loramux_runtime.data.config import DataConfig
from loramux_runtime.data.made_from import made_from
from loramux_runtime.data.parse import RecordReader
from loramux_runtime.data.readers import file_format, format_beside, read_rows
from loramux_runtime.data.render import Renderer
from loramux_runtime.data.rows import RowBuilder, TokenisedRows
from loramux_runtime.data.sample_stream import SampleStream
from loramux_runtime.data.source import check_unpacked, invalid, locate
from loramux_runtime.data.synthetic import SyntheticConfig, SyntheticReport, SyntheticRows
from loramux_runtime.data.tokenizer import Tokenizer
from loramux_traces.decimals import as_written
from loramux_traces.problems import Problems
from loramux_traces.sampling import uniforms

Rows = TokenisedRows | SyntheticRows
#: Called with the number of rows read so far, at every row: whoever shows it looks at the clock.
OnProgress = Callable[[int], None]
Tokenise = Callable[[Path, DataConfig, Tokenizer, int, datetime, OnProgress | None], "tuple[TokenisedRows, FileReport]"]
"""Makes rows of a file: `tokenise_file`, or what stands in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """Says what became of the rows of one file."""

    path: Path
    format: str
    """Format of the rows: instruction, completion, chat or text."""
    read: int
    cut: int
    """Number of rows longer than max_tokens."""
    skipped: int
    """Number of rows left out because they have nothing to learn within max_tokens."""
    last_turn_only: int
    """Number of chats of which the chat template let only the last answer be learned."""
    unlearned: int = 0
    """Number of chats left out because none of their answers is to be learned."""
    reasoning_left_out: int = 0
    """Number of chats of which the chat template wrote some turn without its reasoning."""
    unused: tuple[tuple[str, int], ...] = ()
    """Columns, and keys of turns, that are not read, with the number of their values."""

    def __str__(self) -> str:
        said = [f"{self.path.name}: {self.read} {self.format} rows"]
        said += [f"{self.cut} cut at max_tokens"] if self.cut else []
        said += [f"{self.skipped} left out (nothing to learn within max_tokens)"] if self.skipped else []
        said += [f"{self.unlearned} left out (no answer of theirs is to be learned)"] if self.unlearned else []
        said += [f"{self.last_turn_only} learned by their last answer only"] if self.last_turn_only else []
        if self.reasoning_left_out:
            said.append(f"{self.reasoning_left_out} with reasoning that the chat template leaves out of earlier turns")
        said += [unused_text(self.unused)] if self.unused else []
        return ", ".join(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobData:
    """Holds a job's rows, ready to train on."""

    train: Rows
    stream: SampleStream
    """The order in which the rows of `train` are taken."""
    eval: TokenisedRows | None
    """Held-out rows; no row of `train` has the same tokens."""
    report: FileReport | SyntheticReport | None
    """What became of the rows of the file; None where somebody else has read it."""
    eval_report: FileReport | None
    """Report on eval_path, where it is given."""
    held_out_copies: int
    """Number of training rows left out because a held-out row has the same tokens."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """What the rows depend on beside the job's settings (`made_from.what_changed` compares two)."""

    def bound(self, micro_batch: int) -> JobData:
        """Return the data of a job whose micro-batches the loop makes `micro_batch` rows.

        Only synthetic rows depend on it.
        """
        if isinstance(self.train, SyntheticRows):
            return replace(self, train=self.train.bind(micro_batch))
        return self


def load_data(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    seed: int,
    base: Path | None = None,
    roots: Sequence[Path] | None = None,
    rendered_at: datetime | None = None,
    progress: OnProgress | None = None,
    tokenise: Tokenise | None = None,
) -> JobData:
    """Read, tokenise and split a job's rows.

    The same settings, file, seed and `rendered_at` give the same rows and order. `rendered_at` (of
    any time zone, without one in UTC; None: now) is the time that a chat template is told which
    writes the date. `vocab_size` is the base model's: a larger token id is refused. `seed` (0 or
    more) draws the held-out rows and the order. A relative path is one from `base` (the folder of
    the jobs file); with `roots`, files elsewhere are refused. `tokenise` is called in the place of
    `tokenise_file` (by whoever keeps the rows of a file). Raises InvalidInputError that lists
    every bad row up to 50, with file, line, column, value and what is allowed, or says that too few
    rows are left; UsageError for settings that do not go with the data or the tokenizer.
    """
    path = locate(config.path, base, roots)
    rendered_at = datetime.now(UTC) if rendered_at is None else _in_utc(rendered_at)
    tokenise = tokenise or tokenise_file
    eval_path = None if config.eval_path is None else locate(config.eval_path, base, roots)
    rows, report = tokenise(path, config, tokenizer, vocab_size, rendered_at, progress)
    parts = made_from(path, eval_path, tokenizer, rendered_at)
    if eval_path is not None:
        # The format that the first file was taken for holds for the second.
        written = format_beside(eval_path, path, config.file_format)
        same = config.model_copy(update={"format": report.format, "file_format": written})
        held_out, eval_report = tokenise(eval_path, same, tokenizer, vocab_size, rendered_at, progress)
        train, copies = _without(rows, range(len(rows)), held_out)
    elif (n_held := _n_held_out(config, len(rows))) > 0:
        if n_held >= len(rows):
            raise invalid(path, f"{n_held} rows are to be held out, but it has {len(rows)}: none is left to train on")
        order = np.argsort(uniforms(seed, "data-held-out", len(rows)), kind="stable")
        held_out, eval_report = rows.select(np.sort(order[:n_held]).tolist()), None
        train, copies = _without(rows, np.sort(order[n_held:]).tolist(), held_out)
    else:
        stream = SampleStream(len(rows), seed, config.shuffle)
        return JobData(
            train=rows,
            stream=stream,
            eval=None,
            report=report,
            eval_report=None,
            held_out_copies=0,
            made_from=parts,
        )
    if not len(train):
        raise invalid(path, "every row is also a held-out row: none is left to train on")
    return JobData(
        train=train,
        stream=SampleStream(len(train), seed, config.shuffle),
        eval=held_out,
        report=report,
        eval_report=eval_report,
        held_out_copies=copies,
        made_from=parts,
    )


def synthetic_data(
    config: SyntheticConfig, job_id: str, *, rows: int, micro_batch: int, vocab_size: int, seed: int
) -> JobData:
    """Return the `rows` rows of a job without data of its own, each taken once and in order.

    `micro_batch` holds until `bound` is called.
    """
    made = SyntheticRows(config=config, job_id=job_id, rows=rows, micro_batch=micro_batch, vocab_size=vocab_size)
    return JobData(
        train=made,
        stream=SampleStream(rows, seed, shuffle=False),
        eval=None,
        report=SyntheticReport(rows=rows, seq_len=config.seq_len),
        eval_report=None,
        held_out_copies=0,
    )


def _in_utc(at: datetime) -> datetime:
    # A time without a zone is one in UTC, never one of the zone that this machine happens to be in.
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _n_held_out(config: DataConfig, n_rows: int) -> int:
    if config.eval_fraction is not None:
        return max(1, round(as_written(config.eval_fraction) * n_rows))
    return config.eval_rows or 0


def _without(rows: TokenisedRows, kept: Sequence[int], held_out: TokenisedRows) -> tuple[TokenisedRows, int]:
    """Return the `kept` rows that are no copies of a held-out row, and how many were copies."""
    forbidden = set(held_out.keys())
    keys = rows.keys()
    train = [row for row in kept if keys[row] not in forbidden]
    return rows.select(train), len(kept) - len(train)


def tokenise_file(
    path: Path,
    config: DataConfig,
    tokenizer: Tokenizer,
    vocab_size: int,
    rendered_at: datetime,
    progress: OnProgress | None,
) -> tuple[TokenisedRows, FileReport]:
    """Return all rows of one file, and what became of them.

    Arguments and errors are those of `load_data`.
    """
    check_unpacked(path)
    problems = Problems(str(path))
    kind = file_format(path) if config.file_format == "auto" else config.file_format
    records = RecordReader(config, problems, nulls_absent=kind == "parquet")
    renderer = Renderer(config, tokenizer, rendered_at=rendered_at)
    builder = RowBuilder(
        tokenizer,
        problems,
        vocab_size=vocab_size,
        max_tokens=config.max_tokens,
        answers_only=config.answers_only,
    )
    read = last_turn_only = reasoning_left_out = 0
    for line, row in read_rows(path, problems, format=kind, limit=config.limit, unused=records.unused):
        read += 1
        if progress is not None:
            progress(read)
        record = records.read(line, row)
        if record is None:
            continue
        try:
            rendered = renderer.render(record)
        except ValueError as error:
            problems.add(line, "", "", str(error))
            continue
        last_turn_only += rendered.last_turn_only
        reasoning_left_out += rendered.reasoning_left_out
        builder.add(line, rendered)
    rows = builder.finish()
    if not read and not problems.total:
        problems.add(
            0, "", "", "has no rows: at least one is needed (a JSON file is a list of rows, or has it as data)"
        )
    problems.raise_if_any()
    report = FileReport(
        path=path,
        format=records.format,
        read=read,
        cut=builder.cut,
        skipped=builder.skipped,
        last_turn_only=last_turn_only,
        unlearned=records.unlearned,
        reasoning_left_out=reasoning_left_out,
        unused=records.unused.counts(),
    )
    if not len(rows):
        raise invalid(path, f"no row has anything to learn within max_tokens ({config.max_tokens}): {report}")
    return rows, report
