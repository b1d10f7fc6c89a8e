"""Questions that need everything above.

* `demo.py`: AdamW against IVON; `report.py`: its page and its verdict; `table1/`: every method on every task;
* `lengths.py`: tables of several lengths; `recorded.py`: where recorded results lie.
"""

from .demo import run_demo as run_demo
from .lengths import by_length as by_length
from .recorded import recorded as recorded
from .report import verdict as verdict
from .table1 import Table as Table, load_records as load_records, paper_table as paper_table, run_table as run_table
