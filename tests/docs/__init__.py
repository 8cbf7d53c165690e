"""The documentation: links, examples that are executed, the CI workflow."""
