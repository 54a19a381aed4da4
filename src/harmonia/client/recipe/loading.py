"""Finding the function that a recipe begins with, in a file or a folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from harmonia.client.recipe.config import InputConfig
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.recipe.entry import is_recipe_main
from harmonia.errors import InvalidRequestError

RecipeFunction = Callable[..., Any]

_PREFIX = "_adhoc_recipe_"
_WAS_THERE = "__modules_before__"


@dataclass(frozen=True)
class Recipe:
    """A function marked by `@recipe_main`, and what it wants to be called with."""

    function: RecipeFunction
    name: str
    """The file or folder that it comes from, or its own name."""
    config_parameter: str | None = None
    config_class: type[InputConfig] | None = None
    """The class of its input; None if it takes none."""
    context_parameter: str | None = None

    @classmethod
    def of(cls, function: RecipeFunction, name: str | None = None) -> Self:
        """What a function wants, by its annotations.

        InvalidRequestError for a parameter that nobody would fill: one that has no default and is neither a
        `RecipeContext` nor an `InputConfig`, or a second one of the same; and for a function that yields.
        """
        _check_returns(function)
        found: dict[type, tuple[str, type]] = {}
        hints = _hints(function)
        for parameter in inspect.signature(function).parameters.values():
            hint = hints.get(parameter.name)
            role = next(
                (r for r in (RecipeContext, InputConfig) if isinstance(hint, type) and issubclass(hint, r)), None
            )
            if role is None:
                _check_optional(function, parameter)
            elif role in found:
                raise InvalidRequestError(
                    f"{function.__name__}() has two parameters for a {role.__name__}: '{found[role][0]}' and "
                    f"'{parameter.name}'; leave one of each"
                )
            else:
                found[role] = (parameter.name, typing.cast("type", hint))
        config_parameter, config_class = found.get(InputConfig, (None, None))
        context_parameter, _ = found.get(RecipeContext, (None, None))
        return cls(function, name or function.__name__, config_parameter, config_class, context_parameter)

    async def __call__(self, context: RecipeContext | None, config: InputConfig | None) -> Any:
        """Call the function with those of the two that it wants."""
        bound = self.bound(context, config)
        result = self.function(*bound.args, **bound.kwargs)
        return await result if inspect.isawaitable(result) else result

    def bound(self, context: RecipeContext | None, config: InputConfig | None) -> inspect.BoundArguments:
        """The arguments of a call, in the order of the parameters."""
        signature = inspect.signature(self.function)
        values = {self.config_parameter: config, self.context_parameter: context}
        named = {name: values[name] for name in signature.parameters if name in values}
        bound = signature.bind_partial()
        bound.arguments.update(named)
        return bound


def load_recipe(path: Path | str, entrypoint: str = "main.py") -> Recipe:
    """Import a recipe: a file, or a folder with an `entrypoint`.

    Inside it both `from .sibling import x` and `import sibling` work, the latter also for what is in `src/`. One recipe
    at a time: what an earlier one imported from its folder is forgotten, so that a changed recipe is read anew.
    InvalidRequestError where there is no such file, it cannot be imported, or it has no `@recipe_main` or several.
    """
    module = import_recipe(path, entrypoint)
    functions = recipe_functions(module)
    file = module.__file__
    if not functions:
        raise InvalidRequestError(f"{file} has no @recipe_main; put it above the function that the recipe begins with")
    if len(functions) > 1:
        names = ", ".join(f"{function.__name__}()" for function in functions)
        raise InvalidRequestError(f"{file} has {len(functions)} functions with @recipe_main: {names}; leave it on one")
    return Recipe.of(functions[0], str(path))


def recipe_functions(module: ModuleType) -> list[RecipeFunction]:
    """The functions of a module with `@recipe_main`; imported ones count only if it defines none itself."""
    marked = list({id(value): value for value in vars(module).values() if is_recipe_main(value)}.values())
    own = [function for function in marked if function.__module__ == module.__name__]
    return own or marked


def import_recipe(path: Path | str, entrypoint: str = "main.py") -> ModuleType:
    """The module of a recipe, inside a package made up for its folder."""
    given = Path(path).expanduser().resolve()
    file = given / entrypoint if given.is_dir() else given
    if not file.is_file():
        remedy = f"its folder needs a file {entrypoint}" if given.is_dir() else "give a .py file or a folder"
        raise InvalidRequestError(f"there is no recipe {file}; {remedy}")
    root = given if given.is_dir() else given.parent
    _forget_recipes()
    try:
        return _import(_package(root, run_init=given.is_dir()), file)
    except (ImportError, SyntaxError) as error:
        raise InvalidRequestError(f"recipe {file} cannot be imported: {type(error).__name__}: {error}") from error
    except SystemExit as error:
        raise InvalidRequestError(
            f"recipe {file} ends the program while it is imported (exit code {error.code!r}); whatever shall run "
            "belongs into the function with @recipe_main"
        ) from error


def _package(root: Path, *, run_init: bool) -> ModuleType:
    """An importable package for a folder, which also comes first where modules are looked for."""
    before = _modules_below(root)
    sys.path[:0] = [str(folder) for folder in (root, root / "src") if folder.is_dir()]
    importlib.invalidate_caches()
    name = _PREFIX + hashlib.sha256(str(root).encode()).hexdigest()[:16]
    init = root / "__init__.py"
    if run_init and init.is_file():
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(root)])
        assert spec and spec.loader
        package = importlib.util.module_from_spec(spec)
    else:
        spec, package = None, ModuleType(name)
        package.__path__ = [str(root)]
    setattr(package, _WAS_THERE, before)
    sys.modules[name] = package
    if spec and spec.loader:
        spec.loader.exec_module(package)
    return package


def _import(package: ModuleType, file: Path) -> ModuleType:
    """Import the file as a module of the package; folders between the two are packages as well."""
    between = file.parent.relative_to(package.__path__[0]).parts
    parent = ".".join([package.__name__, *between])
    importlib.import_module(parent)
    spec = importlib.util.spec_from_file_location(f"{parent}.{file.stem.replace('.', '_')}", file)
    if spec is None or spec.loader is None:
        raise InvalidRequestError(f"{file} is no Python file; a recipe's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _forget_recipes() -> None:
    """Undo what importing earlier recipes did to `sys.modules` and `sys.path`."""
    packages = [module for name, module in sys.modules.items() if name.startswith(_PREFIX) and "." not in name]
    for package in packages:
        root, before = Path(package.__path__[0]), getattr(package, _WAS_THERE)
        for name in _modules_below(root) - before:
            del sys.modules[name]
        sys.modules.pop(package.__name__, None)
        for folder in (str(root), str(root / "src")):
            if folder in sys.path:
                sys.path.remove(folder)


def _modules_below(folder: Path) -> set[str]:
    """Names of the imported modules whose files are in a folder."""
    start = f"{folder}{os.sep}"
    files = ((name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items()))
    return {name for name, file in files if isinstance(file, str) and file.startswith(start)}


def _hints(function: RecipeFunction) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError, SyntaxError) as error:
        raise InvalidRequestError(
            f"an annotation of {function.__name__}() cannot be resolved: {error}; import what it names at the top of "
            "the file, not under TYPE_CHECKING"
        ) from error


def _check_returns(function: RecipeFunction) -> None:
    if not hasattr(function, "__name__"):
        raise InvalidRequestError(f"@recipe_main belongs above a function, not on {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidRequestError(f"{function.__name__}() has a `yield`, so calling it runs nothing; use `return`")


def _check_optional(function: RecipeFunction, parameter: inspect.Parameter) -> None:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic:
        raise InvalidRequestError(
            f"nothing fills parameter '{parameter.name}' of {function.__name__}(): annotate it with RecipeContext or a "
            "subclass of InputConfig, or give it a default"
        )
