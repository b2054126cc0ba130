"""This module reads the rows of one order."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from loramux_runtime.data import DataConfig, Tokenizer, TokenisedRows, length_stats
from loramux_runtime.jobs.job_data import job_data
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.live.reading.orders import Before, ReadAnswer, ReadOrder
from loramux_runtime.live.reading.row_files import RowFiles
from loramux_traces.errors import LoramuxError, StateError

FILES: Final = 8
"""Data files whose rows a reader remembers, so that the next job of the same file has them at once."""


class RowReader:
    """Reads, tokenises and keeps rows, with one tokenizer and one folder of kept rows."""

    def __init__(self, tokenizer: Tokenizer, files: RowFiles) -> None:
        self._tokenizer, self._files = tokenizer, files
        self._known: OrderedDict[tuple[Any, ...], tuple[str, TokenisedRows, FileReport]] = OrderedDict()
        """Kept rows by what they were made of, the latest last."""

    def read(self, order: ReadOrder, sign: Callable[[int], None] = lambda rows: None) -> ReadAnswer:
        """Return the answer to an order; only what ends a process is raised.

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

    def _answer(self, order: ReadOrder, sign: Callable[[int], None]) -> ReadAnswer:
        job = TrainJob.model_validate(dict(order.config))
        if order.before is not None:
            kept = self._as_kept(order, job, order.before)
            if kept is not None:
                return kept
        at = datetime.fromtimestamp(order.rendered_unix_s, UTC)
        tokens: dict[str, tuple[str, TokenisedRows]] = {}
        files: dict[str, str] = {}

        def tokenise(path: Path, config: DataConfig, *rest: Any) -> tuple[TokenisedRows, FileReport]:
            part = "data file" if not tokens else "eval file"
            name, rows, report, files[part] = self._tokens(path, config, order, at, sign)
            tokens[part] = name, rows
            return rows, report

        data = job_data(
            job,
            self._tokenizer,
            vocab_size=order.vocab_size,
            base=Path(order.folder),
            rendered_at=at,
            tokenise=tokenise,
        )
        assert isinstance(data.train, TokenisedRows)  # synthetic rows are made where they are used
        kept = {"train": self._files.keep_choice(*tokens["data file"], data.train), "eval": None}
        if data.eval is not None:
            kept["eval"] = self._files.keep_choice(*tokens.get("eval file", tokens["data file"]), data.eval)
        made_of = {**files, **self._tokenizer.made_of(at)}
        if order.before is not None and data.train.sha256 != order.before.sha256:
            return _changed(order, made_of, "and those it began with are not kept any more")
        return self._found(order, data.train, kept, made_of, data)
