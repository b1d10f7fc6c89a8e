"""Language models and their questions: tasks, answer formats, base models with LoRA.

* `questions.py`, `sources.py`, `tasks.py`: what a question is, the known data sets, and loading one by name;
* `own/`: questions of your own, from files;
* `formats/`: how questions become batches, and how a model gives answer logits;
* `models.py`: a base model with LoRA; `adapters.py`, `locating.py`, `hardware.py`: its parts;
* `needs.py`: what a model needs, checked before it is downloaded; `standin.py`: random Llamas for smoke and timing;
* `accessors.py`: the tokenizer and the description that are kept with a model.
"""

from .accessors import description_of, evaluating, tokenizer_of
from .adapters import LoraSettings, default_targets
from .formats import (
    FORMATS,
    Format,
    answer_logits,
    answer_loss,
    check_askable,
    collate,
    format_named,
    known_exact,
    precision,
    token_ids,
)
from .hardware import DTYPES
from .locating import EMBEDDED, HUB_ID, embedded_file
from .models import load_model
from .needs import GIB, Memory, check_model, memory_of
from .own import columns_like, read_stems
from .questions import LETTERS, Question, Task, letter_prompt
from .sources import OWN_FORM, TASKS
from .standin import LLAMA_2_7B, TINY, random_llama
from .tasks import full_name, is_own, load_task, name_in_record
