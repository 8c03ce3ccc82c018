"""Puts the repository's root on the import path, before folders of tests that are named like packages."""

import os

# Triangles solve thousands of systems of two unknowns: on a busy machine threads of linear algebra only wait for each
# other, a hundred times as long as the work takes. Read when numpy is imported, which is later.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
