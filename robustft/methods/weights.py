"""Arithmetic on the weights of models of one architecture: what WiSE-FT and soups are made of."""

from copy import deepcopy

from torch import Tensor

from robustft.models.classifier import Classifier

State = dict[str, Tensor]


def add(total: State, model: Classifier, weight: float = 1.0) -> State:
    """``total`` + ``weight`` · the model's weights, head included, in float64; an empty ``total`` is zero.

    Float64 holds float32 numbers exactly, and sums of a few of them all but exactly. What has no weight adds nothing,
    not even the sign of a zero, so that a mean of one model is that model bit for bit.
    """
    if weight == 0:
        return total
    terms = {name: value.double() * weight for name, value in model.state_dict().items()}
    return {name: total[name] + term for name, term in terms.items()} if total else terms


def with_weights(like: Classifier, total: State, count: int = 1) -> Classifier:
    """A twin of ``like`` with the weights ``total`` / ``count``, rounded to float32 once.

    Where it has a text tower, its head is made of that.
    """
    twin = deepcopy(like)
    twin.load_state_dict({name: value / count for name, value in total.items()})
    twin.renew_head()
    return twin
