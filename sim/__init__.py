"""Everything that lives in simulated time."""

import models  # noqa: F401  (decides where compiled functions are kept, before any is defined)
