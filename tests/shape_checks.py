"""The run-time type checker of the tests: jaxtyping's shapes through beartype, ints being floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
