"""This module reads the rows of one order."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from loramux_runtime.data import DataConfig, TokenisedRows, Tokenizer, length_stats
from loramux_runtime.data.load import FileReport, OnProgress, tokenise_file
from loramux_runtime.data.made_from import made_from, what_changed
from loramux_runtime.data.source import locate, still
from loramux_runtime.jobs.job_data import data_notes, job_data, settings_notes
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.jobs.shared_rows import Recent, file_key
from loramux_runtime.live.reading.orders import CHANGED, READ, Before, ReadAnswer, ReadOrder
from loramux_runtime.live.reading.row_files import RowFiles
from loramux_traces.errors import InvalidInputError, LoramuxError, Problem, StateError, UsageError


class RowReader:
    """Reads, tokenises and keeps rows, with one tokenizer and one folder of kept rows."""

    def __init__(self, tokenizer: Tokenizer, files: RowFiles) -> None:
        self._tokenizer, self._files = tokenizer, files
        self._recent: Recent[tuple[str, TokenisedRows, FileReport]] = Recent()
        """Kept rows of the latest files: the next job of the same file has them at once."""

    def read(self, order: ReadOrder, sign: OnProgress = lambda rows: None) -> ReadAnswer:
        """Return the answer to an order; only what is to end the process is raised.

        `sign` is called on the way with the number of rows read so far.
        """
        try:
            return self._answer(order, sign)
        except StateError as error:
            return ReadAnswer(number=order.number, fate="disk", reason=_one_line(error))
        except LoramuxError as error:
            return ReadAnswer(number=order.number, fate="refused", reason=_one_line(error))
        except MemoryError:
            reason = "reading its rows takes more memory than a reader may use"
            return ReadAnswer(number=order.number, fate="refused", reason=reason)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's library is no Exception
            reason = f"its rows cannot be read: {type(error).__name__}: {_one_line(error)}"
            return ReadAnswer(number=order.number, fate="refused", reason=reason)

    def _answer(self, order: ReadOrder, sign: OnProgress) -> ReadAnswer:
        job = TrainJob.model_validate(dict(order.config))
        at = datetime.fromtimestamp(order.rendered_unix_s, UTC)
        if order.before is not None:
            answer = self._as_kept(order, job, order.before, at)
            if answer is not None:
                return answer
        kept_tokens: list[tuple[str, TokenisedRows]] = []

        def tokenise(path: Path, config: DataConfig, *rest: Any) -> tuple[TokenisedRows, FileReport]:
            name, rows, report = self._tokens(path, config, *rest)
            kept_tokens.append((name, rows))
            return rows, report

        data = job_data(
            job,
            self._tokenizer,
            vocab_size=order.vocab_size,
            base=Path(order.folder),
            rendered_at=at,
            progress=sign,
            tokenise=tokenise,
        )
        assert isinstance(data.train, TokenisedRows)  # synthetic rows are made where they are used
        kept: dict[str, Any] = {"train": self._files.keep_choice(*kept_tokens[0], data.train), "eval": None}
        digest = self._files.sha256(kept["train"], data.train)
        before = order.before
        if before is not None and digest != before.sha256:
            what = what_changed(before.made_from, data.made_from) if before.made_from else ""
            return _changed(order, what or "what its rows are made from", "the rows that it began with are gone")
        if data.eval is not None:
            # held-out rows are of the same file, or of one of their own
            kept["eval"] = self._files.keep_choice(*kept_tokens[-1], data.eval)
        notes = (*settings_notes(job, len(data.train)), *data_notes(data, order.longest_position))
        return self._found(order, data.train, digest, kept, data.made_from, notes)

    def _as_kept(self, order: ReadOrder, job: TrainJob, before: Before, at: datetime) -> ReadAnswer | None:
        """Return the answer for a job whose rows are still kept, or None where they are not."""
        try:
            assert before.kept is not None
            rows = self._files.open(before.kept["train"]).rows()
            if before.kept["eval"] is not None:
                self._files.open(before.kept["eval"])
            if rows.sha256 != before.sha256:
                return None
        except (StateError, AssertionError, KeyError):
            return None
        if not before.trusted:
            now = self._made_from(job, order, at)
            # another library or version of loramux changes nothing about rows that are there
            inputs = {name for name in (*before.made_from, *now) if not name.startswith(_ENVIRONMENT)}
            was = {name: before.made_from[name] for name in inputs if name in before.made_from}
            what = what_changed(was, {name: now[name] for name in inputs if name in now}) if now else ""
            if what:
                return _changed(order, what, "the rows that it began with are kept: loramux resume goes on with them")
        return self._found(order, rows, before.sha256, before.kept, before.made_from, ())

    def _made_from(self, job: TrainJob, order: ReadOrder, at: datetime) -> dict[str, str]:
        """Return what the job's rows would be made from now; nothing where a file is gone."""
        assert isinstance(job.data, DataConfig)
        folder = Path(order.folder)
        try:
            eval_path = None if job.data.eval_path is None else locate(job.data.eval_path, folder)
            return made_from(locate(job.data.path, folder), eval_path, self._tokenizer, at)
        except (InvalidInputError, UsageError):
            # the rows are kept: the file is not needed any more
            return {}

    def _tokens(
        self,
        path: Path,
        config: DataConfig,
        tokenizer: Tokenizer,
        vocab_size: int,
        at: datetime,
        sign: OnProgress | None,
    ) -> tuple[str, TokenisedRows, FileReport]:
        """Return the kept rows of a file, read and tokenised unless they are known."""
        before = still(path)

        def look() -> None:
            if still(path) != before:
                said = "is being written: it changed while it was read; submit the job again when it is whole"
                raise InvalidInputError([Problem(file=str(path), line=0, column="", value="", allowed=said)])

        def on_row(n_rows: int) -> None:
            # a log that is still written to would be read for minutes
            if n_rows % _LOOK_ROWS == 0:
                look()
            if sign is not None:
                sign(n_rows)

        def make() -> tuple[str, TokenisedRows, FileReport]:
            rows, report = tokenise_file(path, config, tokenizer, vocab_size, at, on_row)
            look()
            return (*self._files.keep_tokens(rows), report)

        date = at.isoformat() if tokenizer.tells_time else ""
        key = f"{file_key(path, config, vocab_size)}|{before}|{date}"
        name, rows, report = self._recent.get(key, make)
        if not self._files.has(name):
            # no job needed them any more, and so they were deleted
            name, rows = self._files.keep_tokens(rows)
        return name, rows, report

    @staticmethod
    def _found(
        order: ReadOrder,
        rows: TokenisedRows,
        sha256: str,
        kept: Mapping[str, Any],
        made_of: Mapping[str, str],
        notes: tuple[str, ...],
    ) -> ReadAnswer:
        stats = length_stats(rows)
        return ReadAnswer(
            number=order.number,
            fate=READ,
            sha256=sha256,
            rows=stats.rows,
            mean_tokens=stats.mean,
            p95_tokens=stats.p95,
            longest_tokens=stats.max,
            kept=kept,
            made_from=made_of,
            notes=notes,
        )


_LOOK_ROWS: Final = 1000
_ENVIRONMENT: Final = ("the library ", "how loramux ", "the date")


def _changed(order: ReadOrder, what: str, then: str) -> ReadAnswer:
    return ReadAnswer(number=order.number, fate="changed", reason=f"{what} {CHANGED}; {then}")


def _one_line(error: BaseException) -> str:
    return "; ".join(str(error).splitlines())[:2000] or type(error).__name__
