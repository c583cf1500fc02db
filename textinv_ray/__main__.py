"""`python -m textinv_ray`: the `textinv` command."""

from textinv_ray.cli import main

main()
