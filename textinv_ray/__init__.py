"""textinv_ray: textual inversion as a batch service on Ray."""

__version__ = "0.1.0"
