"""For notebooks and scripts: the same jobs as the commands', with results that show themselves.

`textinv_ray.learn` and `textinv_ray.open_results` are the functions to call.
"""

import os
import warnings

from textinv_ray.service.driver.environment import quiet

# Before libraries are imported: some read their settings, and warn, then.
quiet()
for _name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in a notebook without ipywidgets
