"""A site whose ledger has small files; Python loads this on its path.

WARDROUND_TEST_PART is how many bytes fill one.
"""

import os
import sys

_BYTES = os.environ.get("WARDROUND_TEST_PART", "")

if _BYTES and {"join", "ledger"} & set(sys.orig_argv):
    from wardround.client.node import ledger

    ledger.PART_BYTES = int(_BYTES)
