"""From a manifest row to a concept that can be learned: defaults, images, templates, fingerprints."""
