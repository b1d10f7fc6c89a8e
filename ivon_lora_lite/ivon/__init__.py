"""IVON: an optimizer of a Gaussian over any torch model's weights. It knows nothing of language models.

* `equations.py`: the three updates (momentum, Hessian, mean), in the order of the equations at its head;
* `optimizer.py`: :class:`IVON`, which draws weights, pairs gradients with their draw, and takes steps;
* `draws.py`, `state.py`: draws put into the parameters, and the Gaussian in the optimizer's state;
* `finite.py`, `averages.py`, `ranks.py`: gradients that are not finite, several draws a step, several processes;
* `watch.py`: gradients that did not come from the draw;
* `lists.py`: lists of tensors that one operation works on;
* `diagnostics.py`: whether the posterior is healthy, in a few numbers.
"""

from .diagnostics import advice as advice, advice_by_topic as advice_by_topic, ivon_diagnostics as ivon_diagnostics
from .optimizer import IVON as IVON
from .ranks import average_over_ranks as average_over_ranks
