"""Real servers, real processes: see ``servers``. Each folder says what kind of test it holds."""

import pytest

# Asked by the end-to-end tests and the fault suite as well, and what it says is to be read.
pytest.register_assert_rewrite("tests.unit.ledgers")
