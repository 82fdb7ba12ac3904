"""What every test goes by."""

from __future__ import annotations

from hypothesis import settings

# A loaded machine is no failure: what must be fast is measured in bench/.
settings.register_profile("qanat", deadline=None)
settings.load_profile("qanat")
