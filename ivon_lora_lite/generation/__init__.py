"""Text with a posterior: one continuation per draw, what they agree on, and how unsure each token is.

* `texts.py`: :func:`generate`, one text per draw, and their consensus;
* `tokens.py`: entropy and mutual information of every token of a given continuation.
"""

from .texts import Generated as Generated, consensus as consensus, generate as generate, word_f1 as word_f1
from .tokens import TokenUncertainty as TokenUncertainty, token_uncertainty as token_uncertainty
