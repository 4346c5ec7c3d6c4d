"""Estimators for scikit-learn: nets of dense layers with `fit`, `predict`, pipelines and searches.

This module imports scikit-learn, an extra; `chainrule.ChainruleClassifier` imports it when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.given import is_int
from chainrule.nn import Dense, Dropout, Sequential
from chainrule.nn.numbers import check_int
from chainrule.nn.optim import Optimizer
from chainrule.nn.optim import get as optimizer_of
from chainrule.train.callbacks import EarlyStopping
from chainrule.train.model import Model

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as missing:
    raise CompileError(
        "scikit-learn 1.6 or later is not installed", "pip install 'chainrule[sklearn]'"
    ) from missing

Array = np.ndarray[Any, Any]


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share; parameters are those of their constructors, as they were given.

    `hidden_layer_sizes` are the widths of the dense layers before the last, `activation` theirs,
    `dropout` the rate after each. `optimizer` is a name or one of `cr.optim`; a name may be given
    a `learning_rate`. `early_stopping` holds out `validation_fraction` of the rows, and ends
    training when their loss has not got better for `n_iter_no_change` epochs. `random_state` seeds
    everything. Weights of rows are for `cr.Model.fit`: scikit-learn asks that a row which weighs
    twice be one that stands twice, which no training by minibatches gives.
    """

    _loss = ""

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        dropout: float = 0.0,
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        batch_size: int = 32,
        epochs: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: Any = 0,
        threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.threads = threads
        self.verbose = verbose

    def _make(self, outputs: int) -> Model:
        """A model that has not seen data."""
        layers: list[Any] = []
        for width in np.atleast_1d(self.hidden_layer_sizes):
            layers.append(Dense(width, self.activation))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        rule = optimizer_of(self.optimizer)
        if self.learning_rate is not None:
            if not isinstance(self.optimizer, str):
                raise CompileError("learning_rate is for an optimizer given by name")
            rule = type(rule)(self.learning_rate)
        seed = self.random_state
        if not is_int(seed):
            seed = check_random_state(seed).randint(2**31)
        net = Sequential([*layers, Dense(outputs)])
        return Model(net, self._loss, rule, seed=int(seed), threads=self.threads)

    def _train(self, x: Array, y: Array, outputs: int) -> None:
        check_int("epochs", self.epochs, least=1)
        self._mean, self._spread = _centre(x)
        self.model_ = self._make(outputs)
        hooks = []
        if self.early_stopping:
            hooks = [EarlyStopping(patience=self.n_iter_no_change, restore_best_weights=True)]
        history = self.model_.fit(
            self._scaled(x),
            y,
            epochs=self.epochs,
            batch_size=self.batch_size,
            validation_split=self.validation_fraction if self.early_stopping else 0.0,
            callbacks=hooks,
            verbose=self.verbose,
        )
        self.loss_curve_ = history.history["loss"]
        self.n_iter_ = len(self.loss_curve_)

    def _scaled(self, x: Array) -> Array:
        scaled: Array = ((x - self._mean) / self._spread).astype(np.float32)
        return scaled

    def _outputs(self, x: Any) -> Array:
        check_is_fitted(self, "model_")
        x = validate_data(self, x, dtype=np.float64, reset=False)
        outputs: Array = self.model_.predict(self._scaled(x))
        return outputs

    def _checked(self, x: Any, y: Any, **options: Any) -> tuple[Array, Array]:
        x, y = validate_data(self, x, y, dtype=np.float64, **options)
        return x, y


def _centre(x: Array) -> tuple[Array, Array]:
    """Mean and deviation of each column, 1 for one that never changes: nets like numbers near 1.

    Squares are of numbers of size 1, for very large and very small ones have none.
    """
    unit = np.exp2(np.frexp(np.abs(x).max(axis=0))[1] - 1)  # a power of 2, so that nothing rounds
    spread = (x / unit).std(axis=0) * unit
    return x.mean(axis=0), np.where(spread > 0, spread, 1.0)


class ChainruleClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A net of dense layers that tells classes apart, as scikit-learn's classifiers are used.

        pipeline = make_pipeline(PCA(32), cr.ChainruleClassifier(hidden_layer_sizes=(64, 64)))

    Features are centred and scaled by what `fit` sees. `classes_`, `n_iter_`, `loss_curve_` and
    `model_`, the `cr.Model`, are there after it.
    """

    _loss = "cross_entropy"

    def fit(self, X: Any, y: Any) -> ChainruleClassifier:
        """Train on rows of features and their classes, which may be any labels."""
        x, y = self._checked(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, but the data has one class"
            )
        self._train(x, codes.astype(np.int32), len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, in the order of `classes_`."""
        z = self._outputs(X).astype(np.float64)
        powers = np.exp(z - z.max(axis=1, keepdims=True))
        probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> Array:
        """The likeliest class of each row."""
        outputs = self._outputs(X)
        labels: Array = self.classes_[outputs.argmax(axis=1)]
        return labels


class ChainruleRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A net of dense layers that fits a number, or several, as scikit-learn's regressors are used.

    Features and targets are centred and scaled by what `fit` sees; the loss is the mean squared
    error. `n_iter_`, `loss_curve_` and `model_`, the `cr.Model`, are there after it.
    """

    _loss = "mse"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> ChainruleRegressor:
        """Train on rows of features and their targets, one number or several a row."""
        x, y = self._checked(X, y, multi_output=True, y_numeric=True)
        self._one = y.ndim == 1
        targets = y.reshape(len(y), -1).astype(np.float64)
        self._target_mean, self._target_spread = _centre(targets)
        scaled = ((targets - self._target_mean) / self._target_spread).astype(np.float32)
        self._train(x, scaled, scaled.shape[1])
        return self

    def predict(self, X: Any) -> Array:
        """The targets of each row."""
        outputs = self._outputs(X).astype(np.float64) * self._target_spread + self._target_mean
        predicted: Array = outputs[:, 0] if self._one else outputs
        return predicted
