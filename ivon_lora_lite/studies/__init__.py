"""Questions that need everything above: `demo.py`, AdamW against IVON; `table1/`, every method on every task."""

from .demo import run_demo
from .table1 import Table, load_records, paper_table, run_table
