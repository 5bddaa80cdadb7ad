"""``make packages``: the wheel, a Debian package, an image and lists of what is in them, in ``dist/``.

`release` knows the version and the moment of a build, `environment` installs the product as both packages contain it,
`debian` and `image` make them, `manual` writes man pages and completions, `licences` says who wrote what. Two builds of
one commit with the same libraries give the same files: docs/decisions/packages.md says how.
"""
