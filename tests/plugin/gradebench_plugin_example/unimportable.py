"""Broken on purpose: a plugin whose dependency is missing must not break `gradebench list`."""

import a_package_that_nobody_has

from gradebench import Estimator


class Unimportable(Estimator):
    """Never seen, as its module fails to import."""

    dependency = a_package_that_nobody_has
