"""Compare variants of textual inversion, or numbers of training images, on the concepts of a manifest.

    ray job submit --working-dir . -- python jobs/ablate.py s3://.../manifest.parquet --config sd15 --output s3://...

The same as `textinv ablate`; `--help` lists the options.
"""

from __future__ import annotations

import sys
from pathlib import Path

# In a submitted job the package lies beside this folder, and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from textinv_ray.cli.jobs import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])
