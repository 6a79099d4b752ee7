"""What a user did wrong, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    The command line prints it and exits with code 2; nothing has been written by then.
    """


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require(what: str, extra: str, *modules: str) -> None:
    """Say that something will need packages before the work begins, not after it.

    Raises:
        UserError: the package of one of these modules, in the extra `ece-edit[extra]`, is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _lacking(what, module, extra)


@contextmanager
def requiring(what: str, extra: str) -> Iterator[None]:
    """While this lasts, what cannot be imported is said to be in an extra.

    Raises:
        UserError: an import failed.
    """
    try:
        yield
    except ImportError as error:
        raise _lacking(what, error.name or reason_of(error), extra) from error


def _lacking(what: str, module: str, extra: str) -> UserError:
    return UserError(f"{what} needs {module}; run: pip install 'ece-edit[{extra}]'")


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to say about a name that is not known: the nearest one that is, or `otherwise` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
