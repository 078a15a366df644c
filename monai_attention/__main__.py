"""`python -m monai_attention` is the command `monai-attention`."""

import sys

from monai_attention.cli import main

sys.exit(main())
