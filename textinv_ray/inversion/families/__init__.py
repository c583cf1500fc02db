"""Families of text-to-image models behind one protocol, `Backbone`: a small file for each."""
