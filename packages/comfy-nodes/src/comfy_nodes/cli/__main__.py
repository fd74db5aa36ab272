"""Run the command as `python -m comfy_nodes.cli`."""

import sys

from comfy_nodes.cli._main import main

sys.exit(main())
