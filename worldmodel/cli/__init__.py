"""Command-line programs, one module per command.

Each module has a function ``main`` that reads the command line, calls the library and prints a short table of results
and the paths of what it wrote. Only this package prints, and nothing else imports it: a program is options and text,
and everything it computes is also available as a library call. The files in ``scripts/`` call these modules.

Example:
    >>> import argparse
    >>> from worldmodel.cli.options import add_fields, read_fields
    >>> from worldmodel.agents import OpenAIESConfig
    >>> parser = argparse.ArgumentParser()
    >>> add_fields(parser, OpenAIESConfig)
    >>> arguments = parser.parse_args(["--learning-rate", "0.1"])
    >>> OpenAIESConfig(**read_fields(arguments, OpenAIESConfig)).learning_rate
    0.1
"""
