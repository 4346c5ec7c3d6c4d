"""The estimators, held to scikit-learn's own checks; and used as they are."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["ChainruleClassifier", "ChainruleRegressor"])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_layer_sizes": (), "epochs": 25, "learning_rate": 0.02},
        pytest.param({}, marks=pytest.mark.long),
    ],
)
def test_scikit_learns_own_checks(kind: str, options: dict[str, Any]) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    estimator = getattr(cr, kind)(threads=1, **options)
    results = check_estimator(estimator, on_fail=None)
    wrong = [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]
    assert not wrong
    assert sum(r["status"] == "passed" for r in results) > 40


def test_digits_in_a_pipeline() -> None:
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    data = cr.datasets.digits()
    names = np.array([f"digit {i}" for i in range(10)])
    net = cr.ChainruleClassifier(epochs=8, threads=1, random_state=3)
    search = GridSearchCV(
        make_pipeline(PCA(40), net),
        {"chainruleclassifier__hidden_layer_sizes": [(4,), (64,)]},
        cv=2,
    )
    search.fit(data.x_train, names[data.y_train])
    assert search.best_params_["chainruleclassifier__hidden_layer_sizes"] == (64,)
    assert search.score(data.x_test, names[data.y_test]) > 0.9


def test_several_targets_early_stopping_and_pickle() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 4))
    y = np.stack([x[:, 0] * 3 + 1, x[:, 1] - x[:, 2]], axis=1)
    net = cr.ChainruleRegressor(
        hidden_layer_sizes=(), epochs=300, early_stopping=True, learning_rate=0.02, threads=1
    ).fit(x, y)
    assert net.n_iter_ < 300  # it is linear, and learned long before
    np.testing.assert_allclose(net.predict(x), y, atol=0.05)  # Adam hovers around the minimum
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again.predict(x), net.predict(x))


def test_scikit_learn_is_not_imported_unasked() -> None:
    program = "import sys, chainrule; assert 'sklearn' not in sys.modules"
    path = f"{ROOT / 'compiler'}:{ROOT / 'runtime'}"
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=True)


def test_what_is_none() -> None:
    with pytest.raises(AttributeError, match="ChainruleThing"):
        _ = cr.ChainruleThing
    with pytest.raises(cr.errors.CompileError, match="by name"):
        cr.ChainruleRegressor(optimizer=cr.optim.SGD(0.1), learning_rate=1.0).fit(
            [[1], [2]], [1, 2]
        )


def test_numbers_that_make_no_net() -> None:
    x, y = np.random.default_rng(1).normal(size=(20, 3)), np.arange(20) % 2
    for options, text in [
        ({"epochs": 0}, "epochs is an int from 1"),
        ({"hidden_layer_sizes": (3.7,)}, "units is an int"),
        ({"hidden_layer_sizes": ("a",)}, "units is an int"),
    ]:
        with pytest.raises(cr.errors.ChainruleError, match=text):
            cr.ChainruleClassifier(threads=1, **options).fit(x, y)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_numbers_does_not_matter(size: float) -> None:
    """A power of 2 changes no digit, however large: squares of 1e200 or 1e-200 are no numbers."""
    size = 2.0 ** round(np.log2(size))
    x = np.random.default_rng(1).normal(size=(40, 3))
    net = cr.ChainruleRegressor(hidden_layer_sizes=(4,), epochs=3, threads=1)
    plain = net.fit(x, x[:, 0]).predict(x)
    scaled = net.fit(x * size, x[:, 0] * size).predict(x * size)
    np.testing.assert_array_equal(scaled / size, plain)
