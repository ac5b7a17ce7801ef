"""The public surface: what is exported, and that examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import recipes
import recipes.testing

PUBLIC_MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(recipes.__path__, "recipes.")
    if not module.name.startswith("recipes.ctl")
)


def test_all_is_sorted_and_every_name_exists() -> None:
    assert recipes.__all__ == sorted(recipes.__all__)
    for name in recipes.__all__:
        assert getattr(recipes, name) is not None, name
    assert set(recipes.__all__) == set(recipes._MODULES)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = recipes.nonsense


def test_everything_exported_is_documented() -> None:
    for name in recipes.__all__:
        exported = getattr(recipes, name)
        assert inspect.getdoc(exported), name
        if not inspect.isclass(exported) or issubclass(exported, Exception):
            continue
        for attribute, value in vars(exported).items():
            if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{attribute}"


def test_testing_surface() -> None:
    assert recipes.testing.__all__ == sorted(recipes.testing.__all__)
    assert all(hasattr(recipes.testing, name) for name in recipes.testing.__all__)


def test_every_error_is_a_recipe_error_with_a_way_to_travel() -> None:
    import pickle

    from recipes import errors

    found = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    ]
    assert len(found) > 10
    for error in found:
        assert issubclass(error, errors.RecipeError)
    for sample in (
        errors.ClientError(14, "x"),
        errors.UnavailableError("x"),
        errors.DeadlineExceededError("x"),
        errors.OutcomeUnknownError(14, "x"),
        errors.CompactedError(),
        errors.LeaseNotFoundError(),
    ):
        copy = pickle.loads(pickle.dumps(sample))
        assert (type(copy), copy.code, copy.message) == (type(sample), sample.code, sample.message)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_docstring_examples(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0
