"""This package turns a job's own data into rows to train on.

Data is read from a stranger's file, written with a template, tokenised, labelled and ordered.
"""

from loramux_runtime.data.config import DataConfig
from loramux_runtime.data.length_stats import LengthStats, length_stats
from loramux_runtime.data.load import FileReport, JobData, Rows, load_data, synthetic_data
from loramux_runtime.data.made_from import what_changed
from loramux_runtime.data.rows import TokenisedRows
from loramux_runtime.data.sample_stream import SampleStream
from loramux_runtime.data.synthetic import SyntheticConfig, SyntheticData, SyntheticReport, SyntheticRows
from loramux_runtime.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer

__all__ = [
    "DataConfig",
    "FileReport",
    "JobData",
    "LengthStats",
    "Rows",
    "SampleStream",
    "SyntheticConfig",
    "SyntheticData",
    "SyntheticReport",
    "SyntheticRows",
    "TokenisedRows",
    "Tokenizer",
    "byte_tokenizer",
    "length_stats",
    "load_data",
    "load_tokenizer",
    "synthetic_data",
    "what_changed",
]
