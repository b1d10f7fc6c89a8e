"""IVON-LoRA for learning, teaching and use: variational finetuning of language models with LoRA.

The public names are listed in `__init__.pyi` and loaded when they are first used, so ``import ivon_lora_lite`` is quick
and pulls in neither transformers nor anything of Jupyter, plotly or bitsandbytes. The rooms, each standing on those
before it: `ivon/ posterior/ language/ evaluation/ plots/ training/ methods/ gates/ studies/ cli/`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.2.0"
