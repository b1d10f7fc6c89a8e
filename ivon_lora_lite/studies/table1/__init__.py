"""Table 1 of Cong et al. (2024): methods × tasks × seeds, one folder per cell, resumable.

    python -m ivon_lora_lite table1 --tasks everyday --seeds 21 42 87 --out runs/table1

* `cells.py`: what a cell is, on which other cells it stands, and what its method is given (`methods/` fills it);
* `records.py`: a finished cell's folder, checked when it is read;
* `runner.py`: fills the cells that are missing, in one process, in several, or on a Ray cluster;
* `decisions.py`: what each method's uncertainty is good for;
* `layout.py`: means and standard errors over seeds, as Markdown, HTML and LaTeX.
"""

from .cells import Cell as Cell
from .decisions import decision_scores as decision_scores, decision_table as decision_table
from .layout import Table as Table, paper_table as paper_table
from .records import Record as Record, export as export, load_record as load_record, load_records as load_records
from .runner import run_table as run_table
