"""What the outputs of a network mean: loss, square root of its Hessian, and checks of the targets."""

from .base import Likelihood
from .categorical import Categorical
from .elementwise import Bernoulli, Gaussian, Heteroscedastic
from .known import likelihood

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Heteroscedastic", "Likelihood", "likelihood"]
