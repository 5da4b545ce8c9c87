"""Commands on data sets and hierarchies."""
