"""Questions that need everything above.

* `demo.py`: AdamW against IVON; `report.py`: its page and its verdict; `table1/`: every method on every task;
* `lengths.py`: tables of several lengths; `recorded.py`: where recorded results lie.
"""

from .demo import run_demo
from .lengths import by_length
from .recorded import recorded
from .report import verdict
from .table1 import Table, load_records, paper_table, run_table
