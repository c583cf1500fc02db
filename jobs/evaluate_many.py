"""Score every learned word of an output: reconstruction, editability, and references.

    ray job submit --working-dir . -- python jobs/evaluate_many.py s3://.../results --protocol dreambench

The same as `textinv evaluate`; `--help` lists the options.
"""

from __future__ import annotations

import sys
from pathlib import Path

# In a submitted job the package lies beside this folder, and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from textinv_ray.cli.jobs import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
