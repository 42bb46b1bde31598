"""For all tests: the shapes and types that functions of robustft are annotated with are checked at run time."""

import os

from jaxtyping import install_import_hook

# The tower: an int is welcome where a float is.
install_import_hook("robustft", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

os.environ.pop("COLUMNS", None)  # tables are as wide as tests ask for, whoever runs them
