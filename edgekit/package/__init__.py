"""Packages: what a developer drops into an app or a board, with its own proof."""
