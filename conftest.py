"""Puts the repository's root on the import path, before folders of tests that are named like packages."""
