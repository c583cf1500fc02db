"""Draw pictures with learned words, of a table of prompts.

    ray job submit --working-dir . -- python jobs/generate_many.py prompts.parquet --words s3://.../results

The same as `textinv generate-many`; `--help` lists the options.
"""

from __future__ import annotations

import sys
from pathlib import Path

# In a submitted job the package lies beside this folder, and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from textinv_ray.cli.jobs import main

if __name__ == "__main__":
    main(["generate-many", *sys.argv[1:]])
