"""Language models and their questions: tasks, answer formats, base models with LoRA.

* `questions.py`, `sources.py`, `tasks.py`: what a question is, the known data sets, and loading one by name;
* `own/`: questions of your own, from files;
* `formats/`: how questions become batches, and how a model gives answer logits;
* `models.py`: a base model with LoRA; `adapters.py`, `locating.py`, `hardware.py`: its parts; `fresh.py`: where LoRA
  starts;
* `needs.py`: what a model needs, checked before it is downloaded; `standin.py`: random Llamas for smoke and timing;
* `accessors.py`: the tokenizer and the description that are kept with a model.
"""

from .accessors import description_of as description_of, evaluating as evaluating, tokenizer_of as tokenizer_of
from .adapters import LoraSettings as LoraSettings, default_targets as default_targets
from .formats import (
    FORMATS as FORMATS,
    Format as Format,
    answer_logits as answer_logits,
    answer_loss as answer_loss,
    check_askable as check_askable,
    collate as collate,
    format_named as format_named,
    known_exact as known_exact,
    precision as precision,
    token_ids as token_ids,
)
from .fresh import changes_base as changes_base, reset_lora as reset_lora
from .hardware import DTYPES as DTYPES
from .locating import EMBEDDED as EMBEDDED, HUB_ID as HUB_ID, embedded_file as embedded_file
from .models import load_model as load_model
from .needs import GIB as GIB, Memory as Memory, check_model as check_model, memory_of as memory_of
from .own import columns_like as columns_like, read_stems as read_stems
from .questions import LETTERS as LETTERS, Question as Question, Task as Task, letter_prompt as letter_prompt
from .sources import OWN_FORM as OWN_FORM, TASKS as TASKS
from .standin import LLAMA_2_7B as LLAMA_2_7B, TINY as TINY, random_llama as random_llama
from .tasks import full_name as full_name, is_own as is_own, load_task as load_task, name_in_record as name_in_record
