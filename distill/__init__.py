"""Core of distill: hierarchy, data, targets, losses, curation, the wire protocol, the CLI.

Imports nothing, so that `import distill` and `distill --help` cost nothing.
"""
