"""For notebooks and scripts: the same jobs as the commands', with results that show themselves.

`textinv_ray.learn` and `textinv_ray.open_results` are the functions to call.
"""

from textinv_ray.service.driver.environment import quiet

quiet()  # before libraries are imported: some read their settings then
