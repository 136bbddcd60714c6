"""``python -m flmm_plugin.adapters.vlmevalkit``, and under ``torchrun -m``: the same as ``flmm-vlmeval``."""

import sys

from flmm_plugin.adapters.vlmevalkit.command import main

if __name__ == "__main__":
    sys.exit(main())
