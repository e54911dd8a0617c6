"""Bridges to other libraries: one file each, imported only by who wants it, each behind an optional extra."""
