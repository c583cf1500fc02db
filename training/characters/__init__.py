"""The world of the mini model: cartoon characters drawn by DiceBear, with exact captions.

A *style* (`styles.py`) is a drawing style with its parts. An *identity* (`identities.py`) is a
character: a style, fixed parts and fixed colours. A *view* (`views.py`) is how one image shows it:
background, pose, expression, an added accessory. A *row* is a dict of an identity and a view, and
is all that `captions.py` needs to describe the image. `build.py` draws the data set.
"""
