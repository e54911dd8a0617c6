"""Adapters to other libraries: one module and one optional extra each. Import them explicitly."""
