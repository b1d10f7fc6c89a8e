"""Questions that need everything above.

* `demo.py`: AdamW against IVON; `report.py`: its page and its verdict; `table1/`: every method on every task.
"""

from .demo import run_demo
from .report import verdict
from .table1 import Table, load_records, paper_table, run_table
