"""Adapters to other libraries. Each is one module that needs an optional extra; import it explicitly."""
