"""What the libraries of models print and raise: kept off the terminal, and said in a line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: Exception) -> str:
    """Returns the error's own words on one line, shortened; its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps bars, reports and deprecations of transformers off the terminal; what matters in them is checked here."""
    from transformers.utils import logging  # takes seconds to load

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # libraries warn of each other, which no user can mend
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
