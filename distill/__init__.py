"""Core of distill: hierarchy, losses, targets, views, data sources, metrics and errors.

Imports nothing, so that `import distill` and `distill --help` cost nothing.
"""
