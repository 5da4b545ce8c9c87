"""The run-time type checker of the tests: jaxtyping's shapes by beartype; an int is a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
